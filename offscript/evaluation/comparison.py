"""Two runs of a grid side by side: F1 and emission of each group, the difference, and the settings that differ."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from offscript.evaluation.metrics.display import number, span
from offscript.evaluation.metrics.intervals import Contrast
from offscript.evaluation.metrics.model_scores import ModelScores
from offscript.evaluation.metrics.results import Options
from offscript.evaluation.predictions import Prediction
from offscript.evaluation.report.section import Table
from offscript.json_types import Json

BESIDE = " (beside)"
"""Ends the names of the second run's stages while both runs are scored together."""

SIDES = ("here", "beside")
"""Names of the two evaluations where one of them is that of the command."""

Group = tuple[str, str, str, int | None]
"""Model, stage, format and training seed (None: the mean over several)."""


@dataclass(frozen=True)
class Side:
    """The scores of one group in one run: macro-F1 on the emitted texts, and the share of episodes with a text."""

    f1: float | None
    emission: float | None


@dataclass(frozen=True)
class Compared:
    """One group in both runs. A side is None if that run does not have the group; ``difference`` is then undefined, and is
    otherwise F1 of ``first`` minus F1 of ``other``."""

    group: Group
    first: Side | None
    other: Side | None
    difference: Contrast


def compare(
    first: Sequence[Prediction], other: Sequence[Prediction], labels: Sequence[str], options: Options
) -> list[Compared]:
    """Every group of either run, over the label set ``labels``; rows of other personas are left out.

    Both runs are resampled together, so that the difference of two groups with the same families is paired.
    """
    rows = [*first, *(replace(p, stage=p.stage + BESIDE) for p in other)]
    rows = [p for p in rows if p.persona is None or p.persona in labels]
    found = []
    for model in dict.fromkeys(p.model for p in rows):
        of_model = [p for p in rows if p.model == model]
        found += _compare_model(ModelScores(model, of_model, list(labels), options))
    return found


def _compare_model(scores: ModelScores) -> list[Compared]:
    sides = {
        (g.model, g.stage, g.format, g.training_seed): Side(g.macro_f1.emitted, g.emission_rate)
        for g in scores.groups
    }
    stages = {stage.removesuffix(BESIDE): None for _, stage, _, _ in sides}
    differences = {
        (c.model, c.first, c.within, c.training_seed): c.difference
        for c in scores.changes([(stage, stage + BESIDE) for stage in stages], ())
    }
    groups = {(model, stage.removesuffix(BESIDE), fmt, seed): None for model, stage, fmt, seed in sides}
    return [
        Compared(
            (model, stage, fmt, seed),
            sides.get((model, stage, fmt, seed)),
            sides.get((model, stage + BESIDE, fmt, seed)),
            differences.get((model, stage, fmt, seed), Contrast(None, None)),
        )
        for model, stage, fmt, seed in groups
    ]


def differing(first: Json, other: Json, key: str = "") -> dict[str, tuple[Json, Json]]:
    """The dotted keys in which two plain values differ, each with both values. Mappings are compared key by key; a key
    that one of them lacks has the value None there."""
    if not isinstance(first, dict) or not isinstance(other, dict):
        return {} if first == other else {key: (first, other)}
    found: dict[str, tuple[Json, Json]] = {}
    for name in dict.fromkeys([*first, *other]):
        found |= differing(first.get(name), other.get(name), f"{key}.{name}".lstrip("."))
    return found


def text(
    compared: Sequence[Compared],
    title: str,
    settings: Mapping[str, tuple[Json, Json]],
    interval: str = "95%",
    names: tuple[str, str] = SIDES,
    refused: Mapping[Group, str] = MappingProxyType({}),
) -> str:
    """The table, and one line for each setting that differs: its value in the first and in the other evaluation.

    Args:
        interval: heading of the intervals.
        names: of the two evaluations.
        refused: groups that are not in the table, and why.
    """
    other = f"{names[1]}: F1"
    header = ("model", "stage", "format", "F1", "emitted", other, "emitted", "difference", interval)
    rows = []
    several = any(one.group[3] is None for one in compared)
    for one in compared:
        model, stage, fmt, seed = one.group
        name = f"{stage}/{seed}" if several and seed is not None else stage
        change = (number(one.difference.estimate), span(one.difference.interval))
        rows.append((model, name, fmt, *_cells(one.first), *_cells(one.other), *change))
    lines = [
        Table(title, header, tuple(rows), left=3).text(),
        *_refused_lines(refused),
        "",
        f"Settings that differ: {', '.join(names)}",
    ]
    lines += [f"  {key}: {_short(a)}, {_short(b)}" for key, (a, b) in settings.items()] or ["  none"]
    return "\n".join(lines) + "\n"


def _refused_lines(refused: Mapping[Group, str]) -> list[str]:
    """Lines on the groups that are not compared, those of one reason together."""
    groups: dict[str, list[str]] = {}
    several = len({seed for *_, seed in refused}) > 1
    for (model, stage, fmt, seed), reason in refused.items():
        groups.setdefault(reason, []).append(
            f"{model} {stage}{f'/{seed}' if several and seed is not None else ''} {fmt}"
        )
    lines = (f"{reason}: {'; '.join(names)}" for reason, names in groups.items())
    wrapped = [textwrap.fill(line, 100, initial_indent="  ", subsequent_indent="    ") for line in lines]
    return ["", "Not compared", *wrapped] if wrapped else []


def _cells(side: Side | None) -> tuple[str, str]:
    if side is None:
        return "-", "-"
    return number(side.f1), "n/a" if side.emission is None else f"{side.emission:.0%}"


def _short(value: Json) -> str:
    written = "null" if value is None else str(value)
    return written if len(written) <= 60 else written[:57] + "..."


def as_json(
    compared: list[Compared],
    settings: Mapping[str, tuple[Json, Json]],
    names: tuple[str, str] = SIDES,
    refused: Mapping[Group, str] = MappingProxyType({}),
) -> dict[str, Json]:
    """The comparison as plain data, unrounded. ``names`` and ``refused``: see ``text``."""
    groups: list[Json] = []
    for one in compared:
        row: dict[str, Json] = dict(
            zip(("model", "stage", "format", "training_seed"), one.group, strict=True)
        )
        for name, side in zip(names, (one.first, one.other), strict=True):
            row[name] = {"f1": side.f1, "emission_rate": side.emission} if side else None
        interval = one.difference.interval
        row["difference"] = one.difference.estimate
        row["interval"] = list(interval) if interval else None
        groups.append(row)
    return {
        "groups": groups,
        "settings": {key: list(pair) for key, pair in settings.items()},
        "not_compared": [[*group, reason] for group, reason in refused.items()],
    }
