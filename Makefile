# make         run both notebooks, top to bottom         make lab    open them in JupyterLab
# make test    prove both notebooks and everything else  make app    serve the page to draw on
# make study   train what the study of accuracy lacks, and measure all of it (some hours without its
#              weights; PROCESSES=4 where there are as many cores, and 16 GB of memory)
# make bench   measure how fast 99 % is reached, how fast the exports predict and the page answers,
#              how well handwriting is read (twenty minutes; leave the machine alone meanwhile)
# Another Python than python3: make PYTHON=python3.12

ifeq ($(OS),Windows_NT)
PYTHON ?= python
BIN := .venv/Scripts
else
PYTHON ?= python3
BIN := .venv/bin
endif
READY := .venv/ready
PROCESSES ?= 1
export PYTHONPATH := .

.PHONY: run test bench study lab app

run: $(READY)
	$(BIN)/python tests/run_notebooks.py workspace.ipynb playground.ipynb

test: $(READY)
	$(BIN)/python -m pytest --durations=10

bench: $(READY)
	$(BIN)/python tests/benchmark.py
	$(BIN)/python tests/benchmark_inference.py
	$(BIN)/python tests/benchmark_page.py
	$(BIN)/python tests/benchmark_handwriting.py

study: $(READY)
	$(BIN)/python mnist_study.py --processes $(PROCESSES)

lab: $(READY)
	$(BIN)/python -m jupyterlab workspace.ipynb

app: $(READY)
	$(BIN)/python -m app

# Made anew only when the pins change, so all of the above works without a network.
$(READY): pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed: make PYTHON=python3.12')"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check pip==26.3
	$(BIN)/python -m pip install --group workspace
	$(PYTHON) -c "open('$(READY)', 'w').close()"
