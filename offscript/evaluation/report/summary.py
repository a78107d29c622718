"""``summary.json`` and ``cells.csv``: the same numbers for programs, byte for byte the same from the same rows."""

import csv
import io
from dataclasses import asdict
from typing import Any

from offscript.evaluation.metrics.retention import Interval
from offscript.evaluation.metrics.scores import Evaluation, GroupScore, PersonaScore

DECIMALS = 6
ALL_PERSONAS = "_all"


def rounded(value: Any) -> Any:
    """``value`` with every float at DECIMALS places and tuples as lists, ready for JSON."""
    if isinstance(value, float):
        return round(value, DECIMALS) + 0.0  # no -0.0
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    return value


def summary(evaluation: Evaluation) -> dict[str, Any]:
    """All of ``evaluation`` as plain JSON values; ``columns`` names those of each group's ``counts``."""
    plain = rounded(asdict(evaluation))
    return {"schema": 1, "columns": [*evaluation.labels, "outside", "missing"], **plain}


def retention_rows(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The retention table of a ``summary`` as flat rows, for a tracker."""
    return [
        {
            **{key: row[key] for key in ("model", "stage", "format", "training_seed", "chat")},
            "f1": row["score"],
            **_flat("gap", row["gap"]),
            **_flat("retention", row["retention"]),
            "why_not": row["why_not"],
        }
        for row in summary["retention"]
    ]


def _flat(name: str, contrast: dict[str, Any]) -> dict[str, Any]:
    low, high = contrast["interval"] or (None, None)
    return {name: contrast["estimate"], f"{name}_low": low, f"{name}_high": high}


def cells_csv(evaluation: Evaluation) -> str:
    """One line per group (persona ``_all``: F1 is the macro-F1) and one per cell; an empty field is unknown."""
    out = io.StringIO()
    writer = csv.DictWriter(
        out, fieldnames=list(_group_row(evaluation, evaluation.groups[0])), lineterminator="\n"
    )
    writer.writeheader()
    for group in evaluation.groups:
        writer.writerow(_group_row(evaluation, group))
        for persona in group.personas:
            writer.writerow(_persona_row(evaluation, group, persona))
    return out.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{rounded(value):.{DECIMALS}f}" if isinstance(value, float) else str(value)


def _ends(name: str, interval: Interval) -> dict[str, str]:
    low, high = interval or (None, None)
    return {f"{name}_low": _cell(low), f"{name}_high": _cell(high)}


def _group_row(evaluation: Evaluation, group: GroupScore) -> dict[str, str]:
    values = {
        "model": group.model,
        "stage": group.stage,
        "format": group.format,
        "training_seed": group.training_seed,
        "persona": ALL_PERSONAS,
        "planned": group.planned,
        "emitted": group.emitted,
        "emission_rate": group.emission_rate,
        "ended": ";".join(f"{reason}:{count}" for reason, count in group.ended.items()),
        "unique_texts": group.unique_texts,
        "scenarios": group.scenarios,
        "families": group.families,
        "accuracy": group.accuracy,
        evaluation.metric: group.macro_f1.emitted,
        "own_class": group.macro_f1.own_class,
        "lower": group.macro_f1.lower,
        "upper": group.macro_f1.upper,
        "null_mean": group.null.mean if group.null else None,
        "null_p": group.null.p if group.null else None,
        "f1": None,
    }
    return {
        **{key: _cell(value) for key, value in values.items()},
        **_ends("rows", group.interval_rows),
        **_ends("scenario", group.interval_scenario),
        **_ends("family", group.interval_family),
    }


def _persona_row(evaluation: Evaluation, group: GroupScore, persona: PersonaScore) -> dict[str, str]:
    row = dict.fromkeys(_group_row(evaluation, group), "")
    values = {
        "model": group.model,
        "stage": group.stage,
        "format": group.format,
        "training_seed": group.training_seed,
        "persona": persona.persona,
        "planned": persona.planned,
        "emitted": persona.emitted,
        "emission_rate": persona.emitted / persona.planned if persona.planned else None,
        "accuracy": persona.recall,
        "f1": persona.f1,
    }
    row.update({key: _cell(value) for key, value in values.items()})
    row.update(_ends("rows", persona.interval_rows))
    row.update(_ends("scenario", persona.interval_scenario))
    return row
