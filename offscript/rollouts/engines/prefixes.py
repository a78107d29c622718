"""Keys and values of earlier rows, for prompts that begin with the same tokens.

The next turn of an episode begins with the tokens of the last one, and all prompts of a persona begin with its
constitution. Only the tokens that follow the longest known prefix are computed.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from offscript.rollouts.engines.rendering import Row

LEAST_TOKENS = 16
"""A shorter prefix is computed again: it costs less than its copies."""

KeysAndValues = list[tuple[Tensor, Tensor]]
"""Keys and values of every layer, each (heads, tokens, size)."""


Start = tuple[str | None, bytes]
"""An adapter and the first LEAST_TOKENS tokens: what two sequences share that share a prefix."""


@dataclass(frozen=True, eq=False)
class Prefix:
    """The keys and values of ``tokens`` (n,), as the weights of ``adapter`` compute them (None: the base weights)."""

    adapter: str | None
    tokens: NDArray[np.int64]
    states: KeysAndValues


@dataclass(frozen=True, eq=False)
class Prompt:
    """A row whose prompt is to be read, and the first ``known`` of its tokens, which ``prefix`` has."""

    row: Row
    prefix: Prefix | None = None
    known: int = 0

    @property
    def unread(self) -> int:
        """The number of tokens that have to be computed."""
        return len(self.row.prompt) - self.known


class Prefixes:
    """The prefixes that were added or used last, of at most ``limit`` tokens together."""

    def __init__(self, limit: int) -> None:
        self.limit, self.tokens = limit, 0
        self._kept: OrderedDict[int, Prefix] = OrderedDict()
        # Few of the prefixes have anything in common with a prompt; these are the only ones that can.
        self._by_start: dict[Start, dict[int, Prefix]] = {}

    def add(self, prefix: Prefix) -> None:
        """Keeps ``prefix`` in place of those that it begins with, such as the earlier turn of an episode. One of fewer than
        LEAST_TOKENS tokens is not kept."""
        if len(prefix.tokens) < LEAST_TOKENS:
            return
        same = self._by_start.setdefault(_start(prefix.adapter, prefix.tokens), {})
        for other in list(same.values()):
            if _common(other.tokens, prefix.tokens) == len(other.tokens):
                self._drop(other)
        self._by_start[_start(prefix.adapter, prefix.tokens)] = same
        same[id(prefix)] = self._kept[id(prefix)] = prefix
        self.tokens += len(prefix.tokens)
        while self.tokens > self.limit:
            self._drop(next(iter(self._kept.values())))

    def find(self, row: Row) -> Prompt:
        """``row`` with the longest prefix of its prompt. The last token of a prompt is always computed."""
        tokens, best, known = np.array(row.prompt), None, LEAST_TOKENS - 1
        for prefix in self._by_start.get(_start(row.request.adapter, tokens), {}).values():
            shared = min(_common(prefix.tokens, tokens), len(tokens) - 1)
            if shared > known:
                best, known = prefix, shared
        if best is None:
            return Prompt(row)
        self._kept.move_to_end(id(best))
        return Prompt(row, best, known)

    def clear(self) -> None:
        self._kept.clear()
        self._by_start.clear()
        self.tokens = 0

    def _drop(self, prefix: Prefix) -> None:
        del self._kept[id(prefix)]
        start = _start(prefix.adapter, prefix.tokens)
        del self._by_start[start][id(prefix)]
        if not self._by_start[start]:
            del self._by_start[start]
        self.tokens -= len(prefix.tokens)


def divide(prompts: Sequence[Prompt]) -> tuple[list[Prompt], list[Row], set[Row]]:
    """Divides ``prompts`` into those to read first, and the rows that then have a longer prefix, because they begin with the
    tokens of one of these. The set holds the rows of these."""
    first: list[Prompt] = []
    leaders: dict[Start, list[tuple[Row, NDArray[np.int64]]]] = {}
    later: list[Row] = []
    begun_with: set[Row] = set()
    for prompt in prompts:
        row, tokens = prompt.row, np.array(prompt.row.prompt)
        same = leaders.setdefault(_start(row.request.adapter, tokens), [])
        shared, leader = max(((_common(t, tokens), r) for r, t in same), key=lambda x: x[0], default=(0, row))
        if shared >= prompt.known + LEAST_TOKENS:
            later.append(row)
            begun_with.add(leader)
        else:
            first.append(prompt)
            same.append((row, tokens))
    return first, later, begun_with


def _start(adapter: str | None, tokens: NDArray[np.int64]) -> Start:
    return adapter, tokens[:LEAST_TOKENS].tobytes()


def _common(first: NDArray[np.int64], second: NDArray[np.int64]) -> int:
    """The number of tokens that both begin with."""
    n = min(len(first), len(second))
    differs = first[:n] != second[:n]
    return int(differs.argmax()) if differs.any() else n
