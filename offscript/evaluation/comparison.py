"""Two evaluations side by side: F1 and emission of each group, the difference, and the settings that differ."""

from collections.abc import Mapping
from dataclasses import dataclass

from offscript.evaluation.evaluate import Scores
from offscript.evaluation.metrics.display import number
from offscript.evaluation.report.tables import Table
from offscript.json_types import Json

Group = tuple[str, str, str, int | None]
"""Model, stage, format and training seed."""


@dataclass(frozen=True)
class Side:
    """The scores of one group in one evaluation: macro-F1 on the emitted texts, and the share of episodes with a text."""

    f1: float | None
    emission: float | None


@dataclass(frozen=True)
class Compared:
    """One group in both evaluations; a side is None if that evaluation does not have the group."""

    group: Group
    first: Side | None
    other: Side | None

    @property
    def difference(self) -> float | None:
        """F1 of ``first`` minus F1 of ``other``; None if one of them is unknown."""
        if self.first is None or self.other is None or self.first.f1 is None or self.other.f1 is None:
            return None
        return self.first.f1 - self.other.f1


def compare(first: Scores, other: Scores) -> list[Compared]:
    """The groups of both, in the order of ``first``, then those of ``other`` alone."""
    sides = (_sides(first), _sides(other))
    return [
        Compared(group, *(side.get(group) for side in sides))
        for group in dict.fromkeys([*sides[0], *sides[1]])
    ]


def _sides(scores: Scores) -> dict[Group, Side]:
    return {
        (g.model, g.stage, g.format, g.training_seed): Side(g.macro_f1.emitted, g.emission_rate)
        for g in scores.groups
    }


def differing(first: Json, other: Json, key: str = "") -> dict[str, tuple[Json, Json]]:
    """The dotted keys in which two plain values differ, each with both values. Mappings are compared key by key; a key
    that one of them lacks has the value None there."""
    if not isinstance(first, dict) or not isinstance(other, dict):
        return {} if first == other else {key: (first, other)}
    found: dict[str, tuple[Json, Json]] = {}
    for name in dict.fromkeys([*first, *other]):
        found |= differing(first.get(name), other.get(name), f"{key}.{name}".lstrip("."))
    return found


def text(compared: list[Compared], title: str, settings: Mapping[str, tuple[Json, Json]]) -> str:
    """The table, and one line for each setting that differs: its value in the first and in the other evaluation."""
    header = ("model", "stage", "format", "F1", "emitted", "beside: F1", "emitted", "difference")
    rows = []
    for one in compared:
        model, stage, fmt, seed = one.group
        name = stage if seed in (None, 0) else f"{stage}/{seed}"
        rows.append((model, name, fmt, *_cells(one.first), *_cells(one.other), number(one.difference)))
    lines = [Table(title, header, tuple(rows), left=3).text(), "", "Settings that differ: here, beside"]
    lines += [f"  {key}: {_short(a)}, {_short(b)}" for key, (a, b) in settings.items()] or ["  none"]
    return "\n".join(lines) + "\n"


def _cells(side: Side | None) -> tuple[str, str]:
    if side is None:
        return "-", "-"
    return number(side.f1), "n/a" if side.emission is None else f"{side.emission:.0%}"


def _short(value: Json) -> str:
    written = "null" if value is None else str(value)
    return written if len(written) <= 60 else written[:57] + "..."


def as_json(compared: list[Compared], settings: Mapping[str, tuple[Json, Json]]) -> dict[str, Json]:
    """The comparison as plain data, unrounded."""
    groups: list[Json] = []
    for one in compared:
        row: dict[str, Json] = dict(
            zip(("model", "stage", "format", "training_seed"), one.group, strict=True)
        )
        for name, side in (("here", one.first), ("beside", one.other)):
            row[name] = {"f1": side.f1, "emission_rate": side.emission} if side else None
        groups.append({**row, "difference": one.difference})
    return {"groups": groups, "settings": {key: list(pair) for key, pair in settings.items()}}
