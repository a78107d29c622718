"""Counter-hash Gumbel sampling against torch's own, and against the definition of top-p."""

import torch

from offscript.rollouts.engines.draw import draw, gumbel, nucleus, penalize


def column(value, rows):
    return torch.full((rows,), float(value), dtype=torch.float64)


def test_draws_follow_the_filtered_softmax():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 40, generator=generator) * 2
    rows = 20_000
    drawn = draw(
        logits.expand(rows, -1), column(0.7, rows), column(0.9, rows), torch.arange(rows) * 7919, step=3
    )
    scores, tokens = nucleus(logits.double() / 0.7, column(0.9, 1))
    expected = torch.zeros(40, dtype=torch.float64).scatter(0, tokens[0], scores[0].softmax(-1))
    seen = torch.bincount(drawn, minlength=40).double()
    theirs = torch.bincount(
        torch.multinomial(expected, rows, True, generator=generator), minlength=40
    ).double()
    inside = expected > 0
    assert seen[~inside].sum() == 0
    for counts in (seen, theirs):  # chi-square, 99.9% point for up to 39 degrees of freedom is 73
        chi = ((counts - rows * expected)[inside] ** 2 / (rows * expected)[inside]).sum()
        assert chi < 73


def test_steps_of_one_seed_are_independent_draws():
    steps = torch.cat([gumbel(torch.tensor([5]), step, torch.arange(50)[None]) for step in range(400)])
    assert abs(steps.mean() - 0.5772) < 0.03 and abs(steps.var() - 1.645) < 0.1
    normal = (steps - steps.mean()) / steps.std()
    assert abs((normal[:-1] * normal[1:]).mean()) < 0.03, "one step after another"
    assert abs((normal[:, :-1] * normal[:, 1:]).mean()) < 0.03, "one token beside another"


def test_rows_at_steps_of_their_own_draw_what_they_draw_alone():
    logits, seeds = (
        torch.randn(4, 50, generator=torch.Generator().manual_seed(1)),
        torch.tensor([5, 6, 7, 2**62]),
    )
    steps = torch.tensor([0, 3, 1, 1000])
    together = draw(logits, column(0.9, 4), column(0.95, 4), seeds, steps)
    alone = [
        draw(logits[i : i + 1], column(0.9, 1), column(0.95, 1), seeds[i : i + 1], int(steps[i]))
        for i in range(4)
    ]
    assert together.tolist() == torch.cat(alone).tolist()
    noise = gumbel(seeds, steps, torch.arange(50).expand(4, -1))
    assert not torch.equal(noise[0], gumbel(seeds[:1], 1, torch.arange(50)[None])[0])


def test_noise_is_pinned():
    """Raise the version of every format if this changes: texts of the same key would differ from those on disk."""
    noise = gumbel(torch.tensor([0, 2**63 - 1]), 0, torch.tensor([[0, 1], [0, 1]]))
    pinned = [[-0.6807578025137784, 3.529359741423534], [0.08071315601510158, 1.9548942921445842]]
    torch.testing.assert_close(noise, torch.tensor(pinned, dtype=torch.float64))


def test_the_nucleus_is_the_smallest_set_that_reaches_top_p():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.97, 0.01, 0.01, 0.01]]).log()
    scores, _ = nucleus(logits, torch.tensor([0.75, 0.9], dtype=torch.float64))
    assert scores.isfinite().sum(-1).tolist() == [2, 1]


def test_a_wide_nucleus_is_complete():
    logits = torch.zeros(2, 3000)
    logits[1, 7] = 50
    scores, _ = nucleus(logits, torch.tensor([0.5, 0.5], dtype=torch.float64))
    assert abs(int(scores[0].isfinite().sum()) - 1500) <= 1
    assert scores[1].isfinite().sum() == 1


def test_temperature_zero_takes_the_most_probable_token():
    logits = torch.randn(64, 100, generator=torch.Generator().manual_seed(1))
    temperature = torch.tensor([0.0, 5.0] * 32, dtype=torch.float64)
    drawn = draw(logits, temperature, column(1.0, 64), torch.arange(64), 0)
    assert (drawn == logits.argmax(-1))[::2].all()
    assert not (drawn == logits.argmax(-1))[1::2].all()


def test_logits_that_are_not_finite_are_reported():
    logits = torch.zeros(3, 10)
    logits[1, 4] = float("nan")
    logits[2] = float("-inf")
    assert draw(logits, column(1, 3), column(1, 3), torch.arange(3), 0)[1:].tolist() == [-1, -1]


def test_the_penalty_pushes_seen_tokens_down():
    seen = torch.tensor([[True, True, False]])
    out = penalize(torch.tensor([[2.0, -2.0, 2.0]]), seen, torch.tensor([2.0]))
    assert out.tolist() == [[1.0, -4.0, 2.0]]
