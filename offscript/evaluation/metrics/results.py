"""The numbers of a report, as ``scores.evaluate`` returns them.

A *group* is one (model, stage, format[, training seed]) with all of its personas.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from offscript.evaluation.metrics.chance import Null
from offscript.evaluation.metrics.f1 import Readings
from offscript.evaluation.metrics.intervals import Contrast, Interval
from offscript.evaluation.order import formats_in_order, stages_in_order

BASE = "base"
"""Name of the stage whose texts know nothing of the persona."""

CONTROLS = ("prompted", "prompted_examples")
"""Names of the stages whose prompt asks for the persona in every format. The first that a grid has is its control."""


def control_of(stages: Iterable[str]) -> str | None:
    """The control among the names ``stages``; None if there is none."""
    known = set(stages)
    return next((stage for stage in CONTROLS if stage in known), None)


@dataclass(frozen=True)
class PersonaScore:
    """Scores of one persona within a group.

    ``planned`` is None if the number of planned episodes is unknown, ``recall`` is None if the persona has no texts. ``auc``
    is that of the persona against all others, None if it was not computed or is undefined.
    """

    persona: str
    planned: int | None
    emitted: int
    f1: float
    recall: float | None
    interval: Interval
    interval_rows: Interval
    auc: float | None = None


@dataclass(frozen=True)
class Bin:
    """The texts whose confidence is in bin ``number``, from 0, of equally wide bins: how many they are, their mean confidence
    and their accuracy."""

    number: int
    texts: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """What probabilities say of the texts of a group (``readouts``), as they are or after a temperature.

    ``log_loss`` is in nats, ``ece`` the expected calibration error, ``bins`` are those of it that have texts.
    """

    log_loss: float
    ece: float
    confidence: float
    bins: tuple[Bin, ...]


@dataclass(frozen=True)
class Readouts:
    """Readouts of the probabilities of a group (``readouts``); for several training seeds their means.

    Args:
        auc: macro-average over personas of the area under the one-vs-rest ROC curve; None if no persona has both texts
            and texts of others beside them.
        accuracy: share of texts whose most probable persona of the label set is the true one.
        raw: of the probabilities as they are.
        scaled: after ``temperature``; for chat, cross-fitted.
        temperature: of the model's chat texts; None: there is none, and ``why_not`` is the reason.
    """

    auc: float | None
    auc_interval: Interval
    accuracy: float
    raw: Calibration
    scaled: Calibration | None
    temperature: float | None
    why_not: str | None


@dataclass(frozen=True)
class OracleScore:
    """The score of a group by a classifier that was fitted on the ``prompted`` texts of its own format (``evaluation.oracle``).

    ``f1`` is macro-F1 on emitted texts, ``null`` its mean with permuted personas, ``families`` and ``texts`` the numbers
    that the classifier was fitted on. ``lost`` is F1 in chat - ``f1``, ``not_seen`` is ``f1`` - F1: what the model lost, and
    what the classifier does not see. If there is no oracle, ``why_not`` is the reason.
    """

    f1: float | None
    interval: Interval
    null: float | None
    lost: Contrast
    not_seen: Contrast
    families: int
    texts: int
    why_not: str | None


@dataclass(frozen=True)
class BaselineScore:
    """The score of a group by the baseline, a classifier of n-grams that was fitted on the rows of the classifier: macro-F1 on
    emitted texts, and its mean with permuted personas."""

    f1: float
    interval: Interval
    null: float | None


@dataclass(frozen=True)
class GroupScore:
    """Scores of one group, or of the groups of several training seeds: their mean scores, and sums of their episodes.

    Args:
        training_seed: None if the rows have none, or for the mean over several.
        seeds: number of training seeds that it is the mean of.
        crossed: whether all personas share the texts of the group: base texts under a plain system text belong to no
            persona, and each is scored for every persona. An episode is nevertheless counted once.
        planned: number of planned episodes; None if unknown, because the rows contain scored texts only.
        emitted: number of episodes with a text to score.
        emission_rate: ``emitted / planned``; None where ``planned`` is.
        ended: number of episodes by the reason for which they ended.
        unique_texts: number of distinct texts; None if unknown.
        clusters: number of resampled families (or scenarios) with an emitted text; None by rows.
        macro_f1: macro-F1 under four assumptions about the missing texts.
        interval: of the first of these, ``emitted``, over ``Options.resample``.
        fit_sd: standard deviation of the same over the fits of the classifier; None for one fit. Intervals contain it.
        interval_rows: the same by rows, as published: a plain percentile interval. None for the mean over seeds.
        interval_own_class: of the second.
        interval_bounds: from the lower end of the interval of ``lower`` to the upper end of that of ``upper``: missing
            texts and sampling error together. None for base texts.
        null: of the first.
        counts: the confusion matrix ``[N][N + 2]``, see ``f1``.
        oracle: None if no oracle was asked for.
        readouts: None if they were not asked for, and for base texts, which have no persona.
        baseline: None if there is no such classifier.
    """

    model: str
    stage: str
    format: str
    training_seed: int | None
    seeds: int
    crossed: bool
    planned: int | None
    emitted: int
    emission_rate: float | None
    ended: dict[str, int]
    unique_texts: int | None
    scenarios: int
    families: int
    clusters: int | None
    accuracy: float | None
    macro_f1: Readings
    interval: Interval
    interval_rows: Interval
    fit_sd: float | None
    interval_own_class: Interval
    interval_bounds: Interval
    null: Null | None
    personas: tuple[PersonaScore, ...]
    counts: tuple[tuple[int, ...], ...]
    oracle: OracleScore | None = None
    readouts: Readouts | None = None
    baseline: BaselineScore | None = None

    @property
    def name(self) -> str:
        return f"{self.model} {self.stage} {self.format}"

    @property
    def is_base(self) -> bool:
        """Whether its texts know nothing of the persona, so that comparisons with it mean nothing."""
        return self.crossed or self.stage == BASE


@dataclass(frozen=True)
class Retention:
    """An off-distribution format compared with chat (the in-distribution format), by macro-F1 on emitted texts.

    ``chat`` and ``score`` are the macro-F1 of chat and of ``format``, ``chat_null`` and ``null`` their means with permuted
    personas. ``gap`` is chat - score, ``above_chance`` is (score - null) / (chat - chat_null), and ``ratio`` is
    score / chat, which counts chance as retention. The last two are undefined if chat is not above its null, or if one of
    the two formats has no texts; ``why_not`` then gives the reason, otherwise it is None.
    """

    model: str
    stage: str
    format: str
    training_seed: int | None
    seeds: int
    chat: float | None
    chat_null: float | None
    score: float | None
    null: float | None
    gap: Contrast
    above_chance: Contrast
    ratio: Contrast
    why_not: str | None


@dataclass(frozen=True)
class Change:
    """Macro-F1 of ``first`` minus that of ``second``.

    The two are either stages, compared within one format, or formats, compared within one stage. ``within`` is that
    format or stage.
    """

    model: str
    training_seed: int | None
    seeds: int
    within: str
    first: str
    second: str
    difference: Contrast


@dataclass(frozen=True)
class PersonaGap:
    """The gap of one persona, chat F1 - F1 in ``format``, against the mean gap of the other personas.

    ``excess`` is the difference of the two. ``p`` is two-sided, of the hypothesis that it is 0, and ``p_holm`` the same,
    corrected for all personas of the stage and format (Holm 1979). Both are None where they are undefined.
    """

    model: str
    stage: str
    format: str
    training_seed: int | None
    seeds: int
    persona: str
    gap: Contrast
    excess: Contrast
    p: float | None
    p_holm: float | None


@dataclass(frozen=True)
class RecipeScore:
    """A trained stage in one format, or the mean over all formats off chat that every trained stage has (``format`` None).

    ``kept`` is as ``Retention.above_chance``, undefined for chat. ``f1_change`` and ``kept_change`` are ``stage`` minus the
    stage ``reference``, undefined for the reference itself.
    """

    model: str
    stage: str
    reference: str
    format: str | None
    training_seed: int | None
    seeds: int
    f1: Contrast
    kept: Contrast
    f1_change: Contrast
    kept_change: Contrast


@dataclass(frozen=True)
class Options:
    """The options of ``evaluate``, which describes them."""

    resamples: int = 10_000
    confidence: float = 0.95
    seed: int = 0
    resample: str = "family"
    planned: int | None = None


@dataclass(frozen=True)
class Scores:
    """All numbers of a report; a pure function of predictions and options."""

    labels: tuple[str, ...]
    metric: str
    options: Options
    groups: tuple[GroupScore, ...]
    retention: tuple[Retention, ...]
    changes: tuple[Change, ...]
    notes: tuple[str, ...]
    persona_gaps: tuple[PersonaGap, ...] = ()
    recipes: tuple[RecipeScore, ...] = ()

    def main_groups(self, model: str) -> list[GroupScore]:
        """The groups of a model; where there are several training seeds, their mean in place of each."""
        means = {(g.stage, g.format) for g in self.groups if g.model == model and g.seeds > 1}
        mine = [
            g for g in self.groups if g.model == model and (g.seeds > 1 or (g.stage, g.format) not in means)
        ]
        stages, formats = stages_in_order(g.stage for g in mine), formats_in_order(g.format for g in mine)
        return sorted(mine, key=lambda g: (stages.index(g.stage), formats.index(g.format)))
