"""The artifacts of an experiment: rollout rows, adapters, classifiers, predictions and the evaluation.

An artifact is described before it is made. Its ``identity`` is plain JSON data with everything that can change it, and
the hash of that is its key; the other fields are what its job needs.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from offscript.rollouts.engines.base import Sampling
from offscript.settings import ClassifierSettings, EvaluationSettings, ReleasedRowsSettings, SourceSettings
from offscript.storage.files import Json
from offscript.storage.hashing import key_of
from offscript.tasks.formats.base import Format, Rules
from offscript.tasks.rows import Row
from offscript.tasks.scenarios import Scenario
from offscript.training.stages import TrainingStage

NO_PERSONA = "_"
"""Stands for the persona in the paths of texts that belong to none (base weights, plain system text)."""

SCALE_SEPARATOR = "@"
"""Between a stage's name and the scale of its adapter, in labels: ``full@0.5``."""

Labels = dict[str, str | int | None]


@dataclass(frozen=True)
class Cell:
    """One point of the grid. ``scale`` multiplies the effect of the stage's adapter."""

    model: str
    persona: str | None
    stage: str
    format: str
    split: str
    seed: int
    scale: float = 1.0

    @property
    def labels(self) -> Labels:
        """The fields that all rows of the cell share; the stage carries a scale other than 1."""
        return {
            "model": self.model,
            "stage": self.stage if self.scale == 1 else f"{self.stage}{SCALE_SEPARATOR}{self.scale:g}",
            "persona": self.persona,
            "format": self.format,
            "split": self.split,
            "seed": self.seed,
        }

    def path(self, folder: str, key: str) -> Path:
        """The cell's file below ``folder``, named by ``key``."""
        labels = self.labels
        persona = self.persona if self.persona is not None else NO_PERSONA
        return Path(
            folder, self.model, str(labels["stage"]), persona, f"{self.format}-{self.split}-{key[:8]}.jsonl"
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Artifact(ABC):
    """What a job makes. ``inputs`` must be finished before it; two artifacts with one key are equal.

    Class attributes say how jobs treat a kind: ``shares_process`` (one process makes many of them, since what is costly
    to load is shared), ``all_ranks`` (the processes of a job work on one artifact together), ``shards`` (a job can be
    cut into several), ``partial_inputs`` (it is made from those inputs that are there), ``path_has_key``.
    """

    kind: ClassVar[str]
    shares_process: ClassVar[bool] = False
    all_ranks: ClassVar[bool] = False
    shards: ClassVar[bool] = False
    partial_inputs: ClassVar[bool] = False
    path_has_key: ClassVar[bool] = True

    identity: Mapping[str, Json]
    inputs: tuple["Artifact", ...] = ()

    @functools.cached_property
    def key(self) -> str:
        """64 hex digits."""
        return key_of({"kind": self.kind, **self.identity})

    @property
    @abstractmethod
    def labels(self) -> Labels:
        """What tables, manifests and messages call it."""

    @property
    @abstractmethod
    def path(self) -> Path:
        """Its place below the experiment's folder."""

    @property
    def model(self) -> str | None:
        """The model that it belongs to; None for an evaluation."""
        return str(self.labels["model"])

    @property
    def planned_rows(self) -> int | None:
        """Rows that it will have; None for what has no rows."""
        return None

    @property
    def source(self) -> SourceSettings | None:
        """Where it was made, for an artifact that is imported."""
        return None

    def references(self) -> tuple[SourceSettings | ReleasedRowsSettings, ...]:
        """What it is made from that lies outside the experiment."""
        return (self.source,) if self.source is not None else ()

    @abstractmethod
    def command(self) -> list[str]:
        """Script and arguments that make it, without the overrides of the experiment."""

    def __str__(self) -> str:
        order = ("model", "persona", "stage", "format", "split", "name", "seed")
        shown = [str(self.labels[name]) for name in order if self.labels.get(name) is not None]
        return f"{self.kind} {' '.join(shown)}"

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Artifact) and self.key == other.key


def _arguments(choices: Mapping[str, str | int | float | None]) -> list[str]:
    """``name=value`` of the choices that are neither None nor the default of the scripts."""
    defaults: dict[str, str | int | float] = {"split": "eval", "seed": 0, "scale": 1.0}
    return [
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in choices.items()
        if value is not None and value != defaults.get(name)
    ]


# ---------------------------------------------------------------- adapters


@dataclass(frozen=True, eq=False, kw_only=True)
class Adapter(Artifact):
    """The weights of one stage and persona: a LoRA adapter, or with ``checkpoint`` a whole model."""

    kind: ClassVar[str] = "adapter"
    all_ranks: ClassVar[bool] = True

    base: str
    persona: str
    stage: str
    seed: int
    checkpoint: bool = False

    @property
    def labels(self) -> Labels:
        return {"model": self.base, "persona": self.persona, "stage": self.stage, "seed": self.seed}

    @property
    def path(self) -> Path:
        return Path("adapters", self.base, self.persona, f"{self.stage}-{self.key[:8]}")

    def command(self) -> list[str]:
        return ["train.py", *_arguments(self.labels)]


@dataclass(frozen=True, eq=False, kw_only=True)
class ImportedAdapter(Adapter):
    """Weights that were trained elsewhere."""

    imported_from: SourceSettings

    @property
    def source(self) -> SourceSettings:
        return self.imported_from


@dataclass(frozen=True, eq=False, kw_only=True)
class TrainedAdapter(Adapter):
    """Weights that are trained here.

    ``rows`` are the rollouts that the training rows are made from, by the role that ``training.data`` gives them;
    ``released`` are files of training rows that others made, in place of them. ``parent`` is the adapter that stays
    frozen below. ``renamed`` maps names that the teacher gives itself to the model's own.
    """

    training: TrainingStage
    parent: Adapter | None = None
    rows: tuple[tuple[str, "Rollout"], ...] = ()
    released: tuple[ReleasedRowsSettings, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)

    def references(self) -> tuple[SourceSettings | ReleasedRowsSettings, ...]:
        return self.released


# ---------------------------------------------------------------- rollouts

RowsOf = Callable[["Rollout"], Sequence[Row]]


@dataclass(frozen=True)
class ScenarioSet:
    """The scenarios of a cell. ``identity`` is the hash identity of their texts; ``count`` of them are expected.

    ``load(rows_of)`` returns them; ``rows_of`` reads the rows of ``inputs``, which must be finished by then.
    ``is_local``: scenarios can be loaded without network or upstream artifacts.
    """

    identity: Json
    count: int
    load: Callable[[RowsOf], list[Scenario]] = field(compare=False)
    is_local: bool = True
    inputs: tuple["Rollout", ...] = ()

    @functools.cached_property
    def digest(self) -> str:
        """64 hex digits of ``identity``."""
        return key_of({"scenarios": self.identity})

    def load_local(self) -> list[Scenario]:
        """The scenarios of a set that ``is_local``."""
        return self.load(_no_rows)


def _no_rows(rollout: "Rollout") -> Sequence[Row]:
    raise AssertionError(f"local scenarios need no rows, but those of {rollout} were asked for")


@dataclass(frozen=True, eq=False, kw_only=True)
class Rollout(Artifact):
    """The rows of one cell: every scenario, ``samples`` times. ``training_stage`` names the stage that trains on them."""

    kind: ClassVar[str] = "rollout"
    shares_process: ClassVar[bool] = True
    shards: ClassVar[bool] = True

    cell: Cell
    format: Format
    rules: Rules
    scenarios: ScenarioSet
    samples: int
    sampling: Sampling
    adapter: Adapter | None = None
    training_stage: str | None = None

    @property
    def labels(self) -> Labels:
        return self.cell.labels

    @property
    def path(self) -> Path:
        return self.cell.path("rollouts", self.key)

    @property
    def planned_rows(self) -> int:
        return self.scenarios.count * self.samples

    @property
    def checkpoint(self) -> Adapter | None:
        """The whole model that takes the base's place, if the stage's weights are one."""
        return self.adapter if self.adapter is not None and self.adapter.checkpoint else None

    @property
    def adapter_name(self) -> str | None:
        """The engine's name of the adapter, None for base weights or a checkpoint; one adapter at two scales has two
        names. (PEFT allows no dots in names.)"""
        if self.adapter is None or self.adapter.checkpoint:
            return None
        scale = self.cell.scale
        return self.adapter.key if scale == 1 else f"{self.adapter.key}x{scale:g}".replace(".", "_")

    def command(self) -> list[str]:
        cell = self.cell
        choices = {"model": cell.model, "persona": cell.persona, "stage": cell.stage, "scale": cell.scale}
        if not self.format.scored:
            choices |= {"stage": self.training_stage}
            return ["rollout.py", *_arguments({**choices, "format": cell.format})]
        return [
            "rollout.py",
            *_arguments({**choices, "format": cell.format, "split": cell.split, "seed": cell.seed}),
        ]


# ---------------------------------------------------------------- classifiers, predictions, evaluation


@dataclass(frozen=True, eq=False, kw_only=True)
class Classifier(Artifact):
    """The persona classifier of one model. ``personas`` are its labels; ``imported_from`` names one that others fitted."""

    kind: ClassVar[str] = "classifier"

    base: str
    personas: tuple[str, ...]
    settings: ClassifierSettings
    imported_from: SourceSettings | None = None

    @property
    def labels(self) -> Labels:
        return {"model": self.base, "name": self.settings.name}

    @property
    def path(self) -> Path:
        return Path("classifiers", self.base, f"{self.settings.name}-{self.key[:8]}")

    @property
    def source(self) -> SourceSettings | None:
        return self.imported_from

    @property
    def rollouts(self) -> tuple[Rollout, ...]:
        """The rows that it is fitted on."""
        return tuple(part for part in self.inputs if isinstance(part, Rollout))

    def command(self) -> list[str]:
        return ["classify.py", *_arguments({"model": self.base})]


@dataclass(frozen=True, eq=False, kw_only=True)
class Predictions(Artifact):
    """Every label's probability for every text of one cell."""

    kind: ClassVar[str] = "predictions"
    shares_process: ClassVar[bool] = True

    classifier: Classifier
    rollout: Rollout

    @property
    def labels(self) -> Labels:
        return self.rollout.labels

    @property
    def path(self) -> Path:
        return self.rollout.cell.path("predictions", self.key)

    def command(self) -> list[str]:
        return ["classify.py", *_arguments({"model": self.rollout.cell.model})]


@dataclass(frozen=True, eq=False, kw_only=True)
class Evaluation(Artifact):
    """Tables, figures and the report of an experiment, from those predictions that are there."""

    kind: ClassVar[str] = "evaluation"
    partial_inputs: ClassVar[bool] = True
    path_has_key: ClassVar[bool] = False

    name: str
    settings: EvaluationSettings

    @property
    def labels(self) -> Labels:
        return {"name": self.name}

    @property
    def path(self) -> Path:
        return Path("evaluation")

    @property
    def model(self) -> None:
        return None

    def command(self) -> list[str]:
        return ["evaluate.py"]


KINDS: dict[str, type[Artifact]] = {
    cls.kind: cls for cls in (Rollout, Adapter, Classifier, Predictions, Evaluation)
}


# ---------------------------------------------------------------- graphs of artifacts


def in_order(wanted: Sequence[Artifact]) -> list[Artifact]:
    """``wanted`` and everything that they are made from, inputs first, each once."""
    seen: dict[str, Artifact] = {}

    def visit(artifact: Artifact) -> None:
        if artifact.key not in seen:
            for needed in artifact.inputs:
                visit(needed)
            seen[artifact.key] = artifact

    for artifact in wanted:
        visit(artifact)
    return list(seen.values())


def layers(artifacts: Sequence[Artifact]) -> Iterator[list[Artifact]]:
    """``artifacts`` (inputs first) in groups of which none needs another of its own group."""
    depth: dict[str, int] = {}
    for artifact in artifacts:
        depth[artifact.key] = 1 + max((depth[i.key] for i in artifact.inputs if i.key in depth), default=-1)
    for level in range(1 + max(depth.values(), default=-1)):
        yield [a for a in artifacts if depth[a.key] == level]
