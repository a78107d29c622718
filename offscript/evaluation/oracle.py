"""What is left of the persona in a format, whatever the chat classifier sees: the score of a classifier of that format.

For each model and format, a classifier of n-grams is fitted on the texts of the control stage (``prompted``) in that format, and
predicts the texts of every stage. Families are divided into folds, and each family is predicted by the classifier that was
fitted on the other folds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from typing_extensions import TypedDict

from offscript.errors import UserError
from offscript.evaluation.classifier import tfidf
from offscript.evaluation.folds import FOLDS, folds
from offscript.evaluation.metrics.intervals import Contrast
from offscript.evaluation.metrics.results import CONTROLS, GroupScore, OracleScore, Scores, control_of
from offscript.evaluation.predictions import Prediction
from offscript.evaluation.relabelled import Relabelled, name_of, scored_with
from offscript.json_types import Json
from offscript.settings import TfidfSettings, identity_of
from offscript.storage.files import read_record, write_json
from offscript.storage.hashing import key_of

FILE = "oracle.json"
MIN_FAMILIES = FOLDS
# Words only: n-grams of characters take five times as long. The penalty is not chosen, so no family is needed for that.
SETTINGS = TfidfSettings(words=2, characters=0, min_texts=2, c=(10.0,))
VERSION = 1

Place = tuple[str, str]
"""Model and format."""


@dataclass(frozen=True)
class Oracle:
    """The oracle of one model and format.

    ``predicted`` are the labels of its rows in their order, None where there is no text; ``families`` and ``texts`` are
    the numbers that it was fitted on, over all folds. ``why_not`` is the reason if there is no such classifier.
    """

    predicted: list[str | None]
    families: int
    texts: int
    why_not: str | None


class Entry(TypedDict):
    """An oracle in ``FILE``. ``key`` hashes all that it was made from."""

    model: str
    format: str
    key: str
    predicted: list[str | None]
    families: int
    texts: int
    why_not: str | None


class Content(TypedDict):
    """What ``FILE`` holds; ``digest`` is that of the entries."""

    digest: str
    entries: list[Entry]


@dataclass(frozen=True)
class Oracles:
    """The oracle of every model and format, with its rows in the order of ``Oracle.predicted``: as numbers of the predictions
    that ``oracles_of`` was given, and as these predictions."""

    rows: Mapping[Place, Sequence[tuple[int, Prediction]]]
    made: Mapping[Place, Oracle]

    def labels(self, count: int) -> list[str | None]:
        """The label of each of the ``count`` predictions, None where there is no oracle or no text."""
        found: list[str | None] = [None] * count
        for place, oracle in self.made.items():
            # An oracle that could not be fitted has no predictions.
            for (i, _), label in zip(self.rows[place], oracle.predicted, strict=False):
                found[i] = label
        return found


def oracles_of(scores: Scores, predictions: Sequence[Prediction], cache: Path | None = None) -> Oracles:
    """The oracles of all groups of ``scores``.

    Args:
        predictions: those that were scored, with their texts.
        cache: file of oracles that are taken over if they were made from the same texts; it is replaced.
    """
    known = ((i, p) for i, p in enumerate(predictions) if p.persona is None or p.persona in scores.labels)
    rows: dict[Place, list[tuple[int, Prediction]]] = {(g.model, g.format): [] for g in scores.groups}
    # In one order, so that equal rows give equal results in whatever order they are read.
    for i, p in sorted(known, key=lambda entry: tuple(map(str, entry[1].episode))):
        rows[p.model, p.format].append((i, p))
    members = {place: [p for _, p in some] for place, some in rows.items()}
    return Oracles(rows, _oracles(members, scores.labels, cache))


def with_oracle(scores: Scores, oracles: Oracles) -> Scores:
    """``scores`` with the ``oracle`` of every group, scored as the classifier's predictions are."""
    rows = {place: [p for _, p in some] for place, some in oracles.rows.items()}
    scored = _scored(scores, rows, oracles.made)
    groups = tuple(
        replace(group, oracle=_of(group, oracles.made[group.model, group.format], scored))
        for group in scores.groups
    )
    return replace(scores, groups=groups, notes=(*scores.notes, *_notes(oracles.made)))


def oracle(rows: Sequence[Prediction], labels: Sequence[str]) -> Oracle:
    """The oracle of the rows of one model and format."""
    stage = control_of(p.stage for p in rows)
    control = [p for p in rows if p.stage == stage and p.persona is not None and p.predicted is not None]
    families, texts = {p.family for p in control}, len(control)
    if why_not := _why_not(rows, stage, families):
        return Oracle([], len(families), texts, why_not)
    fold = folds("oracle", families, (p.family for p in rows))
    emitted = [i for i, p in enumerate(rows) if p.predicted is not None]
    corpus = tfidf.Corpus(SETTINGS, [str(rows[i].text) for i in emitted])
    of_control = [n for n, i in enumerate(emitted) if rows[i].stage == stage and rows[i].persona is not None]
    predicted: list[str | None] = [None] * len(rows)
    for k in range(FOLDS):
        train = [n for n in of_control if fold[rows[emitted[n]].family] != k]
        held_out = [n for n, i in enumerate(emitted) if fold[rows[i].family] == k]
        true = [str(rows[emitted[n]].persona) for n in train]
        names = [label for label in labels if label in true]
        if len(names) < 2:
            return Oracle([], len(families), texts, f"{stage} texts of one persona only")
        try:
            probs = corpus.predict(train, true, names, held_out, SETTINGS.c[0])
        except UserError:
            return Oracle([], len(families), texts, f"no word is in two {stage} texts")
        for n, column in zip(held_out, probs.argmax(axis=1), strict=True):
            predicted[emitted[n]] = names[column]
    return Oracle(predicted, len(families), texts, None)


def _why_not(rows: Sequence[Prediction], stage: str | None, families: set[str]) -> str | None:
    if stage is None:
        return f"no {CONTROLS[0]} stage"
    if any(p.text is None for p in rows if p.predicted is not None):
        return "texts are missing"
    if len(families) < MIN_FAMILIES:
        return f"{stage} texts of {len(families)} families, fewer than {MIN_FAMILIES}"
    return None


# ---------------------------------------------------------------- scores


def _scored(
    scores: Scores, rows: Mapping[Place, Sequence[Prediction]], oracles: Mapping[Place, Oracle]
) -> Relabelled:
    """The groups as the oracles see them."""
    pairs = [
        pair
        for place, members in rows.items()
        if oracles[place].why_not is None
        for pair in zip(members, oracles[place].predicted, strict=True)
    ]
    return scored_with(scores, [p for members in rows.values() for p in members], pairs)


def _of(group: GroupScore, made: Oracle, scored: Relabelled) -> OracleScore:
    found, nothing = scored.groups.get(name_of(group)), Contrast(None, None)
    if found is None:
        return OracleScore(None, None, None, nothing, nothing, made.families, made.texts, made.why_not)
    name = name_of(group)
    return OracleScore(
        f1=found.macro_f1.emitted,
        interval=found.interval,
        null=found.null.mean if found.null else None,
        lost=scored.lost.get(name, nothing),
        not_seen=scored.seen.get(name, nothing),
        families=made.families,
        texts=made.texts,
        why_not=None,
    )


def _notes(oracles: Mapping[Place, Oracle]) -> list[str]:
    """One for each reason why there is no oracle."""
    places: dict[str, list[str]] = {}
    for (model, fmt), made in oracles.items():
        if made.why_not is not None:
            places.setdefault(made.why_not, []).append(f"{model} {fmt}")
    return [f"no oracle, {reason}: {'; '.join(names)}" for reason, names in places.items()]


# ---------------------------------------------------------------- the file


def _oracles(
    rows: Mapping[Place, Sequence[Prediction]], labels: Sequence[str], cache: Path | None
) -> dict[Place, Oracle]:
    kept = {entry["key"]: entry for entry in _read(cache)} if cache is not None else {}
    entries: list[Entry] = []
    for (model, fmt), members in rows.items():
        key = _key(members, labels)
        entry = kept.get(key)
        if entry is None or (entry["why_not"] is None and len(entry["predicted"]) != len(members)):
            made = oracle(members, labels)
            entry = {
                "model": model,
                "format": fmt,
                "key": key,
                "predicted": made.predicted,
                "families": made.families,
                "texts": made.texts,
                "why_not": made.why_not,
            }
        entries.append({**entry, "model": model, "format": fmt})
    if cache is not None and any(entry["why_not"] is None for entry in entries):
        write_json(cache, {"digest": _digest(entries), "entries": entries})
    return {
        (e["model"], e["format"]): Oracle(e["predicted"], e["families"], e["texts"], e["why_not"])
        for e in entries
    }


def _key(rows: Sequence[Prediction], labels: Sequence[str]) -> str:
    texts: Json = [[p.stage, p.persona, p.family, p.predicted is not None, p.text] for p in rows]
    settings: Json = identity_of(SETTINGS)
    return key_of(
        {"version": VERSION, "folds": FOLDS, "settings": settings, "labels": list(labels), "rows": texts}
    )


def _read(cache: Path) -> list[Entry]:
    """The entries of a file that ``_oracles`` wrote; none if there is no such file, or if it was changed."""
    if not cache.exists():
        return []
    try:
        content = read_record(cache, Content)
    except UserError:
        return []
    return content["entries"] if content["digest"] == _digest(content["entries"]) else []


def _digest(entries: Sequence[Entry]) -> str:
    return key_of({"entries": list(entries)})
