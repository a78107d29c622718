"""The tables of an evaluation: plain text for a terminal of 100 columns, and rows for the HTML page.

``overview`` is what a command prints: one table for each model, and the notes. ``text`` is all of it.
"""

import textwrap
from collections.abc import Sequence

from offscript.evaluation.metrics import table as metric_table
from offscript.evaluation.metrics.display import NOT_AVAILABLE, UNKNOWN, number, span
from offscript.evaluation.metrics.intervals import MIN_CLUSTERS, Contrast, Interval
from offscript.evaluation.metrics.notes import UNITS
from offscript.evaluation.metrics.results import GroupScore, Retention, Scores
from offscript.evaluation.order import is_in_distribution
from offscript.evaluation.report.section import Section, Table

WIDTH = 100

ORACLE = (
    "The oracle of a format is a classifier of its words, fitted on the prompted texts of other families than those that it "
    "predicts. Lost, by the model: chat F1 - oracle F1. Not seen, by the classifier: oracle F1 - F1.",
)


BASELINE = (
    "Baseline: F1 of a classifier of n-grams (logistic regression) that was fitted on the same chat rows as the classifier.",
)
FITS = (
    "Fit SD: standard deviation of F1 over the fits of the classifier. The score is that of their mean probabilities, and its "
    "interval contains what other fits would change.",
)


def tables(scores: Scores) -> list[Table]:
    """All tables that have rows, model by model."""
    models = dict.fromkeys(g.model for g in scores.groups)
    kinds = (main_table, _groups, _oracle, _missing, _ended, _retention, _changes, persona_table)
    made = [make(scores, model) for model in models for make in kinds]
    return [table for table in made if table.rows]


def overview(scores: Scores) -> str:
    """What a command prints: a table of the main numbers for each model, what its columns mean, and the notes."""
    models = dict.fromkeys(g.model for g in scores.groups)
    legend = overview_legend(scores)
    if any(g.is_base for g in scores.groups) and not all(g.is_base for g in scores.groups):
        legend.append("Texts of base weights, which have no persona, are in tables.txt.")
    return _joined([main_table(scores, model) for model in models], legend, scores.notes)


def text(scores: Scores, sections: Sequence[Section] = ()) -> str:
    """All tables, what their columns mean, the notes, and the tables of ``sections``, each with its explanation."""
    parts = [_joined(tables(scores), legend(scores), scores.notes)]
    parts += [_joined(s.tables, s.explanation, ()) for s in sections if s.tables]
    return "\n".join(parts)


def of_section(section: Section) -> str:
    """The tables of a section, their explanation and its notes, for a command that makes no report."""
    return _joined(section.tables, section.explanation, section.notes)


def _joined(made: Sequence[Table], explained: Sequence[str], notes: Sequence[str]) -> str:
    parts = [table.text() for table in made]
    parts.append("\n".join(textwrap.fill(line, WIDTH) for line in explained))
    if notes:
        wrapped = (textwrap.fill(note, WIDTH, initial_indent="- ", subsequent_indent="  ") for note in notes)
        parts.append("\n".join(["Notes", *wrapped]))
    return "\n\n".join(parts) + "\n"


def overview_legend(scores: Scores) -> list[str]:
    """What the columns of ``main_table`` mean, as lines of any length."""
    options = scores.options
    oracle = (
        "Oracle: F1 of a classifier fitted on prompted texts of the format. " if _has_oracles(scores) else ""
    )
    return [
        f"F1: macro-F1 over {len(scores.labels)} personas, on emitted texts, with {options.confidence:.0%} intervals over "
        f"{UNITS[options.resample]}. null, p: the mean F1 with permuted personas, and the p-value. Kept above chance: "
        "(F1 - null) / (chat F1 - chat null), n/a if chat is not above its null "
        f"(p > {number(1 - options.confidence, 2)}). {oracle}Emitted: the share of planned episodes with a text. "
        "Bounds: the least and the most that any labels of the missing texts could give.",
    ]


def legend(scores: Scores) -> list[str]:
    """Explanations of the columns, as lines of any length."""
    options = scores.options
    corrected = {
        "rows": "percentiles of resamples of rows, as published",
        "scenario": "percentiles of resamples of scenarios, corrected for their number",
        "family": "percentiles of resamples of families, corrected for their number",
    }[options.resample]
    return [
        *overview_legend(scores),
        f"The personas are {', '.join(scores.labels)}.",
        f"Intervals: {corrected} ({options.resamples} resamples); by rows: plain percentiles of up to 1,000 resamples of "
        f"rows, as published. Fewer than {MIN_CLUSTERS} {UNITS[options.resample]}: n/a. The mean over training seeds has the variance "
        "of families and of seeds together.",
        "Missing texts: as errors counts each as a false negative. The interval of the bounds reaches from that of the lower "
        "to that of the upper bound.",
        *(ORACLE if _has_oracles(scores) else ()),
        *(BASELINE if any(g.baseline for g in scores.groups) else ()),
        *(FITS if any(g.fit_sd is not None for g in scores.groups) else ()),
        "gap: chat F1 - F1. ratio: F1 / chat F1, which counts chance as retention. Both retentions are n/a if chat is not above "
        "its null.",
    ]


def _has_oracles(scores: Scores) -> bool:
    return any(g.oracle is not None and g.oracle.f1 is not None for g in scores.groups)


def stage_name(scores: Scores, stage: str, training_seed: int | None, seeds: int) -> str:
    """The name of a stage, and if it has several training seeds its seed, ``full/1``, or ``full/mean``."""
    if seeds > 1:
        return f"{stage}/mean"
    several = len({g.training_seed for g in scores.groups if g.seeds == 1 and g.stage == stage}) > 1
    return f"{stage}/{training_seed}" if several and training_seed is not None else stage


def _of(scores: Scores, model: str) -> list[GroupScore]:
    return [g for g in scores.groups if g.model == model]


def main_table(scores: Scores, model: str) -> Table:
    """The main numbers of every stage and format but those of base texts. Training seeds are shown by their mean."""
    kept = {(r.stage, r.format, r.training_seed): r for r in scores.retention if r.model == model}
    groups = scores.main_groups(model)
    shown = [g for g in groups if not g.is_base] or groups
    oracles = _has_oracles(scores)
    rows = tuple(
        (
            g.stage,
            g.format,
            _estimate(g.macro_f1.emitted, g.interval),
            number(g.null.mean if g.null else None),
            number(g.null.p if g.null else None),
            "" if is_in_distribution(g.format) else _kept(kept.get((g.stage, g.format, g.training_seed))),
            *([number(g.oracle.f1 if g.oracle else None)] if oracles else []),
            UNKNOWN if g.emission_rate is None else f"{g.emission_rate:.0%}",
            UNKNOWN if g.planned is None else span(_ends(g)),
        )
        for g in shown
    )
    interval = f"({scores.options.confidence:.0%})"
    header = (
        "stage",
        "format",
        f"F1 {interval}",
        "null",
        "p",
        # In two lines where a further column would not fit.
        f"kept above{chr(10) if oracles else ' '}chance {interval}",
        *(["oracle"] if oracles else []),
        "emitted",
        "bounds",
    )
    means = {g.stage: g.seeds for g in shown if g.seeds > 1}
    over = ", ".join(f"{seeds} of {stage}" for stage, seeds in means.items())
    title = f"{model}: {scores.metric}" + (f", means over training seeds ({over})" if over else "")
    return Table(title, header, rows)


def _ends(group: GroupScore) -> Interval:
    low, high = group.macro_f1.lower, group.macro_f1.upper
    return None if low is None or high is None else (low, high)


def _estimate(value: float | None, interval: Interval) -> str:
    """``.153 (.122-.181)``."""
    return NOT_AVAILABLE if value is None else f"{number(value)} ({span(interval)})"


def _kept(retention: Retention | None) -> str:
    return (
        ""
        if retention is None
        else _estimate(retention.above_chance.estimate, retention.above_chance.interval)
    )


def _groups(scores: Scores, model: str) -> Table:
    columns = [
        (m, m.column)
        for m in metric_table.METRICS
        if m.column is not None and not (m.column.optional and all(m.group(g) is None for g in scores.groups))
    ]
    columns.sort(key=lambda pair: pair[1].order)
    header = ("stage", "format", *(column.header for _, column in columns))
    rows = tuple(
        (
            stage_name(scores, g.stage, g.training_seed, g.seeds),
            g.format,
            *(metric.cell(g, column) for metric, column in columns),
        )
        for g in _of(scores, model)
    )
    return Table(f"{model}: {scores.metric} by stage and format", header, rows)


def _oracle(scores: Scores, model: str) -> Table:
    """From the F1 of chat to that of each format: what the texts lose, and what the classifier does not see in them."""
    rows = []
    for g in scores.main_groups(model):
        if g.is_base or g.oracle is None or g.oracle.f1 is None:
            continue
        rows.append(
            (
                g.stage,
                g.format,
                _estimate(g.oracle.f1, g.oracle.interval),
                number(g.oracle.null),
                number(g.macro_f1.emitted),
                _estimate(g.oracle.lost.estimate, g.oracle.lost.interval),
                _estimate(g.oracle.not_seen.estimate, g.oracle.not_seen.interval),
            )
        )
    interval = f"({scores.options.confidence:.0%})"
    header = (
        "stage",
        "format",
        f"oracle F1\n{interval}",
        "oracle\nnull",
        "F1",
        f"lost\n{interval}",
        f"not seen\n{interval}",
    )
    return Table(f"{model}: what is left of the persona, and what the classifier sees", header, tuple(rows))


def _missing(scores: Scores, model: str) -> Table:
    """Macro-F1 under the four assumptions about missing texts, for groups that have some."""
    interval = f"{scores.options.confidence:.0%}"
    rows = tuple(
        (
            stage_name(scores, g.stage, g.training_seed, g.seeds),
            g.format,
            str(g.planned - g.emitted),
            _estimate(g.macro_f1.emitted, g.interval),
            _estimate(g.macro_f1.own_class, g.interval_own_class),
            number(g.macro_f1.lower),
            number(g.macro_f1.upper),
            span(g.interval_bounds),
        )
        for g in _of(scores, model)
        if g.planned is not None and g.emitted < g.planned
    )
    header = (
        "stage",
        "format",
        "missing\ntexts",
        f"F1 on emitted\ntexts ({interval})",
        f"missing as\nerrors ({interval})",
        "lower\nbound",
        "upper\nbound",
        f"bounds\n{interval}",
    )
    return Table(f"{model}: {scores.metric} under assumptions about missing texts", header, rows)


def _ended(scores: Scores, model: str) -> Table:
    groups = [g for g in _of(scores, model) if g.ended]
    reasons = sorted({reason for g in groups for reason in g.ended})
    rows = tuple(
        (
            stage_name(scores, g.stage, g.training_seed, g.seeds),
            g.format,
            *(str(g.ended.get(r, 0)) for r in reasons),
        )
        for g in groups
    )
    return Table(f"{model}: why episodes ended", ("stage", "format", *reasons), rows)


def _with_interval(contrast: Contrast) -> tuple[str, str]:
    if contrast.estimate is None:
        return NOT_AVAILABLE, ""
    return number(contrast.estimate), span(contrast.interval)


def _retention(scores: Scores, model: str) -> Table:
    interval = f"{scores.options.confidence:.0%}"
    rows = tuple(
        (
            stage_name(scores, r.stage, r.training_seed, r.seeds),
            r.format,
            number(r.chat),
            number(r.score),
            *_with_interval(r.gap),
            *_with_interval(r.above_chance),
            *_with_interval(r.ratio),
        )
        for r in scores.retention
        if r.model == model
    )
    header = (
        "stage",
        "format",
        "chat F1",
        "F1",
        "gap",
        interval,
        "above\nchance",
        interval,
        "ratio",
        interval,
    )
    return Table(f"{model}: retention against chat", header, rows)


def _changes(scores: Scores, model: str) -> Table:
    rows = tuple(
        (
            f"{c.first} - {c.second}",
            f"in {stage_name(scores, c.within, c.training_seed, c.seeds)}",
            *_with_interval(c.difference),
        )
        for c in scores.changes
        if c.model == model
    )
    interval = f"{scores.options.confidence:.0%}"
    return Table(
        f"{model}: changes of F1 between stages and between formats", ("change", "", "F1", interval), rows
    )


def persona_table(scores: Scores, model: str) -> Table:
    """F1 of every persona, by stage, a column per format."""
    groups = {
        (stage_name(scores, g.stage, g.training_seed, g.seeds), g.format): g for g in _of(scores, model)
    }
    stages, formats = (tuple(dict.fromkeys(place[i] for place in groups)) for i in (0, 1))

    def cell(column: int, stage: str, fmt: str) -> str:
        group = groups.get((stage, fmt))
        persona = group.personas[column] if group else None
        return number(persona.f1 if persona and persona.emitted else None, 4)

    rows = tuple(
        (label, stage, *(cell(column, stage, fmt) for fmt in formats))
        for column, label in enumerate(scores.labels)
        for stage in stages
    )
    return Table(f"{model}: F1 of each persona", ("persona", "stage", *formats), rows)
