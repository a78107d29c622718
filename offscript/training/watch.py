"""Watches a training by measures that it is not rewarded for, and stops it when the reward and these part.

A classifier that is a reward is also optimized against: its score may rise while the character that it was fitted to see does
not. Episodes of families that are not trained on are scored by other measures beside it, every few steps.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from offscript.training import ranks
from offscript.training.run import Run

if TYPE_CHECKING:
    from transformers import TrainerCallback, TrainerControl, TrainerState

REWARD = "reward"
"""The measure that is rewarded: mean log-odds of the persona by the classifier that is the reward, in nats."""

OTHERS = ("classifier", "oracle")
"""Measures of the persona that are not rewarded: mean log-odds by the evaluating classifier and by n-gram classifiers of the
formats off chat. A training may have none, or some of them."""

PREFIX = "watch/"
"""Of the names of measures in the log."""

Point = Mapping[str, float]
"""The measures after ``step`` steps."""

REPLAYED = 3
"""A training that resumes continues from one of its last two checkpoints, and one is written with each point."""


@dataclass(frozen=True)
class Parting:
    """At ``step`` the measure ``name`` was more than the margin below its best, at step ``best``, and the reward above its
    value there."""

    step: int
    name: str
    best: int
    fell: float
    rose: float

    def __str__(self) -> str:
        return (
            f"stopped at step {self.step}: since step {self.best} the reward's log-odds rose by {self.rose:.2f}, those of the"
            f" {self.name} fell by {self.fell:.2f}; the weights of step {self.best} are kept"
        )


def parting(curve: Sequence[Point], margin: float | None) -> Parting | None:
    """How the last point of ``curve`` parts from an earlier one; None if it does not, or if ``margin`` is None.

    It does if a measure of ``OTHERS`` is more than ``margin`` below its best value, while the reward is above its own value at
    that point. If both fall, that is no parting: the training fails, but does not exploit the reward. Of several measures
    the one with the earliest best point counts.
    """
    if len(curve) < 2 or margin is None:
        return None
    last, found = curve[-1], []
    for name in OTHERS:
        if name not in last:
            continue
        best = max(curve[:-1], key=lambda point: point[name])
        fell, rose = best[name] - last[name], last[REWARD] - best[REWARD]
        if fell > margin and rose > 0:
            found.append(Parting(int(last["step"]), name, int(best["step"]), fell, rose))
    return min(found, key=lambda p: p.best, default=None)


def points_to_keep(curve: Sequence[Point]) -> set[int]:
    """The steps whose weights may still be chosen: the best ones of each measure, now and as of the points from which the
    training may be resumed."""
    kept = set()
    for end in range(max(1, len(curve) - REPLAYED), len(curve) + 1):
        for name in OTHERS:
            if end and name in curve[0]:
                kept.add(int(max(curve[:end], key=lambda point: point[name])["step"]))
    return kept


def curve_of(log_history: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """The points in the log of a training, by step."""
    points = {}
    for entry in log_history:
        measures = {k.removeprefix(PREFIX): v for k, v in entry.items() if k.startswith(PREFIX)}
        if measures:
            points[int(entry["step"])] = {"step": int(entry["step"]), **measures}
    return [points[step] for step in sorted(points)]


def folder_of(work: Path, step: int) -> Path:
    """Where the weights of a point are kept during the training."""
    return work / f"watched-{step}"


class Watched(Protocol):
    """A trainer that is watched."""

    run: Run

    def measure(self) -> dict[str, float]:
        """The measures of its weights, the same on all ranks."""
        ...

    def log_point(self, measures: Mapping[str, float]) -> None:
        """Logs measures apart from those of the step."""
        ...

    def write_adapter(self, folder: Path) -> None:
        """Writes its weights; every rank has to call it."""
        ...


def callback(trainer: Watched, every: int, margin: float | None) -> "TrainerCallback":
    """A callback that measures before the first step, after every ``every`` steps and after the last, and stops at a parting.

    The points are part of the trainer's log, and so of its checkpoints: a training that resumes goes on with them.
    """
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def on_train_begin(self, args: object, state: "TrainerState", *_: object, **__: object) -> None:
            if not curve_of(state.log_history):
                self._measure(state)

        def on_step_end(
            self, args: object, state: "TrainerState", control: "TrainerControl", **_: object
        ) -> None:
            # A signal may have come with the parting, and a checkpoint been written.
            if parting(curve_of(state.log_history), margin) is None:
                if state.global_step % every and state.global_step < state.max_steps:
                    return
                self._measure(state)
                control.should_save = True
            found = parting(curve_of(state.log_history), margin)
            if found is not None:
                # A training that resumes has to come to this step again.
                control.should_training_stop, control.should_save = True, False
                trainer.run.say(f"  {found}")

        def _measure(self, state: "TrainerState") -> None:
            measures = trainer.measure()
            trainer.log_point({f"{PREFIX}{name}": value for name, value in measures.items()})
            curve = curve_of(state.log_history)
            trainer.write_adapter(folder_of(trainer.run.work, state.global_step))
            kept = {folder_of(trainer.run.work, step) for step in points_to_keep(curve)}
            if trainer.run.is_main:
                for folder in set(trainer.run.work.glob("watched-*")) - kept:
                    shutil.rmtree(folder)

    return Watch()


def broadcast(measures: Mapping[str, float] | None) -> dict[str, float]:
    """The measures of rank 0 on every rank, so that all of them stop together."""
    return ranks.run_on_main(lambda: dict(measures or {}))
