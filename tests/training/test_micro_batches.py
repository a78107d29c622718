"""The division of an optimizer step into micro-batches."""

import itertools
import random

from offscript.training.micro_batches import PASS_TOKENS, micro_batches


def cost(parts, lengths) -> int:
    """Tokens of the passes of the busiest rank, and of the passes themselves."""
    return sum(PASS_TOKENS + max(padded(rows, lengths) for rows in part) for part in parts)


def padded(rows, lengths) -> int:
    return len(rows) * max((lengths[i] for i in rows), default=0)


def divisions(lengths, ranks):
    """Every division of the rows, sorted by length, into consecutive parts."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for count in range(len(order)):
        for cuts in itertools.combinations(range(1, len(order)), count):
            bounds = itertools.pairwise((0, *cuts, len(order)))
            yield [[order[a:b][rank::ranks] for rank in range(ranks)] for a, b in bounds]


def test_every_row_is_in_one_part_and_no_division_is_cheaper():
    draw = random.Random(0)
    for ranks, _ in itertools.product((1, 2, 3), range(10)):
        lengths = [draw.randint(20, 400) for _ in range(draw.randint(1, 9))]
        parts = micro_batches(lengths, ranks, 800)
        assert sorted(i for part in parts for rows in part for i in rows) == list(range(len(lengths)))
        assert {len(part) for part in parts} == {ranks}
        allowed = [
            found
            for found in divisions(lengths, ranks)
            if all(len(rows) == 1 or padded(rows, lengths) <= 800 for part in found for rows in part)
        ]
        assert cost(parts, lengths) == min(cost(found, lengths) for found in allowed)


def test_packed_rows_need_no_padding():
    lengths = [300, 10, 20, 30, 40]
    assert len(micro_batches(lengths, 1, 400, packed=True)) == 1
    assert len(micro_batches(lengths, 1, 400)) == 2


def test_a_row_that_is_longer_than_allowed_has_a_part_of_its_own():
    assert micro_batches([50, 900, 60], 1, 100) == [[[1]], [[2]], [[0]]]


def test_ranks_have_rows_of_similar_length_and_the_same_number_of_passes():
    assert micro_batches([10, 400, 30, 410, 20], 2, 1000) == [[[3], [1]], [[2, 0], [4]]]
    # One rank waits with a padding row.
    assert micro_batches([100], 2, 1000) == [[[0], []]]
