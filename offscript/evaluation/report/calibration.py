"""The section ``calibration``: readouts without a threshold, F1 at equal lengths, and personas that lose more than the others."""

from collections.abc import Sequence
from dataclasses import asdict

from offscript.evaluation.metrics import lengths, readouts
from offscript.evaluation.metrics.display import NOT_AVAILABLE, number, span
from offscript.evaluation.metrics.intervals import MIN_CLUSTERS, Contrast, Interval
from offscript.evaluation.metrics.lengths import LengthMatch
from offscript.evaluation.metrics.results import Calibration, GroupScore, PersonaGap, Scores
from offscript.evaluation.predictions import Prediction
from offscript.evaluation.report import reliability
from offscript.evaluation.report.section import Section, Table

NAME = "calibration"
READOUTS = (
    "AUC: the share of pairs of a text of a persona and a text of another one in which the classifier gives the first the "
    "greater probability of that persona, averaged over personas; .5 is chance. F1 counts the most probable label only: a "
    "classifier that favours one label for all e-mails can have a low F1 and a high AUC. In that case the texts do hold the "
    "persona, and the favoured label hides it."
)
ERRORS = (
    "Confidence: the mean probability of the most probable persona; accuracy: how often that persona is the true one. ECE, the "
    "expected calibration error: the mean distance of the two over {bins} bins of confidence (Guo et al. 2017). Log loss: the "
    "mean of -ln(probability of the true persona); {even} if all are equally probable. At T: after the temperature T, which is "
    "fitted on chat texts (for chat itself, on those of other families). It mends a classifier that is too sure in every format "
    "alike. Where ECE at T stays high, the confidence of a prediction means little."
)
LENGTHS = (
    "At equal lengths: words are medians, in chat / in the format; gap is chat F1 - F1. At chat's lengths, the texts of the "
    "format are weighted so that their numbers of words are distributed as in chat; at the format's lengths, those of chat "
    "are. Texts: the number of equally weighted texts that would be as uncertain as the weighted ones. Texts of lengths that "
    "only one of the two has are left out; if they are more than half, n/a. A gap that stays is not one of length. Training "
    "seeds are taken together."
)
PERSONAS = (
    "Personas: the hypothesis is that a persona's gap equals the mean gap of the others. Excess is the difference of the two. p "
    "is corrected by Holm's method for all personas of a stage and format; shown are those with p (Holm) up to {alpha}."
)


def calibration(scores: Scores, predictions: Sequence[Prediction]) -> Section | None:
    """The section; None without readouts, as for base texts alone."""
    shown = [g for g in scores.groups if g.readouts is not None]
    if not shown:
        return None
    matched = lengths.match_lengths(scores, predictions)
    models = list(dict.fromkeys(g.model for g in shown))
    alpha = 1 - scores.options.confidence
    differing = [gap for gap in scores.persona_gaps if gap.p_holm is not None and gap.p_holm <= alpha]
    made: list[Table] = []
    for model in models:
        made.append(_readouts(scores, model))
        made.append(_lengths(scores, model, [m for m in matched if m.model == model]))
        made.append(_personas(scores, model, [gap for gap in differing if gap.model == model]))
    explanation = [READOUTS, ERRORS.format(bins=readouts.BINS, even=_even(len(scores.labels)))]
    if any(m.chat is not None for m in matched):
        explanation.append(LENGTHS)
    explanation += _on_lengths(matched)
    if scores.persona_gaps:
        explanation += [
            PERSONAS.format(alpha=number(alpha, 2)),
            *_on_personas(scores.persona_gaps, differing),
        ]
    return Section(
        name=NAME,
        title="Calibration",
        explanation=tuple(explanation),
        tables=tuple(table for table in made if table.rows),
        data={
            "temperatures": {g.model: g.readouts.temperature for g in shown if g.readouts is not None},
            "lengths": [asdict(m) for m in matched],
        },
        draw=lambda folder: reliability.draw(scores, folder),
        description="Accuracy by confidence, for chat and the other formats of the headline stage, as they are and after the "
        "temperature. Their mean distance is the calibration error in the tables.",
    )


def _even(n_labels: int) -> str:
    from math import log

    return number(log(n_labels))


def _readouts(scores: Scores, model: str) -> Table:
    groups = [g for g in scores.main_groups(model) if g.readouts is not None]
    temperature = next((g.readouts.temperature for g in groups if g.readouts is not None), None)
    rows = tuple(_readout_row(g) for g in groups)
    header = (
        "stage",
        "format",
        "F1",
        f"AUC ({scores.options.confidence:.0%})",
        "confi-\ndence",
        "accu-\nracy",
        "ECE",
        "ECE\nat T",
        "log\nloss",
        "log loss\nat T",
    )
    return Table(f"{model}: without a threshold (temperature T {number(temperature, 2)})", header, rows)


def _readout_row(group: GroupScore) -> tuple[str, ...]:
    found = group.readouts
    assert found is not None

    def both(calibration: Calibration | None) -> tuple[str, str]:
        if calibration is None:
            return NOT_AVAILABLE, NOT_AVAILABLE
        return number(calibration.ece), number(calibration.log_loss)

    (ece, loss), (scaled_ece, scaled_loss) = both(found.raw), both(found.scaled)
    return (
        group.stage,
        group.format,
        number(group.macro_f1.emitted),
        _estimate(found.auc, found.auc_interval),
        number(found.raw.confidence),
        number(found.accuracy),
        ece,
        scaled_ece,
        loss,
        scaled_loss,
    )


def _lengths(scores: Scores, model: str, matched: Sequence[LengthMatch]) -> Table:
    interval = f"({scores.options.confidence:.0%})"
    rows = tuple(
        (
            m.stage,
            m.format,
            f"{m.chat_words:.0f}/{m.words:.0f}",
            number(m.chat - m.score),
            _estimate(m.gap_at_chat, m.at_chat.interval if m.at_chat else None),
            _texts(m.at_chat),
            _estimate(m.gap_at_format, m.at_format.interval if m.at_format else None),
            _texts(m.at_format),
        )
        for m in matched
        if m.chat is not None and m.score is not None
    )
    header = (
        "stage",
        "format",
        "words",
        "gap",
        f"at chat's\nlengths {interval}",
        "texts",
        f"at the format's\nlengths {interval}",
        "texts",
    )
    return Table(f"{model}: the gap of F1 at equal lengths", header, rows)


def _texts(matched: lengths.Matched | None) -> str:
    """The effective number of weighted texts; nothing where there is no gap."""
    return "" if matched is None else f"{matched.effective:.0f}"


def _on_lengths(matched: Sequence[LengthMatch]) -> list[str]:
    """A line for each reason why a format has no F1 at equal lengths."""
    places: dict[str, list[str]] = {}
    for m in matched:
        if m.why_not is not None:
            places.setdefault(m.why_not, []).append(f"{m.model} {m.stage} {m.format}")
    return [f"No F1 at equal lengths, {reason}: {'; '.join(names)}." for reason, names in places.items()]


def _personas(scores: Scores, model: str, differing: Sequence[PersonaGap]) -> Table:
    interval = f"{scores.options.confidence:.0%}"
    rows = tuple(
        (
            gap.stage,
            gap.format,
            gap.persona,
            _contrast(gap.gap),
            _contrast(gap.excess),
            _p(gap.p),
            _p(gap.p_holm),
        )
        for gap in differing
    )
    header = ("stage", "format", "persona", f"gap ({interval})", f"excess ({interval})", "p", "p (Holm)")
    return Table(f"{model}: personas that lose more or less than the others", header, rows, left=3)


def _on_personas(gaps: Sequence[PersonaGap], differing: Sequence[PersonaGap]) -> list[str]:
    """What the table of personas does not show."""
    tested = sum(gap.p is not None for gap in gaps)
    said = [f"Tested: {tested} gaps; {len(differing)} differ from the mean of the others."]
    if tested < len(gaps):
        said.append(
            f"Not tested: {len(gaps) - tested} gaps, of personas without texts, of fewer than {MIN_CLUSTERS} families, or "
            "without variance."
        )
    return said


def _p(value: float | None) -> str:
    return "<.001" if value is not None and value < 0.001 else number(value)


def _contrast(contrast: Contrast) -> str:
    return _estimate(contrast.estimate, contrast.interval)


def _estimate(value: float | None, interval: Interval) -> str:
    return NOT_AVAILABLE if value is None else f"{number(value)} ({span(interval)})"
