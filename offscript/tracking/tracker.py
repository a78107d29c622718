"""W&B, or nothing, behind one interface. One run per job, with an id made from what the job makes, so that a job that
is run again goes on with its own run.

A job that was killed tells some of its steps twice: those after its last checkpoint. W&B's own step (``_step``) of a row
is therefore made from the step that it is about, and what is not above the last one that the run already holds is left
out: the service says which that is, or the files of the earlier attempts where there is no service. What the service
has not received before a kill is filled in by ``WandbTracker.callbacks``, which tells a resumed training's whole history again.
"""

import functools
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from offscript.console import say
from offscript.settings import TrackingSettings
from offscript.tracking import transaction_log

STEP = "step"
ROWS_A_STEP = 10
"""``_step`` counts by so many, so that several rows (training, evaluation) can be about one step."""
INIT_TIMEOUT_S = 10
FINISH_TIMEOUT_S = 30
STREAM_S = 5
"""Seconds between transmissions. The service limits the requests of a project: hundreds of jobs share it."""
FLUSH_S = 2
"""Seconds until a row is in the run's file, where a kill of the node cannot lose it and ``sync`` finds it."""
RANKS = ("RANK", "SLURM_PROCID")
CLOCKS = ("_runtime", "_per_second", "total_flos")

_gave_up = False
"""Whether the service failed this process before: a grid that runs in one process waits for it once, not per job."""


class Tracker(Protocol):
    """Tracker interface. Methods never raise."""

    def log(self, values: Mapping[str, float], step: int | None = None) -> None:
        """A row of numbers. ``step`` counts up over all attempts at the job (optimizer steps; rows on disk)."""

    def summary(self, values: Mapping[str, Any]) -> None:
        """Headline numbers of the run."""

    def table(self, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None: ...

    def bars(self, name: str, title: str, heights: Mapping[str, float]) -> None:
        """A bar for each label."""

    def image(self, name: str, path: Path) -> None:
        """A picture (png) from disk."""

    def callbacks(self) -> list[Any]:
        """Callbacks for a HF Trainer whose logs belong into this run."""
        ...

    def finish(self, failed: bool = False) -> None: ...


class NullTracker:
    """The tracker of ``tracking=off`` and of every process but a job's first: same methods, no effect."""

    def log(self, values: Mapping[str, float], step: int | None = None) -> None:
        pass

    def summary(self, values: Mapping[str, Any]) -> None:
        pass

    def table(self, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        pass

    def bars(self, name: str, title: str, heights: Mapping[str, float]) -> None:
        pass

    def image(self, name: str, path: Path) -> None:
        pass

    def callbacks(self) -> list[Any]:
        return []

    def finish(self, failed: bool = False) -> None:
        pass


def _at_no_cost(method: Callable[..., None]) -> Callable[..., None]:
    """A tracker's method whose failure costs the job nothing; the first one of a run is told."""

    @functools.wraps(method)
    def guarded(self: "WandbTracker", *args: Any, **kwargs: Any) -> None:
        try:
            method(self, *args, **kwargs)
        except Exception as error:
            if not self.failed:
                say(f"W&B failed ({type(error).__name__}: {error}): the job goes on without")
            self.failed = True

    return guarded


class WandbTracker:
    """A W&B run. ``told``: the ``_step`` of the last row that it holds from earlier attempts, -1 for none."""

    def __init__(self, run: Any, told: int = -1) -> None:
        self.run = run
        self.told = told
        self.failed = False
        self._step, self._rows = -1, 0

    @_at_no_cost
    def log(self, values: Mapping[str, float], step: int | None = None) -> None:
        if step is None:
            self.run.log(dict(values))
            return
        self._rows = self._rows + 1 if step == self._step else 0
        self._step = step
        place = step * ROWS_A_STEP + min(self._rows, ROWS_A_STEP - 1)
        if place > self.told:
            self.told = place
            self.run.log({**values, STEP: step}, step=place, commit=True)

    @_at_no_cost
    def summary(self, values: Mapping[str, Any]) -> None:
        self.run.summary.update(dict(values))

    @_at_no_cost
    def table(self, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        import wandb

        self.run.log({name: wandb.Table(columns=list(columns), data=[list(r) for r in rows])})

    @_at_no_cost
    def bars(self, name: str, title: str, heights: Mapping[str, float]) -> None:
        import wandb

        table = wandb.Table(columns=["label", "value"], data=[[k, v] for k, v in heights.items()])
        self.run.log({name: wandb.plot.bar(table, "label", "value", title=title)})

    @_at_no_cost
    def image(self, name: str, path: Path) -> None:
        import wandb

        self.run.log({name: wandb.Image(str(path))})

    def callbacks(self) -> list[Any]:
        return [_follower(self)]

    @_at_no_cost
    def finish(self, failed: bool = False) -> None:
        global _gave_up
        try:
            self.run.finish(exit_code=int(failed))
        except TimeoutError:
            _gave_up = True
            say(
                f"W&B did not take all of this run within {FINISH_TIMEOUT_S} s: launch/sync.py uploads the rest"
            )


def _follower(tracker: Tracker) -> Any:
    """What a HF Trainer logs, told to ``tracker``; where it goes on from a checkpoint, all that it logged before too.

    In place of the Trainer's own W&B callback, which cannot leave out what was told before, and which adds every
    argument and path of the Trainer to the run's config.
    """
    from transformers import TrainerCallback
    from transformers.integrations.integration_utils import rewrite_logs

    def tell(logs: Mapping[str, Any], step: int) -> None:
        numbers = {k: v for k, v in logs.items() if isinstance(v, (int, float)) and not k.endswith(CLOCKS)}
        numbers.pop("step", None)
        tracker.log(rewrite_logs(numbers), step)

    class Follower(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.is_world_process_zero:
                for logs in state.log_history:
                    tell(logs, logs["step"])

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if state.is_world_process_zero and logs:
                tell(logs, state.global_step)

    return Follower()


class RolloutProgressLogger:
    """What is told of a rollout job while its rows come in: how many, how fast, and how many of them have a text.

    A row of numbers at most every ``every_s`` seconds; rates are over the time since the one before.
    """

    def __init__(self, tracker: Tracker, every_s: float = 10.0) -> None:
        self.tracker, self.every_s = tracker, every_s
        self.tokens = 0
        self.begin(0, 0)

    def begin(self, rows: int, emitted: int) -> None:
        """The clock starts, with so many rows and texts on disk: the curves of a killed job go on where they were."""
        self.rows, self.emitted = rows, emitted
        self.begun = self.last = (time.monotonic(), rows, self.tokens)

    def add_row(self, emitted: bool, tokens: int) -> None:
        """One more row, with or without a text; ``tokens`` that were generated so far in this process."""
        self.rows += 1
        self.emitted += emitted
        self.tokens = tokens
        if time.monotonic() - self.last[0] >= self.every_s:
            self._tell()

    def close(self) -> None:
        """The last row of numbers, and the rates of the whole job as headline numbers."""
        if self.rows > self.last[1]:
            self._tell()
        self.tracker.summary({**self._rates(self.begun), "rollout/rows": self.rows})

    def _tell(self) -> None:
        values = {**self._rates(self.last), "rollout/rows": self.rows}
        self.tracker.log({**values, "rollout/emission_rate": self.emitted / self.rows}, step=self.rows)
        self.last = (time.monotonic(), self.rows, self.tokens)

    def _rates(self, since: tuple[float, int, int]) -> dict[str, float]:
        seconds = max(time.monotonic() - since[0], 1e-9)
        return {
            "rollout/rows_per_s": (self.rows - since[1]) / seconds,
            "rollout/tokens_per_s": (self.tokens - since[2]) / seconds,
        }


# ---------------------------------------------------------------- opening a run


def start(
    settings: TrackingSettings,
    folder: Path,
    *,
    run_id: str,
    name: str,
    group: str,
    job_type: str,
    tags: Sequence[str],
    config: Mapping[str, Any],
) -> Tracker:
    """Opens the run of one job under ``folder``/wandb, or goes on with it where the job was started before.

    W&B being unreachable never costs a job: an online run that cannot start is kept offline, and that is said once a
    process. A training (``job_type`` train) is run by several processes together, of which only the first (by RANK or
    SLURM_PROCID) tells anything; those of a rollout job each have a shard, and a run, of their own.
    """
    global _gave_up
    if settings.name == "off" or (job_type == "train" and _rank() > 0):
        return NullTracker()
    import wandb

    about = {
        "id": run_id, "project": settings.project, "entity": settings.entity, "name": name, "group": group,
        "job_type": job_type, "tags": list(tags), "config": dict(config),
    }  # fmt: skip
    if settings.name == "online" and not _gave_up:
        try:
            run = _init(folder, "online", about)
            return _opened(run, run.starting_step - 1)
        except Exception as error:
            _gave_up = True
            say(f"{_reason(error)}: W&B runs are kept offline below {folder / 'wandb'}")
            wandb.teardown()  # the client's service still holds the id of the run that failed
    try:
        told = transaction_log.last_step(files(folder, run_id))
        return _opened(_init(folder, "offline", about), told)
    except Exception as error:
        say(f"W&B cannot write below {folder} ({error}): this job is not tracked")
        return NullTracker()


def _rank() -> int:
    return next((int(os.environ[name]) for name in RANKS if os.environ.get(name)), 0)


def _init(folder: Path, mode: Literal["online", "offline"], about: Mapping[str, Any]) -> Any:
    """A run whose every file lies below ``folder``: nodes may have no home, and an offline run is uploaded elsewhere."""
    import wandb

    place = folder.absolute()
    place.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ["WANDB_DIR"] = str(place)
    os.environ["WANDB_DATA_DIR"] = str(place / "wandb" / "data")
    quiet = wandb.Settings(
        silent=True, console="off", init_timeout=INIT_TIMEOUT_S, login_timeout=INIT_TIMEOUT_S,
        finish_timeout=FINISH_TIMEOUT_S, finish_timeout_raises=True, x_file_stream_transmit_interval=STREAM_S,
        x_transaction_log_flush_interval=FLUSH_S,
        disable_git=True, disable_job_creation=True,  # neither the diff of a working tree nor a remote's address leaves
    )  # fmt: skip
    return wandb.init(dir=place, mode=mode, resume="allow", settings=quiet, **about)


def _opened(run: Any, told: int) -> WandbTracker:
    run.define_metric(STEP)
    run.define_metric("*", step_metric=STEP)
    return WandbTracker(run, told)


def files(folder: Path, run_id: str = "*") -> list[Path]:
    """The transaction logs below ``folder``/wandb of every attempt at a run, oldest first."""
    found = (folder / "wandb").glob(f"*run-*-{run_id}/run-{run_id}.wandb")
    return sorted(found, key=lambda path: path.parent.name.removeprefix("offline-"))


def refused(error: BaseException) -> bool:
    """Whether W&B does not take the key, or there is none. (The client calls a service that is away a refusal too.)"""
    from wandb.errors import AuthenticationError

    text = str(error)
    if isinstance(error, AuthenticationError):
        return "did not respond" not in text
    return any(word in text for word in ("error 401", "error 403", "API key", "API_KEY"))


def _reason(error: Exception) -> str:
    if refused(error):
        return "W&B refuses the API key (or has none: `wandb login`)"
    return f"W&B cannot be reached ({type(error).__name__})"
