"""Experiment folder, artifact paths and manifests."""

import contextlib
import functools
import importlib.metadata
import os
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from typing_extensions import TypedDict

from offscript.errors import UserError, command_line
from offscript.experiment.artifacts import (
    Adapter,
    Artifact,
    Classifier,
    Evaluation,
    Predictions,
    Projections,
    Rollout,
    Selection,
    Vector,
)
from offscript.experiment.fidelity import as_published
from offscript.experiment.planner import Planner
from offscript.json_types import Json
from offscript.storage import references
from offscript.storage.files import HOME, expand_home, read_record, read_text, write_json
from offscript.storage.hashing import fingerprint, key_of
from offscript.storage.manifests import (
    has_files_of,
    manifest_path,
    read_manifest,
    write_manifest,
    write_partial_manifest,
)
from offscript.storage.rows import read_rows
from offscript.tasks.rows import Row
from offscript.tracking import tracker as tracking
from offscript.training.base_models import BaseModelCache

PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "deepspeed",
    "datasets",
    "scikit-learn",
    "numpy",
    "hydra-core",
    "wandb",
)

OVERVIEW = "overview.txt"
"""Name of the file with the main table of an evaluation."""

REVISION = "REVISION"
"""In a copy of the code: the file that names the commit."""


@dataclass
class Experiment:
    """One experiment: its plan, its folder, the overrides that a command which makes one of its artifacts needs, and the
    base model that its trainings share."""

    planner: Planner
    overrides: tuple[str, ...] = ()
    bases: BaseModelCache = field(default_factory=BaseModelCache, compare=False)

    @property
    def folder(self) -> Path:
        return expand_home(self.planner.settings.root) / self.planner.settings.name

    def path(self, artifact: Artifact) -> Path:
        """Where ``artifact`` is written."""
        return self.folder / artifact.path

    def is_finished(self, artifact: Artifact) -> bool:
        """Whether ``artifact`` exists, complete, under its full key."""
        if not artifact.path_has_key:
            return has_files_of(self.path(artifact), artifact.key)
        manifest = read_manifest(self.path(artifact))
        return manifest is not None and manifest["key"] == artifact.key

    def tables(self, evaluation: Evaluation) -> str | None:
        """The main table of ``evaluation``, also that made from a part of its predictions; None if the files in its folder
        are not its own."""
        folder = self.path(evaluation)
        if not has_files_of(folder, evaluation.key, partial=True):
            return None
        return read_text(folder / OVERVIEW)

    def command(self, artifact: Artifact) -> str:
        """The command line that makes ``artifact``."""
        name, *arguments = artifact.command()
        if any(override.startswith("persona=") for override in self.overrides):
            # It changes every persona, so it stays, and a cell's persona is chosen by its name.
            arguments = [re.sub("^persona=", "persona.name=", argument) for argument in arguments]
        return command_line(name, *self.overrides, *arguments)

    def rows(self, rollout: Rollout | Selection) -> list[Row]:
        """The rows of a finished rollout or selection by scenario and sample. In the file of a rollout they stand in the
        order in which episodes ended, which depends on batches and interruptions, as nothing that is made from them may."""
        return cast(list[Row], self._sorted(rollout))

    def predictions(self, artifact: Predictions) -> list[dict[str, Json]]:
        """The rows of finished predictions by scenario and sample."""
        return self._sorted(artifact)

    def projections(self, artifact: Projections) -> list[dict[str, Json]]:
        """The rows of finished projections by scenario and sample."""
        return self._sorted(artifact)

    def _sorted(self, artifact: Artifact) -> list[dict[str, Any]]:
        path = self.path(artifact)
        rows = read_rows(path, self.command(artifact))
        manifest = read_manifest(path) or {}
        if (made := manifest.get("digest")) is not None and made != fingerprint(path):
            raise UserError(
                str(path),
                f"has changed since it was made ({manifest.get('finished')})",
                f"restore it, or delete {manifest_path(path)} and make what is missing again",
            )
        return sorted(rows, key=lambda row: (row["scenario"], row["sample"]))

    # ------------------------------------------------------------ failures

    def failure_record(self, artifact: Artifact) -> Path:
        """The file that says why ``artifact`` failed last; removed once it is made."""
        return self.folder / "logs" / f"{artifact.key[:8]}.failed.json"

    def record_failure(self, artifact: Artifact, reason: str, log: Path | None) -> None:
        """Records why ``artifact`` was not made, and the log of it."""
        place = None
        if log is not None:
            inside = log.is_relative_to(self.folder.absolute()) or log.is_relative_to(self.folder)
            place = os.path.relpath(log, self.folder) if inside else str(log)
        record = {
            "artifact": str(artifact),
            "key": artifact.key,
            "reason": reason,
            "log": place,
            "when": now(),
        }
        write_json(self.failure_record(artifact), record)

    def has_failed(self, artifact: Artifact, since: str) -> bool:
        """Whether a failure of ``artifact`` was recorded after ``since``."""
        record = read_failure(self.failure_record(artifact))
        return record is not None and record["when"] >= since


class FailureRecord(TypedDict):
    """What ``Experiment.record_failure`` writes, as far as it is read. ``log`` is relative to the experiment's folder."""

    reason: str
    log: str | None
    when: str


def read_failure(path: Path) -> FailureRecord | None:
    """The record of a failure; None if there is none. Of a damaged record, that is the reason."""
    if not path.exists():
        return None
    try:
        return read_record(path, FailureRecord)
    except UserError:
        # A job may have made the artifact meanwhile. Damaged: the disk was full when it was written.
        return (
            {"reason": f"unknown, since {path} is damaged", "log": None, "when": ""}
            if path.exists()
            else None
        )


# ---------------------------------------------------------------- manifests and tracking


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


def write_artifact_manifest(
    artifact: Artifact, experiment: Experiment, started: str, partial: bool = False, **more: object
) -> None:
    """Writes the manifest of ``artifact``, which counts as made from then on, unless it is ``partial``."""
    manifest = {
        "key": artifact.key,
        "kind": artifact.kind,
        "labels": dict(artifact.labels),
        "identity": dict(artifact.identity),
        **({"scenarios": artifact.scenarios.identity} if isinstance(artifact, Rollout) else {}),
        "inputs": {str(part.path): part.key for part in artifact.inputs},
        "weights": _weights(artifact, experiment),
        "config": experiment.planner.settings.model_dump(mode="json"),
        "fidelity": as_published(experiment.planner),
        "versions": versions(),
        "code": code_revision(),
        "started": started,
        "finished": now(),
        **more,
    }
    if isinstance(artifact, Rollout | Selection | Predictions | Projections) and not partial:
        manifest["digest"] = fingerprint(experiment.path(artifact))
    write = write_partial_manifest if partial else write_manifest
    write(experiment.path(artifact), manifest)


def _weights(artifact: Artifact, experiment: Experiment) -> str | None:
    """Where the weights of the base model, or of the checkpoint of a classifier, came from; None if there are none."""
    if isinstance(artifact, Classifier):
        return None if artifact.settings.path is None else references.describe_weights(artifact.settings)
    if not isinstance(artifact, Rollout | Vector | Adapter):
        return None
    return references.describe_weights(experiment.planner.options.model[str(artifact.model)])


@contextlib.contextmanager
def tracked(
    artifacts: Sequence[Artifact], experiment: Experiment, job_type: str
) -> Iterator[tracking.Tracker]:
    """The W&B run of a job. Its id is made from what the job makes, so a job that is run again continues it."""
    settings = experiment.planner.settings
    first = artifacts[0]
    names = ("model", "persona", "stage", "format")
    tags = sorted({str(a.labels[n]) for a in artifacts for n in names if a.labels.get(n) is not None})
    tracker = tracking.start(
        settings.tracking,
        experiment.folder,
        run_id=key_of({"job": [key for key in sorted(a.key for a in artifacts)]})[:16],
        name=str(first) if len(artifacts) == 1 else f"{first.kind} {first.model or ''} x{len(artifacts)}",
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
