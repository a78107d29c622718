"""The transformers engine: left-padded batches of waiting requests, decoded with the model's own cache."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offscript.errors import UserError
from offscript.models.chat_templates import render
from offscript.models.loading import load_model, load_tokenizer, pick_device
from offscript.rollouts.engines.base import Completion, EngineStats, Request
from offscript.rollouts.engines.draw import draw, penalize
from offscript.rollouts.engines.weights import Weights
from offscript.settings import EngineSettings, ModelSettings, TemplateSettings


@dataclass(eq=False)
class Row:
    """A request on its way: its prompt's token ids, the new ones, and why it ended (None: it has not)."""

    request: Request
    prompt: list[int]
    limit: int
    new: list[int] = field(default_factory=list)
    finish: str | None = None

    def take(self, token: int, stops: frozenset[int]) -> None:
        """Adds a drawn token; -1 stands for logits that were not finite."""
        if self.finish is not None:
            return
        if token < 0:
            self.finish = "error"
            return
        self.new.append(token)
        if token in stops:
            self.finish = "stop"
        elif len(self.new) == self.limit:
            self.finish = "length"


class TransformersEngine:
    """Answers requests on one base model with any number of adapters, loaded once.

    ``step`` answers one batch: of one adapter, merged, when at least ``merge_from`` of its rows wait; else of
    whatever waits, adapters side by side. In float32 on a CPU a text is a function of its prompt, adapter and
    seed alone. ``scales`` multiplies the effect of an adapter, by its name (1 where it names none).

    Raises:
        UserError: the model or an adapter cannot be loaded, does not fit, or changes nothing at scale 1.
    """

    def __init__(
        self,
        model: ModelSettings,
        adapters: Mapping[str, Path],
        settings: EngineSettings,
        scales: Mapping[str, float] | None = None,
    ) -> None:
        self.settings, self.model_settings = settings, model
        self.device = pick_device(settings.device)
        self.tokenizer: Any = load_tokenizer(model)
        self.stats = EngineStats()
        loaded = load_model(model, self.device)
        self.stops = stop_tokens(loaded, self.tokenizer, model.template)
        self.weights = Weights(self._attach(loaded, adapters, scales), tuple(adapters))
        self._waiting: list[Row] = []

    def submit(self, request: Request) -> None:
        """Queues a request.

        Raises:
            UserError: the chat template refuses its messages.
            KeyError: its adapter was not given to the engine.
        """
        self.weights.way([request.adapter])
        prompt = render(self.tokenizer, request.messages, self.model_settings.template, prefix=request.prefix)
        limit = min(request.sampling.max_tokens, self.model_settings.context - len(prompt))
        self._waiting.append(Row(request, prompt, limit, finish=None if limit > 0 else "length"))

    def step(self) -> list[Completion]:
        """Answers one batch of what waits; prompts that do not fit the context come back at once, empty.

        Raises:
            UserError: the batch does not fit the GPU's memory.
        """
        rows = [row for row in self._waiting if row.finish is not None]
        way = "unfit"
        if not rows:
            rows = self._choose()
            way = self.weights.way([r.request.adapter for r in rows]) if rows else way
            try:
                with torch.inference_mode():
                    decode(self.weights, rows, self.stops, self.tokenizer.pad_token_id, self.device)
            except torch.OutOfMemoryError:
                raise _too_much(rows, self.settings.batch_size) from None
        gone = set(map(id, rows))
        self._waiting = [row for row in self._waiting if id(row) not in gone]
        return [self._complete(row, way) for row in rows]

    def pending(self) -> int:
        return len(self._waiting)

    def close(self) -> None:
        pass

    def info(self) -> dict[str, str]:
        import peft
        import transformers

        return {
            "engine": "transformers", "transformers": transformers.__version__, "torch": torch.__version__,
            "peft": peft.__version__, "device": self._device_name(), "dtype": self.model_settings.dtype,
        }  # fmt: skip

    # ---------------------------------------------------------------- parts

    def _choose(self) -> list[Row]:
        """The next batch. Longest prompts first: they are the episodes nearest their end, whose rows are then
        safe on disk, and neighbours in length pad each other least."""
        groups: dict[str | None, list[Row]] = {}
        for row in self._waiting:
            groups.setdefault(row.request.adapter, []).append(row)
        largest = max(groups.values(), key=len, default=[])
        pool = largest if len(largest) >= self.settings.merge_from else self._waiting
        return sorted(pool, key=lambda row: -len(row.prompt))[: self.settings.batch_size]

    def _complete(self, row: Row, way: str) -> Completion:
        words = row.new[:-1] if row.finish == "stop" else row.new
        text = self.tokenizer.decode(words, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if row.finish == "error":
            text = f"logits are not finite after {len(row.new)} tokens"
        elif row.limit > 0:
            text = row.request.prefix + text
        completion = Completion(row.request.id, text, row.finish or "error", len(row.prompt), len(row.new))
        self.stats.add(completion, way)
        return completion

    def _attach(self, model: Any, adapters: Mapping[str, Path], scales: Mapping[str, float] | None) -> Any:
        if not adapters:
            return model
        from offscript.models.adapters import attach, self_test

        attached = attach(model, adapters, scales)
        probe = render(self.tokenizer, [{"role": "user", "content": "Hello."}], self.model_settings.template)
        for name in adapters:
            self_test(attached, name, torch.tensor([probe], device=self.device))
        return attached

    def _device_name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.device.startswith("cuda") else self.device


def open_engine(
    model: ModelSettings, adapters: Mapping[str, Path], scales: Mapping[str, float], settings: EngineSettings
) -> TransformersEngine:
    """See ``offscript.rollouts.engines.open_engine``."""
    return TransformersEngine(model, adapters, settings, scales)


def _too_much(rows: Sequence[Row], batch_size: int) -> UserError:
    width = max(len(row.prompt) + row.limit for row in rows)
    return UserError(
        "engine.batch_size",
        f"{batch_size}, and {len(rows)} rows of up to {width} tokens do not fit the GPU's memory",
        "take a smaller one (finished rows are kept)",
    )


# ---------------------------------------------------------------- decoding


def decode(weights: Weights, rows: Sequence[Row], stops: frozenset[int], pad: int, device: str) -> None:
    """Fills ``new`` and ``finish`` of ``rows``; rows that are done leave the batch early."""
    batch = _Batch(rows, pad, device) if rows else None
    while batch is not None:
        logits = batch.logits(weights)
        if batch.step == 0 and batch.penalize:
            batch.seen = _seen(batch.rows, logits)
        tokens = batch.draw(logits)
        for row, token in zip(batch.rows, tokens.tolist(), strict=True):
            row.take(token, stops)
        batch = batch.advance(tokens)


class _Batch:
    """Rows under way with their tensors; the first dimension of all of them is the row."""

    def __init__(self, rows: Sequence[Row], pad: int, device: str) -> None:
        self.rows, self.step = list(rows), 0
        self.cache: Any = None
        self.seen: Tensor | None = None  # what each row has read or said, for the repetition penalty
        self.length = max(len(r.prompt) for r in rows)
        width = self.length + max(r.limit for r in rows)
        self.ids = torch.full((len(rows), self.length), pad, dtype=torch.long)
        self.mask = torch.ones((len(rows), width), dtype=torch.long)
        for i, row in enumerate(rows):
            self.ids[i, self.length - len(row.prompt) :] = torch.tensor(row.prompt)
            self.mask[i, : self.length - len(row.prompt)] = 0
        self.ids, self.mask = self.ids.to(device), self.mask.to(device)
        self.positions = (self.mask[:, : self.length].cumsum(dim=-1) - 1).clamp(min=0)
        wanted = [r.request.sampling for r in rows]
        self.temperature = torch.tensor([s.temperature for s in wanted], dtype=torch.float64, device=device)
        self.top_p = torch.tensor([s.top_p for s in wanted], dtype=torch.float64, device=device)
        self.penalty = torch.tensor(
            [s.repetition_penalty for s in wanted], dtype=torch.float32, device=device
        )
        self.seeds = torch.tensor([r.request.seed % 2**63 for r in rows], device=device)
        self.penalize = any(s.repetition_penalty != 1 for s in wanted)

    def logits(self, weights: Weights) -> Tensor:
        """Of the next token of every row: (rows, vocabulary)."""
        output = weights.forward(
            [r.request.adapter for r in self.rows],
            input_ids=self.ids, attention_mask=self.mask[:, : self.length], position_ids=self.positions,
            past_key_values=self.cache, use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        self.cache = output.past_key_values
        return output.logits[:, -1].float()

    def draw(self, logits: Tensor) -> Tensor:
        if self.seen is not None:
            logits = penalize(logits, self.seen, self.penalty)
        return draw(logits, self.temperature, self.top_p, self.seeds, self.step)

    def advance(self, tokens: Tensor) -> "_Batch | None":
        """This batch with ``tokens`` (rows,) as its next input, or None when every row is done."""
        alive = [i for i, row in enumerate(self.rows) if row.finish is None]
        if not alive:
            return None
        self.ids = tokens.clamp(min=0)[:, None]
        if self.seen is not None:
            self.seen.scatter_(1, self.ids, True)
        self.positions = self.positions[:, -1:] + 1
        self.length += 1
        self.step += 1
        if len(alive) <= 0.85 * len(self.rows):  # dropping rows copies the cache: not for every single one
            self._keep(alive)
        return self

    def _keep(self, alive: list[int]) -> None:
        index = torch.tensor(alive, device=self.ids.device)
        self.rows = [self.rows[i] for i in alive]
        for name in ("ids", "mask", "positions", "temperature", "top_p", "penalty", "seeds", "seen"):
            if getattr(self, name) is not None:
                setattr(self, name, getattr(self, name)[index])
        self.cache.batch_select_indices(index)


def _seen(rows: Sequence[Row], logits: Tensor) -> Tensor:
    """Which tokens stand in each row's own prompt, padding left out: (rows, vocabulary) bool."""
    seen = torch.zeros(logits.shape, dtype=torch.bool)
    for i, row in enumerate(rows):
        seen[i, torch.tensor(row.prompt)] = True
    return seen.to(logits.device)


def stop_tokens(model: Any, tokenizer: Any, template: TemplateSettings) -> frozenset[int]:
    """Tokens that end a reply: those that the model's generation config names, the tokenizer's own, and the one that the
    chat template puts after a reply, which is what training teaches. (Checkpoints of others often name only the first
    two, and Gemma would then talk past the end of its turn.)"""
    named = model.generation_config.eos_token_id
    named = named if isinstance(named, list) else [named]
    asked = [{"role": "user", "content": "Hello."}]
    answered = [*asked, {"role": "assistant", "content": "Hello."}]
    prompt = render(tokenizer, asked, template)
    whole = render(tokenizer, answered, template, generation=False)
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    taught = [token for token in whole[len(prompt) :] if token in special][-1:]
    return frozenset(t for t in [*named, tokenizer.eos_token_id, *taught] if t is not None)
