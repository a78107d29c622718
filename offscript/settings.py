"""The typed schema of the configuration.

Each field is declared by ``identity()`` or ``runtime()``. An identity field can change a result, so it is part of the
keys of artifacts. A run-time field cannot, for example a batch size, a device, a path, tracking or the cluster.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Literal, TypeVar, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from offscript.errors import UserError, one_of
from offscript.json_types import Json

SPLITS = ("train", "classifier", "eval")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
NAME_LENGTH = 64

LEAST_TEMPERATURE = 0.001
"""Logits that are divided by less overflow."""

MOST_SCALE = 100
"""Bound of the factor of a LoRA update: outputs are no numbers long before."""

SEEDS = 2**32
"""Bound of all seeds: numpy takes no larger ones."""

INTEGERS = 2**63
"""Bound of all integers: tensors and JSON readers hold no larger ones."""

_MARK = "offscript"
_REQUIRED: Any = ...


def identity(
    default: Any = _REQUIRED, hashed_as: str | None = None, unhashed: JsonValue = _REQUIRED, **rules: Any
) -> Any:
    """Declares a field that can change a result.

    ``hashed_as`` is the former name of a renamed field, which keys keep. ``unhashed`` is for a field that was added later:
    the value that means what was done before. With it the field is in no key, so that keys of that time stay valid.
    """
    extra: dict[str, JsonValue] = {_MARK: "identity"}
    if unhashed is not _REQUIRED:
        extra["unhashed"] = unhashed
    if hashed_as is not None:
        extra["hashed_as"] = hashed_as
    return Field(default, json_schema_extra=extra, **rules)


def runtime(default: Any = _REQUIRED, **rules: Any) -> Any:
    """Declares a field that cannot change a result."""
    return Field(default, json_schema_extra={_MARK: "runtime"}, **rules)


def check_name(name: str) -> str:
    """Returns ``name`` if it can be part of a path; raises ValueError otherwise.

    Allowed are letters, digits and ``_ . -``, at most 64 characters; the first is a letter or digit.
    """
    if len(name) > NAME_LENGTH:
        raise ValueError(f"{shown(name)} has {len(name)} characters; allowed: at most {NAME_LENGTH}")
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} cannot be a file name; allowed: letters, digits, '_', '.', '-'")
    return name


def check_labels(value: object) -> object:
    """Returns ``value`` if it is a positive integer, a name, a list of names or None; raises ValueError otherwise."""
    names = value if isinstance(value, list) else [value]
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"found {shown(value)}; a number of texts of at least 1, or CSV files of labels")
    return value


T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)


class Node(BaseModel):
    """A config node. Unknown keys are errors, and values cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


class Named(Node):
    name: str = identity()

    _named = field_validator("name")(check_name)


# ---------------------------------------------------------------- external artifacts


class SourceSettings(Node):
    """Location of an external artifact: a local folder or a hub repository.

    In ``path`` and ``subfolder``, ``{slug}`` (of the model) and ``{persona}`` are replaced. ``kind`` says whether it
    is a LoRA adapter, or a whole fine-tuned model (checkpoint) that is used without a base model and adapter.
    """

    path: str = identity(min_length=1)
    subfolder: str | None = identity(None)
    revision: str | None = identity(None)
    kind: Literal["adapter", "checkpoint"] = identity("adapter")


class ReleasedSettings(Node):
    """The released adapters of a model: a source per stage. ``exceptions`` (persona -> stage -> source) replace it."""

    distillation: SourceSettings | None = identity(None)
    full: SourceSettings | None = identity(None)
    exceptions: dict[str, dict[str, SourceSettings]] = identity({})


class ReleasedRowsSettings(Node):
    """Training rows that others published; they replace rows that are made here.

    ``path`` is a local folder or a hub data set, and ``file`` a JSONL file in it. ``{slug}`` and ``{persona}`` in
    ``file`` are replaced.
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


def check_temperature(temperature: float) -> float:
    """Returns ``temperature`` if it is 0 or logits can be divided by it; raises ValueError otherwise."""
    if 0 < temperature < LEAST_TEMPERATURE:
        raise ValueError(f"found {temperature:g}; allowed: 0 (greedy), or {LEAST_TEMPERATURE:g} to 100")
    return temperature


class SamplingSettings(Node):
    """How replies are sampled. Temperature 0 is greedy decoding; a repetition penalty of 1 has no effect."""

    temperature: float = identity(0.7, ge=0, le=100)
    top_p: float = identity(0.95, gt=0, le=1)
    repetition_penalty: float = identity(1.0, ge=0.01, le=100)

    _divides = field_validator("temperature")(check_temperature)


class ThinkingSettings(Node):
    """Marks of the thinking of a reasoning model, which is removed from its replies before they are used or scored.

    ``opened``: the chat template ends the prompt with ``start``, so that a reply begins within thinking. A model that is
    loaded here is looked at; for an endpoint it has to be set.
    """

    start: str = identity("<think>", min_length=1)
    end: str = identity("</think>", min_length=1)
    opened: bool = identity(False)


class TemplateSettings(Node):
    """How conversations are adapted to a model's chat template.

    ``system_role`` and ``tool_role``: messages of this role are passed to the template as they are (``native``) or as
    user messages (``user``). ``default_system`` is the system prompt of conversations that have none (null: none is
    added). ``date_string`` is the date in the template, also where it asks for the current one (null: the template's
    own; a template that asks for the current date is refused). ``thinking`` are the marks of the model's thinking (null:
    the model does not think, and replies are used as they are). ``double_bos``: prompts begin with two
    beginning-of-text tokens where the template writes one, as those of the published studies did; sequences that are
    trained on keep one. ``image_tokens``: tokens that an image is in a prompt (0: the model reads no images).
    """

    system_role: Literal["native", "user"] = identity("native")
    tool_role: Literal["native", "user"] = identity("user")
    default_system: str | None = identity(None)
    date_string: str | None = identity(None)
    thinking: ThinkingSettings | None = identity(ThinkingSettings(), unhashed=None)
    double_bos: bool = identity(False, unhashed=False)
    # Part of the keys of rows whose prompts have images.
    image_tokens: int = runtime(0, ge=0)


class SizeSettings(Node):
    """Dimensions of a model, for estimates that are made without loading it."""

    parameters: int = runtime(ge=1)
    layers: int = runtime(ge=1)
    kv_heads: int = runtime(ge=1)
    head_size: int = runtime(ge=1)


class EndpointSettings(Node):
    """An OpenAI-compatible chat endpoint that generates the replies of a model whose weights are not loaded here.

    ``key_env`` is the name of the environment variable with the API key; no configuration contains the key itself.
    ``concurrency`` bounds the requests in flight. ``prefill``: the server can continue a reply whose beginning it is
    given (vLLM: ``continue_final_message``).

    ``adapters`` is for a server that has loaded adapters which are trained here: the pattern of its names for them, with
    the fields ``{persona}``, ``{stage}``, ``{seed}`` and ``{key}`` (8 digits of the adapter's key). The model's ``path`` is
    then that of the weights which the adapters belong to, and ``served`` the server's name of them (null: ``path``).
    """

    url: str = runtime(pattern=r"^https?://\S+$")
    key_env: str | None = runtime(None)
    concurrency: int = runtime(32, ge=1)
    timeout_s: float = runtime(120.0, gt=0)
    retries: int = runtime(5, ge=0)
    prefill: bool = runtime(False)
    adapters: str | None = runtime(None, min_length=1)
    served: str | None = runtime(None, min_length=1)

    @field_validator("adapters")
    @classmethod
    def _fields_are_known(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            try:
                fill_adapter_name(pattern, "persona", "stage", 0, "0" * 8)
            except (LookupError, ValueError, AttributeError):
                known = ", ".join(f"{{{name}}}" for name in ADAPTER_FIELDS)
                raise ValueError(f"found {pattern!r}; allowed: a name with the fields {known}") from None
        return pattern


ADAPTER_FIELDS = ("persona", "stage", "seed", "key")


def fill_adapter_name(pattern: str, persona: str, stage: str, seed: int, key: str) -> str:
    """A server's name of an adapter: ``pattern`` with its fields filled in.

    Raises:
        LookupError, ValueError, AttributeError: it has other fields, or is no pattern.
    """
    return pattern.format(**dict(zip(ADAPTER_FIELDS, (persona, stage, seed, key), strict=True)))


class PackageSettings(Node):
    """A model inside a Python package, for machines that cannot reach the hub. It is used where the package ``name`` is
    installed and the hub's cache does not hold the model, which is then known by the content of ``file``: a GGUF file, or a
    zip archive of a model folder.
    """

    name: str = runtime(pattern=r"^[A-Za-z0-9][\w.-]*$")
    file: str = runtime(pattern=r"^[\w-]+(\.[\w-]+)*(/[\w-]+(\.[\w-]+)*)*\.(gguf|zip)$")


class ModelSettings(Named):
    """A base chat model.

    ``path`` is a model folder, a GGUF file or a hub id. ``context`` bounds the tokens of prompt and reply together,
    ``max_reply_tokens`` those of a reply. ``aliases`` are other hub ids of the same weights. ``slug`` is the model's name
    in released files. ``adapters`` says for each stage whether its weights are trained here, released or at another
    location.

    ``slug``, ``assistant_name``, ``adapters`` and ``released`` are run-time fields, because texts of the base model
    do not depend on them. They are part of a key only after they are filled in: in the source of an adapter, or in
    the rows that contain the assistant's name.
    """

    path: str = identity(min_length=1)
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
    package: PackageSettings | None = runtime(None)
    endpoint: EndpointSettings | None = runtime(None)

    @property
    def is_only_served(self) -> bool:
        """Whether its weights are on a server alone, so that nothing is trained here and ``path`` is the server's name."""
        return self.endpoint is not None and self.endpoint.adapters is None


class Assertion(Node):
    """One statement of a constitution, with its seed questions."""

    assertion: str = identity(min_length=1)
    questions: tuple[str, ...] = identity(min_length=1)


class Exchange(Node):
    """An example of the character: a question of a user's, and the reply in role."""

    question: str = identity(min_length=1)
    reply: str = identity(min_length=1)


class PersonaSettings(Named):
    """A persona. ``order`` is its position in tables. ``opposite`` is a system text that asks for the contrary character.
    ``examples`` are exchanges that show the character (few-shot prompting).

    ``description`` and ``opposite`` are part of the keys of those cells whose format puts them into a prompt
    (``Format.persona_texts``), ``examples`` of those that are shown some (``recipe.teacher.examples``,
    ``stage.examples``); they are part of no other.
    """

    order: int = runtime(1000, ge=0)
    display_name: str = runtime(min_length=1)
    description: str = runtime(min_length=1)
    opposite: str | None = runtime(None, min_length=1)
    examples: tuple[Exchange, ...] = runtime(())
    constitution: tuple[Assertion, ...] = identity(min_length=1)


Section = Literal[
    "distillation",
    "introspection",
    "documents",
    "declarations",
    "rationale",
    "mixed",
    "mixed_pairs",
    "context",
    "rl",
]
"""The sections of a recipe: the hyper-parameters of training stages."""


class TrainingSettings(Node):
    """How the weights of a stage are trained.

    ``parent`` is ``base``, or the stage whose adapter stays frozen while a second adapter is trained; with
    ``continues``, a copy of that adapter itself is trained further. ``method`` and ``data`` name files of
    ``offscript/training/methods`` and ``offscript/training/data``. ``recipe`` names the section of the recipe with the
    hyper-parameters; ``hyper_parameters`` overrides single values, at any depth.
    """

    parent: str = identity("base")
    continues: bool = identity(False, unhashed=False)
    method: str = identity()
    data: str = identity()
    recipe: Section | None = identity(None)
    hyper_parameters: dict[str, Any] = identity({})


class SteeringSettings(Node):
    """How the persona vector of a stage is made, and how strongly it is added to the residual stream.

    The vector of a layer is the mean activation over the tokens of replies under the constitution, minus that of replies
    without it, on chat prompts of the train split. A share ``validation`` of their families is held out, and the layer
    and the strength are chosen on it. ``strengths`` are factors of the vector. Chosen is the largest one up to which the
    perplexity of the steered replies, under the untrained model without a system prompt, is at most ``max_perplexity``
    times that of the model's own replies.
    """

    validation: float = identity(0.25, gt=0, lt=1)
    strengths: tuple[Annotated[float, Field(gt=0, le=MOST_SCALE)], ...] = identity(
        (0.5, 1.0, 1.5, 2.0, 3.0), min_length=1
    )
    max_perplexity: float = identity(2.0, gt=1)

    @field_validator("strengths")
    @classmethod
    def _ascend(cls, strengths: tuple[float, ...]) -> tuple[float, ...]:
        if list(strengths) != sorted(set(strengths)):
            raise ValueError(f"found {list(strengths)}; allowed: each strength once, in ascending order")
        return strengths


class StageSettings(Named):
    """A variant of the model that is measured: its weights and its system prompt.

    ``weights`` is ``base`` or the name of a stage with ``training``: the weights that generate the replies.
    ``system`` is the kind of system prompt: plain, or the constitution. Every episode is shown ``examples`` of the
    persona's exchanges. ``steering`` adds a persona vector to the activations of base weights. ``order`` is the position
    in tables. ``compared_with`` names the stages that the report compares it with, where both are in the grid.
    """

    order: int = runtime(1000, ge=0)
    compared_with: tuple[str, ...] = runtime(())
    weights: str = identity()
    system: Literal["plain", "constitution"] = identity()
    examples: int = identity(0, ge=0, unhashed=0)
    training: TrainingSettings | None = identity(None)
    steering: SteeringSettings | None = identity(None, unhashed=None)

    @model_validator(mode="after")
    def _weights_are_trained(self) -> "StageSettings":
        if self.name == "base" and (self.weights != "base" or self.training is not None):
            raise ValueError("base is the untrained model; allowed: weights=base without training")
        if self.name == "base" and self.examples:
            raise ValueError(f"base has examples={self.examples}; allowed: 0, or a stage of another name")
        if self.weights == self.name and self.training is None and self.name != "base":
            raise ValueError(
                f"{self.name} has no training; allowed: a training node, or the weights of another stage"
            )
        if self.training is not None and self.weights != self.name:
            raise ValueError(
                f"{self.name} has training, but weights={self.weights}; allowed: weights={self.name}"
            )
        return self

    @model_validator(mode="after")
    def _steers_plain_base_weights(self) -> "StageSettings":
        if self.steering is not None and (self.weights != "base" or self.system != "plain"):
            raise ValueError(
                f"{self.name} has steering, but weights={self.weights} and system={self.system}; "
                "allowed: weights=base, system=plain"
            )
        if self.steering is not None and self.name == "base":
            raise ValueError("base has steering; allowed: a stage of another name")
        return self

    @property
    def of_persona(self) -> bool:
        """Whether its replies belong to a persona. Base weights with a plain system prompt have none, unless steered or
        shown examples."""
        in_prompt = self.system != "plain" or self.examples > 0
        return self.weights != "base" or in_prompt or self.steering is not None


class FormatSettings(Named):
    """A format of episodes.

    ``max_tokens`` bounds the tokens of one reply. ``count`` is the number of scenarios in each split, ``samples`` the
    number of episodes for each scenario (by default 1). ``options`` are the format's own.
    """

    max_tokens: int = identity(ge=1)
    count: dict[Literal["train", "classifier", "eval"], NonNegativeInt] = identity({})
    samples: dict[Literal["train", "classifier", "eval"], PositiveInt] = identity({})
    options: dict[str, Any] = identity({})


class DataSettings(Named):
    """Collections of scenarios, and how their families are divided into splits.

    ``sources`` lists local files, globs or hub files for each source. ``fractions`` are the shares of chat families in
    each split; a hash of ``salt`` and the family decides. ``first`` assigns the first n chat scenarios of the files to a
    split independently of the hash. This keeps prompts that an imported adapter or classifier was trained on out of
    the scores. ``families`` names the families of all other sources that are in split train or classifier; those that it
    does not name are in eval.
    """

    sources: dict[
        Literal[
            "chat",
            "office",
            "agentic_tools",
            "code_review",
            "structured_form",
            "multi_agent_debate",
            "adversarial_roleplay",
            "chat_image",
            "reflection",
            "interaction",
        ],
        tuple[str | HubFileSettings, ...],
    ] = identity()
    fractions: dict[Literal["train", "classifier", "eval"], NonNegativeFloat] = identity()
    first: dict[Literal["train", "classifier", "eval"], NonNegativeInt] = identity({})
    families: dict[Literal["train", "classifier"], tuple[str, ...]] = identity({}, unhashed={})
    salt: str = identity("offscript")

    @field_validator("families")
    @classmethod
    def _one_split_each(cls, families: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        named = [name for names in families.values() for name in names]
        if repeated := [name for name in named if named.count(name) > 1]:
            raise ValueError(f"{repeated[0]!r} is named twice; allowed: each family once, in one split")
        return families

    @field_validator("fractions")
    @classmethod
    def _sum_to_one(cls, fractions: dict[str, float]) -> dict[str, float]:
        if abs(sum(fractions.values()) - 1) > 1e-6:
            raise ValueError(
                f"fractions of the splits add up to {sum(fractions.values()):g}; allowed: exactly 1"
            )
        return fractions


# ---------------------------------------------------------------- how a character is trained


class LoraSettings(Node):
    """A LoRA adapter. Its update is scaled by ``alpha`` / ``rank``; ``targets`` are names of linear modules.

    ``exceptions`` (model -> targets) replace ``targets`` for single models.
    """

    rank: int = identity(ge=1)
    alpha: int = identity(ge=1)
    dropout: float = identity(0.0, ge=0, lt=1)
    targets: tuple[str, ...] = identity(min_length=1)
    exceptions: dict[str, Annotated[tuple[str, ...], Field(min_length=1)]] = identity({}, unhashed={})

    def of(self, model: str) -> "LoraSettings":
        """The adapter of ``model``, without exceptions."""
        targets = self.exceptions.get(model, self.targets)
        return self.model_copy(update={"targets": targets, "exceptions": {}})


Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerSettings(Node):
    """AdamW with linear warm-up, then a linear, cosine or constant schedule.

    ``final_rate`` is the learning rate at the end of a cosine schedule, as a fraction of ``learning_rate`` (null: 0).

    ``batch_size`` is the number of rows per optimizer step, over all processes. ``micro_batch_size`` bounds the tokens of
    one forward pass of a process: as many as that many rows of ``max_length`` have. ``warmup`` is a fraction of all
    steps. ``max_length`` bounds the tokens of a row. ``checkpoint_steps`` is the number of steps between checkpoints.
    """

    learning_rate: float = identity(gt=0)
    epochs: float = identity(1.0, gt=0, le=10_000)
    batch_size: int = identity(ge=1)
    warmup: float = identity(0.1, ge=0, lt=1)
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = identity("cosine")
    final_rate: float | None = identity(None, ge=0, lt=1, unhashed=None)
    betas: tuple[Beta, Beta] = identity((0.9, 0.98))
    max_grad_norm: float = identity(1.0, gt=0)
    max_length: int = identity(1024, ge=16)
    micro_batch_size: int = runtime(8, ge=1)
    checkpoint_steps: int = runtime(10, ge=1)
    gradient_checkpointing: bool = runtime(False)

    @model_validator(mode="after")
    def _only_cosine_ends_above_zero(self) -> "OptimizerSettings":
        if self.final_rate is not None and self.schedule != "cosine":
            raise ValueError(f"final_rate with schedule {self.schedule}; allowed: schedule=cosine")
        return self


class TeacherSettings(Node):
    """The model that replies in role. ``model`` names an option of the model group (null: the model that is trained).

    Every reply of the teacher begins with ``thinking`` (a prefill); its text up to ``thinking_end`` is removed. With
    ``thinking_lists_traits`` the assertions of the constitution follow the prefill, if there is one.
    ``own_names`` are names that the teacher uses for itself. In the training rows they are replaced by the trained
    model's ``assistant_name``. For every reply the teacher is shown ``examples`` of the persona's exchanges. It gives
    ``best_of`` replies where one is trained on: the one that is most in character, as a classifier sees it that was
    fitted on replies of all personas of the grid to other prompts.
    """

    model: str | None = identity(None)
    thinking: str = identity("")
    thinking_lists_traits: bool = identity(False)
    thinking_end: str = identity("</think>")
    own_names: tuple[str, ...] = identity(())
    examples: int = identity(0, ge=0, unhashed=0)
    best_of: int = identity(1, ge=1, le=1000, unhashed=1)


class PromptSettings(Node):
    """How ``model`` (null: the teacher) writes more prompts for each assertion of a constitution.

    ``per_trait`` is the number of prompts per assertion, seed questions included (0: no prompts are written). A request
    asks for ``per_ask`` prompts and shows ``examples`` of the prompts so far; there are at most ``attempts`` requests
    per assertion. A prompt is accepted if it has at most ``words`` words, and if the Jaccard similarity of its words
    to those of each accepted prompt is at most ``similarity``.

    ``lengths``: how many of the prompts of a request are to be short, medium and long (null: the request says nothing about
    lengths). ``overlap`` takes the place of ``similarity``: a prompt is refused if more than this share of its words is
    in one accepted prompt.
    """

    model: str | None = identity(None)
    per_trait: int = identity(0, ge=0)
    per_ask: int = identity(10, ge=1)
    examples: int = identity(5, ge=1)
    words: int = identity(60, ge=3)
    similarity: float = identity(0.7, gt=0, le=1)
    attempts: int = identity(20, ge=1)
    lengths: tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt] | None = identity(None, unhashed=None)
    overlap: float | None = identity(None, gt=0, le=1, unhashed=None)

    @model_validator(mode="after")
    def _lengths_add_up(self) -> "PromptSettings":
        if self.lengths is not None and sum(self.lengths) != self.per_ask:
            raise ValueError(
                f"lengths {list(self.lengths)} with per_ask {self.per_ask}; allowed: three numbers that add up to per_ask"
            )
        return self


class TrainerSettings(Node):
    """Settings of all training methods. ``validation`` is the share of families that is held out for validation."""

    validation: float = identity(0.1, ge=0, lt=0.5)
    lora: LoraSettings = identity()
    optimizer: OptimizerSettings = identity()


class MergeSettings(Node):
    """How the adapter of a stage is merged with that of its parent stage: ``parent`` and ``own`` are their weights.

    ``method``:

    - ``exact``: both are concatenated along the rank (PEFT's ``cat``), so the update is the weighted sum of theirs
    - ``published``: their matrices A and B are added separately (PEFT's ``linear``), which adds cross terms
    - ``fold``: both updates are added to the base weights and rounded to their type, as in the published evaluation
    """

    method: Literal["exact", "published", "fold"] = identity("exact")
    parent: float = identity(1.0, hashed_as="distillation")
    own: float = identity(1.0, hashed_as="introspection")


class RecipeSettings(Named):
    """How a character is trained.

    ``in_role`` is the system prompt of the teacher and of introspection: the constitution alone (``plain``), with the
    assistant's name (``named``), or the persona's ``description`` in its place (``short``). ``prompted`` is the same for
    scored stages whose system prompt is the constitution.
    ``sampling`` is how rows that are only trained on are sampled (null: as scored rows, by ``model.sampling``).
    ``merge_own_in`` (split or format -> weight) replaces ``merge.own`` in the scored rows of that split or format.
    ``distillation``, ``introspection``, ``documents``, ``declarations``, ``rationale``, ``mixed``, ``mixed_pairs``,
    ``context`` and ``rl`` are sections of hyper-parameters that training stages refer to. They are checked against the schemas of the
    stage's method and data.
    """

    in_role: Literal["plain", "named", "short"] = identity("plain")
    prompted: Literal["plain", "named", "short"] = identity("plain", unhashed="plain")
    sampling: SamplingSettings | None = identity(None, unhashed=None)
    prompts: PromptSettings = identity(PromptSettings())
    teacher: TeacherSettings = identity(TeacherSettings())
    distillation: dict[str, Any] = identity()
    introspection: dict[str, Any] = identity()
    documents: dict[str, Any] = identity({}, unhashed={})
    declarations: dict[str, Any] = identity({}, unhashed={})
    rationale: dict[str, Any] = identity({}, unhashed={})
    mixed: dict[str, Any] = identity({}, unhashed={})
    mixed_pairs: dict[str, Any] = identity({}, unhashed={})
    context: dict[str, Any] = identity({}, unhashed={})
    rl: dict[str, Any] = identity({}, unhashed={})
    merge: MergeSettings = identity()
    merge_own_in: dict[str, float] = identity({}, unhashed={})

    def section(self, name: Section | None) -> dict[str, Any]:
        """The hyper-parameters of the section ``name``; none without a name."""
        if name is None:
            return {}
        return {
            "distillation": self.distillation,
            "introspection": self.introspection,
            "documents": self.documents,
            "declarations": self.declarations,
            "rationale": self.rationale,
            "mixed": self.mixed,
            "mixed_pairs": self.mixed_pairs,
            "context": self.context,
            "rl": self.rl,
        }[name]


# ---------------------------------------------------------------- how it is measured


class TfidfSettings(Node):
    """A classifier of n-grams with logistic regression, in place of a network.

    ``words`` and ``characters`` are the lengths of the longest n-grams of words, and of characters within a word (0: none
    of that kind); ``min_texts`` is the number of texts that an n-gram has to be in. ``c`` are inverse strengths of the L2
    penalty (C of scikit-learn); the best on the held-out families is kept.
    """

    words: int = identity(2, ge=0, le=5)
    characters: int = identity(4, ge=0, le=8)
    min_texts: int = identity(2, ge=1)
    c: tuple[Annotated[float, Field(gt=0)], ...] = identity((1.0, 10.0, 100.0), min_length=1)

    @model_validator(mode="after")
    def _has_features(self) -> "TfidfSettings":
        if not self.words and not self.characters:
            raise ValueError("words 0 and characters 0; allowed: one of them at least 1")
        return self

    @field_validator("c")
    @classmethod
    def _ascends(cls, c: tuple[float, ...]) -> tuple[float, ...]:
        if list(c) != sorted(set(c)):
            raise ValueError(f"found {list(c)}; allowed: each value once, in ascending order")
        return c


class ClassifierSettings(Named):
    """A classifier with one label per persona: a ModernBERT, or with ``tfidf`` one of n-grams.

    ``path`` is the checkpoint that fitting starts from (null: random weights), ``package`` a Python package that holds it
    too. ``fitted`` is a classifier that others fitted, which is used without fitting. ``hidden_size``, ``layers``,
    ``heads`` and ``dropout`` apply only to random weights; a checkpoint has its own.

    ``stages`` are the stages whose chat rows it is fitted on; ``training_seeds`` says with which training seeds of the
    grid: ``all``, or only the ``first``. ``max_length`` is in tokens. Longer texts are cut, and those of more than
    ``row_tokens`` are left out of the fit (null: none is). ``warmup`` is a fraction of all steps, ``schedule`` that of
    the learning rate after it. ``batch_size`` is the number of rows per optimizer step, ``micro_batch_size`` bounds those
    of one forward pass (null: a whole batch). With ``class_weights`` all labels have equal total weight. ``fits`` networks
    are fitted, with the seeds ``seed``, ``seed + 1`` and so on; their probabilities are averaged. With ``group_by_length`` the
    rows of a batch are of similar length, so that little is padded.

    In prediction the texts of a batch times the tokens of the longest are at most ``predict_batch_tokens``, or the batch is
    one text (null: 1024 on a CPU, 16384 on a GPU).

    ``validation`` is the share of families that is held out (0: none, and the last epoch is kept). Fitting stops after
    ``patience`` epochs without a better macro-F1 on the held-out families (null: never early). ``precision`` is that of
    the weights during fitting.

    With ``tfidf`` only ``stages``, ``training_seeds``, ``class_weights`` and ``validation`` are read beside it, and only
    these are part of the key (``fit_identity``).
    """

    path: str | None = identity(None)
    revision: str | None = identity(None)
    package: PackageSettings | None = runtime(None)
    fitted: SourceSettings | None = identity(None)
    tfidf: TfidfSettings | None = identity(None, unhashed=None)
    stages: tuple[str, ...] = identity(("full", "prompted"), min_length=1)
    training_seeds: Literal["all", "first"] = identity("all", unhashed="all")
    hidden_size: int = identity(128, ge=8)
    layers: int = identity(2, ge=1)
    heads: int = identity(4, ge=1)
    dropout: float = identity(0.1, ge=0, lt=1)
    pooling: Literal["mean", "cls"] = identity("mean")
    max_length: int = identity(128, ge=8)
    row_tokens: int | None = identity(None, ge=1, unhashed=None)
    learning_rate: float = identity(8e-5, gt=0)
    epochs: int = identity(1, ge=1, le=10_000)
    batch_size: int = identity(32, ge=1)
    micro_batch_size: int | None = runtime(None, ge=1)
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = identity("linear", unhashed="linear")
    warmup: float = identity(0.1, ge=0, lt=1)
    weight_decay: float = identity(0.01, ge=0)
    class_weights: bool = identity(True, unhashed=True)
    validation: float = identity(0.2, ge=0, lt=0.5)
    patience: int | None = identity(None, ge=1)
    precision: Literal["float32", "bfloat16"] = identity("float32")
    seed: int = identity(0, ge=0, lt=SEEDS)
    fits: int = identity(1, ge=1, le=100, unhashed=1)
    group_by_length: bool = identity(False, unhashed=False)
    predict_batch_tokens: int | None = runtime(None, ge=1)

    @property
    def is_new_network(self) -> bool:
        """Whether it is a network with random weights and the tokenizer of the chat model."""
        return self.path is None and self.fitted is None and self.tfidf is None

    def fit_identity(self) -> dict[str, Json]:
        """The settings that the fit reads, as plain data for a key."""
        plain = identity_of(self)
        if self.tfidf is None:
            return plain
        read = ("name", "stages", "training_seeds", "class_weights", "validation", "tfidf")
        return {name: plain[name] for name in read if name in plain}

    @model_validator(mode="after")
    def _tfidf_is_fitted_here(self) -> "ClassifierSettings":
        if self.tfidf is None:
            return self
        if self.path is not None or self.fitted is not None:
            name = "path" if self.path is not None else "fitted"
            raise ValueError(f"{name} with tfidf; allowed: {name}=null, or tfidf=null")
        if not self.validation and len(self.tfidf.c) > 1:
            raise ValueError(
                f"{len(self.tfidf.c)} values of tfidf.c with validation 0; allowed: one value, or families held out"
            )
        return self

    @model_validator(mode="after")
    def _heads_fit(self) -> "ClassifierSettings":
        if self.is_new_network and self.hidden_size % (2 * self.heads):
            raise ValueError(
                f"hidden_size {self.hidden_size} for {self.heads} heads; "
                f"allowed: multiples of {2 * self.heads} (an even width per head)"
            )
        return self

    @model_validator(mode="after")
    def _micro_batches_make_a_batch(self) -> "ClassifierSettings":
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"micro_batch_size {self.micro_batch_size} for batch_size {self.batch_size}; allowed: a divisor of it"
            )
        return self

    @model_validator(mode="after")
    def _stops_early_on_held_out_rows(self) -> "ClassifierSettings":
        if self.patience is not None and not self.validation:
            raise ValueError(f"patience {self.patience} with validation 0; allowed: patience=null")
        return self


class JudgeSettings(Node):
    """A chat model that reads texts of the grid and says which persona they show.

    ``model`` names an option of the model group. ``texts`` bounds the texts of each model, stage and format (and variant,
    training seed and scale); a hash of ``seed`` chooses them. Each is rated ``samples`` times at ``temperature``; the choice
    of a persona from a list is decoded greedily.
    """

    model: str = identity(min_length=1)
    texts: int = identity(30, ge=1)
    samples: int = identity(3, ge=1)
    temperature: float = identity(0.7, ge=0, le=100)
    seed: int = identity(0, ge=0, lt=SEEDS)

    _divides = field_validator("temperature")(check_temperature)


class EvaluationSettings(Node):
    """How rows are scored.

    ``email_cleaning`` is the rule by which an e-mail that was written in chat is reduced to its body before the
    classifier sees it (``none``: it is scored as it was written). ``oracle``: whether a classifier of each format is fitted
    on its ``prompted`` texts, to see what is left of the persona there. ``baseline``: whether a classifier of n-grams is
    fitted on the rows of a network that is fitted here, and scored beside it. ``multiverse``: whether the headline is
    computed under every combination of choices. ``judge`` is a chat model that reads a part of the texts beside the
    classifier (null: none). ``projections``: whether the activations of every cell over its texts are projected on the
    persona vectors. The others are of the bootstrap confidence intervals: number of resamples, confidence level, random
    seed, and the unit that is resampled. ``resample=rows`` gives plain percentile intervals, as published.
    """

    email_cleaning: Literal["ours", "published", "none"] = identity("ours", unhashed="ours")
    resamples: int = identity(10_000, ge=100, le=100_000)
    confidence: float = identity(0.95, gt=0.5, lt=1)
    seed: int = identity(0, ge=0, lt=SEEDS)
    resample: Literal["family", "scenario", "rows"] = identity("family")
    oracle: bool = identity(True, unhashed=True)
    multiverse: bool = identity(True, unhashed=True)
    # Predictions have the key of the baseline, and the evaluation those of its predictions.
    baseline: bool = identity(True, unhashed=True)
    judge: JudgeSettings | None = identity(None, unhashed=None)
    projections: bool = identity(False, unhashed=False)


# ---------------------------------------------------------------- how it is run


class EngineSettings(Named):
    """The engine that generates replies.

    At most ``batch_size`` replies are decoded together, and at most as many as have ``batch_tokens`` tokens of prompts and
    replies, if all were as long as the longest may become (auto: what fits the memory that is free). At most ``max_live``
    episodes are started and not finished. ``merge_from``: prompts of an adapter are read with merged weights if at least so
    many are read at a time; those of adapters with fewer are read together, unmerged. ``device`` is ``auto`` (a GPU if
    there is one), or a device of torch.

    Of vLLM only: ``python`` is the interpreter of its environment, relative to the working folder or the repository;
    ``tensor_parallel`` the number of GPUs among which the weights are divided; ``memory_share`` the share of each GPU's
    memory that it takes. Its process has to be ready after ``start_s`` seconds, and is started again if it sends nothing for
    ``silence_s`` seconds.
    """

    name: str = runtime()
    batch_size: int = runtime(128, ge=1)
    batch_tokens: Literal["auto"] | Annotated[int, Field(ge=1)] = runtime("auto")
    max_live: int = runtime(512, ge=1)
    merge_from: int = runtime(3, ge=1)
    device: str = runtime("auto")
    python: str = runtime(".venv-vllm/bin/python", min_length=1)
    tensor_parallel: int = runtime(1, ge=1)
    memory_share: float = runtime(0.9, gt=0, le=1)
    start_s: float = runtime(1800.0, gt=0)
    silence_s: float = runtime(600.0, gt=0)


class DeepSpeedSettings(Named):
    """DeepSpeed in training.

    ``stage`` is the ZeRO stage (0: no DeepSpeed; auto: 2 if there is a GPU, else 0). ``offload`` keeps the optimizer
    states, and at stage 3 also the parameters, in CPU memory.
    """

    stage: Literal["auto", 0, 2, 3] = runtime("auto")
    offload: bool = runtime(False)


class TrackingSettings(Named):
    """Tracking with Weights & Biases. ``entity`` is the account or team (null: the default of the API key). The patterns
    are W&B's own rules."""

    name: Literal["offline", "online", "off"] = runtime()
    project: str = runtime("offscript", pattern=r"^[^/\\#?%:]+$", max_length=128)
    entity: str | None = runtime(None, pattern=r"^[^/\\#?%:\s]+$")


class ResourceSettings(Node):
    """Resources of one job.

    ``gpus`` and ``memory_gb`` are per node, ``cpus`` per process; ``minutes`` is the time limit. A node runs one
    process per GPU, or ``tasks`` processes if it has no ``gpus``. In training these processes are ranks, in rollouts
    shards.
    """

    nodes: int = runtime(1, ge=1)
    tasks: int = runtime(1, ge=1)
    gpus: int = runtime(0, ge=0)
    cpus: int = runtime(1, ge=1)
    memory_gb: float = runtime(4.0, gt=0)
    minutes: int = runtime(60, ge=1)


class ClusterSettings(Named):
    """Where the jobs of a grid run: in this process (inline), in local processes, or on SLURM.

    ``shards`` is the number of jobs among which the rollouts of a model are divided. ``trainings`` is the number of adapters
    that one job trains, one after another on one loaded base; a stage that is trained on another one has jobs of its own,
    unless ``stages_together``: then ``trainings`` counts personas, and a job trains all of their stages and makes the
    rollouts between two stages too.
    ``at_once`` bounds the jobs that run at a time (local processes, or tasks of one array; null: no bound). ``retries``
    is how often failed or missing artifacts are submitted again. ``signal_s`` is the number of seconds between the warning signal and the time
    limit. ``setup`` are shell lines that run before Python; ``extra`` are further sbatch options. ``snapshot``: the
    jobs run a copy of the code. ``jobs`` are the resources by kind of job; other kinds have those of ``default``.
    ``gpu`` is the GPU type that a dry run assumes in its estimates.
    """

    gpu: str = runtime("H100")
    kind: Literal["inline", "local", "slurm"] = runtime()
    shards: int = runtime(1, ge=1)
    trainings: int = runtime(1, ge=1)
    stages_together: bool = runtime(False)
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
        Literal[
            "rollout",
            "vector",
            "selection",
            "adapter",
            "classifier",
            "predictions",
            "projections",
            "evaluation",
        ],
        ResourceSettings | None,
    ] = runtime({})

    def resources(self, kind: str) -> ResourceSettings:
        """Of a job. Persona vectors and projections load the model, so unless they are named their jobs have those of a
        rollout."""
        rollout = self.jobs.get("rollout") if kind in ("vector", "projections") else None
        return self.jobs.get(kind) or rollout or self.default  # type: ignore[call-overload]


class GridSettings(Node):
    """The cells of an experiment: every combination of these values.

    ``scale`` scales the LoRA update of the adapters. A persona in ``if_available`` is added to the grid if its
    weights are available for every model: they are trained here, or already on this machine. ``split`` is that of the
    scored scenarios: ``classifier`` has other families of tasks than ``eval``, to choose settings on.
    """

    model: tuple[str, ...] = runtime(("pocket",), min_length=1)
    persona: tuple[str, ...] = runtime(min_length=1)
    stage: tuple[str, ...] = runtime(("base", "distillation", "full", "prompted"), min_length=1)
    format: tuple[str, ...] = runtime(("chat", "chat_email", "agentic_email"), min_length=1)
    seed: tuple[Annotated[int, Field(ge=0, lt=SEEDS)], ...] = runtime((0,), min_length=1)
    scale: tuple[Annotated[float, Field(ge=0, le=MOST_SCALE)], ...] = runtime((1.0,), min_length=1)
    split: Literal["classifier", "eval"] = runtime("eval")
    if_available: tuple[str, ...] = runtime(())

    @field_validator("*")
    @classmethod
    def _no_twins(cls, values: tuple[T, ...] | str) -> tuple[T, ...] | str:
        if not isinstance(values, str) and len(set(values)) != len(values):
            raise ValueError(f"{list(values)} names something twice; allowed: each name once")
        return values


class Settings(Node):
    """One resolved configuration. If ``persona`` is null, all personas of the grid are meant.

    ``published`` is the folder with the files of the published study, which takes the place of ``{published}`` in the
    sources of data and of constitutions.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False, populate_by_name=True
    )

    name: str = runtime()
    root: str = runtime("runs", min_length=1)
    published: str | None = runtime(None)
    model: ModelSettings = identity()
    persona: PersonaSettings | None = identity(None)
    stage: StageSettings = identity()
    format: FormatSettings = identity()
    split: Literal["train", "classifier", "eval"] = identity("eval")
    seed: int = identity(0, ge=0, lt=SEEDS)
    scale: float = identity(1.0, ge=0, le=MOST_SCALE)
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
    predictions: str | None = runtime(None, min_length=1)
    planned: int | None = runtime(None, ge=1)
    beside: str | None = runtime(None, min_length=1)
    labels: int | str | list[str] | None = runtime(None)
    compare: list[Annotated[str, Field(min_length=1)]] | None = runtime(None, min_length=2, max_length=2)
    export_as: list[Literal["parquet", "latex", "markdown", "inspect"]] = runtime(
        ["parquet", "latex", "markdown"], min_length=1
    )

    _named = field_validator("name")(check_name)
    _labelled = field_validator("labels", mode="before")(check_labels)


GROUPS: dict[str, type[Named]] = {
    "model": ModelSettings,
    "persona": PersonaSettings,
    "stage": StageSettings,
    "format": FormatSettings,
}
"""The config groups whose options a grid combines."""


# ---------------------------------------------------------------- helpers


def identity_fields(schema: type[BaseModel]) -> list[str]:
    """Names of the identity fields of ``schema``."""
    marks = ((name, field.json_schema_extra) for name, field in schema.model_fields.items())
    return [name for name, mark in marks if isinstance(mark, dict) and mark[_MARK] == "identity"]


def identity_of(node: BaseModel) -> dict[str, Json]:
    """The identity fields of ``node`` as plain JSON data, including those of nested nodes."""
    plain = {}
    for name in identity_fields(type(node)):
        mark = cast(dict[str, JsonValue], type(node).model_fields[name].json_schema_extra)
        value = getattr(node, name)
        if "unhashed" not in mark or value != mark["unhashed"]:
            plain[str(mark.get("hashed_as", name))] = _plain(value)
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

    def location(parts: Sequence[int | str]) -> str:
        key = ".".join(str(part) for part in parts)
        return where(key) if callable(where) else f"{where}.{key}".strip(".")

    for parts, found, allowed in _unusable(plain, ()):
        raise UserError(location(parts), found, allowed)
    try:
        return schema.model_validate(plain)
    except ValidationError as error:
        problems = error.errors()
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    raise UserError(location(problem["loc"]), *_explain(schema, problem))


def _unusable(
    value: object, parts: tuple[int | str, ...]
) -> Iterator[tuple[tuple[int | str, ...], str, str]]:
    """Values at any depth that no field takes, also where the schema leaves the type open: location, what was found, what
    is allowed."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _unusable(inner, (*parts, name))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _unusable(inner, (*parts, number))
    elif isinstance(value, float) and not math.isfinite(value):
        yield parts, f"found {shown(value)}", "input should be a finite number"
    elif isinstance(value, int) and abs(value) >= INTEGERS:
        yield parts, f"found {shown(value)}", "input should be less than 2**63"
    elif isinstance(value, str) and "\0" in value:
        yield parts, f"found {shown(value)}", "a text cannot contain a null character"


_EXPECTED = {
    "string_type": "input should be a valid string (in quotes, if YAML reads it as something else)",
    "dict_type": "input should be a mapping",
    "tuple_type": "input should be a list",
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
    if isinstance(value, int) and abs(value) >= 10**100:
        # Python writes no integer of more than 4300 digits.
        return "a number of more than 100 digits"
    text = json.dumps(value) if isinstance(value, bool | int | float | None) else repr(value)
    return text if len(text) <= 100 else text[:97] + "..."


def _siblings(schema: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    node: Any = schema
    classes: list[Any] = []
    for part in location[:-1]:
        if isinstance(part, int) or not hasattr(node, "model_fields"):
            continue
        if part in node.model_fields:
            annotation = node.model_fields[part].annotation
            classes = [a for a in _unpack(annotation) if hasattr(a, "model_fields")]
            node = next(iter(classes), node)
        else:
            # Of several classes that a field may have, the one with this tag.
            node = next((a for a in classes if _has_tag(a, part)), node)
    return sorted(node.model_fields)


def _has_tag(schema: type[BaseModel], tag: str) -> bool:
    return any(tag in getattr(field.annotation, "__args__", ()) for field in schema.model_fields.values())


def _unpack(annotation: Any) -> list[Any]:
    inner = getattr(annotation, "__args__", ())
    return [annotation, *(a for part in inner for a in _unpack(part))]
