"""What all parts of the planner share: settings, options, cached results, hash identities of models."""

import functools
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Concatenate, ParamSpec, Protocol, TypeVar, cast

from offscript.errors import UserError, one_of
from offscript.experiment.artifacts import Artifact
from offscript.experiment.scenario_sets import ScenarioCollections
from offscript.json_types import Json
from offscript.settings import (
    FormatSettings,
    ModelSettings,
    PersonaSettings,
    Settings,
    StageSettings,
    identity_of,
)
from offscript.storage import references
from offscript.storage.hashing import fingerprint
from offscript.training.stages import BASE, TrainingStage, training_stage


@dataclass(frozen=True)
class Options:
    """Every option of the groups that a grid runs over, each composed once: name -> settings."""

    model: Mapping[str, ModelSettings]
    persona: Mapping[str, PersonaSettings]
    stage: Mapping[str, StageSettings]
    format: Mapping[str, FormatSettings]


class HasCache(Protocol):
    """An object that stores the results of its cached methods in ``cache``."""

    cache: dict[Hashable, object]


S = TypeVar("S", bound=HasCache)
P = ParamSpec("P")
R = TypeVar("R")
A = TypeVar("A", bound=Artifact)


def cached(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Caches the result of a method per object and arguments. Many cells of a plan need the same results."""

    @functools.wraps(method)
    def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        cache_key = (method.__qualname__, *args, *sorted(kwargs.items()))
        if cache_key not in self.cache:
            self.cache[cache_key] = method(self, *args, **kwargs)
        return cast(R, self.cache[cache_key])

    return call


@dataclass
class PlanContext:
    """Settings of one experiment, its options, and every artifact planned so far."""

    settings: Settings
    options: Options
    cache: dict[Hashable, object] = field(default_factory=dict)
    artifacts: dict[str, Artifact] = field(default_factory=dict)

    def keep(self, artifact: A) -> A:
        """``artifact``, or the one with the same key that was planned first."""
        return cast(A, self.artifacts.setdefault(artifact.key, artifact))

    @functools.cached_property
    def collections(self) -> ScenarioCollections:
        """The scenarios of the data group."""
        return ScenarioCollections(self.settings.data, self.settings.published)

    @cached
    def training(self, stage: str) -> TrainingStage:
        """The training stage called ``stage``.

        Raises:
            UserError: the stage is not trained, or its settings are invalid.
        """
        lineage = [stage]
        while (parent := self._parent(lineage[-1])) is not None:
            if parent in lineage:
                circle = " -> ".join([*lineage, parent])
                where = f"conf/stage/{lineage[-1]}.yaml: training.parent"
                raise UserError(
                    where,
                    f"the parents form a circle ({circle})",
                    "allowed: base, or a stage that is not trained on this one",
                )
            lineage.append(parent)
        found = training_stage(self.options.stage[stage], self.settings.recipe)
        models = [*self.options.model, self.settings.model.name]
        if unknown := [name for name in found.settings.lora.exceptions if name not in models]:
            raise UserError(f"{found.where}.lora.exceptions.{unknown[0]}", "no such model", one_of(models))
        return found

    def _parent(self, stage: str) -> str | None:
        """The parent stage of ``stage``; None for one that is trained on the base, or not trained."""
        training = self.options.stage[stage].training
        return None if training is None or training.parent == BASE else training.parent

    @cached
    def model_identity(self, name: str) -> dict[str, Json]:
        """The hash identity of a model: a local folder by its content, a hub model by id and revision.

        Without ``template.double_bos``, which only prompts of generation depend on: it is in the keys of their rows.
        """
        model = self.options.model[name]
        plain = identity_of(model)
        plain["template"] = identity_of(model.template.model_copy(update={"double_bos": False}))
        path = references.local_path(model)
        if path is not None and path.exists():
            del plain["path"], plain["revision"]
            plain["content"] = fingerprint(path)
        elif model.path.startswith((".", "/", "~")):
            raise UserError(
                "model.path",
                f"no folder at {model.path}",
                "allowed: a model folder, a GGUF file, or a hub id",
            )
        return plain
