"""Readouts of a classifier's probabilities that need no threshold: AUC, log loss, calibration error, and a temperature.

F1 sees the most probable label only. Off its distribution a classifier may give nearly every text the same label, and still
give the true persona more probability where it is present: its AUC is then high and its F1 low.

Probabilities are those of the label set: if the classifier has further labels, their probability is left out and the rest
is divided by its sum (evenly, if there is none left).
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from offscript.evaluation.folds import FOLDS, folds
from offscript.evaluation.metrics.intervals import (
    MIN_CLUSTERS,
    Interval,
    standard_error,
    student_interval,
)
from offscript.evaluation.metrics.results import Bin, Calibration, GroupScore, Readouts, Scores
from offscript.evaluation.order import is_in_distribution
from offscript.evaluation.predictions import Prediction

BINS = 15
"""Bins of the calibration error (Guo et al. 2017)."""
TEMPERATURES = (0.05, 100.0)
"""Least and greatest temperature: if every chat text is labelled right, the best one is 0; if hardly any is, infinite."""

Floats = NDArray[np.float64]
Place = tuple[str, str, str, int | None]
"""Model, stage, format and training seed."""


@dataclass(frozen=True, eq=False)
class Texts:
    """The texts of one group: ``probs [n, N]`` of the label set, the true persona ``true [n]``, and the name of the
    ``family [n]``."""

    probs: Floats
    true: NDArray[np.int64]
    family: NDArray[np.str_]


@dataclass(frozen=True, eq=False)
class Temperatures:
    """Temperatures of one model: ``whole``, fitted on all chat texts, and for the chat texts of a family that of the folds
    without it. ``why_not`` is the reason if there is none."""

    whole: float | None
    of_family: Mapping[str, float]
    why_not: str | None


def with_readouts(scores: Scores, predictions: Sequence[Prediction]) -> Scores:
    """``scores`` with the ``readouts`` of every group of texts that have a persona, and the AUC of each persona.

    One label has no readouts, so with one persona the scores are returned as they are.

    Args:
        predictions: those that were scored.
    """
    if len(scores.labels) < 2:
        return scores
    groups: dict[int, GroupScore] = {}
    notes = list(scores.notes)
    for model in dict.fromkeys(g.model for g in scores.groups):
        mine = {i: g for i, g in enumerate(scores.groups) if g.model == model}
        texts = _texts([p for p in predictions if p.model == model], scores.labels)
        chat = {_place(g) for g in mine.values() if is_in_distribution(g.format) and not g.is_base}
        temperatures = fit_temperatures([texts[place] for place in sorted(chat, key=str) if place in texts])
        if temperatures.why_not is not None:
            notes.append(f"no temperature, {temperatures.why_not}: {model}")
        read = {place: _read(held, temperatures, place in chat) for place, held in texts.items()}
        groups |= {i: _of_group(g, read, temperatures, scores.options.confidence) for i, g in mine.items()}
    return replace(scores, groups=tuple(groups[i] for i in sorted(groups)), notes=tuple(notes))


def _place(group: GroupScore) -> Place:
    return group.model, group.stage, group.format, group.training_seed


def _texts(predictions: Sequence[Prediction], labels: Sequence[str]) -> dict[Place, Texts]:
    """The texts of one model by group; without those that have no persona of the label set."""
    index = {label: i for i, label in enumerate(labels)}
    scored = [p for p in predictions if p.probs is not None and p.persona in index]
    # In one order, so that equal rows give equal results in whatever order they are read.
    scored.sort(key=lambda p: tuple(map(str, p.episode)))
    rows: dict[Place, list[Prediction]] = {}
    for p in scored:
        rows.setdefault((p.model, p.stage, p.format, p.training_seed), []).append(p)
    return {
        place: Texts(
            probs=restricted([p.probs or {} for p in members], labels),
            true=np.array([index[str(p.persona)] for p in members]),
            family=np.array([p.family for p in members]),
        )
        for place, members in rows.items()
    }


def restricted(probs: Sequence[Mapping[str, float]], labels: Sequence[str]) -> Floats:
    """Probabilities ``[n, N]`` of ``labels``, divided by their sum; all equal where that is 0."""
    values = np.array([[p.get(label, 0.0) for label in labels] for p in probs], dtype=float)
    total = values.sum(axis=1, keepdims=True)
    return np.where(total > 0, values / np.where(total > 0, total, 1.0), 1 / len(labels))


# ---------------------------------------------------------------- one group


@dataclass(frozen=True, eq=False)
class Read:
    """What is computed of the texts of one training seed.

    ``auc [N]`` is NaN where it is undefined, ``influence`` that of each family on their mean.
    """

    auc: Floats
    influence: Mapping[str, float]
    accuracy: float
    raw: Calibration
    scaled: Calibration | None


def _read(texts: Texts, temperatures: Temperatures, is_chat: bool) -> Read:
    auc, influence = one_vs_rest(texts)
    scaled = None
    if temperatures.whole is not None:
        of_text = np.full(len(texts.true), temperatures.whole)
        if is_chat:
            of_text = np.array([temperatures.of_family[family] for family in texts.family.tolist()])
        scaled = calibration(scale(texts.probs, of_text), texts.true)
    return Read(
        auc=auc,
        influence=influence,
        accuracy=float((texts.probs.argmax(axis=1) == texts.true).mean()),
        raw=calibration(texts.probs, texts.true),
        scaled=scaled,
    )


def _of_group(
    group: GroupScore, read: Mapping[Place, Read], temperatures: Temperatures, confidence: float
) -> GroupScore:
    """``group`` with the readouts of its texts; for several training seeds the means over those with texts."""
    model, stage, format_, seed = _place(group)
    seeds = [
        found
        for place, found in read.items()
        if place[:3] == (model, stage, format_) and (group.seeds > 1 or place[3] == seed)
    ]
    if group.is_base or not seeds or len(seeds) < group.seeds:
        return group
    scaled = [one.scaled for one in seeds if one.scaled is not None]
    auc = np.mean([one.auc for one in seeds], axis=0)
    macro = [_mean_defined(one.auc) for one in seeds]
    readouts = Readouts(
        auc=None if None in macro else float(np.mean(np.array(macro, dtype=float))),
        auc_interval=_auc_interval(seeds, confidence),
        accuracy=float(np.mean([one.accuracy for one in seeds])),
        raw=mean_calibration([one.raw for one in seeds]),
        scaled=mean_calibration(scaled) if scaled else None,
        temperature=temperatures.whole,
        why_not=temperatures.why_not,
    )
    personas = tuple(
        replace(persona, auc=None if np.isnan(value) else float(value))
        for persona, value in zip(group.personas, auc, strict=True)
    )
    return replace(group, readouts=readouts, personas=personas)


def _mean_defined(values: Floats) -> float | None:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else None


# ---------------------------------------------------------------- AUC


def one_vs_rest(texts: Texts) -> tuple[Floats, dict[str, float]]:
    """The one-vs-rest AUC of each persona ``[N]``, and the influence of each family on their mean.

    The AUC of a persona is the share of pairs of a text of it and a text of another persona in which the first has the
    greater probability of the persona; a tie counts one half. It is NaN for a persona without such pairs.

    The influence is the sum of the centred placement values of a family's texts (Obuchowski 1997, "Nonparametric analysis
    of clustered ROC curve data"); placement values from ranks as in Sun and Xu 2014, "Fast implementation of DeLong's
    algorithm".
    """
    from scipy.stats import rankdata

    n, n_labels = texts.probs.shape
    auc, influence = np.full(n_labels, np.nan), np.zeros(n)
    # Rounded, because the division by the sum of a row breaks ties at the last digit.
    values = np.round(np.log(np.maximum(texts.probs, np.finfo(float).tiny)), 12)
    ranks = rankdata(values, axis=0)
    for k in range(n_labels):
        own = texts.true == k
        n_own, n_other = int(own.sum()), int((~own).sum())
        if not n_own or not n_other:
            continue
        # Of each text of the persona, the share of the other texts below it; of each other text, that of the persona above.
        below = (ranks[own, k] - rankdata(values[own, k])) / n_other
        above = 1 - (ranks[~own, k] - rankdata(values[~own, k])) / n_own
        auc[k] = below.mean()
        influence[own] += (below - auc[k]) / n_own
        influence[~own] += (above - auc[k]) / n_other
    defined = max(1, int((~np.isnan(auc)).sum()))
    names, number = np.unique(texts.family, return_inverse=True)
    of_family = np.bincount(number, weights=influence / defined)
    return auc, dict(zip(names.tolist(), of_family.tolist(), strict=True))


def _auc_interval(seeds: Sequence[Read], confidence: float) -> Interval:
    """Interval of the mean AUC over training seeds, which share families."""
    values = np.array([_mean_defined(one.auc) for one in seeds], dtype=float)
    families = min(len(one.influence) for one in seeds)
    if families < MIN_CLUSTERS or np.isnan(values).any():
        return None
    together: Counter[str] = Counter()
    for one in seeds:
        together.update({family: value / len(seeds) for family, value in one.influence.items()})
    variance = sum(value**2 for value in together.values()) * families / (families - 1)
    low, high = student_interval(
        float(values.mean()), *standard_error(variance, values, families), confidence
    )
    return max(low, 0.0), min(high, 1.0)


# ---------------------------------------------------------------- calibration


def calibration(probs: Floats, true: NDArray[np.int64]) -> Calibration:
    """Log loss, calibration error and bins of ``probs [n, N]`` for the true labels ``true [n]``, n > 0.

    The expected calibration error is the mean distance of accuracy and confidence over BINS equally wide bins of the
    confidence, weighted by their texts; the confidence of a text is its greatest probability (Guo et al. 2017, "On
    calibration of modern neural networks", eq. 3). Probabilities of 0 are raised to 2.2e-16 in the log loss.
    """
    from sklearn.metrics import log_loss

    confidence = probs.max(axis=1)
    right = probs.argmax(axis=1) == true
    # The upper edge belongs to a bin, as in the source.
    bin_of = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    counts = np.bincount(bin_of, minlength=BINS)
    sums = [np.bincount(bin_of, weights=values, minlength=BINS) for values in (confidence, right)]
    bins = tuple(
        Bin(k, int(n), float(c / n), float(r / n))
        for k, (n, c, r) in enumerate(zip(counts, *sums, strict=True))
        if n
    )
    return Calibration(
        log_loss=float(log_loss(true, probs, labels=np.arange(probs.shape[1]))),
        ece=sum(b.texts * abs(b.accuracy - b.confidence) for b in bins) / len(true),
        confidence=float(confidence.mean()),
        bins=bins,
    )


def mean_calibration(seeds: Sequence[Calibration]) -> Calibration:
    """Means over training seeds; bins of all their texts."""
    return Calibration(
        log_loss=float(np.mean([one.log_loss for one in seeds])),
        ece=float(np.mean([one.ece for one in seeds])),
        confidence=float(np.mean([one.confidence for one in seeds])),
        bins=pooled(b for one in seeds for b in one.bins),
    )


def pooled(bins: Iterable[Bin]) -> tuple[Bin, ...]:
    """Bins of the texts of several groups: those of equal number in one."""
    held: dict[int, list[Bin]] = {}
    for b in bins:
        held.setdefault(b.number, []).append(b)
    found = []
    for number, same in sorted(held.items()):
        n = sum(b.texts for b in same)
        confidence, accuracy = (
            sum(b.texts * value for b, value in zip(same, values, strict=True)) / n
            for values in ([b.confidence for b in same], [b.accuracy for b in same])
        )
        found.append(Bin(number, n, confidence, accuracy))
    return tuple(found)


# ---------------------------------------------------------------- temperature


def fit_temperatures(chat: Sequence[Texts]) -> Temperatures:
    """Temperatures of one model from the chat texts of its groups, for chat itself over FOLDS folds of families."""
    if not chat:
        return Temperatures(None, {}, "no chat texts")
    probs, true, family = (
        np.concatenate([getattr(texts, name) for texts in chat]) for name in ("probs", "true", "family")
    )
    families = np.unique(family).tolist()
    if len(families) < FOLDS:
        return Temperatures(None, {}, f"chat texts of {len(families)} families, fewer than {FOLDS}")
    fold = folds("temperature", families)
    fold_of = np.array([fold[name] for name in family.tolist()])
    held_out = [fit_temperature(probs[fold_of != k], true[fold_of != k]) for k in range(FOLDS)]
    of_family = {name: held_out[k] for name, k in fold.items()}
    return Temperatures(fit_temperature(probs, true), of_family, None)


def fit_temperature(probs: Floats, true: NDArray[np.int64]) -> float:
    """The temperature in TEMPERATURES with the least log loss of ``probs [n, N]`` for the labels ``true [n]``."""
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    logits, rows = _logits(probs), np.arange(len(true))

    def loss(log_temperature: float) -> float:
        scaled = log_softmax(logits / np.exp(log_temperature), axis=1)
        return float(-scaled[rows, true].mean())

    found = minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded", options={"xatol": 1e-7})
    return float(np.exp(found.x))


def scale(probs: Floats, temperature: Floats) -> Floats:
    """Probabilities ``[n, N]`` of logits that are divided by the ``temperature [n]`` of their text (Guo et al. 2017, eq. 9).
    The most probable label stays the same."""
    from scipy.special import softmax

    scaled: Floats = softmax(_logits(probs) / temperature[:, None], axis=1)
    return scaled


def _logits(probs: Floats) -> Floats:
    """Logarithms; a probability of 0 is raised to the least that the log loss knows."""
    return np.log(np.maximum(probs, np.finfo(float).eps))
