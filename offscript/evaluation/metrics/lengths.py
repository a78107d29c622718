"""Macro-F1 at equal lengths: does a format lose the persona, or are its texts only shorter or longer than those of chat?

The texts of one format are weighted so that their lengths are distributed as in the other: each by (share of the other
format's texts in its length bin) / (share of its own), as in the reweighting of DiNardo, Fortin and Lemieux (1996, "Labor
market institutions and the distribution of wages"), with bins in place of a model. Bins are tenths of the texts of both formats.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offscript.evaluation.metrics.f1 import per_persona_f1
from offscript.evaluation.metrics.intervals import MIN_CLUSTERS, Interval, student_interval
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
    left out. ``interval`` is that of chat F1 - F1. ``effective`` is the number of equally weighted texts with the same variance as the weighted ones,
    (sum w)^2 / sum w^2 (Kish 1965).
    """

    reference: float
    weighted: float
    interval: Interval
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
    """Length in words, true persona, predicted persona and family of n texts, ``[n]``. The predicted persona is N for a
    prediction outside the label set."""

    words: NDArray[np.int64]
    true: NDArray[np.int64]
    predicted: NDArray[np.int64]
    family: NDArray[np.str_]


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
            scores.options.confidence,
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
        predicted=np.array([index.get(p.predicted or "", len(index)) for p in predictions], dtype=np.int64),
        family=np.array([p.family for p in predictions]),
    )


def _match(
    group: GroupScore, chat: Texts | None, other: Texts | None, n_labels: int, confidence: float
) -> LengthMatch:
    names = (group.model, group.stage, group.format)
    if chat is None or other is None:
        return LengthMatch(*names, None, None, None, None, None, None, "the rows do not hold the texts")
    if not len(chat.words) or not len(other.words):
        return LengthMatch(*names, None, None, None, None, None, None, "no texts")
    families = np.unique(np.concatenate([chat.family, other.family]))
    edges = np.quantile(np.concatenate([chat.words, other.words]), np.linspace(0, 1, BINS + 1)[1:-1])
    in_chat, in_other = (_counts(texts, families, edges, n_labels) for texts in (chat, other))
    at_chat = _matched(in_chat, in_other, -1, confidence)
    at_format = _matched(in_other, in_chat, 1, confidence)
    return LengthMatch(
        *names,
        chat_words=float(np.median(chat.words)),
        words=float(np.median(other.words)),
        chat=float(_macro_f1(in_chat.sum(axis=(0, 1)))),
        score=float(_macro_f1(in_other.sum(axis=(0, 1)))),
        at_chat=at_chat,
        at_format=at_format,
        why_not=None if at_chat and at_format else "lengths do not overlap",
    )


def _counts(texts: Texts, families: NDArray[np.str_], edges: Floats, n_labels: int) -> Floats:
    """Confusion counts ``[F, BINS, N, N + 2]`` by family and length bin, with the columns of ``f1``."""
    counts = np.zeros((len(families), BINS, n_labels, n_labels + 2))
    place = (np.searchsorted(families, texts.family), np.searchsorted(edges, texts.words))
    np.add.at(counts, (*place, texts.true, texts.predicted), 1)
    return counts


def _matched(reference: Floats, other: Floats, sign: int, confidence: float) -> Matched | None:
    """``other`` at the lengths of ``reference``, both as counts by family and bin; None if fewer than MIN_COMMON of the
    reference's texts are in bins that count.

    Args:
        sign: of the gap: -1 if ``reference`` is chat, so that it is reference - weighted.
    """
    total, of_others = reference.sum(axis=0), other.sum(axis=0)
    wanted, held = total.sum(axis=(1, 2)), of_others.sum(axis=(1, 2))
    count = np.minimum(wanted, held) >= MIN_IN_BIN
    common = float(wanted[count].sum() / wanted.sum())
    if common < MIN_COMMON:
        return None
    at_reference, weighted = _at_equal_lengths(total, of_others, count)
    without = _at_equal_lengths(total - reference, of_others - other, count)
    weights = wanted[count] / held[count]
    return Matched(
        reference=float(at_reference),
        weighted=float(weighted),
        interval=_jackknife(
            sign * float(weighted - at_reference),
            sign * (without[1] - without[0]),
            np.asarray(reference.any(axis=(1, 2, 3))),
            np.asarray(other.any(axis=(1, 2, 3))),
            confidence,
        ),
        common=common,
        effective=float(wanted[count].sum() ** 2 / (weights**2 * held[count]).sum()),
    )


def _at_equal_lengths(reference: Floats, other: Floats, count: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Macro-F1 ``[...]`` of counts ``[..., BINS, N, N + 2]`` in the bins that count, and of ``other`` weighted to them."""
    wanted, held = (counts.sum(axis=(-2, -1)) for counts in (reference, other))
    weights = np.where(count, wanted / np.maximum(held, 1), 0.0)
    in_count = reference[..., count, :, :].sum(axis=-3)
    return _macro_f1(in_count), _macro_f1(np.einsum("...b,...bij->...ij", weights, other))


def _macro_f1(counts: Floats) -> Floats:
    """Macro-F1 of weighted counts ``[..., N, N + 2]``."""
    # per_persona_f1 takes a persona of fewer than one text for one without texts.
    found: Floats = per_persona_f1(counts * 1e9).mean(axis=-1)
    return found


def _jackknife(
    value: float,
    without: Floats,
    in_reference: NDArray[np.bool_],
    in_other: NDArray[np.bool_],
    confidence: float,
) -> Interval:
    """Interval of ``value`` from its values ``without [F]`` each family (Efron and Tibshirani 1993, section 11.3), where the
    families of one format, of the other, and those of both are strata of their own."""
    variance, fewest = 0.0, len(without)
    for stratum in (in_reference & ~in_other, in_other & ~in_reference, in_reference & in_other):
        k = int(stratum.sum())
        if k:
            variance += (k - 1) / k * float(((without[stratum] - without[stratum].mean()) ** 2).sum())
            fewest = min(fewest, k)
    if fewest < MIN_CLUSTERS:
        return None
    return student_interval(value, math.sqrt(variance), fewest - 1, confidence)
