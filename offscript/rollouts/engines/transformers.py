"""The transformers engine: decodes left-padded batches of queued requests with the model's key-value cache."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from offscript import allocator
from offscript.errors import UserError
from offscript.models.chat_templates import render
from offscript.models.loading import load_model, load_tokenizer, pick_device
from offscript.models.steering import load_vector
from offscript.rollouts.engines.base import Completion, EngineStats, Request
from offscript.rollouts.engines.draw import draw, penalize
from offscript.rollouts.engines.rendering import Renderer, Row, stop_tokens
from offscript.rollouts.engines.weights import Mode, Weights
from offscript.settings import EngineSettings, ModelSettings

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import Cache, PreTrainedModel


class TransformersEngine:
    """Answers requests with one base model and any number of adapters and persona vectors, which are loaded once.

    ``step`` decodes one batch: of one adapter, merged, if at least ``merge_from`` of its requests are queued; otherwise
    of any queued requests, with their adapters unmerged. A batch of base weights may have any vectors. In float32 on a
    CPU a text is a function of its prompt, adapter or vector, and seed alone.

    Args:
        model: the base model.
        adapters: adapter folders by name (no dots).
        settings: batch size, ``merge_from`` and device.
        scales: factor of an adapter's effect, by its name; 1 for an adapter without an entry.
        loaded: a base model in memory, used in place of the weights in ``model.path``; it is changed in place. None: the
            weights are loaded.
        vectors: folders of persona vectors by name.

    Raises:
        UserError: the model, an adapter or a vector cannot be loaded, does not fit the memory, or has no effect at scale 1.
    """

    def __init__(
        self,
        model: ModelSettings,
        adapters: Mapping[str, Path],
        settings: EngineSettings,
        scales: Mapping[str, float] | None = None,
        loaded: "PreTrainedModel | None" = None,
        vectors: Mapping[str, Path] | None = None,
    ) -> None:
        self.settings, self.model_settings = settings, model
        self.device = pick_device(settings.device)
        self.tokenizer = load_tokenizer(model)
        self.stats = EngineStats()
        loaded = loaded if loaded is not None else load_model(model, self.device)
        self._renderer = Renderer(self.tokenizer, model)
        self._pad: int = self.tokenizer.pad_token_id
        self.stops = stop_tokens(loaded.generation_config, self.tokenizer, model.template)
        steering = {name: load_vector(folder, self.device) for name, folder in (vectors or {}).items()}
        self.weights = Weights(self._attach(loaded, adapters, scales), tuple(adapters), steering)
        self._queued: list[Row] = []

    def submit(self, request: Request) -> None:
        """Queues a request.

        Raises:
            UserError: the chat template refuses its messages, or does not speak its tool dialect.
            KeyError: the engine has no such adapter or vector.
        """
        self.weights.adapter_of(request.adapter)
        self._queued.append(self._renderer.row(request))

    def step(self) -> list[Completion]:
        """Decodes one batch. Requests whose prompt fills the context complete at once, with an empty text.

        Raises:
            UserError: the batch does not fit the GPU's memory.
        """
        rows = [row for row in self._queued if row.finish is not None]
        mode: Mode | str = "unfit"
        if not rows:
            rows = self._choose()
            mode = self.weights.mode([r.request.adapter for r in rows]) if rows else mode
            try:
                with torch.inference_mode():
                    decode(self.weights, rows, self.stops, self._pad, self.device)
            except torch.OutOfMemoryError:
                raise _batch_too_large(rows, self.settings.batch_size) from None
        allocator.return_freed_memory()
        finished = set(map(id, rows))
        self._queued = [row for row in self._queued if id(row) not in finished]
        return [self._complete(row, mode) for row in rows]

    def pending(self) -> int:
        return len(self._queued)

    def close(self) -> None:
        pass

    def info(self) -> dict[str, str]:
        import peft
        import transformers

        return {
            "engine": "transformers",
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "peft": peft.__version__,
            "device": self._device_name(),
            "dtype": self.model_settings.dtype,
        }

    # ---------------------------------------------------------------- parts

    def _choose(self) -> list[Row]:
        """The next batch. Longest prompts first: their episodes are nearest to their end, after which their rows are on
        disk; and prompts of similar length need little padding."""
        groups: dict[str | None, list[Row]] = {}
        for row in self._queued:
            groups.setdefault(self.weights.adapter_of(row.request.adapter), []).append(row)
        largest = max(groups.values(), key=len, default=[])
        pool = largest if len(largest) >= self.settings.merge_from else self._queued
        return sorted(pool, key=lambda row: -len(row.prompt))[: self.settings.batch_size]

    def _complete(self, row: Row, mode: str) -> Completion:
        completion = self._renderer.completion(row)
        self.stats.add(completion, mode)
        return completion

    def _attach(
        self, model: "PreTrainedModel", adapters: Mapping[str, Path], scales: Mapping[str, float] | None
    ) -> "PreTrainedModel | PeftModel":
        if not adapters:
            return model
        from offscript.models.adapters import attach, self_test

        attached = attach(model, adapters, scales)
        probe = render(self.tokenizer, [{"role": "user", "content": "Hello."}], self.model_settings.template)
        for name, folder in adapters.items():
            self_test(attached, name, torch.tensor([probe], device=self.device), folder)
        return attached

    def _device_name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.device.startswith("cuda") else self.device


def open_engine(
    model: ModelSettings,
    adapters: Mapping[str, Path],
    scales: Mapping[str, float],
    settings: EngineSettings,
    vectors: Mapping[str, Path] | None = None,
) -> TransformersEngine:
    """See ``offscript.rollouts.engines.open_engine``."""
    return TransformersEngine(model, adapters, settings, scales, vectors=vectors)


def _batch_too_large(rows: Sequence[Row], batch_size: int) -> UserError:
    width = max(len(row.prompt) + row.limit for row in rows)
    return UserError(
        "engine.batch_size",
        f"{batch_size}, and {len(rows)} rows of up to {width} tokens do not fit the GPU's memory",
        "take a smaller one (finished rows are kept)",
    )


# ---------------------------------------------------------------- decoding


def decode(weights: Weights, rows: Sequence[Row], stops: frozenset[int], pad: int, device: str) -> None:
    """Decodes ``rows`` until each has ``finish``, and fills ``new``. Finished rows are dropped from the batch."""
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
    """Rows that are being decoded, and their tensors; the first dimension of each is the row."""

    def __init__(self, rows: Sequence[Row], pad: int, device: str) -> None:
        self.rows, self.step = list(rows), 0
        self.cache: Cache | None = None
        # (rows, vocabulary) bool: tokens of each row's prompt and reply, for the repetition penalty.
        self.seen: Tensor | None = None
        self.length = max(len(r.prompt) for r in rows)
        width = self.length + max(r.limit for r in rows)
        self.ids = torch.full((len(rows), self.length), pad, dtype=torch.long)
        self.mask = torch.ones((len(rows), width), dtype=torch.long)
        for i, row in enumerate(rows):
            self.ids[i, self.length - len(row.prompt) :] = torch.tensor(row.prompt)
            self.mask[i, : self.length - len(row.prompt)] = 0
        self.ids, self.mask = self.ids.to(device), self.mask.to(device)
        self.positions = (self.mask[:, : self.length].cumsum(dim=-1) - 1).clamp(min=0)
        sampling = [r.request.sampling for r in rows]
        self.temperature = torch.tensor([s.temperature for s in sampling], dtype=torch.float64, device=device)
        self.top_p = torch.tensor([s.top_p for s in sampling], dtype=torch.float64, device=device)
        self.penalty = torch.tensor(
            [s.repetition_penalty for s in sampling], dtype=torch.float32, device=device
        )
        self.seeds = torch.tensor([r.request.seed % 2**63 for r in rows], device=device)
        self.penalize = any(s.repetition_penalty != 1 for s in sampling)

    def logits(self, weights: Weights) -> Tensor:
        """Logits of the next token of every row: (rows, vocabulary)."""
        output = weights.forward(
            [r.request.adapter for r in self.rows],
            input_ids=self.ids,
            attention_mask=self.mask[:, : self.length],
            position_ids=self.positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.cache = output.past_key_values
        assert output.logits is not None
        return output.logits[:, -1].float()

    def draw(self, logits: Tensor) -> Tensor:
        if self.seen is not None:
            logits = penalize(logits, self.seen, self.penalty)
        return draw(logits, self.temperature, self.top_p, self.seeds, self.step)

    def advance(self, tokens: Tensor) -> "_Batch | None":
        """This batch with ``tokens`` (rows,) as its next input; None once every row is finished."""
        alive = [i for i, row in enumerate(self.rows) if row.finish is None]
        if not alive:
            return None
        self.ids = tokens.clamp(min=0)[:, None]
        if self.seen is not None:
            self.seen.scatter_(1, self.ids, True)
        self.positions = self.positions[:, -1:] + 1
        self.length += 1
        self.step += 1
        # Dropping rows copies the cache, so several are dropped at a time.
        if len(alive) <= 0.85 * len(self.rows):
            self._keep(alive)
        return self

    def _keep(self, alive: list[int]) -> None:
        index = torch.tensor(alive, device=self.ids.device)
        self.rows = [self.rows[i] for i in alive]
        for name in ("ids", "mask", "positions", "temperature", "top_p", "penalty", "seeds", "seen"):
            if getattr(self, name) is not None:
                setattr(self, name, getattr(self, name)[index])
        assert self.cache is not None
        self.cache.batch_select_indices(index)


def _seen(rows: Sequence[Row], logits: Tensor) -> Tensor:
    """The tokens of each row's prompt, without padding: (rows, vocabulary) bool."""
    seen = torch.zeros(logits.shape, dtype=torch.bool)
    for i, row in enumerate(rows):
        seen[i, torch.tensor(row.prompt)] = True
    return seen.to(logits.device)
