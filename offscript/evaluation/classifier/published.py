"""Converts persona classifiers that others fitted to our own layout and label names."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from offscript.errors import UserError
from offscript.evaluation.classifier import predict
from offscript.models.pretrained import require_safetensors
from offscript.storage import hub
from offscript.storage.files import Json, link_or_copy, new_folder, read_json, write_json

PROBE = "Thank you for your message."


class Conversion(TypedDict):
    """What was converted: labels in the order of the outputs, labels that were renamed {theirs: ours}, labels that are
    no persona of the grid, the architecture, the number of parameters, and the maximum length of a text in tokens."""

    labels: list[str]
    renamed: dict[str, str]
    extra: list[str]
    architecture: str
    parameters: int
    max_length: int


def convert(folder: Path, out: Path, personas: Sequence[str]) -> Conversion:
    """Writes the classifier in ``folder`` to the new folder ``out``, so that ``predict.load_network_classifier`` reads it.

    A label is matched with a persona by name, whatever its position in ``id2label``: case is ignored, and spaces, ``-``
    and ``_`` are equal. Labels of ``personas`` are renamed to them; others are kept. Weights are hard links if both
    folders are on one file system, otherwise copies; ``folder`` is not modified.

    Raises:
        UserError: ``folder`` holds no sequence classifier, its weights are not safetensors or incomplete, its labels
            have no names, or a persona has no label.
    """
    if not (folder / "config.json").is_file():
        raise UserError(str(folder), "no classifier here (no config.json)", "a folder in Hugging Face layout")
    require_safetensors(folder)
    config = read_json(folder / "config.json", "download it again, or save it again with save_pretrained")
    theirs = _labels(config, folder)
    labels, renamed = _rename(theirs, personas, folder)
    config |= {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
    with new_folder(out) as scratch:
        for path in _needed_files(folder):
            link_or_copy(path, scratch / path.name)
        write_json(scratch / "config.json", config)
        parameters, max_length = _probe(scratch, folder, personas)
    return {
        "labels": labels,
        "renamed": renamed,
        "extra": [label for label in labels if label not in personas],
        "architecture": config["architectures"][0],
        "parameters": parameters,
        "max_length": max_length,
    }


def _labels(config: Json, folder: Path) -> list[str]:
    """The labels of a config, in the order of the outputs."""
    entries = config if isinstance(config, dict) else {}
    architectures = entries.get("architectures")
    architecture = str(architectures[0]) if isinstance(architectures, list) and architectures else "none"
    if not architecture.endswith("ForSequenceClassification"):
        raise UserError(
            str(folder),
            f"its architecture is {architecture}",
            "a ...ForSequenceClassification (config.json: architectures)",
        )
    id2label = entries.get("id2label")
    names = id2label if isinstance(id2label, dict) else {}
    labels = [str(names[key]) for key in map(str, range(len(names))) if key in names]
    if len(labels) < len(names) or all(re.fullmatch(r"(LABEL_)?\d+", label) for label in labels):
        raise UserError(
            str(folder),
            f"its labels have no names ({', '.join(labels) or 'none'})",
            "config.json: id2label must name a persona per output",
        )
    return labels


def _rename(theirs: Sequence[str], personas: Sequence[str], folder: Path) -> tuple[list[str], dict[str, str]]:
    """The labels with the names of ``personas``, and those that were renamed {theirs: ours}."""
    ours = {_normalized(persona): persona for persona in personas}
    labels = [ours.get(_normalized(label), label) for label in theirs]
    if missing := [persona for persona in personas if persona not in labels]:
        raise UserError(
            str(folder),
            f"its labels ({', '.join(theirs)}) do not fit: no {', '.join(missing)}",
            "a classifier with a label (config.json: id2label) for every persona of the grid",
        )
    if twice := [label for label, n in Counter(labels).items() if n > 1]:
        raise UserError(
            str(folder), f"two labels for {twice[0]} ({', '.join(theirs)})", "one label per persona"
        )
    return labels, {a: b for a, b in zip(theirs, labels, strict=True) if a != b}


def _normalized(name: str) -> str:
    return re.sub(r"[\s_-]+", "-", name.strip().casefold())


def _needed_files(folder: Path) -> list[Path]:
    """The files that a classifier is loaded from, except its config."""
    found = {path for pattern in hub.NEEDED for path in folder.glob(pattern) if path.is_file()}
    unwanted = {path for pattern in hub.UNWANTED for path in folder.glob(pattern)}
    return sorted(found - unwanted - {folder / "config.json"})


def _probe(scratch: Path, folder: Path, personas: Sequence[str]) -> tuple[int, int]:
    """Loads the converted classifier and scores one text; returns its number of parameters and its maximum length."""
    try:
        classifier = predict.load_network_classifier(scratch, "cpu", personas)
        classifier.probabilities([PROBE])
    except UserError as error:
        found = error.found.replace(str(scratch), str(folder))
        raise UserError(
            str(folder), found, "a complete sequence classifier with its tokenizer is needed"
        ) from error
    return classifier.parameters, classifier.tokenizer.model_max_length
