"""Data in: every byte of an IDX file is read as it should be, or refused."""

import gzip
import hashlib
import re
import shutil
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from torchvision.datasets import MNIST

from mnist_utils import (
    FILES,
    PUBLISHED,
    IDXError,
    batches,
    is_published,
    load_classes,
    load_split,
    load_training,
    mean_std,
    normalize,
    read_idx,
    write_idx,
)

settings.register_profile("steady", deadline=None)  # a busy machine is no failure
settings.load_profile("steady")

ROOT = Path(__file__).parents[1]
TRAIN_IMAGES, TRAIN_LABELS = (ROOT / "dataset" / name for name in FILES["train"])
DIGESTS = dict(re.findall(r"`(t\w+/\S+)` \| `([0-9a-f]{64})`", (ROOT / "dataset" / "README.md").read_text("utf-8")))
CODES = {">u1": 0x08, ">i1": 0x09, ">i2": 0x0B, ">i4": 0x0C, ">f4": 0x0D, ">f8": 0x0E}


def idx(array: np.ndarray) -> bytes:
    """The bytes of an IDX file, put together without the code under test."""
    big = array.astype(array.dtype.newbyteorder(">"))
    header = bytes([0, 0, CODES[">" + array.dtype.str[1:]], array.ndim])
    return header + b"".join(length.to_bytes(4, "big") for length in array.shape) + big.tobytes()


def read(data: bytes, folder: Path) -> np.ndarray:
    (folder / "file").write_bytes(data)
    return read_idx(folder / "file")


@pytest.fixture(scope="module")
def scratch(tmp_path_factory) -> Path:
    """One folder for all examples of a property."""
    return tmp_path_factory.mktemp("idx")


arrays = st.sampled_from(sorted(CODES)).flatmap(lambda code: st_numpy.arrays(
    np.dtype(code).newbyteorder("="), st_numpy.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4)))


# MNIST itself

def test_digests_are_stated_for_all_four_files():
    assert set(DIGESTS) == {*FILES["train"], *FILES["test"]} and DIGESTS == PUBLISHED


@pytest.mark.parametrize("name", DIGESTS)
def test_the_files_have_the_stated_digests(name):
    assert hashlib.sha256((ROOT / "dataset" / name).read_bytes()).hexdigest() == DIGESTS[name]


def test_the_published_files_are_known_gzipped_as_well_and_a_flipped_pixel_is_noticed(tmp_path):
    assert is_published(ROOT / "dataset")
    for name in PUBLISHED:
        data = (ROOT / "dataset" / name).read_bytes()
        (tmp_path / f"{Path(name).name}.gz").write_bytes(gzip.compress(data, 1))
    assert is_published(tmp_path)
    changed = bytearray((ROOT / "dataset" / FILES["test"][0]).read_bytes())
    changed[123_456] ^= 1
    (tmp_path / Path(FILES["test"][0]).name).write_bytes(changed)
    assert not is_published(tmp_path)


def test_both_splits_equal_what_torchvision_reads(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in DIGESTS:
        shutil.copy(ROOT / "dataset" / name, raw)
    for split in ("train", "test"):
        oracle = MNIST(tmp_path, train=split == "train")
        images, labels = load_split(split, ROOT / "dataset")
        assert images.dtype == labels.dtype == np.uint8
        np.testing.assert_array_equal(images, oracle.data)
        np.testing.assert_array_equal(labels, oracle.targets)


def test_reading_needs_no_second_copy():
    tracemalloc.start()
    images = read_idx(TRAIN_IMAGES)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.02 * images.nbytes


# read_idx on hand-made bytes

@pytest.mark.parametrize("data, expected", [
    ("00 00 08 01 00000003 00 7f ff", np.array([0, 127, 255], np.uint8)),
    ("00 00 09 01 00000003 00 7f ff", np.array([0, 127, -1], np.int8)),
    ("00 00 0b 01 00000002 0102 fffe", np.array([258, -2], np.int16)),
    ("00 00 0c 01 00000002 01020304 fffffffe", np.array([16909060, -2], np.int32)),
    ("00 00 0d 01 00000002 3f800000 c0200000", np.array([1, -2.5], np.float32)),
    ("00 00 0e 01 00000002 3ff0000000000000 c004000000000000", np.array([1, -2.5], np.float64)),
    ("00 00 08 00 2a", np.array(42, np.uint8)),
    ("00 00 0b 00 0100", np.array(256, np.int16)),
    ("00 00 08 02 00000002 00000003 010203 040506", np.array([[1, 2, 3], [4, 5, 6]], np.uint8)),
    ("00 00 08 03 00000001 00000002 00000001 0102", np.array([[[1], [2]]], np.uint8)),
    ("00 00 0c 01 00000000", np.empty(0, np.int32)),
    ("00 00 08 03 00000000 0000001c 0000001c", np.empty((0, 28, 28), np.uint8)),
])
@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["raw", "gzip"])
def test_reads_every_type_and_rank(data, expected, compress, tmp_path):
    array = read(compress(bytes.fromhex(data)), tmp_path)
    assert array.dtype == expected.dtype and array.dtype.isnative
    assert array.flags.writeable
    np.testing.assert_array_equal(array, expected, strict=True)


VALID = bytes.fromhex("00 00 08 02 00000002 00000003 010203 040506")


@pytest.mark.parametrize("data, fault", [
    (b"", "empty"),
    (b"\0", "not an IDX file"),
    (b"\0\0\x08", "not an IDX file"),
    (b"\x89PNG\r\n\x1a\n", "not an IDX file"),
    (b"\0\1" + VALID[2:], "not an IDX file"),
    (b"\0\0\x0a\1\0\0\0\0", "element type 0x0a"),
    (b"\0\0\0\0", "element type 0x00"),
    (VALID[:9], "truncated inside its header"),
    (VALID[:-1], "truncated"),
    (VALID + b"\0", "left over"),
    (VALID[:4] + b"\xff" * 8 + VALID[12:], "truncated or has a wrong header"),
    (b"\0\0\x08\x50" + bytes(4 * 80), "cannot hold"),  # 80 dimensions
    (b"\0\0\x08\3" + bytes(4) + b"\xff" * 8, "cannot hold"),  # none of something too large to index
], ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["raw", "gzip"])
def test_names_the_file_and_the_fault(data, fault, compress, tmp_path):
    with pytest.raises(IDXError, match=fault) as caught:
        read(compress(data), tmp_path)
    assert str(tmp_path / "file") in str(caught.value)


def test_a_header_too_large_is_found_before_anything_is_allocated(tmp_path):
    header = b"\0\0\x0e\1" + struct.pack(">I", 2**32 - 1)  # 32 GiB of doubles
    for data in (header, gzip.compress(header), gzip.compress(header + bytes(10_000))):
        tracemalloc.start()
        with pytest.raises(IDXError, match="truncated"):
            read(data, tmp_path)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 10**6


@pytest.mark.parametrize("damage", [
    lambda data: data[:-9], lambda data: data[:12], lambda data: data[:-5] + b"\0\1\2\3\4", lambda data: data + b"junk",
    lambda data: data[:2] + b"\xff" + data[3:], lambda data: data[:10] + b"\xff\xff" + data[12:],
])
def test_a_damaged_gzip_file_is_refused(damage, tmp_path):
    with pytest.raises(IDXError):
        read(damage(gzip.compress(VALID)), tmp_path)


def test_a_directory_is_refused_and_a_missing_file_is_missing(tmp_path):
    with pytest.raises(IDXError, match="directory"):
        read_idx(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_idx(tmp_path / "nothing")


# properties

@given(array=arrays)
def test_what_is_written_is_read_back(array, scratch):
    write_idx(scratch / "file", array)
    assert (scratch / "file").read_bytes() == idx(array)
    np.testing.assert_array_equal(read_idx(scratch / "file"), array, strict=True)


@given(array=arrays, data=st.data())
def test_mutated_bytes_give_the_exception_or_the_right_array(array, data, scratch):
    mutated = bytearray(idx(array))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(mutated)))
        mutated[at:at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    try:
        result = read(bytes(mutated), scratch)
    except IDXError:
        return
    assert idx(result) == bytes(mutated)


@given(noise=st.binary(max_size=64))
def test_random_bytes_are_refused_unless_they_are_an_array(noise, scratch):
    for start in (b"", b"\0\0", b"\0\0\x08\0", b"\0\0\x08\1\0\0\0", b"\x1f\x8b"):
        try:
            result = read(start + noise, scratch)
        except IDXError:
            continue
        assert idx(result) == start + noise


def test_write_idx_refuses_what_idx_cannot_hold(tmp_path):
    for array in (np.zeros(2, np.int64), np.zeros(2, np.uint16), np.array(["a"])):
        with pytest.raises(ValueError, match="no element type"):
            write_idx(tmp_path / "file", array)
        assert not (tmp_path / "file").exists()


# load_split

def folder_of(root: Path, images: np.ndarray, labels: np.ndarray) -> Path:
    for name, array in zip(FILES["train"], (images, labels)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_idx(root / name, array)
    return root


IMAGES, LABELS = np.arange(3 * 784, dtype=np.uint32).astype(np.uint8).reshape(3, 28, 28), np.array([3, 0, 9], np.uint8)


def test_another_folder_of_the_same_shape(tmp_path):
    images, labels = load_split("train", folder_of(tmp_path, IMAGES, LABELS))
    np.testing.assert_array_equal(images, IMAGES)
    np.testing.assert_array_equal(labels, LABELS)


def test_gzipped_files_serve_as_well(tmp_path):
    folder_of(tmp_path, IMAGES, LABELS)
    for name in FILES["train"]:
        path = tmp_path / name
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    images, labels = load_split("train", str(tmp_path))
    np.testing.assert_array_equal(images, IMAGES)
    np.testing.assert_array_equal(labels, LABELS)


def test_all_files_in_one_folder_serve_as_well(tmp_path):
    for name in FILES["train"]:
        (folder_of(tmp_path, IMAGES, LABELS) / name).rename(tmp_path / Path(name).name)
    np.testing.assert_array_equal(load_split("train", tmp_path)[0], IMAGES)


def test_classes_have_the_names_beside_the_data(tmp_path):
    assert load_classes(tmp_path) == list("0123456789")
    names = ["T-shirt", "Hose", "Pullover", "Kleid", "Mantel", "Sandale", "Hemd", "Schuh", "Tasche", "Stiefel für Ä"]
    (tmp_path / "classes.txt").write_text("\n".join(names) + "\n", "utf-8")
    assert load_classes(tmp_path) == names
    for lines in (names[:9], [*names, "more"], [*names[:5], " ", *names[6:]]):
        (tmp_path / "classes.txt").write_text("\n".join(lines), "utf-8")
        with pytest.raises(IDXError, match=r"classes\.txt must have a name in each of 10 lines"):
            load_classes(tmp_path)


def test_what_is_held_out_is_held_out_alike(tmp_path):
    (train_images, train_labels), (val_images, val_labels), *scale = load_training(ROOT / "dataset", 7)
    images, labels = load_split("train", ROOT / "dataset")
    assert scale == [*mean_std(images)] and (len(train_images), len(val_images)) == (55_000, 5_000)
    whole = [image.tobytes() for image in images]
    assert sorted(image.tobytes() for part in (train_images, val_images) for image in part) == sorted(whole)
    assert np.abs(np.bincount(val_labels) - np.bincount(labels) / 12).max() < 1
    again = load_training(ROOT / "dataset", 7)
    assert np.array_equal(again[1][0], val_images) and np.array_equal(again[0][1], train_labels)
    assert not np.array_equal(load_training(ROOT / "dataset", 8)[1][0], val_images)


@pytest.mark.parametrize("images, labels, fault", [
    (IMAGES, LABELS[:2], "3 images.*2 labels"),
    (IMAGES, np.array([3, 10, 9], np.uint8), "label 10 at index 1"),
    (IMAGES.astype(np.int16), LABELS, "not uint8 images"),
    (IMAGES[:, :27], LABELS, "not uint8 images"),
    (IMAGES.reshape(3, 784), LABELS, "not uint8 images"),
    (IMAGES, LABELS.astype(np.int32), "not one uint8 label"),
    (IMAGES, LABELS[:, None], "not one uint8 label"),
    (LABELS, IMAGES, "not uint8 images"),
])
def test_a_split_that_does_not_fit_together(images, labels, fault, tmp_path):
    with pytest.raises(IDXError, match=fault):
        load_split("train", folder_of(tmp_path, images, labels))


def test_a_missing_file_is_named_with_the_way_to_restore_it(tmp_path):
    folder_of(tmp_path, IMAGES, LABELS)
    missing = tmp_path / FILES["train"][1]
    missing.unlink()
    with pytest.raises(FileNotFoundError) as caught:
        load_split("train", tmp_path)
    for part in (str(missing.resolve()), "git checkout -- dataset", "dataset/README.md"):
        assert part in str(caught.value)


def test_an_unknown_split():
    with pytest.raises(ValueError, match=r"'valid'.*train, test"):
        load_split("valid")


# mean_std, normalize, batches

def test_mean_and_deviation_of_the_training_images():
    images = read_idx(TRAIN_IMAGES)
    mean, std = mean_std(images)
    assert (round(mean, 4), round(std, 4)) == (0.1307, 0.3081)
    assert mean == pytest.approx(images.mean(dtype=np.float64) / 255, rel=1e-12)
    assert std == pytest.approx(images.std(dtype=np.float64) / 255, rel=1e-12)


@given(st_numpy.arrays(np.uint8, st_numpy.array_shapes(max_dims=3)))
def test_mean_and_deviation_equal_numpy(images):
    assert mean_std(images) == pytest.approx((images.mean() / 255, images.std() / 255), abs=1e-12)


def test_mean_std_refuses_what_it_cannot_measure():
    for images in (np.zeros((2, 28, 28)), np.empty((0, 28, 28), np.uint8), np.zeros(3, np.int64)):
        with pytest.raises(ValueError, match="uint8"):
            mean_std(images)


def test_normalized_images_have_mean_0_and_deviation_1():
    images, _ = load_split("test", ROOT / "dataset")
    floats = torch.from_numpy(images).float()
    pixels = normalize(floats, *mean_std(images))
    assert torch.equal(floats, torch.from_numpy(images).float())  # what was given stays as it was
    assert torch.equal(pixels, normalize(images, *mean_std(images)))
    assert pixels.shape == (10_000, 1, 28, 28) and pixels.dtype == torch.float32
    assert pixels.mean().item() == pytest.approx(0, abs=1e-4)
    assert pixels.std().item() == pytest.approx(1, abs=1e-4)


def test_batches_hold_each_index_once():
    drawn = list(batches(torch.arange(100, 110), 4, torch.Generator().manual_seed(0)))
    assert [len(batch) for batch in drawn] == [4, 4, 2]
    order = torch.cat(drawn).tolist()
    assert sorted(order) == list(range(100, 110)) != order


def test_batches_repeat_with_their_seed_only():
    first, again, other = (next(batches(torch.arange(100), 100, torch.Generator().manual_seed(seed))).tolist()
                           for seed in (1, 1, 2))
    assert first == again != other
