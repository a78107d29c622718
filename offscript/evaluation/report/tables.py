"""The tables of an evaluation, as plain text for a terminal of 100 columns and as rows for the page."""

import textwrap
from dataclasses import dataclass

from offscript.evaluation.metrics.retention import Contrast, Interval
from offscript.evaluation.metrics.scores import Evaluation, GroupScore

NOT_AVAILABLE = "n/a"
UNKNOWN = "?"
WIDTH = 100


@dataclass(frozen=True)
class Table:
    """A title, a header and rows of equal length; ``left`` columns are words, the rest numbers."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 2

    def text(self) -> str:
        """Aligned lines, title first, without a line end at the end."""
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


def number(value: float | None, places: int = 3) -> str:
    """``.182``, ``-.041``, ``1.00``: no leading zero, as wide as ``places`` allow; ``n/a`` for None."""
    if value is None:
        return NOT_AVAILABLE
    shown = f"{value:.{places}f}"
    if float(shown) == 0:
        shown = shown.removeprefix("-")
    if abs(float(shown)) >= 1:
        return f"{value:.{places - 1}f}"
    return shown.replace("0.", ".", 1)


def span(interval: Interval) -> str:
    """``.138-.221``; ``-.020 to .031`` where a minus sign would be mistaken for the dash."""
    if interval is None:
        return NOT_AVAILABLE
    low, high = (number(end) for end in interval)
    return f"{low} to {high}" if "-" in low + high else f"{low}-{high}"


def tables(evaluation: Evaluation) -> list[Table]:
    """All tables, model by model; a table that would have no rows is left out."""
    models = dict.fromkeys(g.model for g in evaluation.groups)
    made = [
        make(evaluation, model)
        for model in models
        for make in (_groups, _ended, _retention, _changes, _personas)
    ]
    return [table for table in made if table.rows]


def text(evaluation: Evaluation) -> str:
    """What the terminal shows: every table, how to read them, and the notes."""
    parts = [table.text() for table in tables(evaluation)]
    parts.append("\n".join(textwrap.fill(line, WIDTH) for line in legend(evaluation)))
    if evaluation.notes:
        notes = (
            textwrap.fill(note, WIDTH, initial_indent="- ", subsequent_indent="  ")
            for note in evaluation.notes
        )
        parts.append("\n".join(["Notes", *notes]))
    return "\n\n".join(parts) + "\n"


def legend(evaluation: Evaluation) -> list[str]:
    """What the columns mean, one line each."""
    options = evaluation.options
    return [
        f"F1 is {evaluation.metric}, the mean F1 of {', '.join(evaluation.labels)}, on the texts that exist.",
        "What is assumed about the missing texts: F1 nothing, own that each is a miss, lower and upper the least and "
        "the most that they could have given. texts counts different texts, acc is accuracy.",
        f"Intervals are {options.confidence:.0%} percentile bootstrap intervals from {options.resamples} resamples of "
        f"rows or of scenarios; those of gap, kept and changes come from resamples by {options.resample}.",
        "gap = chat F1 - F1; kept = F1 / chat F1, n/a where chat is not above its null. null is the mean F1 with the "
        "personas shuffled within each scenario.",
    ]


def _stage(evaluation: Evaluation, stage: str, training_seed: int | None) -> str:
    """The stage's name, with the training seed where the evaluation has several: ``full/1``."""
    several = len({g.training_seed for g in evaluation.groups}) > 1
    return f"{stage}/{training_seed}" if several and training_seed is not None else stage


def _of(evaluation: Evaluation, model: str) -> list[GroupScore]:
    return [g for g in evaluation.groups if g.model == model]


def _groups(evaluation: Evaluation, model: str) -> Table:
    header = (
        "stage", "format", "emitted", "rate", "texts", "acc", "F1", "by rows", "by scenario",
        "own", "lower", "upper",
    )  # fmt: skip
    rows = tuple(
        (
            _stage(evaluation, g.stage, g.training_seed),
            g.format,
            f"{g.emitted}/{UNKNOWN if g.planned is None else g.planned}",
            UNKNOWN if g.emission_rate is None else f"{g.emission_rate:.0%}",
            UNKNOWN if g.unique_texts is None else str(g.unique_texts),
            number(g.accuracy),
            number(g.macro_f1.emitted, 4),
            span(g.interval_rows),
            span(g.interval_scenario),
            *(
                UNKNOWN if g.planned is None else number(reading)
                for reading in (g.macro_f1.own_class, g.macro_f1.lower, g.macro_f1.upper)
            ),
        )
        for g in _of(evaluation, model)
    )
    return Table(f"{model}: {evaluation.metric} by stage and format", header, rows)


def _ended(evaluation: Evaluation, model: str) -> Table:
    groups = [g for g in _of(evaluation, model) if g.ended]
    reasons = sorted({reason for g in groups for reason in g.ended})
    rows = tuple(
        (_stage(evaluation, g.stage, g.training_seed), g.format, *(str(g.ended.get(r, 0)) for r in reasons))
        for g in groups
    )
    return Table(f"{model}: why episodes ended", ("stage", "format", *reasons), rows)


def _with_interval(contrast: Contrast) -> tuple[str, str]:
    if contrast.estimate is None:
        return NOT_AVAILABLE, ""
    return number(contrast.estimate), span(contrast.interval)


def _retention(evaluation: Evaluation, model: str) -> Table:
    interval = f"{evaluation.options.confidence:.0%}"
    chats = [g for g in _of(evaluation, model) if g.format == "chat"]
    nulls = {(g.stage, g.training_seed): g.null.mean if g.null else None for g in chats}
    rows = tuple(
        (
            _stage(evaluation, r.stage, r.training_seed),
            r.format,
            number(r.chat),
            number(nulls[r.stage, r.training_seed]),
            number(r.score),
            *_with_interval(r.gap),
            *_with_interval(r.retention),
        )
        for r in evaluation.retention
        if r.model == model
    )
    header = ("stage", "format", "chat F1", "null", "F1", "gap", interval, "kept", interval)
    return Table(f"{model}: what is kept of chat", header, rows)


def _changes(evaluation: Evaluation, model: str) -> Table:
    rows = tuple(
        (
            f"{c.first} - {c.second}",
            f"in {_stage(evaluation, c.within, c.training_seed)}",
            *_with_interval(c.difference),
        )
        for c in evaluation.changes
        if c.model == model
    )
    interval = f"{evaluation.options.confidence:.0%}"
    return Table(
        f"{model}: changes of F1 between stages and between formats", ("change", "", "F1", interval), rows
    )


def _personas(evaluation: Evaluation, model: str) -> Table:
    groups = {(_stage(evaluation, g.stage, g.training_seed), g.format): g for g in _of(evaluation, model)}
    stages, formats = (tuple(dict.fromkeys(place[i] for place in groups)) for i in (0, 1))

    def cell(column: int, stage: str, fmt: str) -> str:
        group = groups.get((stage, fmt))
        persona = group.personas[column] if group else None
        return number(persona.f1 if persona and persona.emitted else None, 4)

    rows = tuple(
        (label, stage, *(cell(column, stage, fmt) for fmt in formats))
        for column, label in enumerate(evaluation.labels)
        for stage in stages
    )
    return Table(f"{model}: F1 of each persona", ("persona", "stage", *formats), rows)
