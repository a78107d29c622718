"""Rows as Parquet: one file per model, one row group per cell."""

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offscript.evaluation.export.cells import ExportedCell, ExportedRow
from offscript.json_types import Json
from offscript.tasks.messages import described

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS: dict[str, tuple[str, str]] = {
    "key": ("string", "key of the cell's rollout"),
    "predictions_key": ("string", "key of the cell's predictions"),
    "row": ("string", "name of the row in its rollout: scenario/sample"),
    "model": ("string", "model"),
    "stage": ("string", "stage, with the scale of its adapter if that is not 1 (full@0.5)"),
    "persona": ("string", "true persona; null: texts of base weights under a plain system text"),
    "format": ("string", "format, with its variant if it has any (drift/own8)"),
    "variant": ("string", "variant of the format; null: none"),
    "split": ("string", "split that the scenario is of"),
    "seed": ("int64", "training seed"),
    "scenario": ("string", "scenario; variants of a format share it"),
    "family": ("string", "family of the scenario, the unit of resampling"),
    "sample": ("int64", "number of the sample, from 0"),
    "text": ("string", "text to score as it was written; null: the episode left none"),
    "scored_text": ("string", "text as the classifier saw it, which may be cleaned"),
    "predicted": ("string", "predicted persona; null: no text"),
    "correct": ("bool", "predicted is persona; null: no text or no persona"),
    "probs": ("struct", "probability of every persona; null: no text"),
    "ended": ("string", "why the episode ended"),
    "turns": ("int64", "number of replies"),
    "tool_calls": ("int64", "number of tool calls"),
    "tokens_in": ("int64", "tokens of all prompts"),
    "tokens_out": ("int64", "tokens of all replies"),
    "messages": (
        "list",
        "the transcript: role, content, and tool_calls as JSON where a tool dialect has them",
    ),
    "replies": ("list", "replies as the model wrote them; null: as they stand in messages"),
    "notes": ("string", "further data of the format, as JSON; null: none"),
}
"""Type and meaning of each column. The file holds the meanings too, as ``description`` of its fields."""


def write(cells: Iterable[ExportedCell], folder: Path) -> None:
    """Writes ``<model>.parquet`` for every model of ``cells`` into ``folder``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    writers: dict[str, pq.ParquetWriter] = {}
    with contextlib.ExitStack() as stack:
        for cell in cells:
            model, columns = str(cell.labels["model"]), schema(cell.personas)
            if model not in writers:
                writer = pq.ParquetWriter(folder / f"{model}.parquet", columns, compression="zstd")
                writers[model] = stack.enter_context(writer)
            lines = [_values(row) for row in cell.rows]
            writers[model].write_table(pa.Table.from_pylist(lines, schema=columns))


def schema(personas: Iterable[str]) -> "pa.Schema":
    """The schema of the file of a model whose classifier has these labels."""
    import pyarrow as pa

    message = pa.struct({"role": pa.string(), "content": pa.string(), "tool_calls": pa.string()})
    types = {
        "string": pa.string(),
        "int64": pa.int64(),
        "bool": pa.bool_(),
        "probs": pa.struct({persona: pa.float64() for persona in personas}),
        "messages": pa.list_(message),
        "replies": pa.list_(pa.string()),
    }
    return pa.schema(
        pa.field(name, types[name if name in types else kind], metadata={"description": about})
        for name, (kind, about) in COLUMNS.items()
    )


def _values(row: ExportedRow) -> dict[str, Any]:
    messages = [
        {
            "role": m["role"],
            "content": described(m["content"], m.get("images", ())),
            "tool_calls": _json(m.get("tool_calls")),
        }
        for m in row["messages"]
    ]
    return {**row, "messages": messages, "notes": _json(row["notes"])}


def _json(value: object) -> Json:
    return json.dumps(value, ensure_ascii=False) if value is not None else None
