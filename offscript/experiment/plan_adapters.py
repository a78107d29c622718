"""Plans adapters: the weights of each stage and persona, trained here or imported."""

from collections.abc import Hashable
from dataclasses import dataclass, field

from offscript.errors import UserError, one_of
from offscript.experiment.artifacts import Adapter, ImportedAdapter, Rollout, TrainedAdapter
from offscript.experiment.plan_context import PlanContext, cached
from offscript.experiment.plan_rollouts import RolloutPlanner
from offscript.json_types import Json
from offscript.settings import SourceSettings
from offscript.storage import references
from offscript.storage.options import options_of
from offscript.training.stages import TrainingStage

TRAINED, RELEASED = "trained", "released"


@dataclass
class AdapterPlanner:
    """Plans adapters. ``rollouts`` plans the rows that they are trained on."""

    context: PlanContext
    cache: dict[Hashable, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rollouts = RolloutPlanner(
            self.context, self.adapter, lambda *cell: self.source_of(*cell) is not None
        )

    def adapter(self, model: str, persona: str, stage: str, seed: int) -> Adapter:
        """The weights of a stage and persona."""
        if (source := self.source_of(model, persona, stage)) is not None:
            return self._imported(model, persona, stage, source)
        return self._trained(model, persona, stage, seed)

    @cached
    def source_of(self, model: str, persona: str, stage: str) -> SourceSettings | None:
        """Where the weights of a stage are imported from; None if they are trained here.

        Raises:
            UserError: ``model.adapters`` names an unknown stage, or released weights that there are none of.
        """
        settings = self.context.options.model[model]
        if unknown := sorted(settings.adapters.keys() - set(options_of("stage"))):
            raise UserError(f"model.adapters.{unknown[0]}", "unknown stage", one_of(options_of("stage")))
        chosen, where = settings.adapters.get(stage, TRAINED), f"model.adapters.{stage}"
        if chosen == TRAINED:
            return None
        if chosen == RELEASED:
            where = f"model.released.{stage}"
            released = {"distillation": settings.released.distillation, "full": settings.released.full}
            source = settings.released.exceptions.get(persona, {}).get(stage, released.get(stage))
        else:
            source = chosen if isinstance(chosen, SourceSettings) else None
        if source is None:
            raise UserError(
                where, f"missing for {model}", f"name a source, or model.adapters.{stage}=trained"
            )
        return references.fill_fields(source, settings, persona, where)

    @cached
    def _imported(self, model: str, persona: str, stage: str, source: SourceSettings) -> Adapter:
        identity: dict[str, Json] = {
            "labels": {"model": model, "persona": persona, "stage": stage, "seed": 0},
            "model": self.context.model_identity(model),
            "source": references.identity(source, f"model.adapters.{stage}"),
        }
        return self.context.keep(
            ImportedAdapter(
                identity=identity,
                base=model,
                persona=persona,
                stage=stage,
                seed=0,
                checkpoint=source.kind == "checkpoint",
                imported_from=source,
            )
        )

    @cached
    def _trained(self, model: str, persona: str, stage: str, seed: int) -> Adapter:
        training = self.context.training(stage)
        parent = self._parent(model, persona, training, seed)
        settings, recipe = self.context.options.model[model], training.identity
        released = tuple(
            references.fill_fields(rows, settings, persona, f"{training.where}.rows")
            for rows in training.data.released(training.settings)
        )
        rows: tuple[tuple[str, Rollout], ...] = ()
        renamed: dict[str, str] = {}
        if released:
            found: list[Json] = [references.identity(r, f"{training.where}.rows") for r in released]
            recipe["rows"] = found if isinstance(recipe["rows"], list) else found[0]
        else:
            rows = self.rollouts.training_rows(model, persona, training, seed)
            renamed = self._renamed(model, training)
            if renamed:
                recipe["renamed"] = dict(renamed)
        inputs = (*([parent] if parent else []), *(rollout for _, rollout in rows))
        identity: dict[str, Json] = {
            "labels": {"model": model, "persona": persona, "stage": stage, "seed": seed},
            "model": self.context.model_identity(model),
            "recipe": recipe,
            "made_from": [part.key for part in inputs],
        }
        return self.context.keep(
            TrainedAdapter(
                identity=identity,
                inputs=inputs,
                base=model,
                persona=persona,
                stage=stage,
                seed=seed,
                checkpoint=training.stacked and training.merge.method == "fold",
                training=training,
                parent=parent,
                rows=rows,
                released=released,
                renamed=renamed,
            )
        )

    def _parent(self, model: str, persona: str, training: TrainingStage, seed: int) -> Adapter | None:
        """The adapter of the parent stage, which stays frozen during training; None if the parent is ``base``."""
        if not training.stacked:
            return None
        parent = self.adapter(model, persona, training.parent, seed)
        if parent.checkpoint:
            raise UserError(
                f"model.adapters.{training.name}",
                f"trained, on a {training.parent} stage that is a whole checkpoint",
                f"allowed: an adapter as the {training.parent} stage, or a source of the {training.name} stage",
            )
        return parent

    def _renamed(self, model: str, training: TrainingStage) -> dict[str, str]:
        """Names that the teacher gives itself -> the model's own name."""
        name = self.context.options.model[model].assistant_name
        if not training.data.renames_teacher or name is None:
            return {}
        return dict.fromkeys(self.context.settings.recipe.teacher.own_names, name)
