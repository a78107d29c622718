"""Uploads W&B runs that were kept offline, also while their jobs run, and each row once.

``wandb sync`` uploads a whole file each time and appends it to the run. It is therefore given a log that holds only
what was not uploaded before: the records of each file behind the last uploaded one, and of rows those above the last
``_step`` that the service holds. The offset of the last uploaded record is written beside each file once the client
reports that the upload has arrived.
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
from typing import TYPE_CHECKING

from offscript.console import say
from offscript.errors import UserError
from offscript.settings import TrackingSettings
from offscript.storage.files import read_json_object, write_json
from offscript.storage.locks import Busy, claim
from offscript.tracking import transaction_log
from offscript.tracking.tracker import is_key_rejected, run_files
from offscript.tracking.transaction_log import Record, RunRecord, step_of

if TYPE_CHECKING:
    import wandb

INTERVAL_S = 30.0
ONLINE_IDLE_S = 600.0
"""A run that was started online uploads itself. Its file is read once it has not changed for this long."""
CLIENT_TIMEOUT_S = 600.0
API_TIMEOUT_S = 10
LOGIN_HINT = "`wandb login`, or set WANDB_API_KEY"
DEFINITION_RECORDS = ("config", "metric", "telemetry", "environment")
"""Kinds of records that describe a run and hold no rows: they can be uploaded more than once."""


@dataclass
class SyncResult:
    """Counts of one sync: runs of which something was uploaded, uploaded rows, and runs whose upload failed."""

    runs: int = 0
    rows: int = 0
    failed: int = 0


@dataclass
class PendingFile:
    """What of a run's file was not uploaded before.

    ``start``: the record that starts the run; ``definitions``: uploaded records that are uploaded each time again;
    ``new``: records that were not uploaded; ``end``: offset of the end of the last of them, in bytes.
    """

    path: Path
    start: Record
    definitions: list[Record]
    new: list[Record]
    end: int

    @property
    def run(self) -> RunRecord:
        return self.start.run

    @property
    def steps(self) -> list[int]:
        return [step for record in self.new if (step := step_of(record)) is not None]


def sync(
    folder: Path, settings: TrackingSettings, watch: bool = False, interval_s: float = INTERVAL_S
) -> SyncResult:
    """Uploads what is new below ``folder``/wandb; with ``watch`` every ``interval_s`` seconds until interrupted.

    Jobs may be running: records that they have not finished writing are left for the next sync. A run whose upload
    failed is reported in one line, and the next sync tries it again.

    Raises:
        UserError: there are no runs or no API key, W&B rejects the key, or another sync is running.
    """
    root = folder / "wandb"
    if not root.is_dir():
        raise UserError(str(root), "no W&B runs", "an experiment that ran with tracking=offline or online")
    try:
        with claim(root / "sync", wait=False), contextlib.suppress(KeyboardInterrupt):
            # Left behind by a sync that was killed.
            for leftover in root.glob("sync-*"):
                shutil.rmtree(leftover)
            return _sync_repeatedly(root, settings, interval_s) if watch else _sync_once(root, settings)
    except Busy as busy:
        raise UserError(str(root), str(busy), "one sync at a time") from None
    return SyncResult()


def _sync_repeatedly(root: Path, settings: TrackingSettings, interval_s: float) -> SyncResult:
    """Syncs until interrupted. An unreachable service is reported once and tried again."""
    total, reported = SyncResult(), ""
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            try:
                last = _sync_once(root, settings)
                total = SyncResult(total.runs + last.runs, total.rows + last.rows, last.failed)
            except UserError as error:
                if is_key_rejected(error):
                    raise
                if str(error) != reported:
                    say(reported := str(error))
            time.sleep(interval_s)
    return total


def _sync_once(root: Path, settings: TrackingSettings) -> SyncResult:
    files = [file for path in run_files(root.parent) if (file := _read_pending(path)) is not None]
    if not files:
        return SyncResult()
    result, last_steps = SyncResult(), _last_uploaded_steps(files, settings)
    with tempfile.TemporaryDirectory(prefix="sync-", dir=root) as scratch:
        logs = [_write_log(file, last_steps, Path(scratch)) for file in files]
        errors = _run_client([log for log in logs if log is not None], settings, Path(scratch))
        for file, log in zip(files, logs, strict=True):
            if log is not None:
                named = any(f"/{file.run.run_id}]" in error for error in errors)
                if named or not log.with_suffix(".wandb.synced").exists():
                    result.failed += 1
                    continue
                result.runs += 1
                result.rows += len(file.steps)
            write_json(_offset_file(file.path), {"bytes": file.end})
    if result.failed:
        say(
            f"W&B: {result.failed} runs were not uploaded, the next sync tries again ({' '.join(errors[:1])})"
        )
    if result.runs:
        say(f"W&B: uploaded {result.rows} rows of {result.runs} runs")
    return result


# ---------------------------------------------------------------- what is new


def _offset_file(path: Path) -> Path:
    return path.with_suffix(".wandb.uploaded")


def _is_offline(path: Path) -> bool:
    return path.parent.name.startswith("offline-")


def _read_pending(path: Path) -> PendingFile | None:
    """Reads what of a file was not uploaded; None if there is nothing, or if its run uploads itself."""
    uploaded = (
        int(read_json_object(_offset_file(path), "bytes")["bytes"]) if _offset_file(path).exists() else 0
    )
    stat = path.stat()
    if stat.st_size <= uploaded:
        return None
    if not _is_offline(path) and time.time() - stat.st_mtime < ONLINE_IDLE_S:
        return None
    start: Record | None = None
    definitions: list[Record] = []
    new: list[Record] = []
    last_end = uploaded
    for end, record in transaction_log.records(path):
        if record.HasField("run"):
            start = start or record
        elif end > uploaded:
            new.append(record)
        elif record.WhichOneof("record_type") in DEFINITION_RECORDS:
            definitions.append(record)
        last_end = max(last_end, end)
    # The first records, or the end of the next one, may not be on disk yet.
    if start is None or last_end == uploaded:
        return None
    return PendingFile(path, start, definitions, new, last_end)


def _last_uploaded_steps(files: Sequence[PendingFile], settings: TrackingSettings) -> dict[str, int]:
    """Queries the last ``_step`` that the service holds of each run, by run id; -1 for a run that it does not know."""
    import wandb

    steps = {}
    try:
        api = wandb.Api(timeout=API_TIMEOUT_S)
        entity = settings.entity or api.default_entity
        for run in {file.run.run_id: file.run for file in files}.values():
            path = f"{run.entity or entity}/{run.project}/{run.run_id}"
            steps[run.run_id] = _last_uploaded_step(api, path)
    except Exception as error:
        raise _user_error(error) from None
    return steps


def _last_uploaded_step(api: "wandb.Api", path: str) -> int:
    try:
        return int(api.run(path).lastHistoryStep)
    except Exception as error:
        if "not find run" in str(error) or "not found" in str(error):
            return -1
        raise


def _user_error(error: Exception) -> UserError:
    if is_key_rejected(error):
        return UserError("W&B", "rejects the API key, or there is none", LOGIN_HINT)
    return UserError("W&B", f"does not answer ({type(error).__name__})", "sync again later; nothing is lost")


# ---------------------------------------------------------------- the upload


def _write_log(file: PendingFile, last_steps: dict[str, int], scratch: Path) -> Path | None:
    """Writes a log of what is new in ``file``, with links to the files that it names; None if nothing is new.

    Raises the run's entry in ``last_steps``, for the logs of its later attempts.
    """
    last = last_steps[file.run.run_id]
    file.new = [r for r in file.new if (step := step_of(r)) is None or step > last]
    if not file.new or (not _is_offline(file.path) and not file.steps):
        return None
    last_steps[file.run.run_id] = max([last, *file.steps])
    ended = any(record.HasField("exit") for record in file.new)
    folder = scratch / file.path.parent.name
    folder.mkdir()
    (folder / "files").symlink_to(file.path.parent.absolute() / "files")
    # It holds the start of the run's clock, which is the same for every upload.
    state = file.path.with_suffix(".wandb.syncstate")
    (folder / state.name).symlink_to(state.absolute())
    log = folder / file.path.name
    # Without it, the client marks a run as failed whose last record is not there yet.
    tail = [] if ended else [transaction_log.new_record(preempting={})]
    transaction_log.write(log, [file.start, *file.definitions, *file.new, *tail])
    return log


def _run_client(logs: Sequence[Path], settings: TrackingSettings, scratch: Path) -> list[str]:
    """Runs ``wandb sync`` on ``logs``; returns its error messages.

    The client ends with 0 and marks a log as synced even if the service did not accept its rows; it only prints an
    error.
    """
    if not logs:
        return []
    command = [sys.executable, "-m", "wandb", "sync", "--yes", "--include-online", "--include-synced"]
    if settings.entity:
        command += ["--entity", settings.entity]
    command += map(str, logs)
    env = {**os.environ, "WANDB_DIR": str(scratch), "WANDB_SILENT": "false"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=CLIENT_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return [f"the client did not finish within {CLIENT_TIMEOUT_S:.0f} s"]
    lines = [line.removeprefix("wandb:").strip() for line in (done.stderr + done.stdout).splitlines()]
    errors = [line.removeprefix("ERROR").strip() for line in lines if line.startswith("ERROR")]
    return errors or (lines[-1:] if done.returncode else [])
