"""The tables of an evaluation: plain text for a terminal of 100 columns, and rows for the HTML page."""

import textwrap
from dataclasses import dataclass

from offscript.evaluation.metrics import table as metric_table
from offscript.evaluation.metrics.display import NOT_AVAILABLE, number, span
from offscript.evaluation.metrics.retention import Contrast
from offscript.evaluation.metrics.scores import GroupScore, Scores
from offscript.evaluation.order import is_in_distribution

WIDTH = 100


@dataclass(frozen=True)
class Table:
    """A title, a header and rows of equal length; the first ``left`` columns are words, the others numbers."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 2

    def text(self) -> str:
        """The title and aligned lines, without a final newline."""
        lines = [self.header, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.header))]
        aligned = [
            " ".join(
                value.ljust(width) if i < self.left else value.rjust(width)
                for i, (value, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        return "\n".join([self.title, aligned[0], "-" * max(map(len, aligned)), *aligned[1:]])


def tables(scores: Scores) -> list[Table]:
    """All tables that have rows, model by model."""
    models = dict.fromkeys(g.model for g in scores.groups)
    made = [
        make(scores, model) for model in models for make in (_groups, _ended, _retention, _changes, _personas)
    ]
    return [table for table in made if table.rows]


def text(scores: Scores) -> str:
    """The tables, the legend and the notes, as printed on the terminal."""
    parts = [table.text() for table in tables(scores)]
    parts.append("\n".join(textwrap.fill(line, WIDTH) for line in legend(scores)))
    if scores.notes:
        notes = (
            textwrap.fill(note, WIDTH, initial_indent="- ", subsequent_indent="  ") for note in scores.notes
        )
        parts.append("\n".join(["Notes", *notes]))
    return "\n\n".join(parts) + "\n"


def legend(scores: Scores) -> list[str]:
    """Explanations of the columns, as lines of any length."""
    options = scores.options
    return [
        f"F1 is {scores.metric}, the mean F1 of {', '.join(scores.labels)}, on the emitted texts.",
        "Missing texts: F1 ignores them; own counts each as a miss; lower and upper are the minimum and maximum over all "
        "labels that they could have got. texts is the number of distinct texts, acc is accuracy.",
        f"Intervals are {options.confidence:.0%} percentile bootstrap intervals from {options.resamples} resamples of "
        f"rows or of scenarios; those of gap, retention and changes are from resamples by {options.resample}.",
        "gap = chat F1 - F1; retention = F1 / chat F1, n/a if chat is not above its null. null is the mean F1 with the "
        "personas permuted within each scenario.",
    ]


def _stage(scores: Scores, stage: str, training_seed: int | None) -> str:
    """The name of a stage, with its training seed if there are several seeds: ``full/1``."""
    several = len({g.training_seed for g in scores.groups}) > 1
    return f"{stage}/{training_seed}" if several and training_seed is not None else stage


def _of(scores: Scores, model: str) -> list[GroupScore]:
    return [g for g in scores.groups if g.model == model]


def _groups(scores: Scores, model: str) -> Table:
    columns = [(m, m.column) for m in metric_table.METRICS if m.column is not None]
    columns.sort(key=lambda pair: pair[1].order)
    header = ("stage", "format", *(column.header for _, column in columns))
    rows = tuple(
        (
            _stage(scores, g.stage, g.training_seed),
            g.format,
            *(metric.cell(g, column) for metric, column in columns),
        )
        for g in _of(scores, model)
    )
    return Table(f"{model}: {scores.metric} by stage and format", header, rows)


def _ended(scores: Scores, model: str) -> Table:
    groups = [g for g in _of(scores, model) if g.ended]
    reasons = sorted({reason for g in groups for reason in g.ended})
    rows = tuple(
        (_stage(scores, g.stage, g.training_seed), g.format, *(str(g.ended.get(r, 0)) for r in reasons))
        for g in groups
    )
    return Table(f"{model}: why episodes ended", ("stage", "format", *reasons), rows)


def _with_interval(contrast: Contrast) -> tuple[str, str]:
    if contrast.estimate is None:
        return NOT_AVAILABLE, ""
    return number(contrast.estimate), span(contrast.interval)


def _retention(scores: Scores, model: str) -> Table:
    interval = f"{scores.options.confidence:.0%}"
    # With several in-distribution formats the first one is the reference.
    references = [g for g in reversed(_of(scores, model)) if is_in_distribution(g.format)]
    nulls = {(g.stage, g.training_seed): g.null.mean if g.null else None for g in references}
    rows = tuple(
        (
            _stage(scores, r.stage, r.training_seed),
            r.format,
            number(r.chat),
            number(nulls[r.stage, r.training_seed]),
            number(r.score),
            *_with_interval(r.gap),
            *_with_interval(r.retention),
        )
        for r in scores.retention
        if r.model == model
    )
    header = ("stage", "format", "chat F1", "null", "F1", "gap", interval, "retention", interval)
    return Table(f"{model}: retention against chat", header, rows)


def _changes(scores: Scores, model: str) -> Table:
    rows = tuple(
        (
            f"{c.first} - {c.second}",
            f"in {_stage(scores, c.within, c.training_seed)}",
            *_with_interval(c.difference),
        )
        for c in scores.changes
        if c.model == model
    )
    interval = f"{scores.options.confidence:.0%}"
    return Table(
        f"{model}: changes of F1 between stages and between formats", ("change", "", "F1", interval), rows
    )


def _personas(scores: Scores, model: str) -> Table:
    groups = {(_stage(scores, g.stage, g.training_seed), g.format): g for g in _of(scores, model)}
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
