"""The artifacts of an experiment: rollout rows, adapters, persona vectors, classifiers, predictions, projections and the
evaluation.

The planner describes an artifact before a job makes it. ``identity`` is plain JSON data with everything that can change
the content of the artifact, and the artifact's key is the hash of it. For example, the key of an adapter also depends
on the model's sampling settings and on the name of the stage. The other fields are what the job needs.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from offscript.rollouts.engines.base import Sampling
from offscript.settings import (
    ClassifierSettings,
    EvaluationSettings,
    MergeSettings,
    ReleasedRowsSettings,
    SourceSettings,
    SteeringSettings,
    ThinkingSettings,
)
from offscript.storage.files import Json
from offscript.storage.hashing import key_of
from offscript.tasks.examples import Examples
from offscript.tasks.formats.base import Format, Rules
from offscript.tasks.role_prompt import RolePrompt
from offscript.tasks.rows import Row
from offscript.tasks.scenarios import Scenario
from offscript.training.stages import TrainingStage

NO_PERSONA = "_"
"""Takes the place of the persona in the paths of texts without one (base weights with a plain system prompt)."""

SCALE_SEPARATOR = "@"
"""Separates the stage's name from the scale of its adapter, in labels: ``full@0.5``."""

Labels = dict[str, str | int | None]


@dataclass(frozen=True)
class Cell:
    """One point of the grid. ``scale`` scales the LoRA update of the stage's adapter."""

    model: str
    persona: str | None
    stage: str
    format: str
    split: str
    seed: int
    scale: float = 1.0

    @property
    def labels(self) -> Labels:
        """The fields that all rows of the cell share. ``stage`` includes the scale if it is not 1."""
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
    """Something that a job makes: a file or a folder with a manifest.

    ``inputs`` are the artifacts that must be finished first. Two artifacts with the same key are equal. The class
    attributes say how jobs handle a kind of artifact:

    - ``shares_process``: one process makes many artifacts, because they use the same loaded model
    - ``all_ranks``: all processes of a job work on one artifact together
    - ``shards``: the artifacts of one job can be divided among several jobs
    - ``partial_inputs``: the artifact can be made from the inputs that are finished
    - ``path_has_key``: the path contains the first digits of the key, so that artifacts with different keys have
      different paths. If it is False, the key must be read from the manifest.
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
        """The artifact's key, 64 hex digits."""
        return key_of({"kind": self.kind, **self.identity})

    @property
    @abstractmethod
    def labels(self) -> Labels:
        """The names that identify the artifact in tables, manifests and messages."""

    @property
    @abstractmethod
    def path(self) -> Path:
        """Path relative to the experiment's folder."""

    @property
    def model(self) -> str | None:
        """The model that it belongs to; None for an evaluation."""
        return str(self.labels["model"])

    @property
    def planned_rows(self) -> int | None:
        """Number of rows when it is finished; None if the artifact has no rows."""
        return None

    @property
    def source(self) -> SourceSettings | None:
        """Where an imported artifact is imported from; None if it is made here."""
        return None

    def references(self) -> tuple[SourceSettings | ReleasedRowsSettings, ...]:
        """The locations outside the experiment that it is made from."""
        return (self.source,) if self.source is not None else ()

    @abstractmethod
    def command(self) -> list[str]:
        """Command and arguments that make it, without the overrides of the experiment."""

    def __str__(self) -> str:
        order = ("model", "persona", "stage", "own", "format", "split", "name", "seed")
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
        return ["train", *_arguments(self.labels)]


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

    ``rows`` are the rollouts, or selections of their rows, from which the training rows are made, each with the role that
    ``training.data`` gives it. ``released`` are files of training rows that others published; they replace ``rows``. ``live``
    describes the episodes that the training plays itself, in place of rows. ``parent`` is the adapter of the parent stage.
    ``renamed`` maps the names that the teacher uses for itself to the model's name. ``role_prompt`` is the prompt in role that
    the training rows contain.
    """

    training: TrainingStage
    parent: Adapter | None = None
    rows: tuple[tuple[str, "Rollout | Selection"], ...] = ()
    released: tuple[ReleasedRowsSettings, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    role_prompt: RolePrompt | None = None
    live: "LiveTraining | None" = None

    def references(self) -> tuple[SourceSettings | ReleasedRowsSettings, ...]:
        return self.released


@dataclass(frozen=True)
class LiveTraining:
    """What a training that plays its own episodes is made from.

    ``episodes`` describe them, each with the role that ``training.data`` gives it; they are never made as rollouts.
    ``reward`` is the classifier that rewards them. It is watched by ``classifier``, which evaluates the grid, and by
    ``oracles``, classifiers of n-grams by format. ``in_role`` are the texts by whose length a text is too long, by format.
    ``email_cleaning``: as of ``Predictions``, for the formats whose texts are e-mails. ``judge`` describes how a judge reads
    episodes (None: none does); it changes no weights, so it is no part of a key.
    """

    episodes: tuple[tuple[str, "Rollout"], ...]
    email_cleaning: str | None
    reward: "Classifier"
    classifier: "Classifier"
    oracles: Mapping[str, "Classifier"]
    in_role: Mapping[str, "Rollout"]
    judge: "Rollout | None"

    @property
    def inputs(self) -> tuple[Artifact, ...]:
        """What has to be made before it, each once."""
        of_episodes = (part for _, rollout in self.episodes for part in rollout.inputs)
        parts = (*of_episodes, self.reward, self.classifier, *self.oracles.values(), *self.in_role.values())
        return tuple(dict.fromkeys(parts))


@dataclass(frozen=True, eq=False, kw_only=True)
class RemergedAdapter(Adapter):
    """A trained adapter and its parent's, merged with other weights. Nothing is trained."""

    trained: TrainedAdapter
    merge: MergeSettings

    @property
    def labels(self) -> Labels:
        return {**super().labels, "own": f"own{self.merge.own:g}"}

    @property
    def path(self) -> Path:
        return Path("adapters", self.base, self.persona, f"{self.stage}-own{self.merge.own:g}-{self.key[:8]}")

    def command(self) -> list[str]:
        return self.trained.command()


# ---------------------------------------------------------------- persona vectors


@dataclass(frozen=True, eq=False, kw_only=True)
class Vector(Artifact):
    """A persona vector per layer, with the layer and the strength at which it is added to the residual stream.

    ``prompted`` and ``plain`` are the replies whose activations it is the difference of.
    """

    kind: ClassVar[str] = "vector"

    base: str
    persona: str
    stage: str
    settings: SteeringSettings
    prompted: "Rollout"
    plain: "Rollout"

    @property
    def labels(self) -> Labels:
        return {"model": self.base, "persona": self.persona, "stage": self.stage}

    @property
    def path(self) -> Path:
        return Path("vectors", self.base, self.persona, f"{self.stage}-{self.key[:8]}")

    def command(self) -> list[str]:
        return ["train", *_arguments(self.labels)]


# ---------------------------------------------------------------- rollouts

RowsOf = Callable[["Rollout"], Sequence[Row]]


@dataclass(frozen=True)
class ScenarioSet:
    """The scenarios of a cell.

    ``identity`` is plain JSON data that determines their texts, for keys. ``count`` is their expected number.
    ``load(rows_of)`` returns the scenarios; ``rows_of(rollout)`` must return the rows of a rollout of ``inputs``, all
    of which must be finished. ``is_local``: the scenarios can be loaded without network and without ``inputs``.
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
        """Returns the scenarios of a set that ``is_local``."""
        return self.load(_no_rows)


def _no_rows(rollout: "Rollout") -> Sequence[Row]:
    raise AssertionError(f"local scenarios need no rows, but those of {rollout} were asked for")


@dataclass(frozen=True, eq=False, kw_only=True)
class Rollout(Artifact):
    """The rows of one cell: every scenario, ``samples`` times.

    ``adapter`` or ``vector`` change the base weights that generate them; at most one of the two is given.
    ``training_stage`` names the stage that trains on the rows. ``examples`` are the exchanges that each episode is shown
    some of. ``judged`` names the cells whose texts a judge reads in it.
    """

    kind: ClassVar[str] = "rollout"
    shares_process: ClassVar[bool] = True
    shards: ClassVar[bool] = True

    cell: Cell
    format: Format
    rules: Rules
    scenarios: ScenarioSet
    samples: int
    sampling: Sampling
    thinking: ThinkingSettings | None = None
    adapter: Adapter | None = None
    vector: Vector | None = None
    examples: Examples | None = None
    training_stage: str | None = None
    judged: str | None = None

    def __str__(self) -> str:
        return super().__str__() + (f" of {self.judged}" if self.judged is not None else "")

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
        """The whole model that replaces the base model; None if the stage has an adapter or base weights."""
        return self.adapter if self.adapter is not None and self.adapter.checkpoint else None

    @property
    def adapter_name(self) -> str | None:
        """The engine's name of the adapter or vector, None for base weights or a checkpoint; one adapter at two scales
        has two names. (PEFT allows no dots in names.)"""
        if self.vector is not None:
            return self.vector.key
        if self.adapter is None or self.adapter.checkpoint:
            return None
        scale = self.cell.scale
        return self.adapter.key if scale == 1 else f"{self.adapter.key}x{scale:g}".replace(".", "_")

    def command(self) -> list[str]:
        cell = self.cell
        choices = {"model": cell.model, "persona": cell.persona, "stage": cell.stage, "scale": cell.scale}
        if self.judged is not None:
            return ["submit"]
        if self.training_stage is not None and (self.format.scored or self.format.wraps is not None):
            # Of a format that a stage may train on in several ways, or that is scored, a rollout would be another one.
            choices = {"model": cell.model, "persona": cell.persona, "stage": self.training_stage}
            return ["train", *_arguments(choices)]
        if not self.format.scored:
            choices |= {"stage": self.training_stage}
            return ["rollout", *_arguments({**choices, "format": cell.format})]
        return [
            "rollout",
            *_arguments({**choices, "format": cell.format, "split": cell.split, "seed": cell.seed}),
        ]


@dataclass(frozen=True, eq=False, kw_only=True)
class Selection(Artifact):
    """The rows of a teacher that are trained on: of every ``best_of`` samples in ``rollout``, the one most in character.

    ``compared`` are the rollouts of all personas, ``rollout`` among them, by which this is judged.
    """

    kind: ClassVar[str] = "selection"
    shares_process: ClassVar[bool] = True

    rollout: Rollout
    compared: tuple[Rollout, ...]
    best_of: int

    @property
    def labels(self) -> Labels:
        return self.rollout.labels

    @property
    def path(self) -> Path:
        return self.rollout.cell.path("selections", self.key)

    @property
    def planned_rows(self) -> int:
        return self.rollout.planned_rows // self.best_of

    def command(self) -> list[str]:
        cell = self.rollout.cell
        stage = self.rollout.training_stage
        return ["train", *_arguments({"model": cell.model, "persona": cell.persona, "stage": stage})]


# ---------------------------------------------------------------- classifiers, predictions, evaluation


@dataclass(frozen=True, eq=False, kw_only=True)
class Classifier(Artifact):
    """A persona classifier of one model. ``personas`` are its labels, of which ``base`` stands for plain replies of the untrained
    model; ``imported_from`` names one that others fitted."""

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
        return ["classify", *_arguments({"model": self.base})]


@dataclass(frozen=True, eq=False, kw_only=True)
class Predictions(Artifact):
    """Every label's probability for every text of one cell.

    ``baseline`` is a classifier of n-grams whose labels stand beside those of ``classifier``; None if there is none.
    ``email_cleaning`` names the rule of ``evaluation.email_cleaning`` by which its texts are cleaned; None if they are
    scored as they were written.
    """

    kind: ClassVar[str] = "predictions"
    shares_process: ClassVar[bool] = True

    classifier: Classifier
    rollout: Rollout
    baseline: Classifier | None = None
    email_cleaning: str | None = None

    @property
    def labels(self) -> Labels:
        return self.rollout.labels

    @property
    def path(self) -> Path:
        return self.rollout.cell.path("predictions", self.key)

    def command(self) -> list[str]:
        return ["classify", *_arguments({"model": self.rollout.cell.model})]


@dataclass(frozen=True, eq=False, kw_only=True)
class Projections(Artifact):
    """The activations of one cell's own weights over each of its scored texts, projected on the persona vectors.

    ``vectors`` are those of all personas of the grid. ``email_cleaning``: as of ``Predictions``.
    """

    kind: ClassVar[str] = "projections"
    shares_process: ClassVar[bool] = True

    rollout: Rollout
    vectors: tuple[Vector, ...]
    email_cleaning: str | None = None

    @property
    def labels(self) -> Labels:
        return self.rollout.labels

    @property
    def path(self) -> Path:
        return self.rollout.cell.path("projections", self.key)

    @property
    def checkpoint(self) -> Adapter | None:
        """The whole model that replaces the base model, as of ``rollout``."""
        return self.rollout.checkpoint

    def command(self) -> list[str]:
        return ["classify", *_arguments({"model": self.rollout.cell.model})]


@dataclass(frozen=True, eq=False, kw_only=True)
class Evaluation(Artifact):
    """Tables, figures and the report of an experiment, made from the predictions and projections that are finished."""

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
        return ["evaluate"]


KINDS: dict[str, type[Artifact]] = {
    cls.kind: cls
    for cls in (Rollout, Vector, Selection, Adapter, Classifier, Predictions, Projections, Evaluation)
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


def layers(units: Sequence[Sequence[Artifact]]) -> Iterator[list[Sequence[Artifact]]]:
    """Divides ``units`` into groups, in which no unit needs another one of the same group.

    A unit needs those that hold an input of one of its artifacts, and none of these may need it in turn.
    """
    unit_of = {artifact.key: number for number, unit in enumerate(units) for artifact in unit}

    @functools.cache
    def depth(number: int) -> int:
        needed = {unit_of[i.key] for artifact in units[number] for i in artifact.inputs if i.key in unit_of}
        return 1 + max((depth(other) for other in needed - {number}), default=-1)

    depths = [depth(number) for number in range(len(units))]
    for level in range(1 + max(depths, default=-1)):
        yield [unit for unit, own in zip(units, depths, strict=True) if own == level]
