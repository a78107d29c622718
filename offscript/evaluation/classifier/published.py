"""Persona classifiers that others fitted: checked, their labels put into our words, laid out as our own."""

import os
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from offscript.errors import UserError
from offscript.evaluation.classifier import predict
from offscript.storage import hub
from offscript.storage.files import new_folder, read_json, write_json

PROBE = "Thank you for your message."


def take(folder: Path, out: Path, personas: Sequence[str]) -> dict[str, Any]:
    """Lays the classifier in ``folder`` out in the new folder ``out``, where ``predict.load`` finds it.

    A label is a persona by its name, wherever it stands in ``id2label``: case aside, and with spaces, ``-`` and ``_``
    alike. Those of ``personas`` get their names as written there; others are kept, as they are. Weights are hard
    links where both folders lie on one file system (nothing here writes into them), else copies.

    Returns what is worth recording: ``labels`` in column order, ``renamed`` {theirs: ours}, ``extra`` (labels of no
    persona of the grid), ``architecture``, ``parameters``, ``max_length`` (tokens).

    Raises:
        UserError: at ``folder``: no sequence classifier, weights that are not safetensors or not whole, labels without
            names, or no label for a persona.
    """
    if not (folder / "config.json").is_file():
        raise UserError(str(folder), "no classifier here (no config.json)", "a folder in HF layout")
    predict.check_weights(folder, str(folder))
    config = read_json(folder / "config.json")
    theirs = _labels(config, folder)
    labels, renamed = _named(theirs, personas, folder)
    config |= {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
    with new_folder(out) as scratch:
        for path in _needed(folder):
            _link(path, scratch / path.name)
        write_json(scratch / "config.json", config)
        counts = _tried(scratch, folder, personas)
    return {
        "labels": labels,
        "renamed": renamed,
        "extra": [label for label in labels if label not in personas],
        "architecture": config["architectures"][0],
        **counts,
    }


def _labels(config: Any, folder: Path) -> list[str]:
    """The labels in column order, as the file has them."""
    kind = (config.get("architectures") or ["none"])[0] if isinstance(config, dict) else "none"
    if not kind.endswith("ForSequenceClassification"):
        raise UserError(
            str(folder), f"its architecture is {kind}", "a ...ForSequenceClassification (config.json: architectures)"
        )  # fmt: skip
    found = config.get("id2label")
    try:
        names = {int(column): str(name) for column, name in found.items()}
        labels = [names[i] for i in range(len(names))]
    except (AttributeError, ValueError, KeyError):
        labels = []
    if not labels or all(re.fullmatch(r"(LABEL_)?\d+", label) for label in labels):
        shown = ", ".join(labels) or "none"
        raise UserError(
            str(folder), f"its labels have no names ({shown})", "config.json: id2label must name a persona per column"
        )  # fmt: skip
    return labels


def _named(theirs: Sequence[str], personas: Sequence[str], folder: Path) -> tuple[list[str], dict[str, str]]:
    """``theirs`` with the names of ``personas``, and what was renamed."""
    ours = {_plain(persona): persona for persona in personas}
    labels = [ours.get(_plain(label), label) for label in theirs]
    if missing := [persona for persona in personas if persona not in labels]:
        raise UserError(
            str(folder), f"its labels ({', '.join(theirs)}) do not fit: no {', '.join(missing)}",
            "a classifier with a label (config.json: id2label) for every persona of the grid",
        )  # fmt: skip
    if twice := [label for label, n in Counter(labels).items() if n > 1]:
        raise UserError(
            str(folder), f"two labels for {twice[0]} ({', '.join(theirs)})", "one label per persona"
        )
    return labels, {a: b for a, b in zip(theirs, labels, strict=True) if a != b}


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "-", name.strip().casefold())


def _needed(folder: Path) -> list[Path]:
    """What a classifier is loaded from; its config is written anew."""
    found = {path for pattern in hub.NEEDED for path in folder.glob(pattern) if path.is_file()}
    return sorted(
        found - {folder / "config.json"} - {p for pattern in hub.UNWANTED for p in folder.glob(pattern)}
    )


def _link(path: Path, target: Path) -> None:
    """The hub's cache holds links to its blobs: it is the blob that is linked."""
    try:
        os.link(path.resolve(), target)
    except OSError:
        shutil.copyfile(path, target)


def _tried(scratch: Path, folder: Path, personas: Sequence[str]) -> dict[str, int]:
    """Loads it as every later job does, and has it score a sentence."""
    try:
        classifier = predict.load(scratch, "cpu", personas)
        classifier.probabilities([PROBE])
    except UserError as error:
        found = error.found.replace(str(scratch), str(folder))
        raise UserError(str(folder), found, "a whole sequence classifier, its tokenizer beside it") from error
    return {
        "parameters": sum(p.numel() for p in classifier.model.parameters()),
        "max_length": classifier.tokenizer.model_max_length,
    }
