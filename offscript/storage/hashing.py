"""Hashes: keys of artifacts and fingerprints of model folders."""

import contextlib
import functools
import hashlib
import json
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path

from offscript.console import say
from offscript.errors import UserError
from offscript.storage.files import read_json_object, user_cache, write_json

LARGE_BYTES = 64 * 2**20
"""From this size on, the digest of a file is kept."""

ANNOUNCED_BYTES = 2**30
SETTLED_NS = 2 * 10**9


def key_of(identity: Mapping[str, object]) -> str:
    """Key (64 hex digits) of plain identity data: BLAKE2b of its canonical JSON, the same on every machine."""
    canonical = json.dumps(
        identity, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":")
    )
    return hashlib.blake2b(canonical.encode(), digest_size=32).hexdigest()


def fingerprint(path: Path) -> str:
    """Digest (32 hex digits) of the content of a file, or of a model folder.

    Every file is read whole, at about 550 MB/s (BLAKE2b on one core of an AMD EPYC), so that 16 GB take half a minute.
    The digests of files of LARGE_BYTES and more are kept in the user's cache folder, and are computed again once the
    file's size, time or inode is another one.

    Raises:
        FileNotFoundError: nothing is there.
        UserError: a file cannot be read.
    """
    try:
        return _folder_fingerprint(path) if path.is_dir() else _file_digest(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(str(error.filename or path), f"cannot be read: {error.strerror}") from None


@functools.lru_cache(maxsize=64)
def _folder_fingerprint(folder: Path) -> str:
    """Digest of a model folder's content. Hidden files, ``*.md``, ``*.lock`` and build.json are left out."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")):
        if path.suffix in (".md", ".lock") or path.name == "build.json":
            continue
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder)}\0{size}\0".encode())
        digest.update(path.read_bytes() if size < LARGE_BYTES else _file_digest(path).encode())
    return digest.hexdigest()


def _file_digest(path: Path) -> str:
    before = _state(path)
    if before["size"] >= LARGE_BYTES and (known := _kept_digest(path, before)) is not None:
        return known
    if before["size"] >= ANNOUNCED_BYTES:
        say(f"  reading {path} ({before['size'] / 1e9:.1f} GB) once, to know it by its content")
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    if before["size"] >= LARGE_BYTES and _state(path) == before:
        _keep_digest(path, before, found)
    return found


# ---------------------------------------------------------------- digests of large files


def _state(path: Path) -> dict[str, int]:
    """What changes with the content of a file."""
    found = path.stat()
    return {"size": found.st_size, "mtime_ns": found.st_mtime_ns, "inode": found.st_ino}


def _record(path: Path) -> Path:
    """The file that keeps the digest of ``path``, in the user's cache folder."""
    return user_cache() / "digests" / f"{key_of({'path': os.path.realpath(path)})[:32]}.json"


def _kept_digest(path: Path, state: dict[str, int]) -> str | None:
    with contextlib.suppress(OSError, UserError):
        kept = read_json_object(_record(path), "state", "digest")
        if kept["state"] == state and re.fullmatch(r"[0-9a-f]{32}", str(kept["digest"])):
            return str(kept["digest"])
    return None


def _keep_digest(path: Path, state: dict[str, int], digest: str) -> None:
    """A file that was written just now may change again without another time, so its digest is not kept."""
    if time.time_ns() - state["mtime_ns"] > SETTLED_NS:
        with contextlib.suppress(OSError, UserError):
            write_json(_record(path), {"state": state, "digest": digest})
