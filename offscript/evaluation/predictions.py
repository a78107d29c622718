"""Reads and checks prediction rows.

Two layouts are accepted: our own (``model, stage, format, scenario, persona, predicted, probs {label: p}``) and that of
the published study (``base, stage, scenario_id, trait_true, trait_pred, probs [p], label_order``).
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from offscript.errors import UserError, command_line, one_of
from offscript.evaluation.order import personas_in_order
from offscript.seeds import stable_hash
from offscript.settings import shown
from offscript.storage.files import Json, resolve
from offscript.storage.rows import read_rows
from offscript.tasks.scenarios import family_of

Row = Mapping[str, Json]

SUM_TOLERANCE = 1e-3
JUDGEMENT = "hand_classification"
JUDGEMENTS = {"present": True, "absent": False}
"""What a person may say of the true persona in a text; read from the field JUDGEMENT of a row."""
_OURS = ("model", "stage", "format", "scenario", "persona", "predicted", "probs")
_PUBLISHED = ("base", "stage", "scenario_id", "trait_true", "trait_pred", "probs", "label_order")


@dataclass(frozen=True, slots=True)
class Prediction:
    """The prediction of a classifier for the text of one episode.

    ``training_seed`` is the ``seed`` of the row, which is that of the cell's adapter. ``persona`` is the true persona,
    None for a base text, which is scored for every persona. ``sample`` is, for a row without such a number, a hash of the
    row, so that only a row that is given twice is a second prediction of one episode. If the episode emitted no text, ``predicted``, ``probs`` and
    ``text_hash`` are None. ``fits`` are the labels by each fit of the classifier, of whose mean probabilities ``predicted``
    is the label; None for one fit. ``baseline`` is the label by a second classifier, None if there is none. ``text`` is the
    text that was scored, None if the row does not hold it. ``ended`` is the reason why the episode ended, None if the file
    holds scored texts only, so that the number of planned episodes is unknown. ``where`` is the file and line.
    ``present``: whether a person found the true persona in the text, None if nobody was asked.
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
    text: str | None = None
    present: bool | None = None
    fits: tuple[str, ...] | None = None
    baseline: str | None = None

    @property
    def episode(self) -> tuple[object, ...]:
        """Identity of the episode. Each episode has one prediction."""
        cell = (self.model, self.stage, self.format, self.training_seed, self.persona)
        return (*cell, self.scenario, self.sample)


def load_predictions(
    paths: str | Path | Sequence[str | Path], format_: str | None = None
) -> list[Prediction]:
    """Reads the predictions of files, folders (every ``*.jsonl`` below) or globs, in the order of ``paths``.

    Args:
        format_: format of rows without ``format``; by default the name of their file.

    Raises:
        UserError: a path names no file, a file is empty, incomplete or not JSON, or a row is not a valid prediction, or
            ``format_`` is given and no row needs it.
    """
    return [prediction for prediction, _ in load_rows(paths, format_)]


def load_rows(
    paths: str | Path | Sequence[str | Path], format_: str | None = None
) -> list[tuple[Prediction, Row]]:
    """As ``load_predictions``, with the row of each prediction."""
    given = [paths] if isinstance(paths, (str, Path)) else list(paths)
    found: list[tuple[Prediction, Row]] = []
    for path in dict.fromkeys(file for item in given for file in prediction_files(item)):
        rows = read_rows(path, complete_with=f"{command_line('classify')}, or export the file again")
        if not rows:
            raise UserError(str(path), "is empty", "prediction rows are needed, one JSON object a line")
        found += zip(check_rows(rows, str(path), format_ or path.stem), rows, strict=True)
    if format_ is not None and all("format" in row for _, row in found):
        raise UserError(f"format={format_}", "every row has a format", "leave it out")
    check_together([prediction for prediction, _ in found])
    return found


def prediction_files(path: str | Path) -> list[Path]:
    """The files of prediction rows that ``path`` (a file, a folder or a glob) names.

    Raises:
        UserError: there are none.
    """
    found = resolve(path)
    if not found:
        raise UserError(
            str(path), "no such file", "predictions= takes a file of prediction rows, a folder or a glob"
        )
    files = sorted(found[0].rglob("*.jsonl")) if found[0].is_dir() else found
    if not files:
        raise UserError(str(path), "is a folder without .jsonl files", "give a file of prediction rows")
    for file in files:
        # Reading a pipe or a device might never end.
        if not file.is_file():
            raise UserError(str(file), "is not a regular file", "give files of prediction rows")
    return files


def check_rows(rows: Sequence[Row], source: str, default_format: str = "") -> list[Prediction]:
    """Predictions from the rows of one file.

    Args:
        source: name of the file in error messages.
        default_format: format of rows without ``format``.

    Raises:
        UserError: a row is not a valid prediction; names the first one as ``source, line n``.
    """
    return [_read(row, f"{source}, line {number}", default_format) for number, row in enumerate(rows, 1)]


def check_together(predictions: list[Prediction]) -> list[Prediction]:
    """Checks the predictions against each other and returns them.

    Raises:
        UserError: an episode has two rows, a model has predictions of two classifiers (different labels or numbers of fits),
            a true persona is not a label of the classifier, or only some rows of a group have a persona.
    """
    seen: dict[tuple[object, ...], str] = {}
    classifier: dict[str, tuple[frozenset[str], str]] = {}
    labelled: dict[tuple[str, str, str], tuple[bool, str]] = {}
    fits: dict[str, tuple[int, str]] = {}
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
            number = len(p.fits or ())
            of_model, where = fits.setdefault(p.model, (number, p.where))
            if number != of_model:
                raise UserError(
                    p.where, f"{number or 1} fits, but {of_model or 1} at {where}", "one classifier a model"
                )
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


def _read(row: Row, where: str, default_format: str) -> Prediction:
    published = "model" not in row and ("base" in row or "trait_true" in row)
    absent = [key for key in (_PUBLISHED if published else _OURS) if key not in row]
    if absent and (absent != ["format"] or not default_format):
        raise UserError(
            where,
            f"no {', '.join(absent)}",
            f"a prediction row has {', '.join(_OURS)}, or the keys of the published layout",
        )
    format_ = _text(row, "format", where) if "format" in row else default_format
    return (_published if published else _ours)(row, where, format_)


def _ours(row: Row, where: str, format_: str) -> Prediction:
    scenario, text_hash = _text(row, "scenario", where), row.get("text_hash")
    text = row.get("scored_text", row.get("text"))
    ended = _text(row, "ended", where) if row.get("ended") is not None else None
    has_text = row["predicted"] is not None
    if not has_text and (row["probs"] is not None or ended is None):
        raise UserError(
            where, "predicted is null", "allowed for an episode without text only: probs null, ended given"
        )
    probs = _probs(row["probs"], where) if has_text else None
    return Prediction(
        model=_text(row, "model", where),
        stage=_text(row, "stage", where),
        format=format_,
        training_seed=_integer(row, "seed", where),
        persona=_text(row, "persona", where) if row["persona"] is not None else None,
        scenario=scenario,
        family=_text(row, "family", where) if row.get("family") is not None else family_of(scenario),
        sample=_sample(row, "sample", where),
        predicted=_label(row["predicted"], probs, where) if probs else None,
        probs=probs,
        ended=ended,
        text_hash=str(text_hash) if has_text and text_hash is not None else None,
        where=where,
        text=text if has_text and isinstance(text, str) else None,
        present=_present(row, where),
        fits=_fits(row, probs, where),
        baseline=_label(row["baseline"], probs, where) if probs and row.get("baseline") is not None else None,
    )


def _published(row: Row, where: str, format_: str) -> Prediction:
    scenario = _text(row, "scenario_id", where)
    family = family_of(scenario)
    variant = re.search(r"(_v\d+)?$", scenario)
    labels, values = row["label_order"], row["probs"]
    if not (isinstance(labels, list) and isinstance(values, list) and len(labels) == len(values)):
        raise UserError(where, "probs and label_order do not match", "two lists of equal length are needed")
    names = [label for label in labels if isinstance(label, str)]
    if len(set(names)) < len(labels):
        raise UserError(where, "label_order is not a list of distinct names", "one name per probability")
    probs = _probs(dict(zip(names, values, strict=True)), where)
    body = row.get("email_body", row.get("text"))
    return Prediction(
        model=_text(row, "base", where),
        stage=_text(row, "stage", where),
        format=format_,
        training_seed=None,
        persona=_text(row, "trait_true", where),
        # A scenario has the same name in chat_email and agentic_email, so that the two are resampled jointly.
        scenario=family + (variant.group() if variant else ""),
        family=family,
        sample=_sample(row, "row_idx", where),
        predicted=_label(row["trait_pred"], probs, where),
        probs=probs,
        ended=None,
        text_hash=f"{stable_hash(body):016x}" if isinstance(body, str) else None,
        where=where,
        text=body if isinstance(body, str) else None,
        present=_present(row, where),
    )


def _present(row: Row, where: str) -> bool | None:
    """The judgement of a person, in the field that the published rows have for it."""
    value = row.get(JUDGEMENT)
    if value is None:
        return None
    if not isinstance(value, str) or value not in JUDGEMENTS:
        raise UserError(where, f"{JUDGEMENT} is {shown(value)}", one_of(JUDGEMENTS))
    return JUDGEMENTS[value]


def _text(row: Row, key: str, where: str) -> str:
    value = row[key]
    if not isinstance(value, str) or not value:
        raise UserError(where, f"{key} is {shown(value)}", "a name is needed")
    return value


def _integer(row: Row, key: str, where: str) -> int | None:
    value = row.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not -(2**63) <= value < 2**63:
        raise UserError(where, f"{key} is {shown(value)}", "an integer of 64 bits is needed")
    return value


def _sample(row: Row, key: str, where: str) -> int:
    number = _integer(row, key, where)
    return stable_hash("row", json.dumps(row, sort_keys=True)) if number is None else number


def _fits(row: Row, probs: Mapping[str, float] | None, where: str) -> tuple[str, ...] | None:
    found = row.get("fits")
    if found is None or probs is None:
        return None
    if not isinstance(found, list) or len(found) < 2:
        raise UserError(where, f"fits is {shown(found)}", "a list of labels, one per fit, at least two")
    return tuple(_label(label, probs, where) for label in found)


def _label(predicted: Json, probs: Mapping[str, float], where: str) -> str:
    if not isinstance(predicted, str) or predicted not in probs:
        raise UserError(
            where, f"predicted label {shown(predicted)} has no probability", one_of(personas_in_order(probs))
        )
    return predicted


def _probs(probs: Json, where: str) -> dict[str, float]:
    """Checked probabilities by label.

    Raises:
        UserError: ``probs`` is not an object of numbers in 0..1 that sum to 1, within SUM_TOLERANCE.
    """
    if not isinstance(probs, dict) or not probs:
        raise UserError(
            where, f"probs is {type(probs).__name__}", "an object of label: probability is needed"
        )
    checked: dict[str, float] = {}
    for label, p in probs.items():
        if isinstance(p, bool) or not isinstance(p, (int, float)) or not 0 <= p <= 1 + SUM_TOLERANCE:
            found = shown(p)
            raise UserError(where, f"probability of {label!r} is {found}", "a number from 0 to 1 is needed")
        checked[label] = float(p)
    total = sum(checked.values())
    if abs(total - 1) > SUM_TOLERANCE:
        raise UserError(where, f"probabilities sum to {total:.4f}", f"1 is needed, within {SUM_TOLERANCE:g}")
    return checked
