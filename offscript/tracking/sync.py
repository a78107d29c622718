"""Uploads what is new among the W&B runs that were kept offline, again and again while their jobs run.

The client's own ``wandb sync`` sends a whole file each time, and appends it. So it is given a log of only what was
not uploaded before: from each file the records behind the last one that went out, and of rows those above the last that
the service holds. What went out is noted beside each file once the client says that it has arrived.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offscript.console import say
from offscript.errors import UserError
from offscript.settings import TrackingSettings
from offscript.storage.files import read_json, write_json
from offscript.storage.locks import Busy, claim
from offscript.tracking import transaction_log
from offscript.tracking.tracker import files, refused

EVERY_S = 30.0
QUIET_S = 600.0
"""A run that was opened online uploads itself; its file is looked at when nothing was written to it for so long."""
CLIENT_TIMEOUT_S = 600.0
API_TIMEOUT_S = 10
NO_KEY = "`wandb login`, or set WANDB_API_KEY"
SETTINGS = ("config", "metric", "telemetry", "environment")
"""Kinds of records that say how a run is to be shown, not what happened: no harm in saying them again."""


@dataclass
class Synced:
    """What a pass did: runs with something new that was uploaded, rows in them, runs that could not be."""

    runs: int = 0
    rows: int = 0
    failed: int = 0


@dataclass
class Part:
    """What is new in one file of a run: the record that opens it, those that are said ``again`` each time, ``news``, and
    the offset behind the last of them."""

    path: Path
    opening: Any
    again: list[Any]
    news: list[Any]
    end: int

    @property
    def run(self) -> Any:
        return self.opening.run

    @property
    def steps(self) -> list[int]:
        return [step for record in self.news if (step := transaction_log.step_of(record)) is not None]


def sync(folder: Path, settings: TrackingSettings, watch: bool = False, every_s: float = EVERY_S) -> Synced:
    """Uploads what is new below ``folder``/wandb; with ``watch`` every ``every_s`` seconds until it is interrupted.

    A run that cannot be uploaded is told in one line and tried again the next time. Jobs may run meanwhile: what they
    have not finished writing waits for the next pass.

    Raises:
        UserError: nothing was tracked there, there is no key, W&B does not take it, or another sync is at work.
    """
    place = folder / "wandb"
    if not place.is_dir():
        raise UserError(str(place), "no W&B runs", "an experiment that ran with tracking=offline or online")
    try:
        with claim(place / "sync", wait=False), contextlib.suppress(KeyboardInterrupt):
            for left in place.glob("sync-*"):
                shutil.rmtree(left)  # a sync was killed
            return _watch(place, settings, every_s) if watch else _pass(place, settings)
    except Busy as busy:
        raise UserError(str(place), str(busy), "one sync at a time") from None
    return Synced()


def _watch(place: Path, settings: TrackingSettings, every_s: float) -> Synced:
    """Passes until somebody has had enough; a service that is away is told once and waited for."""
    total, said = Synced(), ""
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            try:
                done = _pass(place, settings)
                total = Synced(total.runs + done.runs, total.rows + done.rows, done.failed)
            except UserError as error:
                if refused(error):
                    raise
                if str(error) != said:
                    say(said := str(error))
            time.sleep(every_s)
    return total


def _pass(place: Path, settings: TrackingSettings) -> Synced:
    parts = [part for path in files(place.parent) if (part := _news(path)) is not None]
    if not parts:
        return Synced()
    done, last = Synced(), _Cursors(settings)
    with tempfile.TemporaryDirectory(prefix="sync-", dir=place) as scratch:
        logs = [_log_of(part, last, Path(scratch)) for part in parts]
        complaints = _upload([log for log in logs if log is not None], settings, Path(scratch))
        for part, log in zip(parts, logs, strict=True):
            if log is not None and (_not_taken(log) or any(f"/{part.run.run_id}]" in c for c in complaints)):
                done.failed += 1
                continue
            write_json(_note(part.path), {"bytes": part.end})
            if log is not None:
                done.runs += 1
                done.rows += len(part.steps)
    if done.failed:
        say(
            f"W&B: {done.failed} runs were not uploaded, the next sync tries again ({' '.join(complaints[:1])})"
        )
    if done.runs:
        say(f"W&B: uploaded {done.rows} rows of {done.runs} runs")
    return done


# ---------------------------------------------------------------- what is new


def _note(path: Path) -> Path:
    return path.with_suffix(".wandb.uploaded")


def _news(path: Path) -> Part | None:
    """What of a file was not uploaded before; None if nothing, or if its run uploads itself."""
    start = read_json(_note(path))["bytes"] if _note(path).exists() else 0
    stat = path.stat()
    if stat.st_size <= start:
        return None
    if not path.parent.name.startswith("offline-") and time.time() - stat.st_mtime < QUIET_S:
        return None
    run, again, news, last = None, [], [], start
    for end, record in transaction_log.records(path):
        if record.HasField("run"):
            run = run or record
        elif end <= start:
            again += [record] if record.WhichOneof("record_type") in SETTINGS else []
        else:
            news.append(record)
        last = max(last, end)
    if run is None or last == start:  # its first records, or the end of its next one, are not on disk yet
        return None
    return Part(path, run, again, news, last)


class _Cursors:
    """The last ``_step`` that each run is known to hold: by the service, and by what was handed over in this pass."""

    def __init__(self, settings: TrackingSettings) -> None:
        import wandb

        try:
            self.api = wandb.Api(timeout=API_TIMEOUT_S)
            self.entity = settings.entity or self.api.default_entity
        except Exception as error:
            raise _explained(error) from None
        self.steps: dict[str, int] = {}

    def __getitem__(self, run: Any) -> int:
        if run.run_id not in self.steps:
            self.steps[run.run_id] = self._ask(f"{run.entity or self.entity}/{run.project}/{run.run_id}")
        return self.steps[run.run_id]

    def __setitem__(self, run: Any, step: int) -> None:
        self.steps[run.run_id] = step

    def _ask(self, path: str) -> int:
        try:
            return int(self.api.run(path).lastHistoryStep)
        except Exception as error:
            if "not find run" in str(error) or "not found" in str(error):
                return -1
            raise _explained(error) from None


def _explained(error: Exception) -> UserError:
    if refused(error):
        return UserError("W&B", "it refuses the API key, or there is none", NO_KEY)
    return UserError(
        "W&B", f"it does not answer ({type(error).__name__})", "sync again later; nothing is lost"
    )


# ---------------------------------------------------------------- handing it over


def _log_of(part: Part, last: _Cursors, scratch: Path) -> Path | None:
    """A log of what is new in ``part``, beside the files that it names; None if the service holds all of it."""
    fresh = [r for r in part.news if (step := transaction_log.step_of(r)) is None or step > last[part.run]]
    part.news = fresh
    own = part.path.parent.name.startswith("offline-")
    if not fresh or (not own and not part.steps):
        return None
    last[part.run] = max([last[part.run], *part.steps])
    if not any(record.HasField("exit") for record in fresh):
        fresh = [*fresh, _not_over()]
    folder = scratch / part.path.parent.name
    folder.mkdir()
    (folder / "files").symlink_to(part.path.parent.absolute() / "files")
    state = part.path.with_suffix(".wandb.syncstate")
    (folder / state.name).symlink_to(
        state.absolute()
    )  # where the run's clock started, the same for every pass
    log = folder / part.path.name
    transaction_log.write(log, [part.opening, *part.again, *fresh])
    return log


def _not_over() -> Any:
    """Without it the client would call a run failed whose last record is not there yet."""
    record = transaction_log.new_record()
    record.preempting.SetInParent()
    return record


def _upload(logs: Sequence[Path], settings: TrackingSettings, scratch: Path) -> list[str]:
    """Hands ``logs`` to the client; returns what it complained about, line by line.

    It ends with 0 and marks a log as synced even where the service did not take its rows, and says so.
    """
    if not logs:
        return []
    command = [sys.executable, "-m", "wandb", "sync", "--yes", "--include-online", "--include-synced"]
    if settings.entity:
        command += ["--entity", settings.entity]
    env = {**os.environ, "WANDB_DIR": str(scratch), "WANDB_SILENT": "false"}
    try:
        done = subprocess.run(
            [*command, *map(str, logs)], capture_output=True, text=True, env=env, timeout=CLIENT_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return [f"the client gave up after {CLIENT_TIMEOUT_S:.0f} s"]
    lines = [line.removeprefix("wandb:").strip() for line in (done.stderr + done.stdout).splitlines()]
    bad = [line.removeprefix("ERROR").strip() for line in lines if line.startswith("ERROR")]
    return bad or (lines[-1:] if done.returncode else [])


def _not_taken(log: Path) -> bool:
    return not log.with_suffix(".wandb.synced").exists()
