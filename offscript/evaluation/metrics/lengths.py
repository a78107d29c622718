"""Macro-F1 at equal lengths: does a format lose the persona, or are its texts only shorter or longer than those of chat?

The texts of one format are weighted so that their lengths are distributed as in the other: each by (share of the other
format's texts in its length bin) / (share of its own), as in the reweighting of DiNardo, Fortin and Lemieux (1996, "Labor
market institutions and the distribution of wages"), with bins in place of a model. Bins are tenths of the texts of both formats.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offscript.evaluation.metrics.results import GroupScore, Scores
from offscript.evaluation.order import is_in_distribution
from offscript.evaluation.predictions import Prediction

BINS = 10
MIN_IN_BIN = 5
"""A bin counts if both formats have so many texts in it."""
MIN_COMMON = 0.5
"""The least share of the texts of the format that is matched to, in bins that count."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Matched:
    """Macro-F1 of two formats at the lengths of one of them, the ``reference``.

    ``weighted`` is that of the other. ``common`` is the share of the reference's texts in bins that count; the others are
    left out. ``effective`` is the number of equally weighted texts with the same variance as the weighted ones,
    (sum w)^2 / sum w^2 (Kish 1965).
    """

    reference: float
    weighted: float
    common: float
    effective: float


@dataclass(frozen=True)
class LengthMatch:
    """Chat and one format of a stage, whose texts of all training seeds are taken together.

    ``chat_words`` and ``words`` are medians. ``at_chat`` is at the lengths of chat texts, ``at_format`` at those of the
    format; ``why_not`` is the reason where one of them is None.
    """

    model: str
    stage: str
    format: str
    chat_words: float | None
    words: float | None
    chat: float | None
    score: float | None
    at_chat: Matched | None
    at_format: Matched | None
    why_not: str | None

    @property
    def gap_at_chat(self) -> float | None:
        return None if self.at_chat is None else self.at_chat.reference - self.at_chat.weighted

    @property
    def gap_at_format(self) -> float | None:
        return None if self.at_format is None else self.at_format.weighted - self.at_format.reference


@dataclass(frozen=True, eq=False)
class Texts:
    """Length in words, true persona and predicted persona of n texts, ``[n]``; -1 is a prediction outside the label set."""

    words: NDArray[np.int64]
    true: NDArray[np.int64]
    predicted: NDArray[np.int64]


def match_lengths(scores: Scores, predictions: Sequence[Prediction]) -> list[LengthMatch]:
    """Every format of a stage against chat of that stage; base texts are left out.

    Args:
        predictions: those that were scored, with their texts.
    """
    groups = [g for model in dict.fromkeys(g.model for g in scores.groups) for g in scores.main_groups(model)]
    shown = [g for g in groups if not g.is_base]
    rows: dict[tuple[str, str, str], list[Prediction]] = {(g.model, g.stage, g.format): [] for g in shown}
    for p in predictions:
        if (p.model, p.stage, p.format) in rows and p.predicted is not None and p.persona in scores.labels:
            rows[p.model, p.stage, p.format].append(p)
    texts = {place: _texts(members, scores.labels) for place, members in rows.items()}
    chats: dict[tuple[str, str], GroupScore] = {}
    for g in shown:
        if is_in_distribution(g.format):
            chats.setdefault((g.model, g.stage), g)
    return [
        _match(
            g,
            texts[chat.model, chat.stage, chat.format],
            texts[g.model, g.stage, g.format],
            len(scores.labels),
        )
        for g in shown
        if not is_in_distribution(g.format) and (chat := chats.get((g.model, g.stage))) is not None
    ]


def _texts(predictions: Sequence[Prediction], labels: Sequence[str]) -> Texts | None:
    """None if the rows do not hold all texts."""
    if any(p.text is None for p in predictions):
        return None
    index = {label: i for i, label in enumerate(labels)}
    return Texts(
        words=np.array([len((p.text or "").split()) for p in predictions], dtype=np.int64),
        true=np.array([index[p.persona or ""] for p in predictions], dtype=np.int64),
        predicted=np.array([index.get(p.predicted or "", -1) for p in predictions], dtype=np.int64),
    )


def _match(group: GroupScore, chat: Texts | None, other: Texts | None, n_labels: int) -> LengthMatch:
    names = (group.model, group.stage, group.format)
    if chat is None or other is None:
        return LengthMatch(*names, None, None, None, None, None, None, "the rows do not hold the texts")
    if not len(chat.words) or not len(other.words):
        return LengthMatch(*names, None, None, None, None, None, None, "no texts")
    in_chat, in_other = _bins(chat, other)
    in_both = np.minimum(np.bincount(in_chat, minlength=BINS), np.bincount(in_other, minlength=BINS))
    counts = in_both >= MIN_IN_BIN
    at_chat = _reweighted(other, in_other, chat, in_chat, counts, n_labels)
    at_format = _reweighted(chat, in_chat, other, in_other, counts, n_labels)
    return LengthMatch(
        *names,
        chat_words=float(np.median(chat.words)),
        words=float(np.median(other.words)),
        chat=weighted_f1(chat, np.ones(len(chat.words)), n_labels),
        score=weighted_f1(other, np.ones(len(other.words)), n_labels),
        at_chat=at_chat,
        at_format=at_format,
        why_not=None if at_chat and at_format else "lengths do not overlap",
    )


def _bins(first: Texts, second: Texts) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The length bin 0..BINS-1 of each text of the two."""
    edges = np.quantile(np.concatenate([first.words, second.words]), np.linspace(0, 1, BINS + 1)[1:-1])
    return np.searchsorted(edges, first.words), np.searchsorted(edges, second.words)


def _reweighted(
    source: Texts,
    in_source: NDArray[np.int64],
    target: Texts,
    in_target: NDArray[np.int64],
    counts: NDArray[np.bool_],
    n_labels: int,
) -> Matched | None:
    """None if fewer than MIN_COMMON of the target's texts are in bins that count.

    Args:
        in_source, in_target: the bin of each text.
        counts: whether a bin counts ``[BINS]``.
    """
    kept = counts[in_target]
    if kept.mean() < MIN_COMMON:
        return None
    wanted, held = (np.bincount(bins, minlength=BINS) for bins in (in_target, in_source))
    weights = np.where(counts, wanted / np.maximum(held, 1), 0.0)[in_source]
    return Matched(
        reference=weighted_f1(target, kept.astype(float), n_labels),
        weighted=weighted_f1(source, weights, n_labels),
        common=float(kept.mean()),
        effective=float(weights.sum() ** 2 / (weights**2).sum()),
    )


def weighted_f1(texts: Texts, weights: Floats, n_labels: int) -> float:
    """Macro-F1 over all labels of texts with ``weights [n]``."""
    from sklearn.metrics import f1_score

    return float(
        f1_score(
            texts.true,
            texts.predicted,
            labels=np.arange(n_labels),
            average="macro",
            sample_weight=weights,
            zero_division=0,
        )
    )
