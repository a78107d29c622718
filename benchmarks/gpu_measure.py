"""What ``benchmarks/gpu.py`` measures: a model with random weights on one device, and the measurements of it.

Random weights cost as much time and memory as trained ones of the same shapes. Two things are set so that they also do in
sampling: the output layer is scaled until the probabilities are as peaked as a trained model's (a flat distribution would
make top-p sort the vocabulary at every token), and no token ends a reply.
"""

import gc
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from offscript.models.adapters import STANDALONE
from offscript.models.loading import load_tokenizer
from offscript.rollouts.engines.base import Request, Sampling
from offscript.rollouts.engines.batch import Batch, join, new_cache
from offscript.rollouts.engines.prefixes import Prompt
from offscript.rollouts.engines.rendering import Row
from offscript.rollouts.engines.transformers import TransformersEngine
from offscript.rollouts.engines.weights import Weights
from offscript.rollouts.scheduler import CellRun, run_episodes
from offscript.seeds import unit_hash
from offscript.settings import (
    EngineSettings,
    LoraSettings,
    ModelSettings,
    OptimizerSettings,
    SamplingSettings,
    TemplateSettings,
)
from offscript.storage.files import HOME
from offscript.tasks.formats.base import Ask, Episode, Format, Outcome, Rules
from offscript.tasks.scenarios import Scenario
from offscript.training.base_models import BaseModelCache
from offscript.training.run import Run
from offscript.training.spans import assistant_turns

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

GIB = 2**30
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PERSONAS = tuple(f"persona{i}" for i in range(10))
WORD = " the"
"""A text of one token."""
WARMUP = 3
"""Repetitions that are not counted."""


class Skipped(Exception):
    """A case cannot run, because an earlier one did not."""


class TimeLimit(BaseException):
    """A case took longer than it may. No ``except Exception`` of a library catches it."""


@dataclass(frozen=True)
class Shapes:
    """Dimensions of the model and of its LoRA adapters, and how many repetitions are counted."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    vocabulary: int
    rank: int
    steps: int


LLAMA_8B = Shapes(4096, 32, 32, 8, 14336, 128256, rank=64, steps=10)
"""Llama-3.1-8B and the published recipe's adapters."""
SMALL = Shapes(64, 2, 4, 2, 128, 3000, rank=4, steps=5)


@dataclass(frozen=True)
class Loop:
    """Agentic episodes: every reply is followed by a tool's result. ``reply`` is the mean length in tokens; lengths are
    spread evenly from 0.4 to 1.6 of it, because a batch waits for its longest reply. ``share`` of each reply is generated
    and the rest given, so that the contexts have their full lengths in a fraction of the time."""

    episodes: int
    prompt: int = 694
    replies: int = 6
    reply: int = 330
    result: int = 79
    share: float = 0.1


@dataclass
class Bench:
    """The device, the model on it, and what was measured of the device itself."""

    shapes: Shapes
    device: str
    folder: Path
    adapter_dtype: str = ""
    bandwidth: float = 0.0
    flops: float = 0.0
    with_adapters: bool = False
    has_failed: bool = False
    _engine: TransformersEngine | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(HOME / "assets/pocket" / name, self.folder / name)
        self.config().save_pretrained(str(self.folder))
        self.settings = ModelSettings(
            name="random",
            path=str(self.folder),
            dtype="bfloat16",
            context=16384,
            sampling=SamplingSettings(),
            template=TemplateSettings(tool_role="native", thinking=None),
        )
        # Its template is tried in a forked process, once: before the GPU is used.
        self.tokenizer = load_tokenizer(self.settings)

    @property
    def is_gpu(self) -> bool:
        return self.device.startswith("cuda")

    def config(self) -> "PreTrainedConfig":
        from transformers import LlamaConfig

        s = self.shapes
        return LlamaConfig(
            hidden_size=s.hidden,
            num_hidden_layers=s.layers,
            num_attention_heads=s.heads,
            num_key_value_heads=s.kv_heads,
            intermediate_size=s.ffn,
            vocab_size=s.vocabulary,
            max_position_embeddings=131072,
            rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
            tie_word_embeddings=False,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )

    def build(self, dtype: torch.dtype = torch.bfloat16) -> "PreTrainedModel":
        """The model with random weights."""
        from transformers import AutoModelForCausalLM

        torch.manual_seed(0)
        with torch.device(self.device):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(self.config(), dtype=dtype)
        model.lm_head.weight.data.normal_(std=10 / self.shapes.hidden**0.5)
        return model.requires_grad_(False).eval()

    def engine(self) -> TransformersEngine:
        """The engine with the model; made again after ``free``."""
        if self._engine is None:
            self._engine = self._open({}, self.build())
        return self._engine

    def attach(self) -> TransformersEngine:
        """The engine with an adapter for each persona."""
        if self.has_failed:
            raise Skipped("the adapters could not be attached")
        if not self.with_adapters:
            self.has_failed = True
            try:
                # PEFT draws the weights that are then loaded, which takes no time on a GPU.
                self._attach(torch.device(self.device))
            except Exception:
                # Some layers may have adapters already.
                self.free()
                self._attach(nullcontext())
            self.has_failed = False
        return self.engine()

    def _attach(self, where: Any) -> None:
        base = self.engine().weights.base
        folder = self._write_adapter(base)
        with where:
            self._engine = self._open(dict.fromkeys(PERSONAS, folder), base)
        for name, parameter in base.named_parameters():
            if ".lora_" in name and self.adapter_dtype:
                parameter.data = parameter.data.to(getattr(torch, self.adapter_dtype))
        self.with_adapters = True

    def free(self) -> None:
        """Drops the model and everything on it."""
        self._engine, self.with_adapters = None, False
        self.collect()
        if self.is_gpu:
            torch.cuda.reset_peak_memory_stats()

    def collect(self) -> None:
        gc.collect()
        if self.is_gpu:
            torch.cuda.empty_cache()

    def synchronize(self) -> None:
        if self.is_gpu:
            torch.cuda.synchronize()

    def _open(self, adapters: Mapping[str, Path], loaded: "PreTrainedModel") -> TransformersEngine:
        settings = EngineSettings(name="transformers", device=self.device)
        engine = TransformersEngine(self.settings, adapters, settings, loaded=loaded)
        engine.stops = frozenset()
        return engine

    def _write_adapter(self, model: "PreTrainedModel") -> Path:
        """A folder with an adapter of random weights, which serves for every persona."""
        from peft import LoraConfig
        from safetensors.torch import save_file

        from offscript.models.adapter_config import WEIGHTS
        from offscript.models.adapters import write_config

        folder, rank = self.folder / "adapter", self.shapes.rank
        folder.mkdir(exist_ok=True)
        tensors = {}
        for name, module in model.named_modules():
            if name.rpartition(".")[2] in TARGETS:
                name = name.removeprefix("model.")
                for part, shape in (("A", (rank, module.in_features)), ("B", (module.out_features, rank))):
                    values = torch.randn(shape, device=self.device, dtype=torch.bfloat16) * 0.01
                    tensors[f"{STANDALONE}{name}.lora_{part}.weight"] = values.cpu()
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(TARGETS), task_type="CAUSAL_LM")
        write_config(config, folder, self.settings.path)
        return folder

    # ------------------------------------------------ bytes and operations

    def kv_bytes(self) -> int:
        """Of one token, in bfloat16."""
        s = self.shapes
        return 2 * s.layers * s.kv_heads * (s.hidden // s.heads) * 2

    def weight_bytes(self, adapters: int) -> int:
        """What a decode step reads: all weights but the embedding, and those of ``adapters`` adapters."""
        base = adapted = 0
        for name, parameter in self.engine().weights.base.named_parameters():
            size = parameter.numel() * parameter.element_size()
            if ".lora_" in name:
                adapted += size
            elif "embed_tokens" not in name:
                base += size
        return base + (adapted * adapters // len(PERSONAS) if self.with_adapters else 0)

    def prefill_flops(self, lengths: Sequence[int]) -> float:
        """Of prompts, with the logits of the last token alone: 2 per weight and token, and causal attention."""
        s = self.shapes
        head = s.hidden // s.heads
        layer = s.hidden * head * 2 * (s.heads + s.kv_heads) + 3 * s.hidden * s.ffn
        tokens, squares = sum(lengths), sum(n * n for n in lengths)
        return (
            2.0 * s.layers * (layer * tokens + s.hidden * squares)
            + 2.0 * len(lengths) * s.hidden * s.vocabulary
        )


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


# ---------------------------------------------------------------- the card


def ceilings(bench: Bench) -> dict[str, Any]:
    """Bandwidth of a copy within the device, bytes read and written, and the rate of a bfloat16 matrix product."""
    size, side = (2**31, 8192) if bench.is_gpu else (2**24, 256)
    source = torch.randn(size // 2, device=bench.device, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    bench.bandwidth = 2 * size / median(_times(bench, lambda: target.copy_(source)))
    left, right = (torch.randn(side, side, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    bench.flops = 2 * side**3 / median(_times(bench, lambda: torch.mm(left, right)))
    return {
        "copy_tb_s": bench.bandwidth / 1e12,
        "matmul_tflop_s": bench.flops / 1e12,
        "repetitions": 20,
        "note": f"copy {bench.bandwidth / 1e12:.2f} TB/s, bf16 matrix product {bench.flops / 1e12:.1f} TFLOP/s",
    }


def _times(bench: Bench, call: Callable[[], object], repetitions: int = 20) -> list[float]:
    """Seconds of each call, after ``WARMUP`` others."""
    times = []
    for i in range(WARMUP + repetitions):
        bench.synchronize()
        start = time.perf_counter()
        call()
        bench.synchronize()
        if i >= WARMUP:
            times.append(time.perf_counter() - start)
    return times


def open_model(bench: Bench) -> dict[str, Any]:
    """Makes the model."""
    engine = bench.engine()
    parameters = sum(p.numel() for p in engine.weights.base.parameters())
    return {"parameters": parameters, "note": f"{parameters / 1e9:.2f}B parameters"}


def open_adapters(bench: Bench) -> dict[str, Any]:
    """Attaches the adapters."""
    engine = bench.attach()
    parameters = [p for n, p in engine.weights.base.named_parameters() if ".lora_" in n]
    size = sum(p.numel() * p.element_size() for p in parameters)
    dtype = str(parameters[0].dtype).removeprefix("torch.")
    note = f"{len(PERSONAS)} adapters of rank {bench.shapes.rank} in {dtype}: {size / GIB:.2f} GiB"
    return {"adapter_gib": size / GIB, "adapter_dtype": dtype, "note": note}


# ---------------------------------------------------------------- prefill and decoding

NAMES: dict[str, tuple[str | None, ...]] = {
    "base": (None,),
    "one adapter": PERSONAS[:1],
    "one adapter, merged": PERSONAS[:1],
    "ten adapters": PERSONAS,
}
"""The adapters of a batch's rows, in turn, by kind of batch."""


class Recorder:
    """Weights that record the time of every forward pass. With ``cache`` the first pass computes nothing and returns it:
    the prompts are taken as read."""

    def __init__(self, bench: Bench, weights: Weights, cache: Any = None) -> None:
        self.bench, self.weights, self.cache = bench, weights, cache
        self.base, self.mode = weights.base, weights.mode
        self.starts: list[float] = []
        self.passes: list[float] = []

    def forward(self, names: Sequence[str | None], **inputs: Any) -> Any:
        self.bench.synchronize()
        start = time.perf_counter()
        if self.cache is not None:
            cache, self.cache = self.cache, None
            vocabulary, device = self.bench.shapes.vocabulary, self.bench.device
            return SimpleNamespace(
                logits=10 * torch.randn(len(names), 1, vocabulary, device=device), past_key_values=cache
            )
        self.starts.append(start)
        output = self.weights.forward(names, **inputs)
        self.bench.synchronize()
        self.passes.append(time.perf_counter() - start)
        return output


def decode(weights: Recorder, rows: Sequence[Row], device: str) -> None:
    """Reads the prompts of ``rows`` in one pass, and decodes until all rows have finished."""
    batch: Batch | None = Batch.read(
        weights,  # type: ignore[arg-type]
        [Prompt(row) for row in rows],
        frozenset(),
        0,
        device,
    )
    while batch is not None and batch.live():
        batch.step(weights, frozenset())  # type: ignore[arg-type]
        if batch.take_ended():
            batch = join([batch])


def prefill(bench: Bench, kind: str, batch: int, context: int) -> dict[str, Any]:
    """Prompts of about ``context`` tokens, without the token that is drawn after them."""
    weights = _weights(bench, kind)
    times = []
    for _ in range(1 + 5):
        recorder = Recorder(bench, weights)
        rows = _rows(batch, context, NAMES[kind], limit=1)
        with torch.inference_mode():
            decode(recorder, rows, bench.device)
        times += recorder.passes
    seconds, lengths = median(times[1:]), [len(row.prompt) for row in rows]
    share = bench.prefill_flops(lengths) / seconds / bench.flops if bench.flops else None
    return {
        "tokens_s": sum(lengths) / seconds,
        "ms": 1000 * seconds,
        "share": share,
        "share_of": "matrix product",
        "repetitions": len(times) - 1,
    }


def decoding(bench: Bench, kind: str, batch: int, context: int) -> dict[str, Any]:
    """Decode steps of the engine's own loop, sampling included, on a key-value cache of random numbers."""
    weights = _weights(bench, kind)
    steps = bench.shapes.steps if kind == "base" else max(5, bench.shapes.steps // 2)
    with torch.inference_mode():
        cache = _random_cache(bench, weights, batch, context)
        recorder = Recorder(bench, weights, cache)
        del cache
        rows = _rows(batch, context, NAMES[kind], limit=1 + WARMUP + steps)
        decode(recorder, rows, bench.device)
        bench.synchronize()
    times = [b - a for a, b in zip(recorder.starts, [*recorder.starts[1:], time.perf_counter()], strict=True)]
    seconds = median(times[WARMUP:])
    adapters = 0 if kind == "base" or "merged" in kind else min(batch, len(NAMES[kind]))
    kv = batch * context * bench.kv_bytes()
    moved = bench.weight_bytes(adapters) + kv
    return {
        "tokens_s": batch / seconds,
        "ms": 1000 * seconds,
        "forward_ms": 1000 * median(recorder.passes[WARMUP:]),
        "share": moved / seconds / bench.bandwidth if bench.bandwidth else None,
        "share_of": "copy bandwidth",
        "kv_gib": kv / GIB,
        "repetitions": steps,
    }


def _weights(bench: Bench, kind: str) -> Weights:
    """The engine's weights. ``merged`` merges in bfloat16, which the engine itself does in float32 alone."""
    engine = bench.engine() if kind == "base" else bench.attach()
    engine.weights.can_merge = "merged" in kind
    return engine.weights


def release_merged(bench: Bench) -> None:
    """Drops merged weights, which take as much memory as the model."""
    if bench._engine is not None:
        weights = bench._engine.weights
        weights._activate(None)
        weights._merged.clear()
        weights.can_merge = False


def release_hooks(bench: Bench) -> None:
    """Removes the hooks that PEFT leaves on its layers when a forward pass fails; they would fail base batches."""
    if bench._engine is not None:
        for layer in bench._engine.weights.layers:
            layer._forward_pre_hooks.clear()
            layer._forward_pre_hooks_with_kwargs.clear()


def _rows(batch: int, context: int, names: Sequence[str | None], limit: int) -> list[Row]:
    """Rows of nearly equal lengths, so that there is padding, as in a real batch."""
    ids = [7 + (i * 7919) % 2900 for i in range(context)]
    sampling = Sampling(temperature=0.7, top_p=0.95, max_tokens=limit)
    return [
        Row(Request(i, (), names[i % len(names)], i, sampling), ids[: context - i % 8], limit)
        for i in range(batch)
    ]


def _random_cache(bench: Bench, weights: Weights, batch: int, context: int) -> Any:
    s = bench.shapes
    cache = new_cache(weights)
    for layer in range(s.layers):
        key, value = (
            torch.randn(
                batch, s.kv_heads, context, s.hidden // s.heads, device=bench.device, dtype=torch.bfloat16
            )
            for _ in range(2)
        )
        cache.update(key, value, layer)
    return cache


# ---------------------------------------------------------------- one conversation at a time


def plain_generate(bench: Bench, context: int, tokens: int) -> dict[str, Any]:
    """``model.generate()`` of one prompt, on base weights: seconds per token, without the prompt's."""
    model = bench.engine().weights.base
    ids = torch.tensor([_rows(1, context, (None,), 1)[0].prompt], device=bench.device)

    def call(new: int) -> None:
        with torch.inference_mode():
            model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                min_new_tokens=new,
                max_new_tokens=new,
                do_sample=True,
                temperature=0.7,
                top_p=0.95,
                top_k=0,
                pad_token_id=0,
            )

    call(2)
    first = median(_generate_times(bench, lambda: call(1)))
    whole = median(_generate_times(bench, lambda: call(tokens)))
    step = (whole - first) / (tokens - 1)
    return {"tokens_s": 1 / step, "ms": 1000 * step, "first_token_ms": 1000 * first, "repetitions": 5}


def _generate_times(bench: Bench, call: Callable[[], object]) -> list[float]:
    times = []
    for _ in range(5):
        bench.synchronize()
        start = time.perf_counter()
        call()
        bench.synchronize()
        times.append(time.perf_counter() - start)
    return times


# ---------------------------------------------------------------- episodes


def scripted(loop: Loop) -> Format:
    """A format whose episodes have the lengths of ``loop``, whatever is replied."""

    def episode(scenario: Scenario, rules: Rules) -> Episode:
        messages = list(scenario.messages)
        for length in _reply_lengths(loop, scenario.id):
            yield Ask(tuple(messages), max_tokens=max(1, round(length * loop.share)))
            messages.append({"role": "assistant", "content": WORD * length})
            messages.append({"role": "tool", "content": WORD * loop.result})
        return Outcome("sent", tuple(messages), "email", loop.replies)

    return Format("scripted", version=1, source="office", episode=episode, templates={})


def episodes(bench: Bench, loop: Loop, kind: str) -> dict[str, Any]:
    """The scheduler and the engine, with ``loop.episodes`` episodes at a time."""
    engine = bench.engine() if kind == "base" else bench.attach()
    engine.weights.can_merge = False
    engine.settings = engine.settings.model_copy(update={"batch_size": loop.episodes})
    return _run(bench, loop, engine, NAMES[kind][0], engine.weights.base)


def plain_episodes(bench: Bench, loop: Loop) -> dict[str, Any]:
    """One episode at a time with ``model.generate()``, on base weights: the published study folded each adapter in."""
    from rollouts import GenerateEngine

    base = bench.engine().weights.base
    plain = GenerateEngine(bench.settings, {}, 1, bench.device, loaded=base)
    plain.stops = [bench.shapes.vocabulary + 1]
    return _run(bench, loop, plain, None, base)


def _run(
    bench: Bench, loop: Loop, engine: Any, adapter: str | None, base: "PreTrainedModel"
) -> dict[str, Any]:
    """Runs the episodes, and estimates 6,000 with replies of full length: the time outside the prompts in proportion to
    the tokens."""
    # The number comes first: the episodes of a real grid do not share their prompts.
    prompts_of = ({"role": "user", "content": f"{i} {WORD * loop.prompt}"} for i in range(loop.episodes))
    scenarios = [Scenario(f"s{i}", f"s{i}", (prompt,)) for i, prompt in enumerate(prompts_of)]
    before = engine.stats.tokens_in, engine.stats.tokens_out
    with tempfile.TemporaryDirectory() as folder, _prompts_timed(bench, base) as prompts:
        run = CellRun(
            key="benchmark",
            path=Path(folder) / "rows.jsonl",
            labels={},
            format=scripted(loop),
            scenarios=scenarios,
            samples=1,
            rules=Rules(),
            adapter=adapter,
            sampling=Sampling(max_tokens=2 * loop.reply),
        )
        start, stopped = time.perf_counter(), False
        try:
            run_episodes([run], engine, max_live=512)
        except TimeLimit:
            stopped = True
        seconds = time.perf_counter() - start
    tokens_in, tokens_out = engine.stats.tokens_in - before[0], engine.stats.tokens_out - before[1]
    if not tokens_out:
        raise TimeLimit(f"no reply within {seconds:.0f} s")
    done = loop.episodes * min(1.0, _generated(loop, scenarios, tokens_out)) if stopped else loop.episodes
    full = done * loop.replies * loop.reply
    estimated = sum(prompts) + (seconds - sum(prompts)) * full / tokens_out
    hours = estimated / done * 6000 / 3600
    end = f" (stopped after {done:.1f}, whose contexts were the shorter ones)" if stopped else ""
    return {
        "tokens_s": full / estimated,
        "episodes": done,
        "seconds": seconds,
        "prompt_seconds": sum(prompts),
        "tokens_in": tokens_in,
        "tokens_out": tokens_out,
        "hours_6000": hours,
        "repetitions": 1,
        "note": f"{loop.episodes} episodes{end}, {seconds:.1f} s; 6,000 of full length: {hours:.2f} h",
    }


def _reply_lengths(loop: Loop, scenario: str) -> list[int]:
    """Tokens of each reply of an episode."""
    return [
        round(loop.reply * (0.4 + 1.2 * unit_hash("length", scenario, turn))) for turn in range(loop.replies)
    ]


def _generated(loop: Loop, scenarios: Sequence[Scenario], tokens: int) -> float:
    """The part of all that is to be generated that ``tokens`` are."""
    planned = sum(round(n * loop.share) for s in scenarios for n in _reply_lengths(loop, s.id))
    return tokens / planned


@contextmanager
def _prompts_timed(bench: Bench, base: "PreTrainedModel") -> Iterator[list[float]]:
    """A list that gets the seconds of each forward pass of prompts through the decoder."""
    times: list[float] = []
    start = 0.0

    def is_prompt(inputs: Mapping[str, Any]) -> bool:
        given = inputs.get("input_ids")
        given = inputs.get("inputs_embeds") if given is None else given
        return given is not None and given.shape[1] > 1

    def begin(module: object, args: object, inputs: Mapping[str, Any]) -> None:
        nonlocal start
        if is_prompt(inputs):
            bench.synchronize()
            start = time.perf_counter()

    def end(module: object, args: object, inputs: Mapping[str, Any], output: object) -> None:
        if is_prompt(inputs):
            bench.synchronize()
            times.append(time.perf_counter() - start)

    decoder = base.get_decoder()
    hooks = (
        decoder.register_forward_pre_hook(begin, with_kwargs=True),
        decoder.register_forward_hook(end, with_kwargs=True),
    )
    try:
        yield times
    finally:
        for hook in hooks:
            hook.remove()


# ---------------------------------------------------------------- training


class _Enough(Exception):
    """As many steps were measured as are wanted."""


class _Random(BaseModelCache):
    """Gives a training a model with random weights."""

    def __init__(self, bench: Bench) -> None:
        super().__init__()
        self.bench = bench

    def acquire(self, model: ModelSettings, device: str) -> "PreTrainedModel":
        return self.bench.build(getattr(torch, model.dtype))


def training(bench: Bench, method: str, rows: int, length: int) -> dict[str, Any]:
    """Optimizer steps of a training, from the rows to the update of the adapter; no checkpoint is written.

    Args:
        bench: its model is dropped, and a fresh one trained.
        method: ``dpo`` on ``rows`` pairs a step, whose sides have about ``length`` tokens each with the prompt, or
            ``sft`` on ``rows`` conversations of about ``length``.
    """
    from offscript.training.methods import dpo, sft

    bench.free()
    steps = 2 + 5
    asked = {"role": "user", "content": WORD * (length // 2)}
    said = {"role": "assistant", "content": WORD * (length // 2 - 8)}
    other = {"role": "assistant", "content": " a" * (length // 2 - 8)}
    row = len(assistant_turns(bench.tokenizer, [asked, said], bench.settings.template)[0][0])
    if method == "dpo":
        made = [
            {"family": f"f{i}", "prompt": [asked], "chosen": [said], "rejected": [other]}
            for i in range(rows * steps)
        ]
    else:
        made = [{"family": f"f{i}", "messages": [asked, said]} for i in range(rows * steps)]
    trained = dpo.METHOD if method == "dpo" else sft.METHOD
    clock = _step_clock(bench, steps)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(
            model=bench.settings,
            settings=trained.settings(
                validation=0.0,
                lora=LoraSettings(rank=bench.shapes.rank, alpha=2 * bench.shapes.rank, targets=TARGETS),
                optimizer=OptimizerSettings(
                    learning_rate=5e-5,
                    batch_size=rows,
                    micro_batch_size=rows,
                    max_length=length,
                    checkpoint_steps=10**6,
                    gradient_checkpointing=True,
                ),
            ),
            out=Path(folder) / "adapter",
            seed=0,
            callbacks=[clock],
            say=lambda line: None,
            bases=_Random(bench),
        )
        with suppress(_Enough):
            trained.train(run, made)
    times = clock.times[2:]
    if not times:
        raise RuntimeError(f"{len(clock.times)} steps were made, {steps} are needed")
    seconds = median(times)
    tokens = rows * (2 if method == "dpo" else 1) * row
    return {
        "tokens_s": tokens / seconds,
        "ms": 1000 * seconds,
        "repetitions": len(times),
        "note": f"{tokens} tokens a step, LoRA r{bench.shapes.rank}, gradient checkpointing, {run.dtype}",
    }


def _step_clock(bench: Bench, steps: int) -> Any:
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.times: list[float] = []
            self.start = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            bench.synchronize()
            self.start = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            bench.synchronize()
            self.times.append(time.perf_counter() - self.start)
            if len(self.times) == steps:
                raise _Enough

    return Clock()
