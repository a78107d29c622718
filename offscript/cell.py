"""What an artifact is called: a key made of everything that can change it, and a path with that key in its name."""

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FULL_HASH_BELOW = 64 * 2**20
EDGE = 2**20

NOBODY = "_"
"""Stands for the persona in paths of texts that belong to none (base weights, plain system)."""


def key_of(identity: Mapping[str, Any]) -> str:
    """Key (64 hex digits) of plain identity data: BLAKE2b of its canonical JSON. Equal data, equal key, anywhere."""
    canonical = json.dumps(
        identity, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":")
    )
    return hashlib.blake2b(canonical.encode(), digest_size=32).hexdigest()


@dataclass(frozen=True)
class Artifact:
    """Something that the grid makes: rows, an adapter, a classifier, predictions or an evaluation.

    ``identity`` is plain JSON data and alone decides ``key``; ``labels`` say to people and tables what it is;
    ``inputs`` are the artifacts that must be finished first; ``spec`` carries what its job needs, unhashed.
    """

    kind: str
    identity: Mapping[str, Any]
    labels: Mapping[str, Any]
    inputs: tuple["Artifact", ...] = ()
    spec: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @functools.cached_property
    def key(self) -> str:
        return key_of({"kind": self.kind, **self.identity})

    @property
    def path(self) -> Path:
        """Where it lies below the experiment's folder."""
        part = {name: value if value is not None else NOBODY for name, value in self.labels.items()}
        short = self.key[:8]
        if self.kind in ("rollout", "predictions"):
            folder = "rollouts" if self.kind == "rollout" else "predictions"
            name = f"{part['format']}-{part['split']}-{short}.jsonl"
            return Path(folder, part["model"], part["stage"], part["persona"], name)
        if self.kind == "adapter":
            return Path("adapters", part["model"], part["persona"], f"{part['stage']}-{short}")
        if self.kind == "classifier":
            return Path("classifiers", part["model"], f"{part['name']}-{short}")
        return Path("evaluation")

    def __str__(self) -> str:
        order = ("model", "persona", "stage", "format", "split", "name", "seed")
        shown = [str(self.labels[name]) for name in order if self.labels.get(name) is not None]
        return f"{self.kind} {' '.join(shown)}"

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Artifact) and self.key == other.key


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
