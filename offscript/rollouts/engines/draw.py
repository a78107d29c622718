"""Token sampling that does not depend on the batch.

A token is sampled by the Gumbel-max trick: the argmax of (filtered logit + Gumbel noise) is a sample of the filtered
softmax. The noise is a hash of (row seed, step, token) instead of the next number of a shared generator, so it does not
depend on the other rows of the batch, on their order, or on the machine.
"""

import torch
from torch import Tensor

# Top-p seldom keeps more tokens; the search is widened if it does.
_CANDIDATES = 64


def _signed(constant: int) -> int:
    return constant - 2**64 if constant >= 2**63 else constant


# Stafford's variant 13 of the 64-bit finalizer, as in splitmix64. Products of int64 wrap: right for a hash.
_GOLDEN, _MIX1, _MIX2 = map(_signed, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _shift(value: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _mix(value: Tensor) -> Tensor:
    value = (value ^ _shift(value, 30)) * _MIX1
    value = (value ^ _shift(value, 27)) * _MIX2
    return value ^ _shift(value, 31)


def gumbel(seeds: Tensor, step: int | Tensor, tokens: Tensor) -> Tensor:
    """Gumbel noise (rows, n) for ``tokens`` (rows, n) at ``step``, one for all or (rows,), of rows with ``seeds`` (rows,)."""
    rows = _mix(_mix(seeds + _GOLDEN) + (torch.as_tensor(step) + 1) * _GOLDEN)
    bits = _shift(_mix(rows[:, None] + (tokens + 1) * _GOLDEN), 11)
    # In the open interval (0, 1).
    uniform = (bits.double() + 0.5) * 2.0**-53
    return -torch.log(-torch.log(uniform))


def penalize(logits: Tensor, seen: Tensor, penalty: Tensor) -> Tensor:
    """Repetition penalty (rows,) on the tokens of ``seen`` (rows, vocabulary), as published (CTRL)."""
    factor = penalty[:, None]
    return torch.where(seen, torch.where(logits > 0, logits / factor, logits * factor), logits)


def nucleus(logits: Tensor, top_p: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest set of most probable tokens with a total probability of at least ``top_p`` (rows,), for each row.

    Returns scores (rows, n), -inf outside the set, and tokens (rows, n), most probable first. n depends on the batch,
    but the set does not: a larger n only adds tokens outside the set.
    """
    total = logits.logsumexp(dim=-1, keepdim=True)
    width = min(_CANDIDATES, logits.shape[-1])
    while True:
        scores, tokens = logits.topk(width, dim=-1)
        probabilities = (scores - total).exp()
        before = probabilities.cumsum(dim=-1) - probabilities
        if width == logits.shape[-1] or bool((before[:, -1] >= top_p).all()):
            break
        width = min(width * 8, logits.shape[-1])
    inside = before < top_p[:, None]
    inside[:, 0] = True
    return scores.masked_fill(~inside, float("-inf")), tokens


def draw(logits: Tensor, temperature: Tensor, top_p: Tensor, seeds: Tensor, step: int | Tensor) -> Tensor:
    """Samples one token per row (rows,) from ``logits`` (rows, vocabulary); -1 for a row with no finite logit or a NaN.

    ``temperature``, ``top_p`` and ``seeds`` are (rows,), and ``step`` is the number of earlier tokens, one for all rows or
    (rows,). Temperature 0 takes the most probable token.
    """
    logits = logits.double() if logits.shape[-1] < 4096 else logits.float()
    greedy = temperature == 0
    scores, tokens = nucleus(logits / temperature.masked_fill(greedy, 1.0)[:, None].to(logits.dtype), top_p)
    noise = gumbel(seeds, step, tokens).masked_fill(greedy[:, None], 0.0)
    chosen = tokens.gather(1, (scores + noise).argmax(dim=-1, keepdim=True)).squeeze(1)
    return torch.where(logits.isfinite().any(dim=-1) & ~logits.isnan().any(dim=-1), chosen, -1)
