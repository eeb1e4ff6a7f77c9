"""A hundred mutations of every kind of file; `make fuzz` goes on for as long as one likes."""

import random
from pathlib import Path

import pytest

from fuzz import Kind, fuzz, kinds
from mutation import mutated

NAMES = ["IDX", "gzip", "weights", "detector", "checkpoint", "export onnx", "export onnx-int8",
         "export torchscript", "export pt2", "export safetensors", "export html",
         "picture PNG", "picture JPEG", "picture GIF",
         "picture BMP", "picture TIFF", "picture WEBP", "study.json", ".env"]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Kind]:
    return kinds(tmp_path_factory.mktemp("kinds"))


def test_every_kind_is_here(made):
    assert list(made) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_mutated_files_are_refused_or_read_as_what_they_say(name, made, tmp_path, monkeypatch):
    for variable in ("DATABASE_URL", "POSTGRES_HOST", "APP_USER", "APP_PASSWORD", "MODEL_PATH"):
        monkeypatch.delenv(variable, raising=False)
    outcomes, _, faults = fuzz(made[name], tmp_path, 1, lambda number: number < 100)
    assert faults == [] and outcomes["refused"] + outcomes["read"] == 100 and outcomes["refused"] > 5


def test_a_fault_is_found(tmp_path):
    """A reader that believes everything."""
    saved = b"what was saved"
    gullible = Kind(saved, "file", Path.read_bytes, ValueError, lambda result, data: result == saved)
    _, _, faults = fuzz(gullible, tmp_path, 0, lambda number: number < 10)
    assert len(faults) == 10 and "mutation 3 of seed 0: wrong" in faults


def test_a_mutation_is_never_the_same():
    rng = random.Random(0)
    assert all(mutated(b"abc", rng) != b"abc" for _ in range(2_000))
