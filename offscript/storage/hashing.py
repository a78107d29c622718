"""Hashes: keys of artifacts and fingerprints of model folders."""

import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

WHOLE_BELOW_BYTES = 64 * 2**20
EDGE_BYTES = 2**20


def key_of(identity: Mapping[str, object]) -> str:
    """Key (64 hex digits) of plain identity data: BLAKE2b of its canonical JSON, the same on every machine."""
    canonical = json.dumps(
        identity, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":")
    )
    return hashlib.blake2b(canonical.encode(), digest_size=32).hexdigest()


def fingerprint(path: Path) -> str:
    """Digest (32 hex digits) of the content of a file, or of a model folder.

    Raises:
        FileNotFoundError: nothing is there.
    """
    if path.is_dir():
        return _folder_fingerprint(path)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


@functools.lru_cache(maxsize=64)
def _folder_fingerprint(folder: Path) -> str:
    """Digest of a model folder's content. Hidden files, ``*.md``, ``*.lock`` and build.json are left out.

    Of files of 64 MiB and more only the size and the first and last MiB are hashed: reading 16 GB for every plan would
    take minutes, and safetensors keeps its index at the front.
    """
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")):
        if path.suffix in (".md", ".lock") or path.name == "build.json":
            continue
        digest.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode())
        with open(path, "rb") as file:
            if path.stat().st_size < WHOLE_BELOW_BYTES:
                digest.update(file.read())
            else:
                digest.update(file.read(EDGE_BYTES))
                file.seek(-EDGE_BYTES, 2)
                digest.update(file.read(EDGE_BYTES))
    return digest.hexdigest()
