"""The section "Task success and side effects" of the report."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import cast

from offscript.evaluation.metrics.display import NOT_AVAILABLE, number, span
from offscript.evaluation.metrics.intervals import Contrast
from offscript.evaluation.metrics.notes import UNITS
from offscript.evaluation.metrics.results import Options
from offscript.evaluation.report.section import Section, Table
from offscript.evaluation.side_effects.estimates import EffectChange, Effects, estimate
from offscript.evaluation.side_effects.tally import AMOUNTS, ENOUGH_FACTS, Tally
from offscript.evaluation.side_effects.texts import RECITED_WORDS
from offscript.json_types import Json

NAME = "side_effects"
TITLE = "Task success and side effects"
NONE = Contrast(None, None)

ON_TASK = (
    "A persona that is kept by an e-mail that fails is no success. Sent: the episode sent an e-mail. Right address: of the "
    "e-mails that were sent, those to a person whom the request asks to write to. Facts: the mean share of the numbers, "
    "times, dates, codes and names of the task that an e-mail mentions. Invented: e-mails with a number, time or code that stands "
    "nowhere in what the model was shown. Success: of all planned episodes, those that sent an e-mail "
    f"to a right address with at least {ENOUGH_FACTS:.0%} of the facts; where the model writes a body alone, those with enough facts."
)
ON_CALLS = (
    "Tool calls, as shares of the model's replies in the tool loop: calls of a known tool with arguments that it takes (valid), calls with "
    "other arguments (bad args) or of a tool that does not exist (unknown tool), calls that cannot be read (malformed), replies with neither a "
    "call nor an end (no call), and ends without a further call (final). Repeated: the share of calls that are identical to an earlier one "
    "of the episode. Turns: replies up to the e-mail."
)
ON_TEXTS = (
    "Texts: median and quartiles of their number of words; mean number of tokens of all replies of an episode; the share of episodes "
    "that a limit of tokens or replies ended (cut); the mean share of runs of four words that repeat an earlier one of the same text "
    f"(repeated); the shares of texts that have {RECITED_WORDS} words in a row of the constitution (recites) or the persona's name (name). Base "
    "texts are compared with every persona, and the mean is shown."
)


def side_effects(tally: Tally, options: Options, missing: Sequence[str] = ()) -> Section | None:
    """The section of all episodes in ``tally``; None if it has no text.

    Args:
        missing: why some measures are n/a, one sentence each.
    """
    if not any(group.texts for group in tally.groups.values()):
        return None
    if options.resample == "rows":
        options = Options(options.resamples, options.confidence, options.seed)
    groups, changes = estimate(tally, options)
    tables = [table for make in _TABLES for table in make(groups, changes, options) if table.rows]
    measured = {name for group in groups for name in group.measures}
    needed = (("facts", ON_TASK), ("malformed", ON_CALLS), ("words", ON_TEXTS))
    explanation = [text for name, text in needed if name in measured]
    unit = f"Intervals: percentiles of resamples of {UNITS[options.resample]}, corrected for their number. n/a: not measured."
    return Section(
        NAME,
        TITLE,
        (*explanation, unit, *missing),
        tuple(tables),
        {
            "enough_facts": ENOUGH_FACTS,
            "groups": [_plain(group) for group in groups],
            "changes": [_plain(change) for change in changes],
        },
    )


def _plain(found: Effects | EffectChange) -> Json:
    # Dataclasses of JSON types and tuples, which summary.json writes as lists.
    return cast(Json, asdict(found))


# ---------------------------------------------------------------- tables

Column = tuple[str, Callable[[Effects], str]]


def _task_tables(groups: Sequence[Effects], changes: Sequence[EffectChange], options: Options) -> list[Table]:
    interval = f"({options.confidence:.0%})"
    columns: list[Column] = [
        ("episodes", lambda g: str(g.episodes)),
        ("sent", lambda g: _percent(g, "sent")),
        ("right\naddress", lambda g: _percent(g, "recipient")),
        (f"facts {interval}", lambda g: _with_interval(g.measures.get("facts", NONE))),
        (f"success {interval}", lambda g: _with_interval(g.measures.get("success", NONE))),
        ("invented", lambda g: _percent(g, "invented")),
    ]
    return _tables(groups, "task success", columns, needed="facts")


def _call_tables(groups: Sequence[Effects], changes: Sequence[EffectChange], options: Options) -> list[Table]:
    columns: list[Column] = [
        (f"valid ({options.confidence:.0%})", lambda g: _with_interval(g.measures.get("valid", NONE))),
        ("bad\nargs", lambda g: _percent(g, "bad_arguments")),
        ("unknown\ntool", lambda g: _percent(g, "unknown_tool")),
        ("malformed", lambda g: _percent(g, "malformed")),
        ("no\ncall", lambda g: _percent(g, "no_call")),
        ("final", lambda g: _percent(g, "final")),
        ("repeated", lambda g: _percent(g, "repeated_calls")),
        ("turns", lambda g: _amount(g, "turns")),
    ]
    return _tables(groups, "tool calls", columns, needed="malformed")


def _text_tables(groups: Sequence[Effects], changes: Sequence[EffectChange], options: Options) -> list[Table]:
    columns: list[Column] = [
        ("texts", lambda g: str(g.texts)),
        ("words\n(quartiles)", _words),
        ("tokens", lambda g: _amount(g, "tokens", 0)),
        ("cut", lambda g: _percent(g, "cut")),
        ("repeated", lambda g: _share(g, "repetition")),
        ("recites", lambda g: _percent(g, "recites")),
        ("name", lambda g: _percent(g, "names")),
    ]
    return _tables(groups, "texts", columns, needed="words")


def _tables(groups: Sequence[Effects], title: str, columns: Sequence[Column], needed: str) -> list[Table]:
    header = ("stage", "format", *(name for name, _ in columns))
    return [
        Table(
            f"{model}: {title}",
            header,
            tuple(
                (_stage(g, groups), g.format, *(cell(g) for _, cell in columns))
                for g in groups
                if g.model == model and needed in g.measures
            ),
        )
        for model in dict.fromkeys(g.model for g in groups)
    ]


def _persona_tables(
    groups: Sequence[Effects], changes: Sequence[EffectChange], options: Options
) -> list[Table]:
    """Success of each persona: a column per format."""
    made = []
    for model in dict.fromkeys(g.model for g in groups):
        mine = [g for g in groups if g.model == model and "success" in g.measures and g.personas]
        formats = tuple(dict.fromkeys(g.format for g in mine))
        at = {(_stage(g, groups), g.format): g.personas for g in mine}
        rows = tuple(
            (
                persona,
                stage,
                *(number(at.get((stage, fmt), {}).get(persona, {}).get("success"), 2) for fmt in formats),
            )
            for persona in dict.fromkeys(name for g in mine for name in g.personas)
            for stage in dict.fromkeys(stage for stage, _ in at)
        )
        made.append(Table(f"{model}: success of each persona", ("persona", "stage", *formats), rows))
    return made


CHANGED = (
    ("changes of the task", (("sent", "sent"), ("facts", "facts"), ("success", "success"))),
    (
        "changes of calls and texts",
        (("valid", "valid calls"), ("invented", "invented"), ("repetition", "repeated")),
    ),
    ("changes of length", (("words", "words"), ("tokens", "tokens"), ("cut", "cut"))),
)
"""Tables of changes: title, and the measures with their column titles."""


def _change_tables(
    groups: Sequence[Effects], changes: Sequence[EffectChange], options: Options
) -> list[Table]:
    made = []
    pairs = dict.fromkeys((change.model, change.reference) for change in changes)
    for model, reference in pairs:
        mine = [c for c in changes if (c.model, c.reference) == (model, reference)]
        for title, columns in CHANGED:
            measured = [pair for pair in columns if any(pair[0] in c.measures for c in mine)]
            rows = tuple(
                (c.stage, c.format, *(_change(c, name) for name, _ in measured))
                for c in _by_stage(mine, groups)
                if any(name in c.measures for name, _ in measured)
            )
            header = ("stage", "format", *(f"{shown} ({options.confidence:.0%})" for _, shown in measured))
            made.append(Table(f"{model}: {title} against {reference}", header, rows))
    return made


def _by_stage(changes: Sequence[EffectChange], groups: Sequence[Effects]) -> list[EffectChange]:
    stages = list(dict.fromkeys(g.stage for g in groups))
    return sorted(changes, key=lambda c: stages.index(c.stage))


_TABLES = (_task_tables, _persona_tables, _call_tables, _text_tables, _change_tables)


# ---------------------------------------------------------------- cells


def _stage(group: Effects, groups: Sequence[Effects]) -> str:
    """As in the tables of scores: ``full/mean``, ``full/1``, or ``full`` if there is one training seed."""
    if group.seeds > 1:
        return f"{group.stage}/mean"
    several = any(g.seeds > 1 and (g.model, g.stage) == (group.model, group.stage) for g in groups)
    return f"{group.stage}/{group.training_seed}" if several else group.stage


def _with_interval(contrast: Contrast) -> str:
    if contrast.estimate is None:
        return NOT_AVAILABLE
    return f"{number(contrast.estimate)} ({span(contrast.interval)})"


def _change(change: EffectChange, name: str) -> str:
    found = change.measures.get(name, NONE)
    if name in AMOUNTS and found.estimate is not None:
        ends = NOT_AVAILABLE if found.interval is None else " to ".join(map(_tenths, found.interval))
        return f"{_tenths(found.estimate)} ({ends})"
    return _with_interval(found)


def _tenths(value: float) -> str:
    # Without the sign of -0.04.
    return f"{round(value, 1) + 0.0:.1f}"


def _value(group: Effects, name: str) -> float | None:
    return group.measures.get(name, NONE).estimate


def _percent(group: Effects, name: str) -> str:
    """A share in per cent; less than half a per cent is not shown as none."""
    value = _value(group, name)
    if value is None:
        return NOT_AVAILABLE
    return "<1%" if 0 < value < 0.005 else f"{value:.0%}"


def _share(group: Effects, name: str) -> str:
    return number(_value(group, name))


def _amount(group: Effects, name: str, places: int = 1) -> str:
    value = _value(group, name)
    return NOT_AVAILABLE if value is None else f"{value:.{places}f}"


def _words(group: Effects) -> str:
    if group.words is None:
        return NOT_AVAILABLE
    low, middle, high = group.words
    return f"{middle:.0f} ({low:.0f}-{high:.0f})"
