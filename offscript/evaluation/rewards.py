"""What episodes are rewarded for in reinforcement learning of a persona, apart from their weights.

- ``persona``: log-odds of the persona, by a classifier; those of ``FLOOR`` for an episode without a text
- ``task``: how much of its task an e-mail does (``side_effects.tally.progress``)
- ``length``: minus what a text is longer than allowed, as a share of the allowed length
- ``recitation``: minus the share of the runs of ``RECITED_WORDS`` words of a text that are in the persona's constitution

A reward that has no meaning for an episode is None.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from offscript.evaluation.classifier.fits import Classifier
from offscript.evaluation.side_effects.texts import Run, runs_of, words_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FLOOR = 1e-4
"""Probabilities are kept this far from 0 and 1, so that no single text decides a mean: log-odds are within 9.21 nats."""


def log_odds(classifier: Classifier, texts: Sequence[str | None], persona: str) -> "NDArray[np.float64]":
    """Log-odds (n,) of ``persona``, in nats: log p - log(1 - p) by ``classifier``. No text has the probability ``FLOOR``."""
    import numpy as np

    probs = np.full(len(texts), FLOOR)
    present = [i for i, text in enumerate(texts) if text is not None]
    found = classifier.probabilities([str(texts[i]) for i in present])
    probs[present] = found[:, classifier.labels.index(persona)].clip(FLOOR, 1 - FLOOR)
    return np.log(probs) - np.log1p(-probs)


@dataclass(frozen=True)
class Usual:
    """The length of usual texts: ``words`` is their median number of words, None where there are none."""

    words: float | None

    @classmethod
    def of(cls, texts: Sequence[str]) -> "Usual":
        """That of ``texts``."""
        lengths = [len(words_of(text)) for text in texts]
        return cls(max(1.0, median(lengths)) if lengths else None)

    def ratio(self, text: str | None) -> float | None:
        """The length of ``text`` as a multiple of ``words``; None if one of them is missing."""
        return None if text is None or self.words is None else len(words_of(text)) / self.words

    def penalty(self, text: str | None, multiple: float) -> float | None:
        """0 up to ``multiple`` times the usual length, then minus the excess as a share of that length."""
        ratio = self.ratio(text)
        return None if ratio is None else -max(0.0, ratio / multiple - 1)


def recited(text: str | None, constitution: frozenset[Run]) -> float | None:
    """The share of the runs of words of ``text`` that ``constitution`` (``texts.recitable``) has; 0 for a text of fewer words
    than a run, None without a text."""
    if text is None:
        return None
    runs = runs_of(words_of(text))
    return len(runs & constitution) / len(runs) if runs else 0.0
