"""Sheets of texts for a person to label, blind to where they come from, and the labels that come back.

A sheet asks of each text whether its true persona is present or absent. Its texts are drawn evenly from stages, formats and
personas. A key file maps the ids of the sheet to episodes.
"""

import csv
import io
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import TypedDict

from offscript.errors import UserError, one_of
from offscript.evaluation.predictions import JUDGEMENTS, Prediction
from offscript.evaluation.report.label_page import Question, render
from offscript.evaluation.report.summary import csv_field
from offscript.seeds import stable_hash
from offscript.storage.files import read_record, read_text, write_json, write_text
from offscript.storage.hashing import key_of
from offscript.storage.manifests import remove_manifests, write_manifest

SHEET, PAGE, KEY = "sheet.csv", "sheet.html", "key.json"
COLUMNS = ("id", "persona", "description", "text", "label")
VALUES = {**JUDGEMENTS, "1": True, "0": False}
"""What a label may be, in any case; an empty one is none."""
SEPARATORS = (",", ";", "\t")
"""Spreadsheets write the list separator of their language."""

Episode = tuple[object, ...]


class Asked(TypedDict):
    """A text of a sheet in its key file: its episode, and the digest of the text."""

    model: str
    stage: str
    format: str
    training_seed: int | None
    persona: str
    scenario: str
    sample: int
    text: str


class Key(TypedDict):
    """A key file: the texts of a sheet by their ids."""

    key: str
    texts: dict[str, Asked]


@dataclass(frozen=True)
class Labels:
    """The labels of one file, by id: True for present. ``rows`` is the number of its rows, ``lines`` has the line of each
    labelled id."""

    path: Path
    given: Mapping[str, bool]
    lines: Mapping[str, int]
    rows: int


# ---------------------------------------------------------------- a sheet


def sample(predictions: Sequence[Prediction], number: int, seed: int) -> list[Prediction]:
    """Up to ``number`` rows with a persona and a text, in random order.

    Each is of the combination of model, stage, format and persona that has given the fewest; among these of the model, stage
    and format, then of the persona that have. Equal rows and seeds give equal sheets.
    """

    def drawn(*parts: object) -> int:
        return stable_hash("labels", seed, *parts)

    left: dict[tuple[str, ...], list[Prediction]] = {}
    for p in sorted(predictions, key=lambda p: drawn(*p.episode)):
        if p.persona is not None and p.text is not None:
            left.setdefault((p.model, p.stage, p.format, p.persona), []).append(p)
    taken: Counter[tuple[str, ...]] = Counter()
    found: list[Prediction] = []
    while left and len(found) < number:
        least = min(left, key=lambda c: (taken[c], taken[c[:3]], taken[c[3:]], drawn(*c)))
        found.append(left[least].pop())
        taken.update((least, least[:3], least[3:]))
        if not left[least]:
            del left[least]
    return sorted(found, key=lambda p: drawn("order", *p.episode))


def write(
    rows: Sequence[Prediction], folder: Path, described: Mapping[str, tuple[str, str]], title: str
) -> Path:
    """Writes a sheet of ``rows`` as CSV and as a page, with its key file, into a folder below ``folder`` that is named by its
    content, and returns that folder. A sheet that is there already is left as it is.

    Args:
        described: name and description of each persona, for the labeller.
        title: of the page.

    Raises:
        UserError: that sheet was changed since it was written, so that it may hold labels.
    """
    asked = [_asked(p) for p in rows]
    words = {p.persona: described.get(str(p.persona), (str(p.persona), "")) for p in rows}
    key = key_of({"texts": asked, "described": {str(k): list(v) for k, v in words.items()}})
    ids = ["t" + key_of({"sheet": key, "number": i})[:11] for i in range(len(rows))]
    questions = [Question(id_, *words[p.persona], str(p.text)) for id_, p in zip(ids, rows, strict=True)]
    place = folder / f"labels-{key[:8]}"
    sheet = sheet_csv(questions)
    if (place / SHEET).exists() and (place / SHEET).read_bytes() != sheet.encode():
        raise UserError(
            str(place / SHEET),
            "was changed, perhaps filled in, and is not overwritten",
            f"read it with labels={place / SHEET}; another evaluation.seed gives another sheet",
        )
    remove_manifests(place)
    write_text(place / SHEET, sheet)
    write_text(place / PAGE, render(questions, title, f"labels-{key[:8]}"))
    write_json(place / KEY, {"key": key, "texts": dict(zip(ids, asked, strict=True))})
    write_manifest(place, {"key": key, "texts": len(rows)})
    return place


def sheet_csv(questions: Sequence[Question]) -> str:
    """The sheet for a spreadsheet: COLUMNS, with an empty label. A text that a spreadsheet would run as a formula begins with
    a single quote; the byte order mark tells Excel that it is UTF-8."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for q in questions:
        writer.writerow([q.id, csv_field(q.persona), csv_field(q.description), csv_field(q.text), ""])
    return "\ufeff" + out.getvalue()


def _asked(p: Prediction) -> Asked:
    return {
        "model": p.model,
        "stage": p.stage,
        "format": p.format,
        "training_seed": p.training_seed,
        "persona": str(p.persona),
        "scenario": p.scenario,
        "sample": p.sample,
        "text": _digest(p),
    }


def _digest(p: Prediction) -> str:
    return key_of({"text": p.text})[:16]


# ---------------------------------------------------------------- labels


def read_labels(path: Path) -> Labels:
    """The labels in a CSV file with the columns ``id`` and ``label``, separated by commas, semicolons or tabs; other columns
    are not read.

    Raises:
        UserError: the file cannot be read, has other columns, a label of another value, an id twice, or no label.
    """
    text = read_text(path, "a filled sheet is needed")
    separator = next((s for s in SEPARATORS if _has_columns(text, s)), None)
    if separator is None:
        found = text.split("\n", 1)[0].strip()[:60]
        raise UserError(str(path), f"its first line is {found!r}", "columns id and label are needed")
    given: dict[str, bool] = {}
    lines: dict[str, int] = {}
    seen: dict[str, int] = {}
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
    reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or ()]
    try:
        for row in reader:
            where, id_ = f"{path}, line {reader.line_num}", (row["id"] or "").strip()
            if not id_:
                continue
            if id_ in seen:
                raise UserError(where, f"id {id_!r} stands in line {seen[id_]} too", "one row an id")
            seen[id_] = reader.line_num
            label = (row["label"] or "").strip().lower()
            if label and label not in VALUES:
                raise UserError(where, f"label is {label[:60]!r}", one_of([*VALUES, "an empty field"]))
            if label:
                given[id_], lines[id_] = VALUES[label], reader.line_num
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}", f"not CSV: {error}", "save it again") from None
    if not given:
        raise UserError(str(path), "no row has a label", one_of(VALUES))
    return Labels(path, given, lines, len(seen))


def _has_columns(text: str, separator: str) -> bool:
    try:
        header = next(csv.reader(io.StringIO(text, newline=""), delimiter=separator), [])
    except csv.Error:
        return False
    return {"id", "label"} <= {name.strip().lower() for name in header}


def episodes_of(labels: Labels, folder: Path) -> dict[Hashable, bool]:
    """The labels by episode and digest of its text, from the key files below ``folder``.

    Raises:
        UserError: an id is of no sheet, or a key file is damaged.
    """
    texts: dict[str, Asked] = {}
    for path in sorted(folder.glob(f"labels-*/{KEY}")):
        texts |= read_record(path, Key, remedy="write the sheet again with labels=<number>")["texts"]
    found: dict[Hashable, bool] = {}
    for id_, present in labels.given.items():
        if id_ not in texts:
            raise UserError(
                f"{labels.path}, line {labels.lines[id_]}",
                f"id {id_[:60]!r} is of no sheet of this experiment",
                f"the ids of {folder}/labels-*/{SHEET}",
            )
        found[_episode(texts[id_]), texts[id_]["text"]] = present
    return found


def _episode(asked: Asked) -> Episode:
    cell = (asked["model"], asked["stage"], asked["format"], asked["training_seed"], asked["persona"])
    return (*cell, asked["scenario"], asked["sample"])


def text_of(p: Prediction) -> tuple[Episode, str]:
    """The episode of a row and the digest of its text, as ``episodes_of`` names them."""
    return p.episode, _digest(p)
