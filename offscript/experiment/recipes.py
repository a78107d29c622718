"""What is known of the recipes of an evaluation: their training data from the plan, their cost from the manifests."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from offscript.console import counted
from offscript.errors import UserError
from offscript.evaluation.metrics.results import Scores
from offscript.evaluation.report import recipes as report
from offscript.evaluation.report.recipes import Recipe
from offscript.evaluation.report.section import Section
from offscript.experiment.artifacts import (
    Adapter,
    Artifact,
    Evaluation,
    Predictions,
    RemergedAdapter,
    Rollout,
    TrainedAdapter,
    in_order,
)
from offscript.experiment.folder import Experiment
from offscript.storage.manifests import read_manifest


def section_of(evaluation: Evaluation, experiment: Experiment, scores: Scores) -> Section | None:
    """The section "Recipes" of ``evaluation``; None if it has fewer than two trained stages."""
    if not scores.recipes:
        return None
    costs = _Costs(experiment)
    known, unknown, unmeasured = {}, set[str](), set[str]()
    for (model, stage), adapters in _adapters(evaluation).items():
        recipe = _recipe(adapters, costs)
        if recipe is None:
            unknown.add(stage)
            continue
        known[model, stage] = recipe
        if None in (recipe.tokens, recipe.training_s, recipe.rows_s):
            unmeasured.add(stage)
    missing = []
    if unknown:
        stages = ", ".join(sorted(unknown))
        missing.append(
            f"The weights of {stages} were trained elsewhere: what on, and at what cost, is not known."
        )
    if unmeasured:
        missing.append(
            f"n/a in the cost of {counted(len(unmeasured), 'stage')}: a manifest is gone, or was written by a version that did not record it."
        )
    return report.section(scores, known, missing)


def _adapters(evaluation: Evaluation) -> dict[tuple[str, str], list[Adapter]]:
    """The adapters of each model and stage whose texts are scored; of one that was merged again, the trained one."""
    found: dict[tuple[str, str], dict[str, Adapter]] = {}
    for part in evaluation.inputs:
        if isinstance(part, Predictions) and (adapter := part.rollout.adapter) is not None:
            own = adapter.trained if isinstance(adapter, RemergedAdapter) else adapter
            name = part.rollout.cell.model, str(part.rollout.labels["stage"])
            found.setdefault(name, {})[own.key] = own
    return {name: list(adapters.values()) for name, adapters in found.items()}


def _recipe(adapters: Sequence[Adapter], costs: "_Costs") -> Recipe | None:
    """The recipe of a stage; None if a part of its weights was trained elsewhere."""
    parts, first = in_order(adapters), adapters[0]
    if not all(isinstance(part, TrainedAdapter) for part in parts if isinstance(part, Adapter)):
        return None
    assert isinstance(first, TrainedAdapter)
    formats = (name for adapter in _chain(first) for name in adapter.training.formats)
    trained = [part for part in parts if isinstance(part, TrainedAdapter)]
    rollouts = [part for part in parts if isinstance(part, Rollout)]
    return Recipe(
        formats=tuple(dict.fromkeys(formats)),
        settings=first.training.identity,
        tokens=_mean(map(costs.tokens, trained), len(adapters)),
        training_s=_mean(map(costs.training_seconds, trained), len(adapters)),
        rows_s=_mean(map(costs.row_seconds, rollouts), len(adapters)),
    )


def _chain(adapter: TrainedAdapter) -> Iterator[TrainedAdapter]:
    """``adapter``, then those of the stages that it starts from."""
    current: Adapter | None = adapter
    while isinstance(current, TrainedAdapter):
        yield current
        current = current.parent


def _mean(values: Iterable[float | None], adapters: int) -> float | None:
    """The sum of ``values`` for each of so many adapters; None if a value is."""
    total = 0.0
    for value in values:
        if value is None:
            return None
        total += value
    return total / adapters


class _Costs:
    """Costs of artifacts, from their manifests; None if a manifest is gone or does not have a number."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self._read: dict[str, dict[str, Any]] = {}

    def tokens(self, adapter: TrainedAdapter) -> float | None:
        """Trained tokens."""
        return self._number(adapter, "trained_tokens")

    def training_seconds(self, adapter: TrainedAdapter) -> float | None:
        """Seconds of training, times processes. Of a training that was resumed, those of its last part are known."""
        counts = self._counts(adapter)
        seconds, steps, before = (
            self._number(adapter, "seconds"),
            counts.get("steps"),
            counts.get("resumed_from"),
        )
        if seconds is None:
            return None
        part = (steps - before) / steps if steps and before else 1.0
        return seconds * int(counts.get("ranks") or 1) / part if part > 0 else None

    def row_seconds(self, rollout: Rollout) -> float | None:
        """Seconds in which the rows were generated."""
        return self._number(rollout, "seconds")

    def _number(self, artifact: Artifact, name: str) -> float | None:
        value = self._counts(artifact).get(name)
        return float(value) if isinstance(value, int | float) else None

    def _counts(self, artifact: Artifact) -> dict[str, Any]:
        if artifact.key not in self._read:
            try:
                manifest = read_manifest(self.experiment.path(artifact)) or {}
            except UserError:
                # Damaged: an evaluation needs the predictions alone.
                manifest = {}
            counts = manifest.get("counts") if manifest.get("key") == artifact.key else None
            self._read[artifact.key] = counts if isinstance(counts, dict) else {}
        return self._read[artifact.key]
