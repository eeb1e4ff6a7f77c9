"""Files that are written in one step."""

import os
import stat
import time

import pytest

from mnist.files import DamagedError, read_json, write_atomically, write_json


@pytest.mark.skipif(os.name == "nt", reason="an open file cannot be replaced on Windows")
def test_a_reader_of_the_old_file_keeps_it_whole(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with path.open("rb") as reader:
        write_atomically(path, b"new")
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new"


def test_the_bytes_are_on_the_disk_before_they_have_the_name(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, real=real: calls.append(name) or real(*args))
    write_atomically(tmp_path / "file", b"new")
    assert calls == (["fsync", "replace", "fsync"] if os.name == "posix" else ["fsync", "replace"])


@pytest.mark.skipif(os.name == "nt", reason="links and permissions are otherwise on Windows")
def test_permissions_and_links_are_kept(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o640)
    link = tmp_path / "link"
    link.symlink_to(path)
    write_atomically(link, b"new")
    assert link.is_symlink() and path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_old_temporaries_are_swept_away_and_young_ones_left_to_their_writer(tmp_path):
    old, young, other = (tmp_path / name for name in (".a[b].1.tmp", ".a[b].2.tmp", ".else.1.tmp"))
    for path in (old, young, other):
        path.write_bytes(b"half")
    for path in (old, other):
        os.utime(path, (time.time() - 7200,) * 2)
    write_atomically(tmp_path / "a[b]", b"whole")
    assert not old.exists() and young.exists() and other.exists()


def test_json_comes_back_and_says_when_it_is_damaged(tmp_path):
    path, content = tmp_path / "results.json", {"b": [0.1, 2, None], "a": {"ä": "x"}}
    write_json(path, content)
    assert read_json(path) == content
    path.write_bytes(path.read_bytes().replace(b"0.1", b"0.2"))
    with pytest.raises(DamagedError, match=r"results\.json is damaged: it does not match its checksum"):
        read_json(path)
    path.write_text('{"a": 1}')
    with pytest.raises(DamagedError, match=r"results\.json has no checksum"):
        read_json(path)
    write_json(path, {"a": {2: 1, 10: 2}})
    assert read_json(path) == {"a": {"2": 1, "10": 2}}
