"""Two finished experiments: the groups that both have, and why some of them are not comparable. Everything is read from the
manifests of their evaluations, so nothing is planned."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offscript.errors import UserError, command_line, one_of
from offscript.evaluation.comparison import Group
from offscript.evaluation.predictions import Prediction, check_rows, check_together
from offscript.experiment.artifacts import Evaluation
from offscript.experiment.beside import numbered
from offscript.json_types import Json
from offscript.settings import Settings, identity_fields
from offscript.storage.files import expand_home, read_json_object
from offscript.storage.hashing import fingerprint, key_of
from offscript.storage.manifests import has_files_of, manifest_path, read_manifest
from offscript.storage.rows import read_rows

Condition = dict[str, Json]
"""What two cells must have in common to be comparable, by its name in a message."""


@dataclass(frozen=True)
class Finished:
    """A finished experiment: the key of its evaluation, the personas that it scores, its settings and rows, and the conditions
    of each group. ``name`` is the word that chose it."""

    name: str
    folder: Path
    key: str
    labels: tuple[str, ...]
    config: Mapping[str, Json]
    rows: tuple[Prediction, ...]
    conditions: Mapping[Group, tuple[Condition, ...]]


def read_finished(word: str, root: str) -> Finished:
    """The experiment ``word``: the name of a folder below ``root``, or a folder.

    Raises:
        UserError: there is no such experiment, it has no finished evaluation, or a file is not the one that was evaluated.
    """
    folder = _folder(word, root)
    manifest = read_manifest(folder / Evaluation.kind)
    if manifest is None or not has_files_of(folder / Evaluation.kind, manifest["key"]):
        raise UserError(
            str(folder),
            "has no finished evaluation",
            f"make it with {command_line('submit')}, with the options of that experiment",
        )
    summary = read_json_object(folder / Evaluation.kind / "summary.json", "labels")
    rows: list[Prediction] = []
    conditions: dict[Group, list[Condition]] = {}
    for path, key in manifest["inputs"].items():
        cell = _rows(folder / path, key)
        rows += cell
        condition = _condition(folder, folder / path)
        for group in dict.fromkeys((p.model, p.stage, p.format, p.training_seed) for p in cell):
            kept = conditions.setdefault(group, [])
            if condition not in kept:
                kept.append(condition)
    return Finished(
        name=word,
        folder=folder,
        key=manifest["key"],
        labels=tuple(summary["labels"]),
        config=manifest["config"],
        rows=tuple(check_together(rows)),
        conditions={group: tuple(sorted(kept, key=key_of)) for group, kept in conditions.items()},
    )


def _folder(word: str, root: str) -> Path:
    base = expand_home(root)
    for folder in (base / word, expand_home(word)):
        if folder.is_dir():
            return folder
    names = sorted(p.parent.parent.name for p in base.glob(f"*/{Evaluation.kind}/manifest.json"))
    allowed = one_of(names) if names else "none there has a finished evaluation"
    raise UserError(f"compare: {word}", f"no such experiment in {base}", allowed)


def _rows(path: Path, key: str) -> list[Prediction]:
    """The rows of a predictions file, which must be those of ``key``."""
    manifest = read_manifest(path)
    if manifest is None or manifest["key"] != key or manifest.get("digest") != fingerprint(path):
        raise UserError(str(path), "is not what was evaluated", "evaluate that experiment again")
    return check_rows(read_rows(path, command_line("classify")), str(path))


def _condition(folder: Path, path: Path) -> Condition:
    """The condition of the cell whose predictions are in ``path``.

    Raises:
        UserError: a manifest is gone or damaged.
    """
    predictions = read_json_object(manifest_path(path), "identity", "inputs")
    (rollout,) = (name for name in predictions["inputs"] if Path(name).parts[0] == "rollouts")
    if not manifest_path(folder / rollout).exists():
        found = "its manifest is gone, so its scenarios and sampling are unknown"
        raise UserError(str(folder / rollout), found, "make that experiment again")
    rows = read_json_object(manifest_path(folder / rollout), "identity")["identity"]
    model: dict[str, Any] = rows["model"]
    return {
        "classifier": predictions["identity"]["classifier"],
        "cleaning of e-mails": predictions["identity"].get("email_cleaning"),
        "scenarios": [rows["scenarios"], rows["samples"]],
        "sampling": [model.get("sampling"), rows["format"]["max_tokens"]],
    }


# ---------------------------------------------------------------- what is comparable


def refused(first: Finished, other: Finished) -> dict[Group, str]:
    """The groups of either experiment that are not comparable, each with the reason."""
    found = {}
    for group in dict.fromkeys([*first.conditions, *other.conditions]):
        reasons = list(_reasons(group, first, other))
        if reasons:
            found[group] = ", ".join(reasons)
    return found


def _reasons(group: Group, first: Finished, other: Finished) -> Iterator[str]:
    one, two = first.conditions.get(group), other.conditions.get(group)
    if one is None or two is None:
        yield f"only in the {'first' if two is None else 'second'} experiment"
        return
    if len(first.labels) != len(other.labels):
        yield f"{len(first.labels)} and {len(other.labels)} personas"
    elif set(first.labels) != set(other.labels):
        yield "other personas"
    for name in one[0]:
        if [c[name] for c in one] != [c[name] for c in two]:
            yield f"other {name}" if name != "classifier" else "another classifier"


def differing_settings(first: Finished, other: Finished) -> dict[str, tuple[Json, Json]]:
    """The settings that can change a result and differ, each with its F-number if it has one."""
    kept = {*identity_fields(Settings), "grid"} - {"persona"}
    plain: list[dict[str, Json]] = [
        {name: value for name, value in run.config.items() if name in kept} for run in (first, other)
    ]
    return numbered(plain[0], plain[1])
