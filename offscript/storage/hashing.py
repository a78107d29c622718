"""Hashes: keys of artifacts, fingerprints of model folders."""

import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FULL_HASH_BELOW = 64 * 2**20
EDGE = 2**20


def key_of(identity: Mapping[str, Any]) -> str:
    """Key (64 hex digits) of plain identity data: BLAKE2b of its canonical JSON. Equal data, equal key, anywhere."""
    canonical = json.dumps(
        identity, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":")
    )
    return hashlib.blake2b(canonical.encode(), digest_size=32).hexdigest()


@functools.lru_cache(maxsize=64)
def fingerprint(folder: Path) -> str:
    """Digest of a model folder's content (32 hex digits), so that a changed file is a changed model.

    Files of 64 MiB and more count by size and their first and last MiB: reading 16 GB for every plan would cost
    minutes, and safetensors keeps its index at the front.
    """
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")):
        if path.suffix in (".md", ".lock") or path.name == "build.json":
            continue
        digest.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode())
        with open(path, "rb") as file:
            if path.stat().st_size < FULL_HASH_BELOW:
                digest.update(file.read())
            else:
                digest.update(file.read(EDGE))
                file.seek(-EDGE, 2)
                digest.update(file.read(EDGE))
    return digest.hexdigest()
