"""The state of an experiment, from its files and, if the cluster answers, from SLURM."""

import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from offscript.console import duration
from offscript.errors import UserError
from offscript.experiment.artifacts import KINDS
from offscript.experiment.backends.plan_file import ArtifactRecord
from offscript.experiment.backends.slurm_queue import ClusterState
from offscript.experiment.folder import FailureRecord, read_failure
from offscript.storage.locks import writing_since
from offscript.storage.manifests import has_files_of, manifest_path

STATES = ("done", "running", "waiting", "failed", "missing")
"""``missing``: not started, or an input of it failed."""

SHOWN = 20
"""Failures that the table lists; further ones are counted."""

FOLDERS = ("rollouts", "vectors", "adapters", "classifiers", "predictions", "projections", "evaluation")


class StatusJson(TypedDict):
    """The status for programs (``json=true``). ``entries`` holds the fields of each ``Entry``."""

    done: bool
    jobs: int
    rows: int
    planned: int
    rows_per_second: float
    states: dict[str, int]
    entries: list[Mapping[str, str | int | float | None]]
    stale: list[str]
    notes: list[str]


@dataclass(frozen=True)
class Entry:
    """One artifact of the grid: its state, rows written and planned (None if it has no rows), the reason of its failure
    and its log. ``since``: when its writer started, in seconds since 1970."""

    name: str
    kind: str
    key: str
    path: str
    state: str
    rows: int | None = None
    planned: int | None = None
    reason: str | None = None
    log: str | None = None
    since: float | None = None


@dataclass(frozen=True)
class Status:
    """The entries in the grid's order, finished artifacts that are not of this grid (``stale``), the number of jobs that
    have not ended, and notes on queries that failed."""

    entries: tuple[Entry, ...]
    stale: tuple[str, ...] = ()
    jobs: int = 0
    notes: tuple[str, ...] = ()

    @property
    def done(self) -> bool:
        return all(entry.state == "done" for entry in self.entries)

    @property
    def in_progress(self) -> bool:
        """Whether anything may still change without a new launch."""
        return self.jobs > 0 or any(entry.state in ("running", "waiting") for entry in self.entries)

    @property
    def rows(self) -> tuple[int, int]:
        """Rows written and rows planned."""
        counted = [(e.rows or 0, e.planned) for e in self.entries if e.planned is not None]
        return sum(rows for rows, _ in counted), sum(planned for _, planned in counted)

    def rate(self, now: float) -> float:
        """Rows per second of the running writers since each started; rows of an earlier writer that it continues are
        counted too."""
        return sum((e.rows or 0) / max(1.0, now - e.since) for e in self.entries if e.since is not None)

    def as_json(self) -> StatusJson:
        written, planned = self.rows
        return {
            "done": self.done,
            "jobs": self.jobs,
            "rows": written,
            "planned": planned,
            "rows_per_second": round(self.rate(time.time()), 3),
            "states": dict(Counter(e.state for e in self.entries)),
            "entries": [vars(entry) for entry in self.entries],
            "stale": list(self.stale),
            "notes": list(self.notes),
        }


def no_cluster(keys: Collection[str]) -> ClusterState:
    """The cluster state of an experiment without SLURM jobs."""
    return ClusterState()


def read_status(
    folder: Path,
    artifacts: Sequence[ArtifactRecord],
    query: Callable[[Collection[str]], ClusterState] = no_cluster,
) -> Status:
    """The state of ``artifacts`` below ``folder``.

    ``query`` gives the state of the cluster for the artifacts (keys) that are not finished.
    """
    files = _Files(folder)
    manifests = [str(manifest_path(Path(a["path"]))) for a in artifacts]
    done = [
        manifest in files.paths
        and a["path"] in files.paths
        and (KINDS[a["kind"]].path_has_key or _has_key(folder / a["path"], a["key"]))
        for manifest, a in zip(manifests, artifacts, strict=True)
    ]
    cluster = query([a["key"] for a, finished in zip(artifacts, done, strict=True) if not finished])
    entries = []
    for artifact, finished in zip(artifacts, done, strict=True):
        if finished:
            entries.append(_entry(artifact, "done", artifact["planned"]))
        else:
            blocked = not all(done[i] for i in artifact["needs"])
            entries.append(_unfinished(artifact, files, cluster, blocked))
    return Status(tuple(entries), tuple(_stale(files.paths, manifests)), cluster.jobs, cluster.notes)


class _Files:
    """The names of all files of an experiment, listed once: ``paths`` of artifacts, ``records`` of failures."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.paths = folder, set(_walk(folder))
        self.records = set(os.listdir(folder / "logs")) if (folder / "logs").is_dir() else set()

    def lines(self, path: str) -> int:
        if path not in self.paths:
            return 0
        with open(self.folder / path, "rb") as file:
            return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))

    def failure(self, key: str) -> FailureRecord | None:
        name = f"{key[:8]}.failed.json"
        return read_failure(self.folder / "logs" / name) if name in self.records else None


def _entry(
    artifact: ArtifactRecord,
    state: str,
    rows: int | None,
    reason: str | None = None,
    log: str | None = None,
    since: float | None = None,
) -> Entry:
    name, kind, key, path = (artifact["name"], artifact["kind"], artifact["key"], artifact["path"])
    return Entry(name, kind, key, path, state, rows, artifact["planned"], reason, log, since)


def _unfinished(artifact: ArtifactRecord, files: _Files, cluster: ClusterState, blocked: bool) -> Entry:
    key = artifact["key"]
    rows = files.lines(artifact["path"]) if artifact["planned"] is not None else None
    job = cluster.failed.get(key)
    since = writing_since(files.folder / artifact["path"], job.ended if job else 0.0)
    if since is not None or cluster.states.get(key) == "RUNNING":
        return _entry(artifact, "running", rows, since=since)
    if key in cluster.states:
        return _entry(artifact, "waiting", rows)
    if blocked:
        return _entry(artifact, "missing", rows)
    record = files.failure(key)
    if job is not None and (record is None or record["when"] < job.planned):
        return _entry(artifact, "failed", rows, job.reason, str(job.log) if job.log.exists() else None)
    if record is not None:
        log = str(files.folder / record["log"]) if record["log"] else None
        return _entry(artifact, "failed", rows, record["reason"], log)
    return _entry(artifact, "missing", rows)


def _has_key(artifact: Path, key: str) -> bool:
    """Whether the files of ``artifact`` are those of ``key``, for a kind whose path does not contain the key."""
    try:
        return has_files_of(artifact, key)
    except (OSError, UserError):
        return False


def _walk(folder: Path) -> Iterator[str]:
    """Every file and folder below the artifacts' folders, relative to ``folder``."""
    for part in FOLDERS:
        for place, folders, files in os.walk(folder / part):
            inside = os.path.relpath(place, folder)
            yield inside
            yield from (f"{inside}/{name}" for name in files)
            if os.path.basename(place).startswith("checkpoint"):
                folders.clear()


def _stale(paths: Collection[str], manifests: Sequence[str]) -> list[str]:
    """Finished artifacts on disk that are not of this grid: they were made under other settings."""
    current = set(manifests)
    return sorted(
        path.removesuffix(".manifest.json").removesuffix("/manifest.json")
        for path in paths
        if path.endswith((".manifest.json", "/manifest.json")) and path not in current
    )


# ---------------------------------------------------------------- table


def table(status: Status, rate: float | None = None) -> str:
    """One line per kind of artifact, then rows, stale artifacts, and failures with their logs.

    ``rate``: measured rows per second; None: the rate of the running writers since they started.
    """
    lines = [f"{'':14}" + "".join(f"{state:>9}" for state in STATES) + f"{'rows':>18}", *_kind_lines(status)]
    written, planned = status.rows
    if rate := status.rate(time.time()) if rate is None else rate:
        left = planned - written
        lines.append(f"{rate:.1f} rows/s, {duration(left / rate)} left for {left} rows")
    if status.jobs:
        lines.append(f"{status.jobs} jobs have not ended")
    if status.stale:
        lines.append(f"stale: {len(status.stale)} artifacts of other settings, first {status.stale[0]}")
    lines += [f"note: {note}" for note in status.notes]
    failed = [e for e in status.entries if e.state == "failed"]
    lines += [f"failed: {e.name}: {e.reason}" + (f" (log: {e.log})" if e.log else "") for e in failed[:SHOWN]]
    if len(failed) > SHOWN:
        lines.append(f"failed: {len(failed) - SHOWN} more; list all of them with json=true")
    return "\n".join(lines)


def _kind_lines(status: Status) -> Iterator[str]:
    counted = Counter((e.kind, e.state) for e in status.entries)
    for kind in dict.fromkeys(e.kind for e in status.entries):
        written, planned = Status(tuple(e for e in status.entries if e.kind == kind)).rows
        cells = "".join(f"{counted[kind, state] or '-':>9}" for state in STATES)
        rows = f"{written}/{planned}" if planned or written else "-"
        yield f"{kind:14}{cells}{rows:>18}"
