"""What holds the project together: imports that run one way, versions that agree, code that ruff and mypy accept."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
CARD = {"torch", "torchvision", "numpy", "matplotlib", "scikit-learn", "tqdm", "torchinfo", "torchviz", "jupyterlab",
        "nbval", "ipywidgets"}


# the map in CONTRIBUTING.md

def levels() -> dict[str, int]:
    """Each module of the map, as Python names it, with its level."""
    rows = re.findall(r"^\| (\d) \| `([\w/.]+)` \|", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.M)
    return {path.removesuffix(".py").removesuffix("/").replace("/", "."): int(level) for level, path in rows}


def modules() -> dict[str, list[Path]]:
    """The files of each module on the map; a folder counts as one module."""
    package = {f"mnist.{path.stem}": [path] for path in (ROOT / "mnist").glob("*.py") if path.stem != "__init__"}
    top = {path.stem: [path] for path in ROOT.glob("*.py")}
    return package | top | {"app": sorted((ROOT / "app").glob("*.py"))}


def imported(path: Path) -> Iterator[str]:
    """The modules of this project that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names = [f"mnist.{alias.name}" for alias in node.names] if node.module == "mnist" else [node.module]
        yield from (name.split(".")[0] if name.startswith("app") else name for name in names
                    if name.split(".")[0] in ("mnist", "mnist_utils", "app", "run_model"))


def test_the_map_shows_every_module():
    assert levels().keys() == modules().keys()


def test_imports_run_downwards():
    level = levels()
    for module, paths in modules().items():
        for path in paths:
            for name in imported(path):
                assert name == module == "app" or level[name] < level[module], f"{path.name} imports {name}"


def test_the_drawing_of_imports_is_the_truth():
    below = {module: {name for path in paths for name in imported(path)} - {module}
             for module, paths in modules().items()}

    @cache
    def reached(module: str) -> frozenset[str]:
        return frozenset(below[module]).union(*map(reached, below[module]))

    direct = {(module, name) for module, names in below.items() for name in names
              if not any(name in reached(other) for other in names)}
    drawing = re.search(r"```mermaid\n(.+?)```", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.S)[1]
    drawn = set()
    for line in drawing.splitlines()[1:]:
        one, others = line.strip().split(" --> ")
        drawn |= {(one, other) for other in others.split(" & ")}
    names = {module: module.removeprefix("mnist.") for module in below}
    assert drawn == {(names[one], names[other]) for one, other in direct}


def test_importing_the_package_imports_nothing_else():
    program = """if True:
        import mnist, sys
        print("torch" in sys.modules)
        from mnist import MNIST_CNN
        print(MNIST_CNN.__module__)"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "False\nmnist.networks\n", done.stderr
    with pytest.raises(ImportError, match="nothing"):
        from mnist import nothing  # noqa: F401


def test_every_name_at_the_front_door_is_there():
    import mnist

    for name in mnist.__all__:
        assert getattr(mnist, name).__name__ == name


# versions

def pins() -> list[str]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["dependency-groups"]["workspace"]


def locked() -> dict[str, str]:
    """The versions in constraints.txt, by each package's canonical name."""
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    return {canonicalize_name(name): number for name, number in
            (line.split("==") for line in lines if not line.startswith("#"))}


def needed() -> set[str]:
    """The canonical names of all packages that the pins need on this system."""
    found, waiting = set(), [Requirement(pin) for pin in pins()]
    while waiting:
        requirement = waiting.pop()
        name, extras = canonicalize_name(requirement.name), requirement.extras or {""}
        if (name, *sorted(extras)) in found:
            continue
        found.add((name, *sorted(extras)))
        waiting += [one for one in map(Requirement, requires(name) or ())
                    if not one.marker or any(one.marker.evaluate({"extra": extra}) for extra in extras)]
    return {name for name, *_ in found}


def test_conda_and_pip_install_the_same_versions():
    environment = (ROOT / "environment.yml").read_text("utf-8")
    assert re.findall(r"^ +- (\S+==\S+)$", environment, re.M) == pins()
    assert "      - --constraint constraints.txt\n" in environment


def test_every_package_is_pinned_and_the_pins_are_what_is_tested():
    named = dict(pin.split("==") for pin in pins())
    assert named.keys() >= CARD
    assert {name: version(name).split("+")[0] for name in named} == named


def test_the_lock_has_the_pins_and_every_package_that_they_need():
    lock = locked()
    assert {canonicalize_name(name): number for name, number in (pin.split("==") for pin in pins())}.items() \
        <= lock.items(), "run `make lock` after a change of pyproject.toml"
    wrong = {name: (version(name), lock.get(name)) for name in needed()
             if version(name).split("+")[0] != lock.get(name)}
    if sys.platform == "linux":  # other systems need a few packages that `make lock` cannot see on Linux
        assert not wrong, "installed and locked versions differ: run `make lock`, or make .venv anew"
    assert not {name for name, (_, number) in wrong.items() if number}


def test_each_pin_says_what_it_is_for():
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    groups = tomllib.loads(text)["dependency-groups"].values()
    assert len(re.findall(r'^    "\S+==\S+", +# \S+', text, re.M)) == sum(map(len, groups))


# style and types

def test_ruff_accepts_code_and_notebooks():
    command = [sys.executable, "-m", "ruff", "check", "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_mypy_accepts_the_package():
    command = [sys.executable, "-m", "mypy"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
