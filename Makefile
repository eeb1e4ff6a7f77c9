# make         run the notebooks; what they make goes to the folder output/, and nothing else changes
# make store   run them in place: their outputs, the weights and the figures are stored where git sees them
# make lab     open them in JupyterLab                    make app    serve the page to draw on
# make test    prove the notebooks and everything else
# make study   train what the study lacks, measure all of it (hours without its results; PROCESSES=4 where
#              there are as many cores, and 16 GB of memory), and store the report study/evidence.ipynb
# make bench   measure the speed of training, exports and page, and how well handwriting is read
#              (more than half an hour; leave the machine alone meanwhile)
# make fuzz    mutate every kind of file for SECONDS each (default 10), and see what is read
# make faults  kill a training a hundred times, and the page while two hundred people draw (ten minutes)
# make lock    write the versions of all packages to constraints.txt, after a change of pyproject.toml
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
SECONDS ?= 10
NOTEBOOKS := workspace.ipynb playground.ipynb study/evidence.ipynb
export PYTHONPATH := .

.PHONY: run store test bench study fuzz faults lab app lock

run: $(READY)
	$(BIN)/python tests/run_notebooks.py --output output $(NOTEBOOKS)

store: $(READY)
	$(BIN)/python tests/run_notebooks.py $(NOTEBOOKS)

# The notebooks first, because training uses all cores; then the other tests, a file at a time in each of two processes.
test: $(READY)
	$(BIN)/python -m pytest --durations=10 $(NOTEBOOKS) tests/test_made.py
	$(BIN)/python -m pytest --durations=10 --numprocesses 2 --dist loadfile --ignore tests/test_made.py tests

bench: $(READY)
	$(BIN)/python tests/benchmark.py
	$(BIN)/python tests/benchmark_inference.py
	$(BIN)/python tests/benchmark_page.py
	$(BIN)/python tests/benchmark_handwriting.py
	$(BIN)/python tests/benchmark_numbers.py

study: $(READY)
	$(BIN)/python -m mnist.study --processes $(PROCESSES)
	$(BIN)/python tests/run_notebooks.py study/evidence.ipynb

fuzz: $(READY)
	$(BIN)/python tests/fuzz.py --seconds $(SECONDS)

faults: $(READY)
	$(BIN)/python tests/faults.py

lab: $(READY)
	$(BIN)/python -m jupyterlab workspace.ipynb

app: $(READY)
	$(BIN)/python -m app

lock: .venv/pip
	$(BIN)/python tests/lock.py

# Made anew only when the versions change, so all of the above works without a network.
$(READY): pyproject.toml constraints.txt | .venv/pip
	$(BIN)/python -m pip install --group workspace --constraint constraints.txt
	$(PYTHON) -c "open('$(READY)', 'w').close()"

.venv/pip:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed: make PYTHON=python3.12')"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check pip==26.3
	$(PYTHON) -c "open('.venv/pip', 'w').close()"
