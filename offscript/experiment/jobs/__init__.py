"""The work itself: one function per kind of artifact.

A job finds its own last state on disk and writes the manifest last. The same functions run inline, in local processes
and on SLURM.
"""

from collections.abc import Callable, Sequence

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
from offscript.experiment.folder import Experiment
from offscript.experiment.jobs import projections, rollouts, scoring, selections, training, vectors

JobFunction = Callable[[Sequence[Artifact], Experiment, int | None], None]

RUN: dict[str, JobFunction] = {
    Rollout.kind: rollouts.run,
    Vector.kind: vectors.run,
    Selection.kind: selections.run,
    Adapter.kind: training.run,
    Classifier.kind: scoring.fit_classifier,
    Predictions.kind: scoring.predict,
    Projections.kind: projections.run,
    Evaluation.kind: scoring.evaluate,
}
"""Kind of artifact -> the function that makes artifacts of that kind."""
