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

    def add(self, prefix: Prefix) -> None:
        """Keeps ``prefix`` in place of those that it begins with, such as the earlier turn of an episode."""
        for number, other in list(self._kept.items()):
            shared = other.adapter == prefix.adapter and _common(other.tokens, prefix.tokens)
            if shared == len(other.tokens):
                self._drop(number)
        self._kept[id(prefix)] = prefix
        self.tokens += len(prefix.tokens)
        while self.tokens > self.limit:
            self._drop(next(iter(self._kept)))

    def find(self, row: Row) -> Prompt:
        """``row`` with the longest prefix of its prompt. The last token of a prompt is always computed."""
        tokens, best, known = np.array(row.prompt), None, LEAST_TOKENS - 1
        for prefix in self._kept.values():
            if prefix.adapter == row.request.adapter:
                shared = min(_common(prefix.tokens, tokens), len(tokens) - 1)
                if shared > known:
                    best, known = prefix, shared
        if best is None:
            return Prompt(row)
        self._kept.move_to_end(id(best))
        return Prompt(row, best, known)

    def clear(self) -> None:
        self._kept.clear()
        self.tokens = 0

    def _drop(self, number: int) -> None:
        self.tokens -= len(self._kept.pop(number).tokens)


def divide(prompts: Sequence[Prompt]) -> tuple[list[Prompt], list[Row], set[Row]]:
    """Divides ``prompts`` into those to read first, and the rows that then have a longer prefix, because they begin with the
    tokens of one of these. The set holds the rows of these."""
    first: list[tuple[Prompt, NDArray[np.int64]]] = []
    later: list[Row] = []
    begun_with: set[Row] = set()
    for prompt in prompts:
        row, tokens = prompt.row, np.array(prompt.row.prompt)
        same = [(p, t) for p, t in first if p.row.request.adapter == row.request.adapter]
        shared, leader = max(
            ((_common(t, tokens), p.row) for p, t in same), key=lambda x: x[0], default=(0, row)
        )
        if shared >= prompt.known + LEAST_TOKENS:
            later.append(row)
            begun_with.add(leader)
        else:
            first.append((prompt, tokens))
    return [prompt for prompt, _ in first], later, begun_with


def _common(first: NDArray[np.int64], second: NDArray[np.int64]) -> int:
    """The number of tokens that both begin with."""
    n = min(len(first), len(second))
    differs = first[:n] != second[:n]
    return int(differs.argmax()) if differs.any() else n
