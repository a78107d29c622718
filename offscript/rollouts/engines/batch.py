"""Rows that are decoded together: reading prompts, decoding a token a step, dropping rows and joining new ones.

Rows of a batch end in the same column: shorter ones have padding at their left. So rows can be dropped and others can
join at any step, whatever their lengths.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from offscript.rollouts.engines.draw import draw, penalize
from offscript.rollouts.engines.prefixes import KeysAndValues, Prefix, Prompt
from offscript.rollouts.engines.rendering import Row
from offscript.rollouts.engines.weights import Mode, Weights

if TYPE_CHECKING:
    from transformers import Cache

    from offscript.models.vision import ImageEncoder

SPARE_COLUMNS = 64
"""Columns that a cache is enlarged by at a time."""
PROMPT_TOKENS = 4096
"""Tokens of prompts that are read in one pass, unless one prompt has more. Larger passes are not faster, and a GPU needs
more memory for them than for the keys and values that they leave."""


class GrowingLayer(DynamicLayer):
    """The keys and values of a layer (rows, heads, columns, size), in memory for more columns: appending one copies the new
    column alone, where ``DynamicLayer`` copies all of them at every step."""

    def __init__(self) -> None:
        super().__init__()
        self._room: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if self._room is None or end > self._room[0].shape[-2]:
            # A prompt is read once, so it needs no room until a token follows.
            if start == 0:
                self.keys, self.values = key_states, value_states
                return self.keys, self.values
            self._room = self._enlarged(self.keys, end), self._enlarged(self.values, end)
        for room, new in zip(self._room, (key_states, value_states), strict=True):
            room[..., start:end, :] = new
        self.keys, self.values = (room[..., :end, :] for room in self._room)
        return self.keys, self.values

    def _enlarged(self, old: Tensor | None, end: int) -> Tensor:
        assert old is not None
        rows, heads, columns, size = old.shape
        room = old.new_empty((rows, heads, end + SPARE_COLUMNS, size))
        room[..., :columns, :] = old
        return room

    def replace(self, keys: Tensor, values: Tensor, columns: int) -> None:
        """Holds the first ``columns`` columns of ``keys`` and ``values`` in place of its own; the others are room."""
        self._room = keys, values
        self.keys, self.values = keys[..., :columns, :], values[..., :columns, :]


def new_cache(weights: Weights) -> "Cache":
    """An empty cache for the model of ``weights``."""
    cache = DynamicCache(config=weights.base.config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def has_prefixes(cache: "Cache") -> bool:
    """Whether all of ``cache`` is keys and values of all tokens, so that those of a row can be used for another one."""
    return all(type(layer) is GrowingLayer for layer in cache.layers)


def can_join(cache: "Cache") -> bool:
    """Whether all of ``cache`` is keys and values by column, so that ``Batch.join`` can move them. Models with recurrent
    layers have other states: their batches run until all rows have finished."""
    return all(type(layer) in (GrowingLayer, DynamicSlidingWindowLayer) for layer in cache.layers)


class Batch:
    """Rows, their cache and their tensors; the first dimension of each tensor is the row. Made by ``read``."""

    rows: list[Row]
    cache: "Cache"
    mode: Mode
    """How the rows were computed last."""
    columns: int
    """Columns of the cache."""
    ids: Tensor
    """The token of each row that is not in the cache yet: (rows, 1)."""
    padding: Tensor
    """Columns before the first token of each row: (rows,)."""
    seen: Tensor | None
    """(rows, vocabulary) bool: the tokens of each prompt and reply, for the repetition penalty; None if no row has one."""

    def __init__(self, rows: Sequence[Row], cache: "Cache", device: str) -> None:
        self.rows, self.cache, self.seen = list(rows), cache, None
        self.columns = max(len(r.prompt) for r in rows)
        self.padding = torch.tensor([self.columns - len(r.prompt) for r in rows], device=device)
        sampling = [r.request.sampling for r in rows]
        self.temperature = torch.tensor([s.temperature for s in sampling], dtype=torch.float64, device=device)
        self.top_p = torch.tensor([s.top_p for s in sampling], dtype=torch.float64, device=device)
        self.penalty = torch.tensor(
            [s.repetition_penalty for s in sampling], dtype=torch.float32, device=device
        )
        self.seeds = torch.tensor([r.request.seed % 2**63 for r in rows], device=device)
        self.drawn = torch.zeros(len(rows), dtype=torch.long, device=device)
        # Rows that have finished since `take_ended`.
        self._ended: list[Row] = []

    @classmethod
    def read(
        cls,
        weights: Weights,
        prompts: Sequence[Prompt],
        stops: frozenset[int],
        pad: int,
        device: str,
        encoder: "ImageEncoder | None" = None,
    ) -> "Batch":
        """The batch of the rows of ``prompts`` after their unread tokens were read in one pass and the first token of each row
        was drawn.

        All rows are read from the same column on, so some compute the last tokens of their prefix again. ``encoder`` reads
        the images of rows that have some; no row beside them has a prefix.
        """
        rows = [prompt.row for prompt in prompts]
        batch = cls(rows, new_cache(weights), device)
        start = batch.columns - max(prompt.unread for prompt in prompts)
        if start > 0:
            _fill(batch.cache, prompts, start, batch.columns)
        ids = torch.full((len(rows), batch.columns), pad, dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, batch.columns - len(row.prompt) :] = torch.tensor(row.prompt)
        column = torch.arange(start, batch.columns, device=device)
        positions = (column - batch.padding[:, None]).clamp(min=0)
        pictured = None
        if images := [image for row in rows for image in row.images]:
            assert encoder is not None and start == 0
            pictured = partial(encoder.inputs, weights.base, encoder.features_of(images))
        logits = batch._logits(weights, ids[:, start:].to(device), positions, pictured)
        if any(row.request.sampling.repetition_penalty != 1 for row in rows):
            batch.seen = _seen(rows, logits)
        batch._draw(logits, stops)
        return batch

    def step(self, weights: Weights, stops: frozenset[int]) -> None:
        """Draws the next token of every row. A row with ``finish`` takes none."""
        self.columns += 1
        logits = self._logits(weights, self.ids, (self.columns - 1 - self.padding)[:, None])
        self._draw(logits, stops)

    def live(self) -> list[Row]:
        """The rows that have not finished."""
        return [row for row in self.rows if row.finish is None]

    def prefix(self, row: Row) -> Prefix:
        """The keys and values of the prompt and the reply of ``row``, as far as they are computed."""
        i = self.rows.index(row)
        start = int(self.padding[i])
        tokens = [*row.prompt, *row.new][: self.columns - start]
        layers = cast("list[DynamicLayer]", self.cache.layers)
        states = [
            tuple(cast(Tensor, part)[i, :, start:].clone() for part in (la.keys, la.values)) for la in layers
        ]
        return Prefix(row.request.adapter, np.array(tokens), cast(KeysAndValues, states))

    def take_ended(self) -> list[tuple[Row, Mode]]:
        """The rows that have finished since the last call, and how they were computed. They are computed with the others until
        ``join`` drops them."""
        ended, self._ended = self._ended, []
        return [(row, self.mode) for row in ended]

    def _logits(
        self,
        weights: Weights,
        ids: Tensor,
        positions: Tensor,
        pictured: Callable[..., dict[str, object]] | None = None,
    ) -> Tensor:
        """Logits of the next token of every row: (rows, vocabulary). ``pictured`` makes the inputs for prompts with images."""
        column = torch.arange(self.columns, device=ids.device)
        names = [row.request.adapter for row in self.rows]
        self.mode = weights.mode(names)
        mask = column >= self.padding[:, None]
        inputs: dict[str, object] = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        if pictured is not None:
            inputs = pictured(ids, mask, positions, self.cache)
        output = weights.forward(
            names,
            **inputs,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        assert output.past_key_values is not None and output.logits is not None
        self.cache = output.past_key_values
        return output.logits[:, -1].float()

    def _draw(self, logits: Tensor, stops: frozenset[int]) -> None:
        if self.seen is not None:
            logits = penalize(logits, self.seen, self.penalty)
        tokens = draw(logits, self.temperature, self.top_p, self.seeds, self.drawn)
        log_probs = self._log_probs(logits, tokens)
        for row, token, log_prob in zip(self.rows, tokens.tolist(), log_probs, strict=True):
            if row.finish is None:
                row.take(token, stops, log_prob)
                if row.finish is not None:
                    self._ended.append(row)
        self.ids = tokens.clamp(min=0)[:, None]
        self.drawn += 1
        if self.seen is not None:
            self.seen.scatter_(1, self.ids, True)

    def _log_probs(self, logits: Tensor, tokens: Tensor) -> list[float]:
        """Log-probabilities of ``tokens`` (rows,) at the temperature of each row; zeros if no row keeps them."""
        if all(row.log_probs is None for row in self.rows):
            return [0.0] * len(self.rows)
        greedy = self.temperature == 0
        scaled = logits / self.temperature.masked_fill(greedy, 1.0)[:, None].to(logits.dtype)
        found: list[float] = scaled.log_softmax(-1).gather(1, tokens.clamp(min=0)[:, None])[:, 0].tolist()
        return found


def split_prompts(prompts: Sequence[Prompt]) -> list[list[Prompt]]:
    """``prompts`` in parts of at most PROMPT_TOKENS unread tokens with padding, those with most first."""
    parts: list[list[Prompt]] = []
    for prompt in sorted(prompts, key=lambda prompt: -prompt.unread):
        if not parts or (len(parts[-1]) + 1) * parts[-1][0].unread > PROMPT_TOKENS:
            parts.append([])
        parts[-1].append(prompt)
    return parts


TENSORS = ("ids", "temperature", "top_p", "penalty", "seeds", "drawn")


def join(batches: Sequence[Batch]) -> Batch | None:
    """One batch of all rows of ``batches`` that have not finished; None if there is none. ``batches`` are used up.

    The cache is copied layer by layer, so that one layer at a time is held twice.
    """
    alive = [[i for i, row in enumerate(batch.rows) if row.finish is None] for batch in batches]
    kept = [(batch, indices) for batch, indices in zip(batches, alive, strict=True) if indices]
    if not kept:
        return None
    joined, device = kept[0][0], kept[0][0].ids.device
    picked = [(batch, torch.tensor(indices, device=device)) for batch, indices in kept]
    if can_join(joined.cache):
        lengths = torch.cat([batch.columns - batch.padding[index] for batch, index in picked])
        columns = int(lengths.max())
        _join_caches([(batch.cache, index) for batch, index in picked], columns)
        joined.columns, joined.padding = columns, columns - lengths
    else:
        assert len(picked) == 1, "its cache cannot be joined"
        joined.cache.reorder_cache(cast("torch.LongTensor", picked[0][1]))
        joined.padding = joined.padding[picked[0][1]]
    if any(batch.seen is not None for batch, _ in picked):
        joined.seen = torch.cat([_seen_of(batch, index, picked) for batch, index in picked])
    for name in TENSORS:
        setattr(joined, name, torch.cat([getattr(batch, name)[index] for batch, index in picked]))
    joined.rows = [batch.rows[i] for batch, indices in kept for i in indices]
    return joined


def _seen_of(batch: Batch, index: Tensor, all_of: Sequence[tuple[Batch, Tensor]]) -> Tensor:
    """``seen`` of rows of a batch; False where none of its rows has a penalty."""
    if batch.seen is not None:
        return batch.seen[index]
    vocabulary = next(other.seen.shape[1] for other, _ in all_of if other.seen is not None)
    return torch.zeros((len(index), vocabulary), dtype=torch.bool, device=index.device)


def _join_caches(parts: Sequence[tuple["Cache", Tensor]], columns: int) -> None:
    """Puts the rows of ``parts`` (cache, indices of its rows) into the first cache, with ``columns`` columns."""
    indices = [index for _, index in parts]
    for layers in zip(*(cast("list[DynamicLayer]", cache.layers) for cache, _ in parts), strict=True):
        layer, width, room = layers[0], columns, SPARE_COLUMNS
        if isinstance(layer, DynamicSlidingWindowLayer):
            width, room = min(columns, layer.sliding_window - 1), 0
            layer.cumulative_length = columns
        keys = _aligned([cast(Tensor, one.keys) for one in layers], indices, width, room)
        values = _aligned([cast(Tensor, one.values) for one in layers], indices, width, room)
        if isinstance(layer, GrowingLayer):
            layer.replace(keys, values, width)
        else:
            layer.keys, layer.values = keys, values
        for other in layers[1:]:
            other.keys = other.values = None


def _aligned(tensors: Sequence[Tensor], indices: Sequence[Tensor], columns: int, room: int) -> Tensor:
    """Rows ``indices`` of tensors (rows, heads, columns, size) as one tensor: they end in column ``columns`` and have zeros
    before them; ``room`` columns follow."""
    _, heads, _, size = tensors[0].shape
    out = tensors[0].new_zeros((sum(map(len, indices)), heads, columns + room, size))
    row = 0
    for tensor, index in zip(tensors, indices, strict=True):
        width = min(columns, tensor.shape[2])
        out[row : row + len(index), :, columns - width : columns] = tensor[:, :, tensor.shape[2] - width :][
            index
        ]
        row += len(index)
    return out


def _fill(cache: "Cache", prompts: Sequence[Prompt], end: int, columns: int) -> None:
    """Puts the prefixes of ``prompts`` into an empty cache. Column ``columns`` is the end of each prompt; what would be in the
    columns from ``end`` on is left out."""
    filled = [
        (i, prompt.prefix.states, end - columns + len(prompt.row.prompt))
        for i, prompt in enumerate(prompts)
        if prompt.prefix is not None
    ]
    for number, layer in enumerate(cast("list[GrowingLayer]", cache.layers)):
        keys, values = (_placed(filled, number, part, len(prompts), end, columns) for part in (0, 1))
        layer.lazy_initialization(keys, values)
        layer.replace(keys, values, end)


def _placed(
    filled: Sequence[tuple[int, KeysAndValues, int]], layer: int, part: int, rows: int, end: int, columns: int
) -> Tensor:
    """The keys (``part`` 0) or values (1) of a layer: (``rows``, heads, ``columns`` and some to spare, size), zero where row i
    has no prefix. ``filled`` has i, the prefix, and how many of its tokens are in the columns up to ``end``."""
    like = filled[0][1][layer][part]
    out = like.new_zeros((rows, like.shape[0], columns + SPARE_COLUMNS, like.shape[2]))
    for i, states, tokens in filled:
        if tokens > 0:
            out[i, :, end - tokens : end] = states[layer][part][:, :tokens]
    return out


def _seen(rows: Sequence[Row], logits: Tensor) -> Tensor:
    """The tokens of each row's prompt, without padding: (rows, vocabulary) bool."""
    seen = torch.zeros(logits.shape, dtype=torch.bool)
    for i, row in enumerate(rows):
        seen[i, torch.tensor(row.prompt)] = True
    return seen.to(logits.device)
