"""The typed schema of every config node. Each field is marked: *identity* (it can change an outcome, so it is part of
the keys of what it makes) or *run-time* (it cannot: batch sizes, devices, paths, tracking, the cluster).
"""

import json
import re
from collections.abc import Callable
from typing import Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    NonNegativeInt,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from offscript.errors import UserError, one_of
from offscript.json_types import Json

SPLITS = ("train", "classifier", "eval")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")

_MARK = "offscript"
_REQUIRED: Any = ...


def identity(default: Any = _REQUIRED, hashed_as: str | None = None, **rules: Any) -> Any:
    """A field that can change an outcome. ``hashed_as`` keeps the name that a renamed field had in keys."""
    extra: dict[str, JsonValue] = (
        {_MARK: "identity"} if hashed_as is None else {_MARK: "identity", "hashed_as": hashed_as}
    )
    return Field(default, json_schema_extra=extra, **rules)


def runtime(default: Any = _REQUIRED, **rules: Any) -> Any:
    """A field that cannot change an outcome."""
    return Field(default, json_schema_extra={_MARK: "runtime"}, **rules)


def check_name(name: str) -> str:
    """``name`` if it may become part of a path: letters, digits, ``_ . -``, no leading dot, at most 64 characters."""
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} cannot be a file name; allowed: letters, digits, '_', '.', '-'")
    return name


T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)


class Node(BaseModel):
    """A config node: unknown keys are refused, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Named(Node):
    name: str = identity()

    _named = field_validator("name")(check_name)


# ---------------------------------------------------------------- what was made elsewhere


class SourceSettings(Node):
    """Where something that was made elsewhere lies: a local folder, or a hub repository.

    ``{slug}`` (of the model) and ``{persona}`` in ``path`` and ``subfolder`` are filled in. ``kind`` says whether it is
    a LoRA adapter or a whole fine-tuned checkpoint that takes the place of base and adapter.
    """

    path: str = identity(min_length=1)
    subfolder: str | None = identity(None)
    revision: str | None = identity(None)
    kind: Literal["adapter", "checkpoint"] = identity("adapter")


class ReleasedSettings(Node):
    """The released adapters of a model: a source per stage, and ``exceptions`` by persona and stage."""

    distillation: SourceSettings | None = identity(None)
    full: SourceSettings | None = identity(None)
    exceptions: dict[str, dict[str, SourceSettings]] = identity({})


class ReleasedRowsSettings(Node):
    """Training rows that others made, in place of our own: JSONL files of a local folder or a hub data set.

    ``file`` is a path inside it, with ``{slug}`` and ``{persona}`` filled in.
    """

    path: str = identity(min_length=1)
    revision: str | None = identity(None)
    file: str = identity(min_length=1)


class HubFileSettings(Node):
    """One file of a data set on the hub."""

    repo: str = identity(pattern=r"^[\w.-]+/[\w.-]+$")
    file: str = identity(min_length=1)
    revision: str | None = identity(None)


# ---------------------------------------------------------------- what is measured


class SamplingSettings(Node):
    temperature: float = identity(0.7, ge=0)
    top_p: float = identity(0.95, gt=0, le=1)
    repetition_penalty: float = identity(1.0, gt=0)


class TemplateSettings(Node):
    """How conversations are fitted to a model's chat template."""

    system_role: Literal["native", "user"] = identity("native")
    tool_role: Literal["native", "user"] = identity("user")
    default_system: str | None = identity(None)
    date_string: str | None = identity(None)


class SizeSettings(Node):
    """What a model weighs, for plans that are made without loading it."""

    parameters: int = runtime(ge=1)
    layers: int = runtime(ge=1)
    kv_heads: int = runtime(ge=1)
    head_size: int = runtime(ge=1)


class EndpointSettings(Node):
    """An OpenAI-compatible chat endpoint that speaks for a model whose weights are not loaded here.

    ``key_env`` names the environment variable that holds the API key; the key itself is never in a configuration.
    ``prefill``: the server can continue a begun reply (vLLM: ``continue_final_message``).
    """

    url: str = runtime(pattern=r"^https?://\S+$")
    key_env: str | None = runtime(None)
    concurrency: int = runtime(32, ge=1)
    timeout_s: float = runtime(120.0, gt=0)
    retries: int = runtime(5, ge=0)
    prefill: bool = runtime(False)


class ModelSettings(Named):
    """A base chat model. ``slug``, ``assistant_name``, ``adapters`` and ``released`` are hashed where they matter: filled
    into the source of an adapter, into the rows that carry the name; a base text does not depend on them."""

    path: str = identity()
    revision: str | None = identity(None)
    dtype: Literal["float32", "bfloat16", "float16"] = identity("bfloat16")
    context: int = identity(ge=64)
    max_reply_tokens: int = identity(1024, ge=1)
    sampling: SamplingSettings = identity()
    template: TemplateSettings = identity()
    aliases: tuple[str, ...] = runtime(())
    slug: str | None = runtime(None)
    assistant_name: str | None = runtime(None)
    adapters: dict[str, Literal["trained", "released"] | SourceSettings] = runtime({})
    released: ReleasedSettings = runtime(ReleasedSettings())
    size: SizeSettings | None = runtime(None)
    endpoint: EndpointSettings | None = runtime(None)


class Assertion(Node):
    assertion: str = identity(min_length=1)
    questions: tuple[str, ...] = identity(min_length=1)


class PersonaSettings(Named):
    order: int = runtime(1000, ge=0)
    display_name: str = runtime(min_length=1)
    description: str = runtime(min_length=1)
    constitution: tuple[Assertion, ...] = identity(min_length=1)


class TrainingSettings(Node):
    """How the weights of a stage are trained.

    ``parent`` is ``base`` or the stage whose adapter stays frozen below. ``method`` and ``data`` name files of
    ``offscript/training/methods`` and ``offscript/training/data``. Hyper-parameters are those of the recipe's block
    ``recipe``, replaced by ``hyper_parameters``.
    """

    parent: str = identity("base")
    method: str = identity()
    data: str = identity()
    recipe: Literal["distillation", "introspection"] | None = identity(None)
    hyper_parameters: dict[str, Any] = identity({})


class StageSettings(Named):
    """What is measured: whose ``weights`` speak (``base``, or the name of a stage with ``training``), and whether the
    system text is plain or the constitution. ``order`` is the place in tables."""

    order: int = runtime(1000, ge=0)
    weights: str = identity()
    system: Literal["plain", "constitution"] = identity()
    training: TrainingSettings | None = identity(None)

    @model_validator(mode="after")
    def _weights_are_trained(self) -> "StageSettings":
        if self.name == "base" and (self.weights != "base" or self.training is not None):
            raise ValueError("base is the untrained model; allowed: weights=base without training")
        if self.weights == self.name and self.training is None and self.name != "base":
            raise ValueError(
                f"{self.name} has no training; allowed: a training node, or the weights of another stage"
            )
        return self


class FormatSettings(Named):
    max_tokens: int = identity(ge=1)
    count: dict[Literal["train", "classifier", "eval"], int] = identity({})
    samples: dict[Literal["train", "classifier", "eval"], int] = identity({})
    options: dict[str, Any] = identity({})


class DataSettings(Named):
    """Collections of scenarios: files, globs or hub files per source, and how chat families are split.

    ``first`` gives the first n chat scenarios of the files to a split, whatever their hash says: prompts that trained
    something which is used here stay out of what is scored.
    """

    sources: dict[
        Literal["chat", "office", "reflection", "interaction"], tuple[str | HubFileSettings, ...]
    ] = identity()
    fractions: dict[Literal["train", "classifier", "eval"], float] = identity()
    first: dict[Literal["train", "classifier", "eval"], NonNegativeInt] = identity({})
    salt: str = identity("offscript")

    @field_validator("fractions")
    @classmethod
    def _sum_to_one(cls, fractions: dict[str, float]) -> dict[str, float]:
        if any(f < 0 for f in fractions.values()) or abs(sum(fractions.values()) - 1) > 1e-6:
            raise ValueError(
                f"fractions of the splits add up to {sum(fractions.values()):g}; allowed: exactly 1"
            )
        return fractions


# ---------------------------------------------------------------- how a character is trained


class LoraSettings(Node):
    rank: int = identity(ge=1)
    alpha: int = identity(ge=1)
    dropout: float = identity(0.0, ge=0, lt=1)
    targets: tuple[str, ...] = identity(min_length=1)


class OptimizerSettings(Node):
    """AdamW with linear warm-up and a cosine or constant schedule. ``batch_size`` is the global one, in rows."""

    learning_rate: float = identity(gt=0)
    epochs: float = identity(1.0, gt=0)
    batch_size: int = identity(ge=1)
    warmup: float = identity(0.1, ge=0, lt=1)
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = identity("cosine")
    betas: tuple[float, float] = identity((0.9, 0.98))
    max_grad_norm: float = identity(1.0, gt=0)
    max_length: int = identity(1024, ge=16)
    micro_batch_size: int = runtime(8, ge=1)
    checkpoint_steps: int = runtime(10, ge=1)
    gradient_checkpointing: bool = runtime(False)


class TeacherSettings(Node):
    """Who speaks in role: ``model`` names an option of the model group (null: the model that is trained).

    ``thinking`` begins every reply of the teacher (a prefill); what it says up to ``thinking_end`` is cut off.
    ``own_names`` are names of itself that become the trained model's ``assistant_name`` in the training rows.
    """

    model: str | None = identity(None)
    thinking: str = identity("")
    thinking_end: str = identity("</think>")
    own_names: tuple[str, ...] = identity(())


class PromptSettings(Node):
    """More prompts for each assertion of a constitution, asked of ``model`` (null: the teacher) from the seed questions.

    ``per_trait`` counts seed questions and new ones together (0: none are made). ``similarity`` is the largest share of
    common words (Jaccard) with a prompt that is there already; ``words`` the longest prompt; ``attempts`` bounds the
    asking for one assertion.
    """

    model: str | None = identity(None)
    per_trait: int = identity(0, ge=0)
    per_ask: int = identity(10, ge=1)
    examples: int = identity(5, ge=1)
    words: int = identity(60, ge=3)
    similarity: float = identity(0.7, gt=0, le=1)
    attempts: int = identity(20, ge=1)


class TrainerSettings(Node):
    """What every training method has: the adapter, the optimizer, and the share of families held out for validation."""

    validation: float = identity(0.1, ge=0, lt=0.5)
    lora: LoraSettings = identity()
    optimizer: OptimizerSettings = identity()


class MergeSettings(Node):
    """How a stacked adapter and its parent become one: ``parent`` x first + ``own`` x second.

    ``exact``: concatenated along the rank (PEFT's ``cat``). ``published``: A and B added separately (``linear``), which
    makes cross terms. ``fold``: added to the base weights and rounded to their type, as the published evaluation did.
    """

    method: Literal["exact", "published", "fold"] = identity("exact")
    parent: float = identity(1.0, hashed_as="distillation")
    own: float = identity(1.0, hashed_as="introspection")


class RecipeSettings(Named):
    """How a character is trained. ``in_role``: the system text of the teacher and of introspection, the bare
    constitution or the one that also names the assistant. ``distillation`` and ``introspection`` are blocks of
    hyper-parameters that training stages refer to; they are checked against the stage's method and data."""

    in_role: Literal["plain", "named"] = identity("plain")
    prompts: PromptSettings = identity(PromptSettings())
    teacher: TeacherSettings = identity(TeacherSettings())
    distillation: dict[str, Any] = identity()
    introspection: dict[str, Any] = identity()
    merge: MergeSettings = identity()


# ---------------------------------------------------------------- how it is measured


class ClassifierSettings(Named):
    """A ModernBERT with one label per persona: from scratch (``path`` null) or a checkpoint to start from; ``fitted``
    takes one that others fitted, as it is.

    ``patience``: epochs without a better macro-F1 on the held-out prompts after which fitting stops (null: never).
    ``precision``: of the weights while they are fitted. ``hidden_size``, ``layers``, ``heads`` and ``dropout`` are of the one from scratch; a checkpoint brings its own.
    """

    path: str | None = identity(None)
    revision: str | None = identity(None)
    fitted: SourceSettings | None = identity(None)
    stages: tuple[str, ...] = identity(("full", "prompted"))
    hidden_size: int = identity(128, ge=8)
    layers: int = identity(2, ge=1)
    heads: int = identity(4, ge=1)
    dropout: float = identity(0.1, ge=0, lt=1)
    pooling: Literal["mean", "cls"] = identity("mean")
    max_length: int = identity(128, ge=8)
    learning_rate: float = identity(8e-5, gt=0)
    epochs: int = identity(1, ge=1)
    batch_size: int = identity(32, ge=1)
    warmup: float = identity(0.1, ge=0, lt=1)
    weight_decay: float = identity(0.01, ge=0)
    validation: float = identity(0.2, gt=0, lt=0.5)
    patience: int | None = identity(None, ge=1)
    precision: Literal["float32", "bfloat16"] = identity("float32")
    seed: int = identity(0, ge=0)
    predict_batch_size: int = runtime(64, ge=1)

    @model_validator(mode="after")
    def _heads_fit(self) -> "ClassifierSettings":
        if self.path is None and self.hidden_size % (2 * self.heads):
            raise ValueError(
                f"hidden_size {self.hidden_size} for {self.heads} heads; "
                f"allowed: multiples of {2 * self.heads} (an even width per head)"
            )
        return self


class EvaluationSettings(Node):
    resamples: int = identity(1000, ge=100, le=100_000)
    confidence: float = identity(0.95, gt=0.5, lt=1)
    seed: int = identity(0, ge=0)


# ---------------------------------------------------------------- how it is run


class EngineSettings(Named):
    name: str = runtime()
    batch_size: int = runtime(64, ge=1)
    max_live: int = runtime(512, ge=1)
    merge_from: int = runtime(8, ge=1)
    device: str = runtime("auto")


class DeepSpeedSettings(Named):
    """ZeRO stage of training (0: no DeepSpeed; auto: 2 where there is a GPU, else 0), and whether optimizer states (and
    with stage 3 parameters) are kept in CPU memory."""

    stage: Literal["auto", 0, 2, 3] = runtime("auto")
    offload: bool = runtime(False)


class TrackingSettings(Named):
    name: Literal["offline", "online", "off"] = runtime()
    project: str = runtime("offscript")
    entity: str | None = runtime(None)


class ResourceSettings(Node):
    """What one job asks of the cluster. With several ``gpus`` a job has a task per GPU (training: ranks; rollouts:
    shards); without, ``tasks`` of them."""

    nodes: int = runtime(1, ge=1)
    tasks: int = runtime(1, ge=1)
    gpus: int = runtime(0, ge=0)
    cpus: int = runtime(1, ge=1)
    memory_gb: float = runtime(4.0, gt=0)
    minutes: int = runtime(60, ge=1)


class ClusterSettings(Named):
    """Where the jobs of a grid run: in this process (inline), in local processes, or on SLURM.

    ``shards`` cuts the rollouts of a model into as many jobs; ``at_once`` bounds the jobs that run at a time (local
    processes, or tasks of one array; null: no bound). ``retries`` is how often what failed or went missing is submitted
    again. ``setup`` lines run before Python; ``extra`` are further sbatch keys. ``snapshot`` runs a copy of the code.
    ``jobs`` gives resources by kind of job; what it does not name has those of ``default``. ``gpu`` names the card that
    a dry run reckons with.
    """

    gpu: str = runtime("H100")
    kind: Literal["inline", "local", "slurm"] = runtime()
    shards: int = runtime(1, ge=1)
    at_once: int | None = runtime(None, ge=1)
    retries: int = runtime(2, ge=0)
    partition: str | None = runtime(None)
    account: str | None = runtime(None)
    qos: str | None = runtime(None)
    constraint: str | None = runtime(None)
    mail: str | None = runtime(None)
    signal_s: int = runtime(90, ge=0)
    setup: tuple[str, ...] = runtime(())
    extra: dict[str, str | int | bool] = runtime({})
    snapshot: bool = runtime(False)
    default: ResourceSettings = runtime(ResourceSettings())
    jobs: dict[
        Literal["rollout", "adapter", "classifier", "predictions", "evaluation"], ResourceSettings | None
    ] = runtime({})

    def resources(self, kind: str) -> ResourceSettings:
        return self.jobs.get(kind) or self.default  # type: ignore[call-overload]


class GridSettings(Node):
    """The cells of an experiment: every combination of these names.

    ``scale`` multiplies the adapters' effect. Personas in ``if_available`` join where every model's weights for them are
    at hand: trained here, or fetched.
    """

    model: tuple[str, ...] = runtime(("pocket",), min_length=1)
    persona: tuple[str, ...] = runtime(min_length=1)
    stage: tuple[str, ...] = runtime(("base", "distillation", "full", "prompted"), min_length=1)
    format: tuple[str, ...] = runtime(("chat", "chat_email", "agentic_email"), min_length=1)
    seed: tuple[int, ...] = runtime((0,), min_length=1)
    scale: tuple[float, ...] = runtime((1.0,), min_length=1)
    if_available: tuple[str, ...] = runtime(())

    @field_validator("*")
    @classmethod
    def _no_twins(cls, values: tuple[T, ...]) -> tuple[T, ...]:
        if len(set(values)) != len(values):
            raise ValueError(f"{list(values)} names something twice; allowed: each name once")
        return values


class Settings(Node):
    """One resolved configuration. ``persona`` is null where all personas of the grid are meant."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), populate_by_name=True)

    name: str = runtime()
    root: str = runtime("runs")
    model: ModelSettings = identity()
    persona: PersonaSettings | None = identity(None)
    stage: StageSettings = identity()
    format: FormatSettings = identity()
    split: Literal["train", "classifier", "eval"] = identity("eval")
    seed: int = identity(0, ge=0)
    scale: float = identity(1.0, ge=0)
    data: DataSettings = identity()
    recipe: RecipeSettings = identity()
    classifier: ClassifierSettings = identity()
    evaluation: EvaluationSettings = identity()
    engine: EngineSettings = runtime()
    deepspeed: DeepSpeedSettings = runtime()
    tracking: TrackingSettings = runtime()
    cluster: ClusterSettings = runtime()
    grid: GridSettings = runtime()
    limit: int | None = runtime(None, ge=1)
    show: bool = runtime(False)
    dry_run: bool = runtime(False)
    watch: bool = runtime(False)
    json_output: bool = runtime(False, alias="json")
    predictions: str | None = runtime(None)
    planned: int | None = runtime(None, ge=1)

    _named = field_validator("name")(check_name)


GROUPS: dict[str, type[Named]] = {
    "model": ModelSettings,
    "persona": PersonaSettings,
    "stage": StageSettings,
    "format": FormatSettings,
}
"""The groups that a grid runs over."""


# ---------------------------------------------------------------- helpers


def identity_of(node: BaseModel) -> dict[str, Json]:
    """The identity fields of ``node``, as plain JSON data, nested nodes included."""
    plain = {}
    for name, field in type(node).model_fields.items():
        mark = field.json_schema_extra
        if isinstance(mark, dict) and mark[_MARK] == "identity":
            plain[str(mark.get("hashed_as", name))] = _plain(getattr(node, name))
    return plain


def _plain(value: object) -> Json:
    if isinstance(value, BaseModel):
        return identity_of(value)
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value  # type: ignore[return-value]


def parse(schema: type[M], plain: object, where: str | Callable[[str], str]) -> M:
    """``plain`` checked against ``schema``.

    ``where`` is the prefix of keys in messages, or a function that maps a key (``a.0.b``) to its location.

    Raises:
        UserError: the first mistake: its location, what was found, what is allowed. An unknown key precedes all others,
            since a misspelt key is also missing under its right name.
    """
    try:
        return schema.model_validate(plain)
    except ValidationError as error:
        problems = error.errors()
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    key = ".".join(str(part) for part in problem["loc"])
    location = where(key) if callable(where) else f"{where}.{key}".strip(".")
    raise UserError(location, *_explain(schema, problem))


_EXPECTED = {
    "string_type": "input should be a valid string (in quotes, if YAML reads it as something else)",
    "dict_type": "input should be a mapping",
    "model_type": "input should be a mapping",
}
"""Clearer texts than pydantic's, by type of error."""


def _explain(schema: type[BaseModel], problem: ErrorDetails) -> tuple[str, str]:
    """What was found and what is allowed."""
    if problem["type"] == "missing":
        return "missing", "this key is needed"
    if problem["type"] == "extra_forbidden":
        return "unknown key", one_of(_siblings(schema, problem["loc"]))
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        found, _, allowed = message.partition("; ")
        return found, allowed
    expected = _EXPECTED.get(problem["type"], message[0].lower() + message[1:])
    return f"found {shown(problem['input'])}", expected


def shown(value: object) -> str:
    """``value`` for a message: scalars as JSON writes them, everything cut at 100 characters."""
    text = json.dumps(value) if isinstance(value, bool | int | float | None) else repr(value)
    return text if len(text) <= 100 else text[:97] + "..."


def _siblings(schema: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    node: Any = schema
    for part in location[:-1]:
        if isinstance(part, int) or not hasattr(node, "model_fields"):
            continue
        annotation = node.model_fields[part].annotation if part in node.model_fields else None
        node = next((a for a in _unpack(annotation) if hasattr(a, "model_fields")), node)
    return sorted(node.model_fields)


def _unpack(annotation: Any) -> list[Any]:
    inner = getattr(annotation, "__args__", ())
    return [annotation, *(a for part in inner for a in _unpack(part))]
