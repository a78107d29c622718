"""Tracks jobs in W&B: one run per job, behind one interface that also has an implementation without W&B.

The run id is derived from what the job makes, so a restarted job resumes its run. After a restart, the steps since the
last checkpoint are logged again. W&B's own step (``_step``) of a row is therefore derived from the optimizer step or
row count that it belongs to, and rows up to the last ``_step`` of the run are skipped. That step comes from the service,
or offline from the transaction logs of the earlier attempts. A kill may also lose rows that were not uploaded yet: the
callbacks of ``WandbTracker`` log the whole history of a resumed training again.
"""

import functools
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, Literal, ParamSpec

from offscript.console import say
from offscript.errors import command_line
from offscript.settings import TrackingSettings
from offscript.tracking import transaction_log

if TYPE_CHECKING:
    import wandb
    from transformers import TrainerCallback, TrainerState

STEP = "step"
ROWS_PER_STEP = 10
"""``_step`` grows by this much per step, so that several rows (training, evaluation) can belong to one step."""
INIT_TIMEOUT_S = 10
FINISH_TIMEOUT_S = 30
UPLOAD_INTERVAL_S = 5
"""Seconds between uploads. The service limits the requests of a project, which hundreds of jobs may share."""
FLUSH_INTERVAL_S = 2
"""Seconds until a row is in the run's file, where it survives a kill and ``sync`` finds it."""
RANK_VARIABLES = ("RANK", "SLURM_PROCID")
TIMING_SUFFIXES = ("_runtime", "_per_second", "total_flos")

Scalar = str | int | float | bool | None
Logs = Mapping[str, float]
P = ParamSpec("P")

_service_failed = False
"""Whether the service failed before in this process: the jobs of a grid in one process wait for it once, not each."""


class Tracker:
    """Tracker interface. Methods never raise. Those of this class do nothing."""

    def log(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Logs a row of numbers. ``step`` grows over all attempts at the job (optimizer steps, or rows on disk)."""

    def summary(self, values: Mapping[str, Scalar]) -> None:
        """Sets headline numbers of the run."""

    def table(self, name: str, columns: Sequence[str], rows: Iterable[Sequence[Scalar]]) -> None:
        """Logs a table."""

    def bars(self, name: str, title: str, heights: Mapping[str, float]) -> None:
        """Logs a bar chart with a bar for each label."""

    def image(self, name: str, path: Path) -> None:
        """Logs an image (png) from disk."""

    def callbacks(self) -> list["TrainerCallback"]:
        """Returns callbacks that log what a Hugging Face Trainer logs."""
        return []

    def finish(self, failed: bool = False) -> None:
        """Ends the run."""


class NullTracker(Tracker):
    """The tracker of ``tracking=off`` and of all processes of a training but the first."""


def _never_raises(
    method: "Callable[Concatenate[WandbTracker, P], None]",
) -> "Callable[Concatenate[WandbTracker, P], None]":
    """Makes a method report the first exception of a run in one line, and ignore the others."""

    @functools.wraps(method)
    def guarded(self: "WandbTracker", *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            method(self, *args, **kwargs)
        except Exception as error:
            if not self.failed:
                say(f"W&B failed ({type(error).__name__}: {error}): the job continues without it")
            self.failed = True

    return guarded


class WandbTracker(Tracker):
    """A W&B run. ``last_step``: the ``_step`` of its last row from earlier attempts, -1 for none."""

    def __init__(self, run: "wandb.Run", last_step: int = -1) -> None:
        self.run = run
        self.last_step = last_step
        self.failed = False
        self._step, self._rows = -1, 0

    @_never_raises
    def log(self, values: Mapping[str, float], step: int | None = None) -> None:
        if step is None:
            self.run.log(dict(values))
            return
        self._rows = self._rows + 1 if step == self._step else 0
        self._step = step
        wandb_step = step * ROWS_PER_STEP + min(self._rows, ROWS_PER_STEP - 1)
        if wandb_step > self.last_step:
            self.last_step = wandb_step
            self.run.log({**values, STEP: step}, step=wandb_step, commit=True)

    @_never_raises
    def summary(self, values: Mapping[str, Scalar]) -> None:
        self.run.summary.update(dict(values))

    @_never_raises
    def table(self, name: str, columns: Sequence[str], rows: Iterable[Sequence[Scalar]]) -> None:
        import wandb

        self.run.log({name: wandb.Table(columns=list(columns), data=[list(r) for r in rows])})

    @_never_raises
    def bars(self, name: str, title: str, heights: Mapping[str, float]) -> None:
        import wandb

        table = wandb.Table(columns=["label", "value"], data=[[k, v] for k, v in heights.items()])
        self.run.log({name: wandb.plot.bar(table, "label", "value", title=title)})

    @_never_raises
    def image(self, name: str, path: Path) -> None:
        import wandb

        self.run.log({name: wandb.Image(str(path))})

    def callbacks(self) -> list["TrainerCallback"]:
        return [_trainer_callback(self)]

    @_never_raises
    def finish(self, failed: bool = False) -> None:
        global _service_failed
        try:
            self.run.finish(exit_code=int(failed))
        except TimeoutError:
            _service_failed = True
            say(
                f"W&B did not accept all of this run within {FINISH_TIMEOUT_S} s: {command_line('sync')} uploads the rest"
            )


def _trainer_callback(tracker: Tracker) -> "TrainerCallback":
    """Logs to ``tracker`` what a Hugging Face Trainer logs; when it resumes, also all that it logged before.

    The Trainer's own W&B callback cannot skip steps that were logged before, and adds every argument and path of the
    Trainer to the run's config.
    """
    from transformers import TrainerCallback
    from transformers.integrations.integration_utils import rewrite_logs

    def log(logs: Logs, step: int) -> None:
        numbers = {
            k: v for k, v in logs.items() if isinstance(v, (int, float)) and not k.endswith(TIMING_SUFFIXES)
        }
        numbers.pop("step", None)
        tracker.log(rewrite_logs(numbers), step)

    class LogToTracker(TrainerCallback):
        def on_train_begin(self, args: object, state: "TrainerState", control: object, **_: object) -> None:
            if state.is_world_process_zero:
                for logs in state.log_history:
                    log(logs, int(logs["step"]))

        def on_log(
            self, args: object, state: "TrainerState", control: object, logs: Logs | None = None, **_: object
        ) -> None:
            if state.is_world_process_zero and logs:
                log(logs, state.global_step)

    return LogToTracker()


class RolloutProgressLogger:
    """Logs the progress of a rollout job: rows, rows and tokens per second, and the share of rows with a text.

    Logs at most every ``every_s`` seconds; rates are over the time since the last logged row.
    """

    def __init__(self, tracker: Tracker, every_s: float = 10.0) -> None:
        self.tracker, self.every_s = tracker, every_s
        self.tokens = 0
        self.begin(0, 0)

    def begin(self, rows: int, emitted: int) -> None:
        """Starts the clock with the rows and texts on disk, so that the curves of a restarted job continue."""
        self.rows, self.emitted = rows, emitted
        self.started = self.last = (time.monotonic(), rows, self.tokens)

    def add_row(self, emitted: bool, tokens: int) -> None:
        """Adds a row, with or without a text. ``tokens``: generated so far in this process."""
        self.rows += 1
        self.emitted += emitted
        self.tokens = tokens
        if time.monotonic() - self.last[0] >= self.every_s:
            self._log()

    def close(self) -> None:
        """Logs the last rows, and the rates of the whole job as headline numbers."""
        if self.rows > self.last[1]:
            self._log()
        self.tracker.summary({**self._rates(self.started), "rollout/rows": self.rows})

    def _log(self) -> None:
        values = {**self._rates(self.last), "rollout/rows": self.rows}
        self.tracker.log({**values, "rollout/emission_rate": self.emitted / self.rows}, step=self.rows)
        self.last = (time.monotonic(), self.rows, self.tokens)

    def _rates(self, since: tuple[float, int, int]) -> dict[str, float]:
        seconds = max(time.monotonic() - since[0], 1e-9)
        return {
            "rollout/rows_per_s": (self.rows - since[1]) / seconds,
            "rollout/tokens_per_s": (self.tokens - since[2]) / seconds,
        }


# ---------------------------------------------------------------- starting a run


def start(
    settings: TrackingSettings,
    folder: Path,
    *,
    run_id: str,
    name: str,
    group: str,
    job_type: str,
    tags: Sequence[str],
    config: Mapping[str, object],
) -> Tracker:
    """Starts the W&B run of one job under ``folder``/wandb, or resumes it where the job was started before.

    An online run that cannot start is kept offline, which is reported once per process. Of the processes of a training
    (``job_type`` train) only the first (by RANK or SLURM_PROCID) has a run; those of a rollout job each have a shard of
    the rows, and a run of their own.
    """
    global _service_failed
    if settings.name == "off" or (job_type == "train" and _rank() > 0):
        return NullTracker()
    import wandb

    init = functools.partial(
        wandb.init,
        id=run_id,
        project=settings.project,
        entity=settings.entity,
        name=name,
        group=group,
        job_type=job_type,
        tags=list(tags),
        config=dict(config),
    )
    if settings.name == "online" and not _service_failed:
        try:
            run = _start_run(init, folder, "online")
            return WandbTracker(run, run.starting_step - 1)
        except Exception as error:
            _service_failed = True
            say(f"{_reason(error)}: W&B runs are kept offline below {folder / 'wandb'}")
            # The client's service process still holds the id of the failed run.
            wandb.teardown()
    try:
        last_step = transaction_log.last_step(run_files(folder, run_id))
        return WandbTracker(_start_run(init, folder, "offline"), last_step)
    except Exception as error:
        say(f"W&B cannot write below {folder} ({error}): this job is not tracked")
        return NullTracker()


def _rank() -> int:
    return next((int(os.environ[name]) for name in RANK_VARIABLES if os.environ.get(name)), 0)


def _start_run(
    init: "Callable[..., wandb.Run]", folder: Path, mode: Literal["online", "offline"]
) -> "wandb.Run":
    """Starts a run with all of its files below ``folder``: a node may have no home folder, and an offline run may be
    uploaded from another machine."""
    import wandb

    root = folder.absolute()
    root.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ["WANDB_DIR"] = str(root)
    os.environ["WANDB_DATA_DIR"] = str(root / "wandb" / "data")
    client_settings = wandb.Settings(
        silent=True,
        console="off",
        init_timeout=INIT_TIMEOUT_S,
        login_timeout=INIT_TIMEOUT_S,
        finish_timeout=FINISH_TIMEOUT_S,
        finish_timeout_raises=True,
        x_file_stream_transmit_interval=UPLOAD_INTERVAL_S,
        x_transaction_log_flush_interval=FLUSH_INTERVAL_S,
        # Neither the diff of the working tree nor the URL of its remote is uploaded.
        disable_git=True,
        disable_job_creation=True,
    )
    run = init(dir=root, mode=mode, resume="allow", settings=client_settings)
    run.define_metric(STEP)
    run.define_metric("*", step_metric=STEP)
    return run


def run_files(folder: Path, run_id: str = "*") -> list[Path]:
    """Returns the transaction logs below ``folder``/wandb of all attempts at a run, oldest first."""
    found = (folder / "wandb").glob(f"*run-*-{run_id}/run-{run_id}.wandb")
    return sorted(found, key=lambda path: path.parent.name.removeprefix("offline-"))


def is_key_rejected(error: BaseException) -> bool:
    """Whether the API key is missing or W&B rejects it. (The client reports an unreachable service like this, too.)"""
    from wandb.errors import AuthenticationError

    text = str(error)
    if isinstance(error, AuthenticationError):
        return "did not respond" not in text
    return any(word in text for word in ("error 401", "error 403", "API key", "API_KEY"))


def _reason(error: Exception) -> str:
    if is_key_rejected(error):
        return "W&B rejects the API key (or there is none: `wandb login`)"
    return f"W&B cannot be reached ({type(error).__name__})"
