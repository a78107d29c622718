"""The cells of an evaluation as they are exported: each rollout row joined with its prediction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from offscript.errors import UserError
from offscript.evaluation.predictions import Prediction
from offscript.json_types import Json
from offscript.storage.hashing import key_of
from offscript.tasks.messages import Message
from offscript.tasks.rows import Row


class ExportedRow(TypedDict):
    """One episode and its prediction; ``COLUMNS`` of ``parquet`` describes the fields."""

    key: str
    predictions_key: str
    row: str
    model: str
    stage: str
    persona: str | None
    format: str
    variant: str | None
    split: str
    seed: int
    scenario: str
    family: str
    sample: int
    text: str | None
    scored_text: str | None
    predicted: str | None
    correct: bool | None
    probs: Mapping[str, float] | None
    ended: str
    turns: int
    tool_calls: int
    tokens_in: int
    tokens_out: int
    messages: list[Message]
    replies: list[str] | None
    notes: Mapping[str, Json] | None


@dataclass(frozen=True)
class ExportedCell:
    """One cell with its rows.

    Args:
        path: relative path of its rollout file, without the folder of all rollouts.
        labels: the names that its rows share: model, stage, persona, format, split and seed.
        key: key of its rollout.
        predictions_key: key of its predictions.
        personas: labels of the classifier.
        started: when its rollout was started and finished.
    """

    path: Path
    labels: Mapping[str, str | int | None]
    key: str
    predictions_key: str
    personas: tuple[str, ...]
    started: str
    finished: str
    rows: list[ExportedRow]


def joined(
    rows: Sequence[Row], predicted: Sequence[tuple[Mapping[str, Json], Prediction]], where: str
) -> list[ExportedRow]:
    """Each of ``rows`` with its prediction.

    Args:
        predicted: lines of the predictions file, as they stand there and checked.
        where: name of the predictions file in error messages.

    Raises:
        UserError: the predictions are not those of these rows and texts.
    """
    of_row = {str(line.get("row")): (line, prediction) for line, prediction in predicted}
    if of_row.keys() != {_name(row) for row in rows}:
        raise UserError(where, "has not one prediction for each row of the rollout", _REMEDY)
    return [_joined(row, *of_row[_name(row)], where) for row in rows]


_REMEDY = "delete it and its manifest, then run: offscript classify"


def _name(row: Row) -> str:
    return f"{row['scenario']}/{row['sample']}"


def _joined(row: Row, line: Mapping[str, Json], prediction: Prediction, where: str) -> ExportedRow:
    text = line.get("scored_text", row["text"])
    scored = str(text) if text is not None else None
    if prediction.text_hash != (key_of({"text": scored})[:16] if scored is not None else None):
        raise UserError(where, f"row {_name(row)} has the prediction of another text", _REMEDY)
    has_answer = prediction.predicted is not None and prediction.persona is not None
    return {
        "key": row["key"],
        "predictions_key": str(line.get("key")),
        "row": _name(row),
        "model": prediction.model,
        "stage": prediction.stage,
        "persona": prediction.persona,
        "format": prediction.format,
        "variant": row.get("variant"),
        "split": row["split"],
        "seed": row["seed"],
        "scenario": prediction.scenario,
        "family": prediction.family,
        "sample": row["sample"],
        "text": row["text"],
        "scored_text": scored,
        "predicted": prediction.predicted,
        "correct": prediction.predicted == prediction.persona if has_answer else None,
        "probs": prediction.probs,
        "ended": row["ended"],
        "turns": row["turns"],
        "tool_calls": row["tool_calls"],
        "tokens_in": row["tokens_in"],
        "tokens_out": row["tokens_out"],
        "messages": row["messages"],
        "replies": row.get("replies"),
        "notes": row.get("notes"),
    }
