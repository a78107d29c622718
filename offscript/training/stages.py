"""Training stages: a parent, a method, data and hyper-parameters, resolved from a stage's YAML and the recipe."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace

from pydantic import create_model

from offscript.errors import UserError, one_of
from offscript.json_types import Json
from offscript.settings import (
    MergeSettings,
    Node,
    RecipeSettings,
    StageSettings,
    TrainerSettings,
    TrainingSettings,
    identity_of,
    parse,
)
from offscript.tasks.formats import get_format
from offscript.training.data import data_kinds, get_data
from offscript.training.data.base import RowsRequest, TrainingData
from offscript.training.data.mixture import CHAT
from offscript.training.methods import get_method, methods
from offscript.training.methods.base import Method

BASE = "base"
"""The parent of a stage that is trained on the untrained model."""

LEGACY_STAGES = {(BASE, "dpo", "preference"), ("distillation", "sft", "introspection")}
"""(parent, method, data) of the two stages that existed before these three became settings. Their identity does not
contain the three names, so that adapters that users have already trained keep their keys."""


@dataclass(frozen=True)
class TrainingStage:
    """How the weights of one stage are trained.

    Args:
        name: name of the stage.
        parent: ``base``, or the stage whose weights the training starts from.
        method: the training method.
        data: the kind of training data.
        settings: hyper-parameters of the method and of the data in one object, which is an instance of both schemas.
        merge: how the two adapters of a ``stacked`` stage are merged.
        where: config key of the hyper-parameters, for messages.
        continues: whether a copy of the parent's adapter is trained further. Otherwise that adapter stays frozen, and a second
            one is trained.
    """

    name: str
    parent: str
    method: Method
    data: TrainingData
    settings: TrainerSettings
    merge: MergeSettings
    where: str
    continues: bool = False

    @property
    def has_parent(self) -> bool:
        """Whether the training starts from the weights of another stage."""
        return self.parent != BASE

    @property
    def stacked(self) -> bool:
        """Whether the adapter is trained on top of the parent stage's adapter and then merged with it."""
        return self.has_parent and not self.continues

    def of_model(self, model: str) -> "TrainingStage":
        """The stage with the LoRA targets of one model."""
        lora = self.settings.lora.of(model)
        return replace(self, settings=self.settings.model_copy(update={"lora": lora}))

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats of the episodes that it trains on: scored ones by their names, ``chat`` for other replies to chat prompts,
        and formats that only make training data. Those of the parent stage are not among them."""
        requests = self.data.requests(self.settings, self.where)
        return tuple(dict.fromkeys(_trained_format(request) for request in requests if request.counted))

    @property
    def pictured(self) -> tuple[str, ...]:
        """Those of its ``formats`` whose prompts have images."""
        return tuple(name for name in self.formats if get_format(name).images)

    @property
    def identity(self) -> dict[str, Json]:
        """Hash identity: everything that can change the weights, except the rows and the weights of the parent stage."""
        plain = identity_of(self.settings)
        names = (self.parent, self.method.name, self.data.name)
        if names not in LEGACY_STAGES or self.continues:
            continues: dict[str, Json] = {"continues": True} if self.continues else {}
            plain["training"] = {"parent": names[0], "method": names[1], "data": names[2], **continues}
        if self.stacked:
            plain["merge"] = identity_of(self.merge)
        return plain


def _trained_format(request: RowsRequest) -> str:
    """The format that the rows of ``request`` are in, see ``TrainingStage.formats``."""
    fmt = get_format(request.format)
    fmt, _ = fmt.inner({**fmt.defaults, **request.options})
    return CHAT if fmt.source == CHAT and not fmt.scored else fmt.name


def training_stage(stage: StageSettings, recipe: RecipeSettings) -> TrainingStage:
    """The training stage that ``stage`` defines, with the hyper-parameters of ``recipe``.

    Raises:
        UserError: the stage is not trained; its method or data is unknown; the method cannot use the rows of the data;
            a hyper-parameter is invalid.
    """
    training = stage.training
    if training is None:
        raise UserError(f"stage={stage.name}", "has no training", "allowed: a stage with a training node")
    key = f"conf/stage/{stage.name}.yaml: training"
    method, data = get_method(training.method, f"{key}.method"), get_data(training.data, f"{key}.data")
    if data.makes != method.takes:
        fitting = [kind.name for kind in data_kinds().values() if kind.makes == method.takes]
        raise UserError(
            f"{key}.data", f"{data.name} makes {data.makes}, but {method.name} takes {method.takes}", one_of(fitting)
        )  # fmt: skip
    _check_parent(training, method, key)
    where = f"recipe.{training.recipe}" if training.recipe else f"{key}.hyper_parameters"
    overrides = training.hyper_parameters
    try:
        settings = parse(
            schema_of(method.settings, data.settings),
            _merged(recipe.section(training.recipe), overrides),
            where,
        )
    except UserError as error:
        # ``where`` is the recipe's section. A value that the stage overrides stands in the stage's file.
        field = error.where.removeprefix(f"{where}.")
        first = field.split(".")[0]
        if first in overrides:
            raise UserError(f"{key}.hyper_parameters.{field}", error.found, error.allowed) from None
        if first in _known_fields() - schema_of(method.settings, data.settings).model_fields.keys():
            # The section is right as it is, but it is for other stages.
            raise UserError(
                f"{key}.recipe",
                f"{training.recipe}, whose {first} neither {method.name} nor {data.name} has",
                "name the section for them, or null and give all values as hyper_parameters",
            ) from None
        raise
    made = TrainingStage(
        stage.name, training.parent, method, data, settings, recipe.merge, where, training.continues
    )
    _check_images(made)
    return made


def _check_images(training: TrainingStage) -> None:
    """Checks that the stage can be trained on images, if a format that it is trained on has some.

    Raises:
        UserError: its method does not read them, or packs rows.
    """
    pictured = training.pictured
    if not pictured:
        return
    if not training.method.reads_images:
        able = one_of([f"method {name}" for name, method in methods().items() if method.reads_images])
        found = f"{pictured[0]} has images, which method {training.method.name} does not read"
        raise UserError(f"{training.where}.formats", found, f"{able}; or another format")
    if getattr(training.settings, "packing", False):
        raise UserError(f"{training.where}.packing", f"true, and {pictured[0]} has images", "allowed: false")


def _check_parent(training: TrainingSettings, method: Method, key: str) -> None:
    """Checks that ``method`` can start from the parent's weights as ``training`` says; ``key`` is its config key.

    Raises:
        UserError: it cannot.
    """
    if training.continues and training.parent == BASE:
        raise UserError(
            f"{key}.continues", "true, but the parent is base, which has no adapter", "allowed: false"
        )
    if training.continues and not method.continues:
        able = (name for name, other in methods().items() if other.continues)
        found = f"true, but {method.name} trains new adapters only"
        raise UserError(f"{key}.continues", found, f"allowed: false, or method {' or '.join(able)}")
    if training.parent != BASE and not training.continues and not method.stacks:
        raise UserError(
            f"{key}.parent",
            f"{training.parent}, but {method.name} trains on the base only",
            "allowed: base" + (", or continues: true" if method.continues else ""),
        )


def _known_fields() -> set[str]:
    """The names of the hyper-parameters of all methods and kinds of data."""
    schemas: list[type[Node]] = [method.settings for method in methods().values()]
    schemas += [kind.settings for kind in data_kinds().values()]
    return {name for schema in schemas for name in schema.model_fields}


@functools.cache
def schema_of(method: type[TrainerSettings], data: type[Node]) -> type[TrainerSettings]:
    """The schema of a stage's hyper-parameters: the fields of its method and of its data."""
    name = f"{data.__name__}With{method.__name__}"
    schema: type[TrainerSettings] = create_model(name, __base__=(data, method))  # type: ignore[arg-type]
    return schema


def _merged(block: Mapping[str, Json], overrides: Mapping[str, Json]) -> dict[str, Json]:
    """``block`` with its values replaced by those of ``overrides``, at any depth."""
    merged = dict(block)
    for name, value in overrides.items():
        before = merged.get(name)
        merged[name] = (
            _merged(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
        )
    return merged
