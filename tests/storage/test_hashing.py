"""Fingerprints of files and model folders: the whole content counts, and large files are read once."""

import os
import time
from pathlib import Path

import pytest

from offscript.errors import UserError
from offscript.storage import hashing
from offscript.storage.files import read_json, write_json

MIDDLE = hashing.LARGE_BYTES // 2


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "offscript" / "digests"


def fingerprint(path: Path) -> str:
    """As a new process computes it."""
    hashing._folder_fingerprint.cache_clear()
    return hashing.fingerprint(path)


def large(path: Path, middle: bytes = b"", age_s: float = 60) -> Path:
    """A sparse file of LARGE_BYTES with ``middle`` in its middle."""
    path.parent.mkdir(exist_ok=True)
    with open(path, "wb") as file:
        file.truncate(hashing.LARGE_BYTES)
        file.seek(MIDDLE)
        file.write(middle)
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def test_folders_of_small_files_keep_their_digests(tmp_path: Path) -> None:
    """Keys of artifacts hold them."""
    (tmp_path / "model" / "sub").mkdir(parents=True)
    for name in ("config.json", "sub/weights", "README.md", ".hidden", "a.lock", "build.json"):
        (tmp_path / "model" / name).write_text(name)
    assert fingerprint(tmp_path / "model") == "969ead723e6b1a524ee3b17fc7eea53b"
    assert fingerprint(tmp_path / "model" / "config.json") == "cd363b7ec34d554b5b8e58a0a525a6e8"


def test_a_change_in_the_middle_of_a_large_file_is_another_content(tmp_path: Path) -> None:
    one, other = large(tmp_path / "one" / "w"), large(tmp_path / "other" / "w", b"x")
    assert fingerprint(one.parent) != fingerprint(other.parent)
    assert fingerprint(one) != fingerprint(other)
    copy = large(tmp_path / "copy" / "w", age_s=30)
    assert fingerprint(copy.parent) == fingerprint(one.parent)


def test_a_large_file_is_read_once_until_it_changes(tmp_path: Path, cache: Path) -> None:
    path = large(tmp_path / "w")
    first = fingerprint(path)
    (record,) = cache.iterdir()
    write_json(record, {**read_json(record), "digest": "0" * 32})
    assert fingerprint(path) == "0" * 32
    large(path, b"x", age_s=30)
    assert fingerprint(path) not in (first, "0" * 32)
    os.truncate(path, hashing.LARGE_BYTES + 1)
    os.utime(path, (time.time() - 30,) * 2)
    assert fingerprint(path) not in (first, "0" * 32)


def test_the_digest_of_a_file_that_was_just_written_is_not_kept(tmp_path: Path, cache: Path) -> None:
    fingerprint(large(tmp_path / "w", age_s=0))
    assert not cache.exists()


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"state": 1, "digest": null}', "[" * 9999])
def test_a_damaged_record_is_computed_again(tmp_path: Path, cache: Path, damage: str) -> None:
    path = large(tmp_path / "w")
    first = fingerprint(path)
    (record,) = cache.iterdir()
    before = record.read_text()
    record.write_text(damage)
    assert fingerprint(path) == first and record.read_text() == before


def test_no_cache_folder_is_needed(tmp_path: Path) -> None:
    path = large(tmp_path / "w")
    (tmp_path / "cache").write_text("a file in its place")
    assert fingerprint(path) == fingerprint(path)


def test_a_file_that_cannot_be_read_is_one_line() -> None:
    with pytest.raises(UserError, match=r"^/proc/self/mem: cannot be read: "):
        fingerprint(Path("/proc/self/mem"))
