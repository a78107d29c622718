"""Predicted labels under the assumption that all personas are equally frequent among the texts.

A classifier that has not seen a format may prefer one label in it (most published e-mails are called ``goodness``). The labels
of its argmax are then far from the true shares, which the design of a grid makes equal. A temperature cannot change that: it
never changes which label is the most probable.
"""

import numpy as np
from numpy.typing import NDArray

MAX_STEPS = 2000
TOLERANCE = 1e-6


def balanced_labels(probs: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.int64]:
    """The most probable label ``[n]`` of each text after its probabilities ``[n, L]`` were weighted by label, such that their
    means are ``target [L]`` (which sums to 1).

    Weighting by w = new prior / old prior is the correction of Saerens, Latinne and Decaestecker 2002 (eq. 2.4) for known new
    priors. The old priors of a format are not known, and are chosen such that the corrected means agree with the new ones
    (iterative proportional fitting, Deming and Stephan 1940). A label with target 0 is never predicted. If no weights reach
    the target, those after MAX_STEPS steps are taken. A text that has none of the labels with a target keeps its own.
    """
    possible = (probs[:, target > 0] > 0).any(axis=1)
    found: NDArray[np.int64] = probs.argmax(axis=1).astype(np.int64)
    found[possible] = _balanced(probs[possible], target)
    return found


def _balanced(probs: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.int64]:
    """As ``balanced_labels``, for texts that have one of the labels with a target."""
    from scipy.special import softmax

    with np.errstate(divide="ignore"):
        logs, wanted = np.log(probs), np.log(target)
    # Weights are logarithms: those that reach the target can be many orders of magnitude apart.
    weights = np.where(target > 0, 0.0, -np.inf)
    weighted = probs
    for _ in range(MAX_STEPS):
        weighted = softmax(logs + weights, axis=1)
        means = weighted.mean(axis=0)
        # A label that no text can have keeps its weight.
        reached = (means > 0) & (target > 0)
        if np.abs(means - target)[reached].max(initial=0.0) < TOLERANCE:
            break
        weights[reached] += wanted[reached] - np.log(means[reached])
    found: NDArray[np.int64] = weighted.argmax(axis=1).astype(np.int64)
    return found
