"""``summary.json`` and ``cells.csv``: all scores as plain data, byte for byte the same from the same rows."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict

from offscript.evaluation.metrics import table
from offscript.evaluation.metrics.intervals import Contrast
from offscript.evaluation.metrics.results import GroupScore, Scores
from offscript.evaluation.metrics.table import Scalar
from offscript.evaluation.report.section import Section
from offscript.storage.files import Json

DECIMALS = 6
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")
"""First characters of a text that a spreadsheet runs as a formula (OWASP, "CSV injection")."""
ALL_PERSONAS = "_all"

FlatRow = dict[str, Scalar]


def rounded(value: object) -> Json:
    """``value`` (of JSON types and tuples) with every float rounded to DECIMALS places and tuples as lists.

    Raises:
        TypeError: a type that JSON does not have.
    """
    if isinstance(value, float):
        return _round(value)
    if isinstance(value, dict):
        return {str(key): rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    raise TypeError(f"no JSON value: {value!r}")


def summary(scores: Scores, sections: Sequence[Section] = ()) -> dict[str, Json]:
    """``scores`` as JSON values; ``columns`` names the columns of each group's ``counts``, ``sections`` has the data of each
    section by its name."""
    values = {**asdict(scores), "groups": [_group(g, len(scores.labels)) for g in scores.groups]}
    return {
        "schema": 1,
        "columns": [*scores.labels, "outside", "missing"],
        **{key: rounded(value) for key, value in values.items()},
        "sections": {section.name: rounded(section.data) for section in sections},
    }


def score_rows(scores: Scores) -> list[FlatRow]:
    """One row per group (persona ``_all``) and one per persona in it: their names, then the columns of ``METRICS``."""
    rows = []
    for group in scores.groups:
        for persona in (None, *group.personas):
            row: FlatRow = {**_names(group), "persona": persona.persona if persona else ALL_PERSONAS}
            for metric in table.METRICS:
                row |= metric.values(persona or group, len(scores.labels))
            rows.append(row)
    return rows


def retention_rows(scores: Scores) -> list[FlatRow]:
    """One row per format of ``scores.retention``; ``reason`` says why retention is undefined."""
    return [
        {
            "model": r.model,
            "stage": r.stage,
            "format": r.format,
            "training_seed": r.training_seed,
            "seeds": r.seeds,
            "chat_f1": r.chat,
            "chat_null": r.chat_null,
            "f1": r.score,
            "null": r.null,
            **_contrast("gap", r.gap),
            **_contrast("above_chance", r.above_chance),
            **_contrast("ratio", r.ratio),
            "reason": r.why_not,
        }
        for r in scores.retention
    ]


def cells_csv(scores: Scores) -> str:
    """``score_rows`` as CSV with a header line. An empty field is unknown or undefined. A name that a spreadsheet would run as a
    formula begins with a single quote."""
    rows, out = score_rows(scores), io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(rows[0])
    writer.writerows([csv_field(value) for value in row.values()] for row in rows)
    return out.getvalue()


def _group(group: GroupScore, n_labels: int) -> dict[str, object]:
    """All fields of ``group`` and the metrics that are not fields."""
    added = [m for m in table.METRICS if not m.is_field]
    personas = [
        {**asdict(p), **{m.key(n_labels): m.persona(p) for m in added if m.persona}} for p in group.personas
    ]
    return {**asdict(group), **{m.key(n_labels): m.group(group) for m in added}, "personas": personas}


def _names(group: GroupScore) -> FlatRow:
    return {
        "model": group.model,
        "stage": group.stage,
        "format": group.format,
        "training_seed": group.training_seed,
        "seeds": group.seeds,
    }


def _contrast(name: str, contrast: Contrast) -> FlatRow:
    low, high = contrast.interval or (None, None)
    return {name: contrast.estimate, f"{name}_low": low, f"{name}_high": high}


def csv_field(value: Scalar) -> str:
    """``value`` as a field of CSV: empty for None, without carriage returns. A text that a spreadsheet would run as a formula
    begins with a single quote."""
    if value is None:
        return ""
    if isinstance(value, str):
        # The csv module does not quote a carriage return, which spreadsheets take for the end of a line.
        text = value.replace("\r", " ")
        return f"'{text}" if value.startswith(FORMULA_STARTS) else text
    return f"{_round(value):.{DECIMALS}f}" if isinstance(value, float) else str(value)


def _round(value: float) -> float:
    # Adding 0.0 turns -0.0 into 0.0.
    return round(value, DECIMALS) + 0.0
