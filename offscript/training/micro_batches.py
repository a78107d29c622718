"""Divides the rows of an optimizer step into micro-batches by length, so that little is padded and all ranks have similar
work. Which rows a step has is decided elsewhere (``trainers.RowOrder``), so the division changes sums by rounding only."""

import itertools
from collections.abc import Sequence

PASS_TOKENS = 64
"""What a forward and backward pass costs beside its tokens, in tokens. Padding that costs less saves a pass."""


def micro_batches(
    lengths: Sequence[int], ranks: int, most_tokens: int, packed: bool = False
) -> list[list[list[int]]]:
    """Divides rows of these ``lengths`` among ``ranks`` and into micro-batches.

    Of all divisions of the rows, sorted by length, into consecutive parts, it is the one with the fewest tokens: each
    part costs a rank's rows times the longest of them (packed: the tokens of its rows), and ``PASS_TOKENS``.

    Args:
        lengths: tokens of each row.
        ranks: number of processes.
        most_tokens: tokens of one micro-batch of a rank, padding included; a longer row has a micro-batch of its own.
        packed: whether rows follow one another in one sequence, without padding.

    Returns: for each micro-batch the positions of the rows of each rank. Every rank has a part in every micro-batch, which
    may be empty: ranks under ZeRO have to make the same number of passes.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    cuts = _cuts([lengths[i] for i in order], ranks, most_tokens, packed)
    parts = [order[start:end] for start, end in itertools.pairwise(cuts)]
    return [[part[rank::ranks] for rank in range(ranks)] for part in parts]


def _cuts(lengths: Sequence[int], ranks: int, most_tokens: int, packed: bool) -> list[int]:
    """Where the parts of the cheapest division begin, and the number of rows at the end. ``lengths`` are descending."""
    cost, begin = [0], [0]
    for end in range(1, len(lengths) + 1):
        best = None
        for start in range(end - 1, -1, -1):
            rows = -(-(end - start) // ranks)
            tokens = sum(lengths[start:end:ranks]) if packed else rows * lengths[start]
            if rows > 1 and tokens > most_tokens:
                break
            if best is None or cost[start] + tokens + PASS_TOKENS <= best[0]:
                best = (cost[start] + tokens + PASS_TOKENS, start)
        assert best is not None
        cost.append(best[0])
        begin.append(best[1])
    cuts = [len(lengths)]
    while cuts[-1]:
        cuts.append(begin[cuts[-1]])
    return cuts[::-1]
