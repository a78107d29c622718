"""Estimates of rows, tokens, GPU memory and GPU hours of each job, before anything runs.

Use them to choose a partition and a time limit, not to compare engines. Each constant below names its source; "assumed"
means that nothing was measured. Hours are for one GPU; with several GPUs they are divided as far as the job scales.

Rollouts. A decode step of ``batch`` rows takes at least

    max((weights + adapters + batch x context x kv) / bandwidth, 2 x parameters x batch / FLOPs)        [seconds]

with kv = 2 x layers x kv_heads x head_size x bytes per token, and the rate is batch / step. ``Rates`` holds the fraction
of this ceiling that an engine reaches. Prompts cost 2 x parameters FLOPs per token. The batch size is the engine's, or the
largest that fits.

Training with LoRA. Per token: forward 2 x parameters, backward 2 x (no gradients of the frozen weights), 2 x more for
activations that are recomputed (gradient checkpointing); DPO reads both sides of each pair, with 2 x for the reference's
forward pass, and distillation of a prompt 2 x once for the teacher's. Training all parameters (the classifier) costs 6 x parameters. The sum is divided by ``TRAINING_SHARE`` of
the GPU's FLOPs. Reinforcement learning generates its episodes, as in a rollout, reads each as a training row, and with a KL
divergence 2 x more for the reference; tokens in are those of both.

Persona vectors. One forward pass over the replies that they are made from, and the steered replies from which the strength
is chosen, decoded as in a rollout.

Projections. One forward pass over every text and its prompt, with the weights of its cell.

Memory of a rollout: weights, adapters, the KV cache of a batch at its longest, the activations of its prompts where an
engine reads them in one pass, workspace. Memory of training: weights; 16
bytes per LoRA parameter (weight, gradient, fp32 copy, two Adam moments); per token of a micro batch 2 x width bytes per
layer (checkpoints) and 34 x width bytes for the current layer (Korthikanti et al. 2022, without attention scores), or for
all layers without gradient checkpointing; and 8 bytes per logit.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TypeVar

from offscript.console import counted
from offscript.experiment.artifacts import (
    Adapter,
    Artifact,
    Classifier,
    Predictions,
    Projections,
    RemergedAdapter,
    Rollout,
    Selection,
    TrainedAdapter,
    Vector,
)
from offscript.json_types import Json
from offscript.settings import EngineSettings, LoraSettings, ModelSettings, OptimizerSettings
from offscript.storage.references import reference
from offscript.tasks.formats import get_format
from offscript.tasks.formats.base import Cost
from offscript.tasks.messages import images_of
from offscript.tasks.scenarios import Scenario
from offscript.training.scored_tokens import BATCH_TOKENS

N = TypeVar("N", int, float)

GIB = 2**30
NAME_WIDTH = 100
"""Characters of a job's name in the table."""


@dataclass(frozen=True)
class Gpu:
    """``bandwidth`` in bytes/s, ``flops`` dense 16-bit per second, ``memory`` in bytes."""

    name: str
    bandwidth: float
    flops: float
    memory: float


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("A100-80", 2.039e12, 312e12, 80e9),
        Gpu("H100", 3.35e12, 989e12, 80e9),
        Gpu("H200", 4.8e12, 989e12, 141e9),
    )
}
"""NVIDIA's data sheets, SXM versions, FLOPs without sparsity."""


@dataclass(frozen=True)
class Rates:
    """Performance of an engine on a GPU.

    Args:
        decode: fraction of the decode ceiling.
        adapters: further factor with several adapters in a batch.
        prefill: fraction of the GPU's FLOPs while prompts are encoded.
        prefill_adapters: further factor with an adapter.
        layer_s: lower bound of a decode step, in seconds per layer.
        prefix_cache: whether prompts are cached between turns.
        activations: memory of a batch's prompts while they are encoded, in bytes per token and unit of width.
        activations_adapters: the same with adapters.
    """

    decode: float
    adapters: float
    prefill: float
    prefill_adapters: float
    layer_s: float
    prefix_cache: bool
    activations: float
    activations_adapters: float


RATES = {
    # Published: Llama-2-7B, A100, 2,694 tokens/s, 1,788 with LoRA. The ceiling of the batch that fits there at a mean
    # context of 800 is 3,950: 0.68 and 0.66 of it. Prefill is assumed.
    "vllm": Rates(
        decode=0.68,
        adapters=0.66,
        prefill=0.5,
        prefill_adapters=1.0,
        layer_s=0.0,
        prefix_cache=True,
        activations=0.0,
        activations_adapters=0.0,
    ),
    # Measured: Llama-3.1-8B's shapes in bfloat16 on an H100, benchmarks/results/gpu.jsonl. A decode step reaches 0.06 to 0.09
    # of the ceiling and takes at least 54 ms; a batch that waits for its longest reply, 0.05. Episodes with one adapter of
    # ten, 32 at a time: 94.6 tokens/s while decoding and 11,800 while reading prompts; prompts alone 25,000 (one run each).
    "transformers": Rates(
        decode=0.05,
        adapters=0.43,
        prefill=0.41,
        prefill_adapters=0.46,
        layer_s=1.7e-3,
        prefix_cache=False,
        activations=40.0,
        activations_adapters=68.0,
    ),
}
TRAINING_SHARE = 0.33
"""Share of the GPU's FLOPs in training. Measured on an H100 with LoRA of rank 64 and gradient checkpointing: 0.36 for DPO on 2
pairs of 2 x 1,024 tokens a step, 0.32 for SFT on a row of 3,072. Assumed for training all parameters."""

USABLE = 0.9
"""Share of the memory that an engine may fill (vLLM's default)."""
WORKSPACE = 2 * GIB
"""CUDA context, activations and logits of a decode step; assumed."""
VOCABULARY = 150_000
"""Entries; Llama-3.1 128k, Qwen2.5 152k, Gemma-3 262k."""
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
ADAPTER_RANK = 64
"""Rank of imported adapters; that of the published recipe."""
CHARACTERS = 4
"""Characters per token of English; assumed."""
MEASURED = 20
"""Number of scenarios of a cell whose prompts are measured."""

ENCODER = {"parameters": 149e6, "layers": 22, "width": 768}
"""ModernBERT-base, by its model card; an imported classifier is assumed to be one."""


# ---------------------------------------------------------------- what an episode says


@dataclass(frozen=True)
class Conversation:
    """Size of an episode in tokens: the first ``prompt``, and the tokens ``added`` between two replies apart from the reply.
    There are ``asks`` requests for each of the replies."""

    prompt: float
    added: float
    replies: int
    reply: int
    limit: int
    grows: bool = True
    asks: int = 1

    @property
    def contexts(self) -> list[float]:
        """Tokens of the prompt of each reply, truncated to the model's context."""
        step = (self.reply + self.added) if self.grows else 0
        return [min(self.prompt + i * step, max(1, self.limit - self.reply)) for i in range(self.replies)]

    @property
    def generated(self) -> int:
        return self.replies * self.reply * self.asks

    @property
    def length(self) -> float:
        """Tokens of the longest context with its reply."""
        return self.contexts[-1] + self.reply

    @property
    def mean_context(self) -> float:
        """Mean context while decoding, in tokens."""
        return fmean(self.contexts) + self.reply / 2

    def encoded(self, prefix_cache: bool) -> float:
        """Prompt tokens that are encoded: every context in full, or with ``prefix_cache`` only its new part."""
        if prefix_cache and self.grows:
            return self.asks * min(self.prompt + (self.replies - 1) * self.added, self.length)
        return self.asks * sum(self.contexts)


def conversation(rollout: Rollout, model: ModelSettings, system: bool = True) -> Conversation:
    """The mean episode of a rollout. Scenarios that are available locally are started, and the characters of their first
    prompts are counted (4 per token), with the tokens of their images; others have the format's typical cost.

    Args:
        rollout: the rollout.
        model: the model that reads it; its context bounds it.
        system: whether the system text and the examples are counted.
    """
    per_image = model.template.image_tokens
    rules, scenarios = rollout.rules, rollout.scenarios
    inner, options = rollout.format.inner(rules.options)
    cost, asks = inner.cost, rollout.format.cost.asks
    examples = rollout.examples.mean_characters if system and rollout.examples is not None else 0.0
    typical = Conversation(
        cost.prompt_tokens
        + cost.images * per_image
        + (len(rules.system) / CHARACTERS if system else 0)
        + examples / CHARACTERS,
        0.0,
        _replies(cost, options),
        min(cost.reply_tokens, rollout.sampling.max_tokens),
        model.context,
        cost.accumulates_history,
        asks,
    )
    measured = scenarios.load_local()[:MEASURED] if scenarios.is_local else []
    if not measured:
        return typical
    first = [next(rollout.format.episode(scenario, rules)) for scenario in measured]
    prompts = [[m for m in ask.messages if system or m["role"] != "system"] for ask in first]
    prompt = fmean(sum(len(m["content"]) for m in messages) for messages in prompts)
    prompt += fmean(len(json.dumps(ask.tools.schemas)) if ask.tools else 0 for ask in first) + examples
    images = fmean(len(images_of(messages)) for messages in prompts) * per_image
    added = _tool_results(measured) / CHARACTERS
    return replace(typical, prompt=prompt / CHARACTERS + images, added=added)


def _replies(cost: Cost, options: Mapping[str, Json]) -> int:
    """Number of replies, from the format's options if they set it, else from its typical cost."""
    turns, per_trait, per_ask = (options.get(name) for name in ("turns", "per_trait", "per_ask"))
    if options.get("forced") is True:
        return 1
    if isinstance(turns, int):
        return max(1, turns - 1)
    if isinstance(per_trait, int) and isinstance(per_ask, int):
        return max(1, math.ceil(per_trait / per_ask))
    return cost.replies


def _tool_results(scenarios: Sequence[Scenario]) -> float:
    """Mean characters of a tool's result when it finds something."""
    found = [rule.response for s in scenarios for tool in s.tools for rule in tool.rules if rule.match]
    return fmean(len(json.dumps(value, ensure_ascii=False)) for value in found) if found else 0.0


# ---------------------------------------------------------------- what a model asks of a GPU


def weight_bytes(model: ModelSettings) -> float:
    assert model.size is not None
    return model.size.parameters * BYTES[model.dtype]


def kv_bytes(model: ModelSettings) -> float:
    """Of one token. Layers with a sliding window (Gemma-3) need less than this."""
    assert model.size is not None
    return 2 * model.size.layers * model.size.kv_heads * model.size.head_size * BYTES[model.dtype]


def width(model: ModelSettings) -> float:
    """Hidden size, from 13 x width^2 parameters a layer (Llama-3.1-8B: 7% more than it has)."""
    assert model.size is not None
    return math.sqrt(model.size.parameters / (13 * model.size.layers))


def lora_parameters(model: ModelSettings, rank: int, targets: int = 7) -> float:
    """Of an adapter on ``targets`` of a layer's 7 matrices: rank x 20 width a layer for all (Llama-3.1-8B: 168M at 64)."""
    assert model.size is not None
    return rank * 20 * width(model) * model.size.layers * min(targets, 7) / 7


def decode_ceiling(
    model: ModelSettings, gpu: Gpu, batch: float, context: float, adapter_bytes: float = 0.0
) -> float:
    """The most tokens/s that ``batch`` rows of a mean ``context`` can be decoded at."""
    assert model.size is not None
    moved = weight_bytes(model) + adapter_bytes + batch * context * kv_bytes(model)
    return batch / max(moved / gpu.bandwidth, 2 * model.size.parameters * batch / gpu.flops)


def token_bytes(model: ModelSettings, rates: Rates | None = None, adapted: bool = False) -> float:
    """Memory of a token of a batch: its keys and values, and its activations while prompts are encoded."""
    if rates is None:
        return kv_bytes(model)
    activations = rates.activations_adapters if adapted else rates.activations
    return kv_bytes(model) + activations * width(model)


def batch_that_fits(
    model: ModelSettings, gpu: Gpu, context: float, adapter_bytes: float = 0.0, rates: Rates | None = None
) -> int:
    """Rows of ``context`` tokens that fit beside the weights; 0 where the weights alone do not. Without the ``rates`` of an
    engine, only their KV cache counts."""
    left = USABLE * gpu.memory - weight_bytes(model) - adapter_bytes
    return max(0, int(left / (context * token_bytes(model, rates, adapter_bytes > 0))))


# ---------------------------------------------------------------- jobs


@dataclass(frozen=True)
class JobEstimate:
    """One job. ``tokens_in`` are read (or trained on, over all epochs), ``tokens_out`` generated. None: does not apply, or
    the model's size is not known. ``rates`` and ``gpu`` name the assumptions behind the hours; ``fits``: on one GPU."""

    name: str
    kind: str
    rows: int | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    gpu_memory_gib: float | None = None
    gpu_hours: float | None = None
    rates: str = ""
    gpu: str = ""
    fits: bool = True


def estimate(
    group: Sequence[Artifact], model: ModelSettings | None, gpu: Gpu, engine: EngineSettings
) -> JobEstimate:
    """The job that makes ``group``, artifacts of one ``model`` (None for an evaluation) and of one kind, or adapters with
    the rollouts between them.

    Memory and hours are None where ``model.size`` is, where the model is an endpoint, and where nothing is
    computed on a GPU: an evaluation, weights that are only fetched.
    """
    first = group[0]
    if model is not None and any(artifact.kind != first.kind for artifact in group):
        return _stages_together(group, model, gpu, engine)
    blank = JobEstimate(_name(group), first.kind)
    if model is None or first.source is not None or first.kind not in ESTIMATES:
        return blank
    return ESTIMATES[first.kind](blank, group, model, gpu, engine)


def _stages_together(
    group: Sequence[Artifact], model: ModelSettings, gpu: Gpu, engine: EngineSettings
) -> JobEstimate:
    """The parts of a job one after another; ``rows`` are those of its rollouts. The engine has weights of its own beside the
    base of the trainings."""
    rollouts = _rollouts_in(group)
    others = [artifact for artifact in group if not isinstance(artifact, Rollout)]
    held = weight_bytes(model) if model.size is not None else 0.0
    rolled_out = _rollouts(JobEstimate(_name(rollouts), Rollout.kind), rollouts, model, gpu, engine, held)
    parts = [estimate(others, model, gpu, engine), rolled_out]
    memory = [part.gpu_memory_gib for part in parts if part.gpu_memory_gib is not None]
    return replace(
        rolled_out,
        name=", ".join(part.name for part in parts),
        tokens_in=_sum(part.tokens_in for part in parts),
        gpu_memory_gib=max(memory, default=None),
        gpu_hours=_sum(part.gpu_hours for part in parts),
        rates=", ".join(part.rates for part in parts if part.rates),
        fits=all(part.fits for part in parts),
    )


def _name(group: Sequence[Artifact]) -> str:
    """What a job makes, with how many adapters, and where it is imported from."""
    first = group[0]
    if first.source is not None:
        return f"{first} from {reference(first.source) or first.source.path}"
    if len(group) == 1:
        return str(first)
    if isinstance(first, Adapter):
        return f"{first.kind} {first.model}: {counted(len(group), 'training')}"
    adapters = {part.key for artifact in group for part in artifact.inputs if isinstance(part, Adapter)}
    with_adapters = f", {counted(len(adapters), 'adapter')}" if adapters else ""
    return f"{first.kind} {first.model}: {len(group)} cells{with_adapters}"


def _rollouts(
    blank: JobEstimate,
    group: Sequence[Artifact],
    model: ModelSettings,
    gpu: Gpu,
    engine: EngineSettings,
    held: float = 0.0,
) -> JobEstimate:
    """``held``: bytes on the GPU of what the process loaded before."""
    rates = RATES.get(engine.name)
    rollouts = _rollouts_in(group)
    sizes = [(rollout.planned_rows, conversation(rollout, model)) for rollout in rollouts]
    job = replace(
        blank,
        rows=sum(rows for rows, _ in sizes),
        tokens_in=round(sum(n * size.encoded(bool(rates and rates.prefix_cache)) for n, size in sizes)),
        tokens_out=sum(rows * size.generated for rows, size in sizes),
    )
    if rates is None or model.size is None or model.endpoint is not None:
        return job
    adapters = _adapter_bytes(rollouts, model)
    longest = max(size.length for _, size in sizes)
    fitting = batch_that_fits(model, gpu, longest, held + adapters, rates)
    batch = max(1, min(_allowed(engine, longest), job.rows or 1, fitting))
    seconds = sum(
        _seconds(rollout, size, batch, model, gpu, rates, adapters)
        for rollout, (_, size) in zip(rollouts, sizes, strict=True)
    )
    rows = batch * longest * token_bytes(model, rates, adapters > 0)
    memory = held + weight_bytes(model) + adapters + rows + WORKSPACE
    return _on(gpu, job, memory, seconds, _note(engine, rates))


def _allowed(engine: EngineSettings, length: float) -> int:
    """Rows of ``length`` tokens that the settings allow in a batch."""
    if engine.batch_tokens == "auto":
        return engine.batch_size
    return min(engine.batch_size, int(engine.batch_tokens / length))


def _note(engine: EngineSettings, rates: Rates) -> str:
    return f"{engine.name} decodes at {rates.decode:.0%} of the ceiling, prompts at {rates.prefill:.0%}"


def _seconds(
    rollout: Rollout,
    size: Conversation,
    batch: int,
    model: ModelSettings,
    gpu: Gpu,
    rates: Rates,
    adapters: float,
) -> float:
    """Decoding and prompts of one rollout in batches of ``batch``."""
    assert model.size is not None
    adapted = rollout.adapter is not None
    ceiling = decode_ceiling(model, gpu, batch, size.mean_context, adapters if adapted else 0.0)
    rate = ceiling * rates.decode * (rates.adapters if adapted else 1.0)
    if rates.layer_s:
        rate = min(rate, batch / (rates.layer_s * model.size.layers))
    flops = gpu.flops * rates.prefill * (rates.prefill_adapters if adapted else 1.0)
    prefill = size.encoded(rates.prefix_cache) * 2 * model.size.parameters / flops
    return rollout.planned_rows * (size.generated / rate + prefill)


def _adapter_bytes(rollouts: Sequence[Rollout], model: ModelSettings) -> float:
    """Of all adapters of a job, at 16 bits. A merged adapter has the ranks of both parts side by side."""
    total = 0.0
    for adapter in {r.adapter for r in rollouts if r.adapter is not None and not r.adapter.checkpoint}:
        adapter = adapter.trained if isinstance(adapter, RemergedAdapter) else adapter
        if isinstance(adapter, TrainedAdapter):
            lora = adapter.training.settings.lora
            parts = 2 if adapter.training.stacked else 1
            total += 2 * parts * lora_parameters(model, lora.rank, len(lora.targets))
        else:
            total += 2 * lora_parameters(model, ADAPTER_RANK)
    return total


def _vector(
    blank: JobEstimate, group: Sequence[Artifact], model: ModelSettings, gpu: Gpu, engine: EngineSettings
) -> JobEstimate:
    """One pass over the replies, then a steered reply to each held-out prompt at each strength. The weights are loaded
    twice, to read and to generate."""
    (vector,) = group
    assert isinstance(vector, Vector)
    rates, plain, settings = RATES.get(engine.name), vector.plain, vector.settings
    size = conversation(plain, model)
    rows = round(settings.validation * plain.planned_rows) * len(settings.strengths)
    replies = [(r, conversation(r, model)) for r in (vector.prompted, plain)]
    read = sum(r.planned_rows * own.length for r, own in replies) + rows * size.length
    job = replace(
        blank, rows=rows, tokens_in=round(read + rows * size.encoded(False)), tokens_out=rows * size.generated
    )
    if rates is None or model.size is None or model.endpoint is not None:
        return job
    fitting = batch_that_fits(model, gpu, size.length, weight_bytes(model))
    batch = max(1, min(_allowed(engine, size.length), rows, fitting))
    one = _seconds(plain, size, batch, model, gpu, rates, 0.0) / max(1, plain.planned_rows)
    seconds = rows * one + _seconds_of(read * 2 * model.size.parameters, gpu)
    memory = 2 * weight_bytes(model) + batch * size.length * kv_bytes(model) + WORKSPACE
    return _on(gpu, job, memory, seconds, _note(engine, rates))


def _training(
    blank: JobEstimate, group: Sequence[Artifact], model: ModelSettings, gpu: Gpu, engine: EngineSettings
) -> JobEstimate:
    if isinstance(group[0], RemergedAdapter):
        return blank
    parts = [
        _live_training(blank, adapter, model, gpu, engine)
        if isinstance(adapter, TrainedAdapter) and adapter.live is not None
        else _one_training(blank, adapter, model, gpu)
        for adapter in group
    ]
    return replace(
        max(parts, key=lambda part: part.gpu_memory_gib or 0),
        rows=sum(part.rows or 0 for part in parts),
        tokens_in=sum(part.tokens_in or 0 for part in parts),
        tokens_out=_sum(part.tokens_out for part in parts),
        gpu_hours=None if parts[0].gpu_hours is None else sum(part.gpu_hours or 0 for part in parts),
    )


def _one_training(blank: JobEstimate, adapter: Artifact, model: ModelSettings, gpu: Gpu) -> JobEstimate:
    assert isinstance(adapter, TrainedAdapter)
    settings, method = adapter.training.settings, adapter.training.method
    rows, row_tokens = _training_rows(adapter, model)
    kept = round(rows * (1 - settings.validation))
    tokens = kept * row_tokens * settings.optimizer.epochs
    job = replace(blank, rows=kept, tokens_in=round(tokens))
    if model.size is None or model.endpoint is not None:
        return job
    passes = 2 + 2 + (2 if settings.optimizer.gradient_checkpointing else 0)
    prompt = adapter.role_prompt.mean_characters / CHARACTERS if adapter.role_prompt is not None else 0.0
    flops = tokens * passes + rows * (row_tokens + prompt) * 2 * method.extra_forward
    memory = _training_memory(model, settings.lora, settings.optimizer, method.texts_per_row)
    return _on(gpu, job, memory, _seconds_of(flops * model.size.parameters, gpu))


def _live_training(
    blank: JobEstimate, adapter: TrainedAdapter, model: ModelSettings, gpu: Gpu, engine: EngineSettings
) -> JobEstimate:
    """A training that plays its own episodes: each is generated as in a rollout by the transformers engine, then trained on as
    a whole; the formats have as many as their scenarios. Without the classifiers that score them."""
    assert adapter.live is not None and adapter.training.method.plays is not None
    settings, rates = adapter.training.settings, RATES["transformers"]
    rollouts = [rollout for _, rollout in adapter.live.episodes]
    sizes = [conversation(rollout, model) for rollout in rollouts]
    trained, watched, passes = adapter.training.method.plays(settings)
    planned = sum(rollout.planned_rows for rollout in rollouts)
    shares = [trained * rollout.planned_rows / planned for rollout in rollouts]
    played = [share + watched for share in shares]
    limit = settings.optimizer.max_length
    read = sum(n * min(limit, size.length) for n, size in zip(shares, sizes, strict=True))
    prompts = sum(n * size.encoded(rates.prefix_cache) for n, size in zip(played, sizes, strict=True))
    job = replace(
        blank,
        rows=trained,
        tokens_in=round(read + prompts),
        tokens_out=round(sum(n * size.generated for n, size in zip(played, sizes, strict=True))),
    )
    if model.size is None or model.endpoint is not None:
        return job
    adapters, longest = _adapter_bytes(rollouts, model), max(size.length for size in sizes)
    memory = _training_memory(model, settings.lora, settings.optimizer, 1)
    fitting = batch_that_fits(model, gpu, longest, memory - weight_bytes(model), rates)
    batch = max(1, min(_allowed(engine, longest), settings.optimizer.batch_size, fitting))
    generating = sum(
        n * _seconds(rollout, size, batch, model, gpu, rates, adapters) / rollout.planned_rows
        for n, rollout, size in zip(played, rollouts, sizes, strict=True)
    )
    recomputed = 2 if settings.optimizer.gradient_checkpointing else 0
    flops = read * (2 + 2 + recomputed + 2 * passes) * model.size.parameters
    rows = batch * longest * token_bytes(model, rates, adapted=True)
    seconds = generating + _seconds_of(flops, gpu)
    return _on(gpu, job, memory + rows, seconds, f"{_note(engine, rates)}, training at {TRAINING_SHARE:.0%}")


def _training_rows(adapter: TrainedAdapter, model: ModelSettings) -> tuple[int, float]:
    """Rows an adapter is trained on (before those that are dropped), and the mean tokens of one: a conversation, a document,
    or both sides of a pair."""
    training = adapter.training
    requests = training.data.requests(training.settings, training.where)
    method, limit = training.method, training.settings.optimizer.max_length
    texts = method.texts_per_row
    counted = {request.role for request in requests if request.counted}
    rollouts = [(role, rollout) for role, rollout in adapter.rows if role in counted]
    if not rollouts:
        cost = get_format(next(request.format for request in requests if request.counted)).cost
        prompt = cost.prompt_tokens if method.reads_prompts else 0
        return training.data.typical_rows, texts * min(limit, prompt + cost.reply_tokens)
    bounds, sizes = training.data.trained_tokens(training.settings), []
    for role, made in rollouts:
        source = made.rollout if isinstance(made, Selection) else made
        size = conversation(source, model, system=False)
        planned: float = made.planned_rows
        if role in bounds:
            # A pair trains one reply, on both sides; a conversation all of them.
            pairs = texts > 1
            most = planned * size.replies if pairs else planned
            planned = min(most, bounds[role] / (texts * size.reply if pairs else size.generated))
        sizes.append((round(planned), size))
    rows = sum(planned for planned, _ in sizes)
    lengths = [size.length if method.reads_prompts else size.reply for _, size in sizes]
    tokens = sum(n * min(limit, length) for (n, _), length in zip(sizes, lengths, strict=True))
    return rows, texts * tokens / max(1, rows)


def _training_memory(
    model: ModelSettings, lora: LoraSettings, optimizer: OptimizerSettings, texts_per_row: int
) -> float:
    """Bytes on one GPU at the longest rows, nothing sharded or offloaded."""
    assert model.size is not None
    tokens = optimizer.micro_batch_size * optimizer.max_length * texts_per_row
    layers, working = model.size.layers, 34 * width(model)
    kept = 2 * layers * width(model) + working if optimizer.gradient_checkpointing else layers * working
    trained = 16 * lora_parameters(model, lora.rank, len(lora.targets))
    return weight_bytes(model) + trained + tokens * (kept + 8 * VOCABULARY) + WORKSPACE


def _classifier(
    blank: JobEstimate, group: Sequence[Artifact], model: ModelSettings, gpu: Gpu, engine: EngineSettings
) -> JobEstimate:
    (classifier,) = group
    assert isinstance(classifier, Classifier)
    settings = classifier.settings
    if settings.tfidf is not None:
        texts, tokens = _texts(classifier.rollouts, model, model.context)
        return replace(blank, rows=texts, tokens_in=round(tokens))
    longest = min(settings.max_length, settings.row_tokens or settings.max_length)
    texts, tokens = _texts(classifier.rollouts, model, longest)
    read = tokens * settings.epochs * settings.fits
    job = replace(blank, rows=texts, tokens_in=round(read))
    if settings.path is None:
        return job
    # Weight, gradient and two moments.
    size = 8 if settings.precision == "bfloat16" else 16
    micro = settings.micro_batch_size or settings.batch_size
    kept = micro * longest * ENCODER["layers"] * 34 * ENCODER["width"]
    memory = size * ENCODER["parameters"] + kept + WORKSPACE
    return _on(gpu, job, memory, _seconds_of(read * 6 * ENCODER["parameters"], gpu))


def _predictions(
    blank: JobEstimate, group: Sequence[Artifact], model: ModelSettings, gpu: Gpu, engine: EngineSettings
) -> JobEstimate:
    predictions = [a for a in group if isinstance(a, Predictions)]
    classifier = predictions[0].classifier
    fitted_here = classifier.source is None
    cuts_texts = fitted_here and classifier.settings.tfidf is None
    limit = classifier.settings.max_length if cuts_texts else model.context
    texts, tokens = _texts([a.rollout for a in predictions], model, limit)
    job = replace(blank, rows=texts, tokens_in=round(tokens))
    if fitted_here and classifier.settings.path is None:
        return job
    # The weights are read in float32.
    memory = 4 * ENCODER["parameters"] + WORKSPACE
    fits = classifier.settings.fits if fitted_here else 1
    return _on(gpu, job, memory, _seconds_of(fits * tokens * 2 * ENCODER["parameters"], gpu))


def _projections(
    blank: JobEstimate, group: Sequence[Artifact], model: ModelSettings, gpu: Gpu, engine: EngineSettings
) -> JobEstimate:
    """One pass over the longest context of every episode, in batches of bounded size."""
    rollouts = [a.rollout for a in group if isinstance(a, Projections)]
    sizes = [(r.planned_rows, conversation(r, model)) for r in rollouts]
    tokens = sum(rows * size.length for rows, size in sizes)
    job = replace(blank, rows=sum(rows for rows, _ in sizes), tokens_in=round(tokens))
    if model.size is None or model.endpoint is not None:
        return job
    rates, adapters = RATES["transformers"], _adapter_bytes(rollouts, model)
    # The engine keeps no keys and values here.
    longest = max(BATCH_TOKENS, max(size.length for _, size in sizes))
    activations = rates.activations_adapters if adapters else rates.activations
    memory = weight_bytes(model) + adapters + longest * activations * width(model) + WORKSPACE
    share = rates.prefill * (rates.prefill_adapters if adapters else 1.0)
    seconds = tokens * 2 * model.size.parameters / (gpu.flops * share)
    return _on(gpu, job, memory, seconds, f"texts are read at {share:.0%}")


def _rollouts_in(group: Sequence[Artifact]) -> list[Rollout]:
    return [a for a in group if isinstance(a, Rollout)]


def _texts(rollouts: Sequence[Rollout], model: ModelSettings, limit: int) -> tuple[int, float]:
    """Texts that a classifier reads (the last reply of every episode), and their tokens."""
    sizes = [(r.planned_rows, conversation(r, model)) for r in rollouts]
    return sum(n for n, _ in sizes), sum(n * min(size.reply, limit) for n, size in sizes)


def _seconds_of(work: float, gpu: Gpu) -> float:
    """Of ``work`` FLOPs that are not decoding."""
    return work / (gpu.flops * TRAINING_SHARE)


def _on(gpu: Gpu, job: JobEstimate, memory: float, seconds: float, rates: str = "") -> JobEstimate:
    return replace(
        job,
        gpu_memory_gib=memory / GIB,
        gpu_hours=seconds / 3600,
        fits=memory <= gpu.memory,
        rates=rates or f"training and scoring at {TRAINING_SHARE:.0%}",
        gpu=f"{gpu.name}'s {gpu.flops / 1e12:.0f} TFLOP/s",
    )


Estimate = Callable[
    [JobEstimate, Sequence[Artifact], ModelSettings, Gpu, EngineSettings],
    JobEstimate,
]

ESTIMATES: dict[str, Estimate] = {
    Rollout.kind: _rollouts,
    Vector.kind: _vector,
    Adapter.kind: _training,
    Classifier.kind: _classifier,
    Predictions.kind: _predictions,
    Projections.kind: _projections,
}
"""Kind of artifact -> its estimate. An evaluation costs no GPU time."""


# ---------------------------------------------------------------- the table


def table(estimates: Sequence[JobEstimate]) -> str:
    """The table as text: one line per job, a line of totals (rows of rollouts, the largest memory, all hours), and the
    rates that were assumed."""
    head = ("job", "rows", "tokens in", "tokens out", "GPU GiB", "GPU hours")
    lines = [head, *(_columns(e) for e in [*estimates, _total(estimates)])]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    rendered = [
        "  ".join(
            [line[0].ljust(widths[0]), *(t.rjust(w) for t, w in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    ]
    return "\n".join([*rendered, _footer(estimates)]) + "\n"


def _total(estimates: Sequence[JobEstimate]) -> JobEstimate:
    without_hours = sum(e.rows is not None and e.gpu_hours is None for e in estimates)
    name = f"total of {len(estimates)} jobs"
    rolled_out = [e.rows for e in estimates if e.kind == Rollout.kind and e.rows is not None]
    memory = [e.gpu_memory_gib for e in estimates if e.gpu_memory_gib is not None]
    return JobEstimate(
        name + (f", {without_hours} of them without hours" if without_hours else ""),
        "total",
        _sum(rolled_out or [e.rows for e in estimates]),
        _sum(e.tokens_in for e in estimates),
        _sum(e.tokens_out for e in estimates),
        max(memory, default=None),
        _sum(e.gpu_hours for e in estimates),
        fits=all(e.fits for e in estimates),
    )


def _sum(values: Iterable[N | None]) -> N | None:
    """The sum of the known values; None if none is known."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _columns(job: JobEstimate) -> tuple[str, ...]:
    name = job.name if len(job.name) <= NAME_WIDTH else job.name[: NAME_WIDTH - 3] + "..."
    memory = "-" if job.gpu_memory_gib is None else f"{job.gpu_memory_gib:.0f}" + ("" if job.fits else "!")
    hours = "-" if job.gpu_hours is None else f"{job.gpu_hours:.2f}" if job.gpu_hours >= 0.005 else "<0.01"
    return name, _count(job.rows), _count(job.tokens_in), _count(job.tokens_out), memory, hours


def _count(value: int | None) -> str:
    if value is None:
        return "-"
    return f"{value / 1e6:,.1f}M" if value >= 10**6 else f"{value:,}"


def _footer(estimates: Sequence[JobEstimate]) -> str:
    rates = list(dict.fromkeys(e.rates for e in estimates if e.rates))
    over = "; !: more than one GPU has" if not all(e.fits for e in estimates) else ""
    if not rates:
        return "rates: none, no model of known size runs on a GPU here; a token is taken for 4 characters"
    gpus = ", ".join(dict.fromkeys(e.gpu for e in estimates if e.gpu))
    return f"rates: {', '.join(rates)} of {gpus} (offscript/experiment/cost.py){over}"
