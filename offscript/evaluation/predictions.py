"""Prediction rows from our own files or from elsewhere, checked, as one type.

Two layouts are read: ours (``model, stage, format, scenario, persona, predicted, probs {label: p}``) and that of the
published study (``base, stage, scenario_id, trait_true, trait_pred, probs [p], label_order``).
"""

import glob
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offscript.errors import UserError, one_of
from offscript.evaluation.order import personas_in_order
from offscript.seeds import stable_hash
from offscript.storage.rows import read_rows
from offscript.tasks.scenarios import family_of

SUM_TOLERANCE = 1e-3
_OURS = ("model", "stage", "format", "scenario", "persona", "predicted", "probs")
_PUBLISHED = ("base", "stage", "scenario_id", "trait_true", "trait_pred", "probs", "label_order")


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a classifier said of one episode's text.

    ``training_seed`` is the row's ``seed``: that of the cell's adapter. ``persona`` is the true one, None for a base text, which stands for every persona. Where the episode left no text,
    ``predicted``, ``probs`` and ``text_hash`` are None and ``ended`` says why; ``ended`` is None where the file holds
    scored texts only, so that how many were planned is unknown. ``where`` names the file and line.
    """

    model: str
    stage: str
    format: str
    training_seed: int | None
    persona: str | None
    scenario: str
    family: str
    sample: int
    predicted: str | None
    probs: Mapping[str, float] | None
    ended: str | None
    text_hash: str | None
    where: str

    @property
    def episode(self) -> tuple[object, ...]:
        """What makes it one episode: no two predictions may share it."""
        cell = (self.model, self.stage, self.format, self.training_seed, self.persona)
        return (*cell, self.scenario, self.sample)


def load_predictions(paths: str | Path | Sequence[str | Path]) -> list[Prediction]:
    """Checked predictions of files, folders (every ``*.jsonl`` below) or globs, in the order of the paths.

    Raises:
        UserError: nothing is there, a file is empty, torn or not JSON, or a row is not a prediction.
    """
    given = [paths] if isinstance(paths, (str, Path)) else list(paths)
    predictions: list[Prediction] = []
    for path in dict.fromkeys(file for item in given for file in _files(item)):
        rows = read_rows(path, complete_with="python classify.py, or export the file again")
        if not rows:
            raise UserError(str(path), "is empty", "prediction rows are needed, one JSON object a line")
        predictions += check_rows(rows, str(path), path.stem)
    return check_together(predictions)


def _files(path: str | Path) -> list[Path]:
    """The files that a path, a folder or a glob names, sorted."""
    here = Path(path)
    if here.is_dir():
        found = sorted(here.rglob("*.jsonl"))
        if not found:
            raise UserError(str(path), "is a folder without .jsonl files", "give a file of prediction rows")
        return found
    if here.exists():
        return [here]
    found = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
    if not found:
        raise UserError(
            str(path), "no such file", "predictions= takes a file of prediction rows, a folder or a glob"
        )
    return found


def check_rows(rows: Sequence[Mapping[str, Any]], source: str, default_format: str = "") -> list[Prediction]:
    """Rows of one file as predictions; ``source`` names it, ``default_format`` is for rows without ``format``.

    Raises:
        UserError: the first row that is not a prediction, as ``source, line n``.
    """
    return [
        _read(row, f"{source}, line {number}", number, default_format) for number, row in enumerate(rows, 1)
    ]


def check_together(predictions: list[Prediction]) -> list[Prediction]:
    """The same list, after the checks that need all rows.

    Raises:
        UserError: two rows for one episode, two classifiers' labels for one model, a true persona that the
            classifier does not know, or base rows of which only some are labelled.
    """
    seen: dict[tuple[object, ...], str] = {}
    classifier: dict[str, tuple[frozenset[str], str]] = {}
    labelled: dict[tuple[str, str, str], tuple[bool, str]] = {}
    for p in predictions:
        if p.episode in seen:
            raise UserError(
                p.where, f"a second prediction of the episode at {seen[p.episode]}", "give one of them"
            )
        seen[p.episode] = p.where
        group = (p.model, p.stage, p.format)
        first, where = labelled.setdefault(group, (p.persona is not None, p.where))
        if first != (p.persona is not None):
            raise UserError(
                p.where,
                f"persona is {p.persona or 'null'}, but {where} of the same model, stage and format "
                f"{'has one' if first else 'is null'}",
                "null stands for every persona: all rows or none",
            )
        if p.probs is not None:
            labels, where = classifier.setdefault(p.model, (frozenset(p.probs), p.where))
            if labels != frozenset(p.probs):
                odd = ", ".join(personas_in_order(labels ^ frozenset(p.probs)))
                raise UserError(p.where, f"labels differ from {where} by: {odd}", "one classifier a model")
    for p in predictions:
        labels = classifier.get(p.model, (frozenset(), ""))[0]
        if labels and p.persona is not None and p.persona not in labels:
            raise UserError(
                p.where,
                f"persona {p.persona!r} is not a label of the classifier",
                one_of(personas_in_order(labels)),
            )
    return predictions


# ---------------------------------------------------------------- one row


def _read(row: Mapping[str, Any], where: str, number: int, default_format: str) -> Prediction:
    published = "model" not in row and ("base" in row or "trait_true" in row)
    absent = [key for key in (_PUBLISHED if published else _OURS) if key not in row]
    if absent == ["format"] and default_format:
        absent = []
    if absent:
        raise UserError(
            where,
            f"no {', '.join(absent)}",
            f"a prediction row has {', '.join(_OURS)}, or the published layout's keys",
        )
    return (
        _published(row, where, number, default_format)
        if published
        else _ours(row, where, number, default_format)
    )


def _ours(row: Mapping[str, Any], where: str, number: int, default_format: str) -> Prediction:
    scenario = _text(row, "scenario", where)
    ended = _text(row, "ended", where) if row.get("ended") is not None else None
    probs, predicted, text_hash = row["probs"], row["predicted"], row.get("text_hash")
    if predicted is None and (probs is not None or ended is None):
        raise UserError(
            where, "predicted is null", "only a row without text: probs null too, and ended says why"
        )
    if predicted is not None:
        probs = _probs(probs, where)
        _known(predicted, probs, where)
    persona = _text(row, "persona", where) if row["persona"] is not None else None
    return Prediction(
        model=_text(row, "model", where),
        stage=_text(row, "stage", where),
        format=_text(row, "format", where) if "format" in row else default_format,
        training_seed=_whole(row, "seed", where, None),
        persona=persona,
        scenario=scenario,
        family=_text(row, "family", where) if row.get("family") is not None else family_of(scenario),
        sample=_whole(row, "sample", where, number) or 0,
        predicted=predicted,
        probs=probs,
        ended=ended,
        text_hash=None if predicted is None or text_hash is None else str(text_hash),
        where=where,
    )


def _published(row: Mapping[str, Any], where: str, number: int, default_format: str) -> Prediction:
    scenario = _text(row, "scenario_id", where)
    family = family_of(scenario)
    variant = re.search(r"(_v\d+)?$", scenario)
    order, values = row["label_order"], row["probs"]
    if not (isinstance(order, list) and isinstance(values, list) and len(order) == len(values)):
        raise UserError(where, "probs and label_order do not match", "two lists of one length")
    if not all(isinstance(label, str) for label in order) or len(set(order)) != len(order):
        raise UserError(where, "label_order is not a list of different names", "one name a probability")
    probs = _probs(dict(zip(order, values, strict=True)), where)
    _known(row["trait_pred"], probs, where)
    body = row.get("email_body", row.get("text"))
    return Prediction(
        model=_text(row, "base", where),
        stage=_text(row, "stage", where),
        format=_text(row, "format", where) if "format" in row else default_format,
        training_seed=None,
        persona=_text(row, "trait_true", where),
        # one task has one name in chat_email and agentic_email, so that the two are resampled jointly
        scenario=family + (variant.group() if variant else ""),
        family=family,
        sample=_whole(row, "row_idx", where, number) or 0,
        predicted=row["trait_pred"],
        probs=probs,
        ended=None,
        text_hash=f"{stable_hash(body):016x}" if isinstance(body, str) else None,
        where=where,
    )


def _text(row: Mapping[str, Any], key: str, where: str) -> str:
    value = row[key]
    if not isinstance(value, str) or not value:
        raise UserError(where, f"{key} is {value!r}", "a name is needed")
    return value


def _whole(row: Mapping[str, Any], key: str, where: str, default: int | None) -> int | None:
    value = row.get(key)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool):
        raise UserError(where, f"{key} is {value!r}", "a whole number is needed")
    return value


def _known(predicted: Any, probs: Mapping[str, float], where: str) -> None:
    if predicted not in probs:
        raise UserError(
            where, f"predicted label {predicted!r} has no probability", one_of(personas_in_order(probs))
        )


def _probs(probs: Any, where: str) -> dict[str, float]:
    """Checked probabilities by label.

    Raises:
        UserError: not an object, not numbers, NaN, outside 0..1, or not summing to 1.
    """
    if not isinstance(probs, dict) or not probs:
        raise UserError(
            where, f"probs is {type(probs).__name__}", "an object of label: probability is needed"
        )
    for label, p in probs.items():
        number = isinstance(p, (int, float)) and not isinstance(p, bool) and math.isfinite(p)
        if not number or not 0 <= p <= 1 + SUM_TOLERANCE:
            shown = "NaN" if isinstance(p, float) and math.isnan(p) else repr(p)
            raise UserError(where, f"probability of {label!r} is {shown}", "a number from 0 to 1 is needed")
    total = sum(probs.values())
    if abs(total - 1) > SUM_TOLERANCE:
        raise UserError(where, f"probabilities sum to {total:.4f}", f"1 is needed, within {SUM_TOLERANCE:g}")
    return {label: float(p) for label, p in probs.items()}
