"""W&B, or nothing, behind one interface. One run per job, with an id made from what the job makes, so that a job that
is run again goes on with its own run.
"""

import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from offscript.console import say
from offscript.settings import TrackingSettings

STEP = "step"
INIT_TIMEOUT_S = 30


class Tracker(Protocol):
    """What a job may tell. Nothing here can fail a job."""

    report_to: str

    def log(self, values: Mapping[str, float], step: int | None = None) -> None: ...

    def summary(self, values: Mapping[str, Any]) -> None: ...

    def table(self, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None: ...

    def finish(self, failed: bool = False) -> None: ...


class Nothing:
    """The tracker of ``tracking=off``: same methods, no effect."""

    report_to = "none"

    def log(self, values: Mapping[str, float], step: int | None = None) -> None:
        pass

    def summary(self, values: Mapping[str, Any]) -> None:
        pass

    def table(self, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        pass

    def finish(self, failed: bool = False) -> None:
        pass


def _at_no_cost(method: Callable[..., None]) -> Callable[..., None]:
    """A tracker's method whose failure is told once and costs the job nothing."""

    @functools.wraps(method)
    def guarded(self: "Wandb", *args: Any, **kwargs: Any) -> None:
        if self.broken:
            return
        try:
            method(self, *args, **kwargs)
        except Exception as error:
            self.broken = True
            say(f"W&B failed ({type(error).__name__}: {error}): this job goes on untracked")

    return guarded


class Wandb:
    """A W&B run. ``report_to`` makes the HF Trainer log into this same run."""

    report_to = "wandb"

    def __init__(self, run: Any) -> None:
        self.run = run
        self.broken = False

    @_at_no_cost
    def log(self, values: Mapping[str, float], step: int | None = None) -> None:
        self.run.log({**values, **({STEP: step} if step is not None else {})})

    @_at_no_cost
    def summary(self, values: Mapping[str, Any]) -> None:
        self.run.summary.update(dict(values))

    @_at_no_cost
    def table(self, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        import wandb

        self.run.log({name: wandb.Table(columns=list(columns), data=[list(r) for r in rows])})

    @_at_no_cost
    def finish(self, failed: bool = False) -> None:
        self.run.finish(exit_code=int(failed))


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
    """Opens the run of one job under ``folder``/wandb.

    W&B being unreachable never costs a job: an online run that cannot start is kept offline, and that is said once.
    """
    if settings.name == "off":
        return Nothing()
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ["WANDB_DIR"] = str(folder)
    import wandb

    def init(mode: Literal["online", "offline"]) -> Any:
        return wandb.init(
            dir=folder, id=run_id, resume="allow", mode=mode, project=settings.project, entity=settings.entity,
            name=name, group=group, job_type=job_type, tags=list(tags), config=dict(config),
            settings=wandb.Settings(silent=True, console="off", init_timeout=INIT_TIMEOUT_S),
        )  # fmt: skip

    folder.mkdir(parents=True, exist_ok=True)
    try:
        run = init("online" if settings.name == "online" else "offline")
    except Exception as error:
        if settings.name == "offline":
            say(f"W&B cannot write below {folder} ({error}): this job is not tracked")
            return Nothing()
        say(f"W&B cannot be reached ({type(error).__name__}): this run is kept offline below {folder}")
        wandb.teardown()  # the client's service still holds the id of the run that failed
        run = init("offline")
    run.define_metric(STEP)
    run.define_metric("*", step_metric=STEP)
    return Wandb(run)
