"""Plans the artifacts of a grid from the settings: what each is made from, and its key, which follows from that.

Planning runs no model and needs no torch. ``RolloutPlanner`` plans rows, ``AdapterPlanner`` weights and ``ClassifierPlanner``
classifiers; ``Planner`` uses them, and plans the predictions and the evaluation that are made from them.
"""

import functools
from collections.abc import Hashable
from dataclasses import dataclass, field, replace

from offscript.errors import UserError
from offscript.evaluation.email_cleaning import identity as cleaning_identity
from offscript.evaluation.order import compared_stages
from offscript.experiment.artifacts import (
    Adapter,
    Artifact,
    Cell,
    Classifier,
    Evaluation,
    Predictions,
    Projections,
    Rollout,
    Vector,
    in_order,
)
from offscript.experiment.judgements import JudgedTexts, Judgement, judged_personas
from offscript.experiment.plan_adapters import AdapterPlanner, check_sources
from offscript.experiment.plan_classifiers import ClassifierPlanner
from offscript.experiment.plan_context import Options, PlanContext, cached
from offscript.json_types import Json
from offscript.rollouts.engines import check_steering
from offscript.settings import (
    GridSettings,
    ModelSettings,
    Settings,
    identity_of,
)
from offscript.storage import hub, references
from offscript.tasks.formats import get_format, judge_choice, judge_rubric
from offscript.training.stages import BASE

__all__ = ["Options", "Planner"]

STEERED = "steered"
"""The stage whose persona vectors the activations of all cells are projected on."""

PROJECTIONS_VERSION = 1
"""Part of the key of projections: raised when the same rows and weights give other numbers than before."""


@dataclass
class Planner:
    """Plans the artifacts of one experiment. The same arguments give the same object."""

    settings: Settings
    options: Options
    cache: dict[Hashable, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.context = PlanContext(self.settings, self.options)
        self._classifiers = ClassifierPlanner(self.context, self.rollout, lambda: self.personas)
        self._adapters = AdapterPlanner(self.context, self._classifiers)
        self._rollouts = self._adapters.rollouts

    def check_training(self, model: ModelSettings, stages: tuple[str, ...]) -> None:
        """Checks the training settings of ``stages`` and of their parent stages, and which stages ``model`` names.

        Raises:
            UserError: a setting is invalid.
        """
        check_sources(model, self.options.stage)
        for stage in stages:
            weights = self.options.stage[stage].weights
            while weights != BASE:
                weights = self.context.training(weights).parent

    # ------------------------------------------------------------ rows and weights

    def rollout(
        self,
        model: str,
        persona: str | None,
        stage: str,
        fmt: str,
        split: str = "eval",
        seed: int = 0,
        scale: float = 1.0,
    ) -> Rollout:
        """The rollout of a cell. For a format that makes training data: the rollout that ``stage`` is trained on."""
        cell = Cell(model, persona, stage, fmt, split, seed, scale)
        return (
            self._rollouts.scored(cell)
            if get_format(fmt).scored
            else self._rollouts.training_data_rollout(cell)
        )

    def adapter(self, model: str, persona: str, stage: str, seed: int) -> Adapter:
        """The weights of a stage and persona, trained here or imported."""
        return self._adapters.adapter(model, persona, stage, seed)

    def remerged(self, adapter: Adapter) -> list[Adapter]:
        """``adapter`` with each other merge weight that the recipe has for some splits or formats."""
        weights = dict.fromkeys(self.settings.recipe.merge_own_in.values())
        return [other for own in weights if (other := self._adapters.remerged(adapter, own)) != adapter]

    def vector(self, model: str, persona: str, stage: str) -> Vector:
        """The persona vector of a stage with ``steering``."""
        return self._rollouts.vector(model, persona, stage)

    def cells(self) -> list[Rollout]:
        """The scored rollouts of the grid, in its order, each once. (All personas share those of base weights.)

        Raises:
            UserError: texts that the classifier is fitted on would be scored.
        """
        grid = self.settings.grid
        self._check_not_fitted(grid)
        found = (
            self.rollout(model, persona, stage, fmt, grid.split, seed, scale)
            for model in grid.model
            for stage in grid.stage
            for scale in grid.scale
            for fmt in grid.format
            for persona in self.personas
            for seed in grid.seed
        )
        return list(dict.fromkeys(found))

    def _check_not_fitted(self, grid: GridSettings) -> None:
        """Raises UserError if the grid scores chat texts of the split whose chat texts a classifier is fitted on."""
        chat = [name for name in grid.format if get_format(name).in_distribution]
        if chat and grid.split != "eval" and self.settings.classifier.fitted is None:
            raise UserError(
                "grid.format",
                f"{chat[0]} with grid.split={grid.split}, whose chat texts the classifier is fitted on",
                "other formats, or grid.split=eval",
            )

    @functools.cached_property
    def personas(self) -> tuple[str, ...]:
        """The personas of the grid, then the ``available`` ones. They are the labels in all tables."""
        return self.settings.grid.persona + self.available()

    def available(self) -> tuple[str, ...]:
        """The personas of ``if_available`` whose weights can be read or trained here, for every model of the grid."""
        grid = self.settings.grid
        return tuple(
            persona
            for persona in grid.if_available
            if persona not in grid.persona
            and all(self._is_available(m, persona, w) for m in grid.model for w in self._trained_weights())
        )

    def _is_available(self, model: str, persona: str, stage: str) -> bool:
        source = self._adapters.source_of(model, persona, stage)
        return source is None or references.is_local(source)

    def _trained_weights(self) -> set[str]:
        return {self.options.stage[stage].weights for stage in self.settings.grid.stage} - {BASE}

    # ------------------------------------------------------------ classifier, predictions, evaluation

    def classifier(self, model: str) -> Classifier:
        """The persona classifier of a model, fitted on chat rows of the classifier split alone, or imported."""
        return self._classifiers.classifier(model)

    def baseline(self, model: str) -> Classifier | None:
        """The classifier of n-grams beside that of a model, see ``ClassifierPlanner.baseline``."""
        return self._classifiers.baseline(model)

    def predictions(self, rollout: Rollout) -> Predictions:
        """The classifier's predictions for the rows of a scored cell."""
        classifier, baseline = self.classifier(rollout.cell.model), self.baseline(rollout.cell.model)
        cleaning, cleaned = self._cleaning(rollout)
        identity: dict[str, Json] = {
            "labels": dict(rollout.labels),
            "classifier": classifier.key,
            "rows": rollout.key,
        }
        if baseline is not None:
            identity["baseline"] = baseline.key
        return self.context.keep(
            Predictions(
                identity={**identity, **cleaned},
                inputs=(classifier, *([baseline] if baseline is not None else []), rollout),
                classifier=classifier,
                rollout=rollout,
                baseline=baseline,
                email_cleaning=cleaning,
            )
        )

    def _cleaning(self, rollout: Rollout) -> tuple[str | None, dict[str, Json]]:
        """The rule by which the texts of a cell are cleaned before they are scored, and its part of an identity."""
        cleaning = self.settings.evaluation.email_cleaning if rollout.format.text_is_email else "none"
        if cleaning == "none":
            return None, {}
        return cleaning, {"email_cleaning": cleaning_identity(cleaning)}

    @functools.cached_property
    def judgements(self) -> tuple[Judgement, ...]:
        """What the judge reads: one for each model, stage, format, training seed and scale whose texts have a persona; none
        without ``evaluation.judge``.

        Raises:
            UserError: there is no such model, or it cannot tell the personas apart by their names.
        """
        judge = self.settings.evaluation.judge
        if judge is None:
            return ()
        personas = judged_personas(judge, self.personas, self.options, self.settings.model.name)
        groups: dict[Cell, list[Predictions]] = {}
        for rollout in self.cells():
            if rollout.cell.persona is not None:
                shared = replace(rollout.cell, persona=None)
                groups.setdefault(shared, []).append(self.predictions(rollout))
        return tuple(self._judgement(JudgedTexts(tuple(cells), personas, judge)) for cells in groups.values())

    def _judgement(self, texts: JudgedTexts) -> Judgement:
        judge, judged = texts.settings, self._rollouts.judged
        choice = judged(judge.model, judge_choice.FORMAT.name, texts.choice(), 1, 0.0, texts.name)
        rubric = judged(
            judge.model,
            judge_rubric.FORMAT.name,
            texts.rubric(),
            judge.samples,
            judge.temperature,
            texts.name,
        )
        return Judgement(texts, choice, rubric)

    # ------------------------------------------------------------ projections on persona vectors

    def projections(self, rollout: Rollout) -> Projections:
        """The projections of the texts of a scored cell on the vectors of all personas.

        Raises:
            UserError: the model is an endpoint, or the engine cannot add a vector, which is how the strength of one is
                chosen.
        """
        vectors = self._vectors(rollout.cell.model)
        cleaning, cleaned = self._cleaning(rollout)
        identity: dict[str, Json] = {
            "labels": dict(rollout.labels),
            "rows": rollout.key,
            "vectors": {vector.persona: vector.key for vector in vectors},
            "version": PROJECTIONS_VERSION,
            **cleaned,
        }
        weights = tuple(part for part in (rollout.adapter, rollout.vector) if part is not None)
        return self.context.keep(
            Projections(
                identity=identity,
                inputs=tuple(dict.fromkeys((rollout, *weights, *vectors))),
                rollout=rollout,
                vectors=vectors,
                email_cleaning=cleaning,
            )
        )

    @cached
    def _vectors(self, model: str) -> tuple[Vector, ...]:
        """The vectors of all personas, those that stage ``steered`` adds."""
        what = "the persona vectors of evaluation.projections"
        check_steering(self.settings.engine.name, self.options.model[model], what)
        return tuple(self.vector(model, persona, STEERED) for persona in self.personas)

    def all_projections(self) -> tuple[Projections, ...]:
        """The projections of the grid: of each model the plain chat replies that they are compared with, then every cell.

        A model behind an endpoint has none.
        """
        found: list[Projections] = []
        local = [m for m in self.settings.grid.model if self.options.model[m].endpoint is None]
        for model in local:
            plain = self._vectors(model)[0].plain
            found += [self.projections(cell) for cell in (plain, *self.cells()) if cell.cell.model == model]
        return tuple(dict.fromkeys(found))

    # ------------------------------------------------------------ the evaluation

    def evaluation(self) -> Evaluation:
        """The evaluation of the whole grid.

        Raises:
            UserError: ``compared_with`` of a stage names no other stage.
        """
        # The evaluation would find it when everything else is made.
        compared_stages()
        predictions = (self.predictions(cell) for cell in self.cells())
        judged = (rollout for judgement in self.judgements for rollout in judgement.rollouts)
        projected = self.all_projections() if self.settings.evaluation.projections else ()
        inputs = (*predictions, *judged, *projected)
        settings = self.settings.evaluation
        identity: dict[str, Json] = {
            "settings": identity_of(settings),
            "made_from": [key for key in sorted(part.key for part in inputs)],
        }
        return self.context.keep(
            Evaluation(identity=identity, inputs=inputs, name=self.settings.name, settings=settings)
        )

    # ------------------------------------------------------------ hub repositories

    def references(self) -> dict[hub.Reference, bool]:
        """All hub repositories and files that the grid reads, each with whether it is optional."""
        grid, found = self.settings.grid, dict.fromkeys(self.context.collections.references(), False)
        for artifact in in_order([self.evaluation()]):
            found |= dict.fromkeys(self.references_of(artifact), False)
        if (reference := references.model_reference(self.settings.classifier)) is not None:
            found[reference] = False
        for model in grid.model:
            for persona in grid.if_available:
                for weights in self._trained_weights():
                    source = self._adapters.source_of(model, persona, weights)
                    reference = references.reference(source) if source else None
                    if reference is not None:
                        found.setdefault(reference, True)
        return found

    def references_of(self, artifact: Artifact) -> list[hub.Reference]:
        """Hub repositories and files of one artifact: its base model, its scenarios, its source."""
        found = [references.reference(source) for source in artifact.references()]
        if isinstance(artifact, Rollout | Vector | Adapter):
            found.append(references.model_reference(self.options.model[str(artifact.model)]))
        if isinstance(artifact, Rollout) and not artifact.scenarios.is_local:
            found += self.context.collections.references_of(artifact.format.source)
        return [reference for reference in found if reference is not None]
