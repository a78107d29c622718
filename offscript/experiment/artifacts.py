"""What an artifact is called: a key made of everything that can change it, and a path with that key in its name."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from offscript.storage.hashing import key_of

NOBODY = "_"
"""Stands for the persona in paths of texts that belong to none (base weights, plain system)."""


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
