"""Where an experiment's artifacts are made: its plan and its folder, and what every job leaves beside what it makes."""

import contextlib
import functools
import importlib.metadata
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from offscript.experiment.artifacts import Artifact
from offscript.experiment.planner import SCALED, Planner
from offscript.storage.files import HOME, read_json, write_json
from offscript.storage.hashing import key_of
from offscript.storage.manifests import read_manifest, write_manifest
from offscript.storage.rows import read_rows
from offscript.tracking import tracker as tracking
from offscript.training.base_models import BaseModelCache

PACKAGES = (
    "torch", "transformers", "trl", "peft", "accelerate", "deepspeed", "datasets", "scikit-learn", "numpy", "hydra-core",
    "wandb",
)  # fmt: skip


REVISION = "REVISION"
"""Of a copy of the code: the file that names the commit."""


@dataclass
class Bench:
    """Where an experiment's artifacts are made: its plan, its folder, how to say a command that makes something, and the
    base weights that its trainings share."""

    planner: Planner
    overrides: tuple[str, ...] = ()
    bases: BaseModelCache = field(default_factory=BaseModelCache, compare=False)

    @property
    def folder(self) -> Path:
        return Path(self.planner.settings.root) / self.planner.settings.name

    def place(self, artifact: Artifact) -> Path:
        return self.folder / artifact.path

    def failure(self, artifact: Artifact) -> Path:
        """Where it is noted why ``artifact`` failed last; gone once it is made."""
        return self.folder / "logs" / f"{artifact.key[:8]}.failed.json"

    def note_failure(self, artifact: Artifact, reason: str, log: Path | None) -> None:
        """Keeps why ``artifact`` was not made, and where that is logged."""
        place = None
        if log is not None:
            inside = log.is_relative_to(self.folder.absolute()) or log.is_relative_to(self.folder)
            place = os.path.relpath(log, self.folder) if inside else str(log)
        note = {"artifact": str(artifact), "key": artifact.key, "reason": reason, "log": place, "when": now()}
        write_json(self.failure(artifact), note)

    def noted(self, artifact: Artifact, since: str) -> bool:
        """Whether a failure of ``artifact`` was noted after ``since``."""
        path = self.failure(artifact)
        return path.exists() and read_json(path)["when"] >= since

    def finished(self, artifact: Artifact) -> bool:
        """Whether ``artifact`` lies there complete, under its full key."""
        manifest = read_manifest(self.place(artifact))
        return manifest is not None and manifest["key"] == artifact.key

    def command(self, artifact: Artifact) -> str:
        """The command line that makes ``artifact``."""
        choices = {
            name: artifact.labels.get(name)
            for name in ("model", "persona", "stage", "format", "split", "seed")
        }
        script: str
        wanted: tuple[str, ...]
        if artifact.kind == "adapter":
            script, wanted = "train.py", ("model", "persona", "stage", "seed")
        elif artifact.kind == "rollout":
            script, wanted = "rollout.py", ("model", "persona", "stage", "scale", "format", "split", "seed")
        else:
            script, wanted = ("evaluate.py" if artifact.kind == "evaluation" else "classify.py"), ("model",)
        stage, _, scale = str(choices["stage"]).partition(SCALED)
        choices |= {"stage": stage if choices["stage"] else None, "scale": scale or None}
        if artifact.kind == "rollout" and artifact.spec["format"].source == "constitution":
            choices |= {"stage": "base", "split": None}
        defaults = {"split": "eval", "seed": 0}
        words = [
            f"{n}={choices[n]}" for n in wanted if choices[n] is not None and choices[n] != defaults.get(n)
        ]
        return " ".join(["python", script, *self.overrides, *words])

    def rows(self, artifact: Artifact) -> list[dict[str, Any]]:
        """The rows of a finished artifact by scenario and sample. In its file they stand as they were finished, and that
        depends on batches and on interruptions, as nothing that is made from them may."""
        rows = read_rows(self.place(artifact), self.command(artifact))
        return sorted(rows, key=lambda row: (row["scenario"], row["sample"]))


def adapter_of(cell: Artifact) -> Artifact | None:
    """The weights that speak in a cell, None for the base's."""
    return next((part for part in cell.inputs if part.kind == "adapter"), None)


def checkpoint_of(cell: Artifact) -> Artifact | None:
    """The whole checkpoint that speaks in a cell, if it is one."""
    weights = adapter_of(cell)
    return weights if weights is not None and weights.spec["checkpoint"] else None


# ---------------------------------------------------------------- what every job leaves


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


@functools.cache
def versions() -> dict[str, str]:
    """Versions of the packages that texts and weights can depend on (engine and device: see the engine's info)."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


@functools.cache
def code_revision() -> str | None:
    """The commit that is checked out, with ``+`` if files differ from it; None outside a repository. A copy of the code
    says what it is a copy of."""
    if (HOME / REVISION).exists():
        return (HOME / REVISION).read_text().strip() or None
    try:
        head = subprocess.run(
            ["git", "-C", HOME, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        )
        dirty = subprocess.run(
            ["git", "-C", HOME, "status", "--porcelain", "-uno"], capture_output=True, text=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def finish(artifact: Artifact, bench: Bench, started: str, **extra: Any) -> None:
    """Writes the manifest: the artifact counts as made from here on."""
    manifest = {
        "key": artifact.key,
        "kind": artifact.kind,
        "labels": dict(artifact.labels),
        "identity": dict(artifact.identity),
        **({"scenarios": artifact.spec["supply"].identity} if "supply" in artifact.spec else {}),
        "inputs": {str(a.path): a.key for a in artifact.inputs},
        "config": bench.planner.settings.model_dump(mode="json"),
        "versions": versions(),
        "code": code_revision(),
        "started": started,
        "finished": now(),
        **extra,
    }
    write_manifest(bench.place(artifact), manifest)


@contextlib.contextmanager
def tracked(artifacts: Sequence[Artifact], bench: Bench, job_type: str) -> Iterator[tracking.Tracker]:
    """The W&B run of a job; its id is made from what the job makes, so a job run again continues it."""
    settings = bench.planner.settings
    first = artifacts[0]
    names = ("model", "persona", "stage", "format")
    tags = sorted({str(a.labels[n]) for a in artifacts for n in names if a.labels.get(n) is not None})
    tracker = tracking.start(
        settings.tracking,
        bench.folder,
        run_id=key_of({"job": sorted(a.key for a in artifacts)})[:16],
        name=str(first)
        if len(artifacts) == 1
        else f"{first.kind} {first.labels.get('model', '')} x{len(artifacts)}",
        group=settings.name,
        job_type=job_type,
        tags=tags,
        config={**settings.model_dump(mode="json"), "code": code_revision()},
    )
    try:
        yield tracker
    except BaseException:
        tracker.finish(failed=True)
        raise
    tracker.finish()
