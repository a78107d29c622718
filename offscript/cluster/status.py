"""What an experiment looks like right now, from its files and (where there is one that answers) from the cluster."""

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from offscript.console import duration
from offscript.store import manifest_path, read_json

STATES = ("done", "running", "waiting", "failed", "missing")
ALIVE_S = 60.0
"""A claim that was touched this recently is held by a living writer."""


@dataclass(frozen=True)
class Entry:
    """One artifact of the grid: its state, rows written and planned (None for what has no rows), why it failed and
    where that is logged."""

    name: str
    kind: str
    key: str
    path: str
    state: str
    rows: int | None = None
    planned: int | None = None
    reason: str | None = None
    log: str | None = None


@dataclass(frozen=True)
class Status:
    """Entries in the grid's order, files that no plan knows any more (``stale``), and what could not be asked."""

    entries: tuple[Entry, ...]
    stale: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def plain(self) -> dict[str, Any]:
        return asdict(self)


def look(
    folder: Path,
    artifacts: Iterable[Mapping[str, Any]],
    in_flight: Mapping[str, str],
    notes: Iterable[str] = (),
) -> Status:
    """The state of ``artifacts`` (``key, name, kind, path, planned`` each, as a plan lists them) below ``folder``.

    ``in_flight`` maps keys to the state of the job that is to make them (RUNNING, PENDING, ...).
    """
    artifacts = list(artifacts)
    there = {str(p.relative_to(folder)) for p in _files(folder)}
    now = time.time()
    entries = tuple(_entry(folder, a, there, in_flight.get(a["key"]), now) for a in artifacts)
    return Status(entries, tuple(_stale(there, artifacts)), tuple(notes))


def _entry(folder: Path, artifact: Mapping[str, Any], there: set[str], job: str | None, now: float) -> Entry:
    path, planned = artifact["path"], artifact["planned"]
    manifest = str(manifest_path(Path(path)))
    done = manifest in there
    rows = None if planned is None else planned if done else _lines(folder / path) if path in there else 0
    state, failure = "done", None
    if not done:
        lock = str(Path(path).with_name(f".{Path(path).name}.lock"))
        note = folder / "logs" / f"{artifact['key'][:8]}.failed.json"
        if job == "RUNNING" or (lock in there and now - (folder / lock).stat().st_mtime < ALIVE_S):
            state = "running"
        elif job is not None:
            state = "waiting"
        elif note.exists():
            state, failure = "failed", read_json(note)
        else:
            state = "missing"
    reason, log = (failure["reason"], failure["log"]) if failure else (None, None)
    return Entry(artifact["name"], artifact["kind"], artifact["key"], path, state, rows, planned, reason, log)


def _files(folder: Path) -> Iterable[Path]:
    for part in ("rollouts", "adapters", "classifiers", "predictions", "evaluation"):
        yield from (folder / part).rglob("*")


def _stale(there: set[str], artifacts: list[Mapping[str, Any]]) -> list[str]:
    """Finished artifacts on disk that are not of this grid: made under settings that have changed since."""
    known = {str(manifest_path(Path(a["path"]))) for a in artifacts}
    ends = (".manifest.json", "/manifest.json")
    return sorted(
        path.removesuffix(".manifest.json").removesuffix("/manifest.json")
        for path in there
        if path.endswith(ends) and path not in known
    )


def _lines(path: Path) -> int:
    with open(path, "rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


# ---------------------------------------------------------------- as a table


def table(status: Status, rate: float | None = None) -> str:
    """One line per kind of artifact, then rows, what is stale, and every failure with its log.

    ``rate``: rows per second that were seen just now, for the time left.
    """
    kinds = list(dict.fromkeys(e.kind for e in status.entries))
    counted = Counter((e.kind, e.state) for e in status.entries)
    lines = [f"{'':14}" + "".join(f"{s:>9}" for s in STATES) + f"{'rows':>18}"]
    for kind in kinds:
        own = [e for e in status.entries if e.kind == kind and e.planned is not None]
        rows = f"{sum(e.rows or 0 for e in own)}/{sum(e.planned or 0 for e in own)}" if own else "-"
        lines.append(f"{kind:14}" + "".join(f"{counted[kind, s] or '-':>9}" for s in STATES) + f"{rows:>18}")
    left = sum((e.planned or 0) - (e.rows or 0) for e in status.entries)
    if rate:
        lines.append(f"{rate:.1f} rows/s, {duration(left / rate)} left for {left} rows")
    if status.stale:
        lines.append(f"stale: {len(status.stale)} artifacts of other settings, first {status.stale[0]}")
    lines += [f"note: {note}" for note in status.notes]
    for entry in status.entries:
        if entry.state == "failed":
            lines.append(
                f"failed: {entry.name}: {entry.reason}" + (f" (log: {entry.log})" if entry.log else "")
            )
    return "\n".join(lines)
