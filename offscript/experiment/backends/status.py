"""What an experiment looks like right now, from its files and (where there is one that answers) from the cluster."""

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offscript.console import duration
from offscript.errors import UserError
from offscript.experiment.artifacts import KINDS
from offscript.experiment.backends.slurm_queue import Seen
from offscript.storage.files import read_json
from offscript.storage.locks import STALE_S
from offscript.storage.manifests import manifest_path

STATES = ("done", "running", "waiting", "failed", "missing")
"""``missing``: not begun, or it needs what failed."""

SHOWN = 20
"""Failures that a table names; more are counted."""

PARTS = ("rollouts", "adapters", "classifiers", "predictions", "evaluation")


@dataclass(frozen=True)
class Entry:
    """One artifact of the grid: its state, rows written and planned (None for what has no rows), why it failed and
    where that is logged. ``since``: when its writer began, in seconds since 1970."""

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
    """Entries in the grid's order, files that no plan knows any more (``stale``), how many jobs have not ended, and what
    could not be asked."""

    entries: tuple[Entry, ...]
    stale: tuple[str, ...] = ()
    jobs: int = 0
    notes: tuple[str, ...] = ()

    @property
    def done(self) -> bool:
        return all(entry.state == "done" for entry in self.entries)

    @property
    def moving(self) -> bool:
        """Whether anything may still change by itself."""
        return self.jobs > 0 or any(entry.state in ("running", "waiting") for entry in self.entries)

    @property
    def rows(self) -> tuple[int, int]:
        """Written and planned."""
        counted = [(e.rows or 0, e.planned) for e in self.entries if e.planned is not None]
        return sum(rows for rows, _ in counted), sum(planned for _, planned in counted)

    def rate(self, now: float) -> float:
        """Rows per second of the writers that are at work, since each began. One that took up the rows of another counts
        those too."""
        return sum((e.rows or 0) / max(1.0, now - e.since) for e in self.entries if e.since is not None)

    def plain(self) -> dict[str, Any]:
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


def look(
    folder: Path,
    artifacts: Sequence[Mapping[str, Any]],
    ask: Callable[[Collection[str]], Seen] = lambda keys: Seen(),
) -> Status:
    """The state of ``artifacts`` (as a plan lists them) below ``folder``. ``ask`` says what the cluster knows of those
    (keys) that are not finished."""
    there = set(_files(folder))
    notes = set(os.listdir(folder / "logs")) if (folder / "logs").is_dir() else set()
    manifests = [str(manifest_path(Path(a["path"]))) for a in artifacts]
    done = [
        m in there and a["path"] in there and (KINDS[a["kind"]].path_has_key or _is(folder / m, a["key"]))
        for m, a in zip(manifests, artifacts, strict=True)
    ]
    seen = ask([a["key"] for a, finished in zip(artifacts, done, strict=True) if not finished])
    entries = []
    for artifact, finished in zip(artifacts, done, strict=True):
        if finished:
            rows = artifact["planned"]
            entries.append(_entry(artifact, "done", rows))
            continue
        blocked = not all(done[i] for i in artifact["needs"])
        entries.append(_unfinished(folder, artifact, there, notes, seen, blocked))
    return Status(tuple(entries), tuple(_stale(there, manifests)), seen.jobs, seen.notes)


def _entry(artifact: Mapping[str, Any], state: str, rows: int | None, **more: Any) -> Entry:
    own = {name: artifact[name] for name in ("name", "kind", "key", "path", "planned")}
    return Entry(**own, state=state, rows=rows, **more)


def _unfinished(
    folder: Path, artifact: Mapping[str, Any], there: set[str], notes: set[str], seen: Seen, blocked: bool
) -> Entry:
    path, key = artifact["path"], artifact["key"]
    counted = artifact["planned"] is not None
    rows = (_lines(folder / path) if path in there else 0) if counted else None
    lock = str(Path(path).with_name(f".{Path(path).name}.lock"))
    death = seen.deaths.get(key)
    since = _held_since(folder / lock, death.ended if death else 0.0) if lock in there else None
    if since is not None or seen.states.get(key) == "RUNNING":
        return _entry(artifact, "running", rows, since=since)
    if key in seen.states:
        return _entry(artifact, "waiting", rows)
    if blocked:
        return _entry(artifact, "missing", rows)
    name = f"{key[:8]}.failed.json"
    note = _note(folder / "logs" / name) if name in notes else None
    if death is not None and (note is None or note["when"] < death.planned):
        log = str(death.log) if death.log.exists() else None
        return _entry(artifact, "failed", rows, reason=death.reason, log=log)
    if note is not None:
        log = str(folder / note["log"]) if note["log"] else None
        return _entry(artifact, "failed", rows, reason=note["reason"], log=log)
    return _entry(artifact, "missing", rows)


def _note(path: Path) -> dict[str, Any] | None:
    try:
        return read_json(path)
    except (OSError, UserError):  # a job mended it just now, or the disk was full when it was written
        return None


def _is(manifest: Path, key: str) -> bool:
    """Whether an evaluation is the one that is meant: its folder does not carry the key in its name."""
    found = _note(manifest)
    return found is not None and found["key"] == key


def _held_since(lock: Path, died: float) -> float | None:
    """When the writer began that holds ``lock``; None if it does not live any more: the lock was not touched for long, or
    not since its job ``died`` (in seconds since 1970)."""
    try:
        touched = lock.stat().st_mtime
        if time.time() - touched > STALE_S or touched < died:
            return None
        return float(json.loads(lock.read_text())["since"])
    except (OSError, ValueError, KeyError):
        return None


def _files(folder: Path) -> Iterator[str]:
    """Everything below the artifacts' folders, folders included, as paths below ``folder``."""
    for part in PARTS:
        for place, folders, files in os.walk(folder / part):
            inside = os.path.relpath(place, folder)
            yield inside
            yield from (f"{inside}/{name}" for name in files)
            if os.path.basename(place).startswith("checkpoint"):
                folders.clear()


def _stale(there: set[str], manifests: Sequence[str]) -> list[str]:
    """Finished artifacts on disk that are not of this grid: made under settings that have changed since."""
    known = set(manifests)
    return sorted(
        path.removesuffix(".manifest.json").removesuffix("/manifest.json")
        for path in there
        if path.endswith((".manifest.json", "/manifest.json")) and path not in known
    )


def _lines(path: Path) -> int:
    with open(path, "rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


# ---------------------------------------------------------------- as a table


def table(status: Status, rate: float | None = None) -> str:
    """One line per kind of artifact, then rows, what is stale, and failures with their logs.

    ``rate``: rows per second that were seen just now; without, that of the writers since they began.
    """
    kinds = list(dict.fromkeys(e.kind for e in status.entries))
    counted = Counter((e.kind, e.state) for e in status.entries)
    lines = [f"{'':14}" + "".join(f"{s:>9}" for s in STATES) + f"{'rows':>18}"]
    for kind in kinds:
        rows = "/".join(map(str, Status(tuple(e for e in status.entries if e.kind == kind)).rows))
        cells = "".join(f"{counted[kind, s] or '-':>9}" for s in STATES)
        lines.append(f"{kind:14}{cells}{rows if rows != '0/0' else '-':>18}")
    written, planned = status.rows
    if rate := status.rate(time.time()) if rate is None else rate:
        lines.append(
            f"{rate:.1f} rows/s, {duration((planned - written) / rate)} left for {planned - written} rows"
        )
    if status.jobs:
        lines.append(f"{status.jobs} jobs have not ended")
    if status.stale:
        lines.append(f"stale: {len(status.stale)} artifacts of other settings, first {status.stale[0]}")
    lines += [f"note: {note}" for note in status.notes]
    failed = [e for e in status.entries if e.state == "failed"]
    lines += [f"failed: {e.name}: {e.reason}" + (f" (log: {e.log})" if e.log else "") for e in failed[:SHOWN]]
    if len(failed) > SHOWN:
        lines.append(f"failed: {len(failed) - SHOWN} more; all of them with json=true")
    return "\n".join(lines)
