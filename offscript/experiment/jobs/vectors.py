"""Jobs that make persona vectors: activations, the layer, and the strength."""

import shutil
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from offscript.console import Progress, duration, say
from offscript.experiment.artifacts import Artifact, Vector
from offscript.experiment.folder import Experiment, now, tracked, write_artifact_manifest
from offscript.rollouts.engines import open_engine
from offscript.rollouts.scheduler import CellRun, run_episodes
from offscript.storage.files import new_folder
from offscript.storage.hashing import key_of
from offscript.storage.rows import read_rows
from offscript.tasks.rows import Row
from offscript.training import vectors
from offscript.training.vectors import Layers, Strength

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def run(artifacts: Sequence[Artifact], experiment: Experiment, limit: int | None) -> None:
    """Makes one persona vector.

    The steered replies from which the strength is chosen are rows like any others, so a run that was killed continues
    with the first one that is missing. The activations are computed again, which takes one pass over the replies.
    """
    from offscript.models.steering import save_vectors

    (vector,) = (a for a in artifacts if isinstance(a, Vector))
    started = now()
    work = work_folder(vector, experiment)
    with tracked(artifacts, experiment, "train") as tracker:
        progress = Progress(f"vector {vector.persona}", 1, "replies")
        measured = _Measured(vector, experiment)
        layers, report = measured.layers()
        found = strengths(vector, experiment, layers, measured, work, progress)
        report["strengths"], report["strength"] = list(found), chosen(vector, found, report)
        with new_folder(experiment.path(vector)) as folder:
            save_vectors(folder, layers.vectors, layers.layer, report["strength"])
        seconds = progress.close()
        tracker.summary({k: v for k, v in report.items() if isinstance(v, int | float)})
    write_artifact_manifest(vector, experiment, started, counts=report)
    shutil.rmtree(work, ignore_errors=True)
    say(f"  {vector}: {vectors.describe(report)}, {duration(seconds)}")


def work_folder(vector: Vector, experiment: Experiment) -> Path:
    """Where candidates and their replies are until the vector is made."""
    path = experiment.path(vector)
    return path.with_name(f".{path.name}.work")


class _Measured:
    """The base model of a vector, and what it makes of replies."""

    def __init__(self, vector: Vector, experiment: Experiment) -> None:
        from offscript.models.loading import load_tokenizer, pick_device

        self.vector, self.engine = vector, experiment.planner.settings.engine
        self.settings = experiment.planner.options.model[vector.base]
        rows = experiment.rows(vector.prompted), experiment.rows(vector.plain)
        self.fit, self.held_out = vectors.split_rows(*rows, vector.settings, str(vector))
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(self.settings)
        device = pick_device(self.engine.device)
        self.model: PreTrainedModel = experiment.bases.acquire(self.settings, device)

    @property
    def prompts(self) -> set[str]:
        """The held-out scenarios."""
        return {row["scenario"] for row in self.held_out[1]}

    def layers(self) -> tuple[Layers, dict[str, Any]]:
        """The vectors of all layers with the chosen one, and the first part of the report."""
        layers = vectors.fit_layers(self._means(self.fit), self._means(self.held_out))
        sizes = {"fit": [len(rows) for rows in self.fit], "held_out": [len(rows) for rows in self.held_out]}
        prompted, plain = (self.perplexity(rows) for rows in self.held_out)
        return layers, {
            "replies": sizes,
            "auc": layers.auc,
            "layer": layers.layer,
            "norm": float(layers.vectors[layers.layer].norm()),
            "plain_perplexity": plain,
            "prompted_perplexity": prompted,
        }

    def perplexity(self, rows: Sequence[Row]) -> float:
        return vectors.perplexity(self.model, self.tokenizer, rows, self.settings)

    def _means(self, parts: tuple[Sequence[Row], Sequence[Row]]) -> "tuple[Tensor, Tensor]":
        prompted, plain = (
            vectors.reply_means(self.model, self.tokenizer, rows, self.settings) for rows in parts
        )
        return prompted, plain


def strengths(
    vector: Vector,
    experiment: Experiment,
    layers: Layers,
    measured: _Measured,
    work: Path,
    progress: Progress,
) -> list[Strength]:
    """The perplexity of the replies to the held-out prompts, for each strength."""
    from offscript.models.steering import save_vectors

    runs: dict[float, CellRun] = {}
    folders: dict[str, Path] = {}
    files: dict[float, Path] = {}
    for strength in vector.settings.strengths:
        save_vectors(work / f"{strength:g}", layers.vectors, layers.layer, strength)
        run = runs[strength] = _candidate(vector, experiment, strength, measured.prompts, work)
        assert run.path is not None
        folders[str(run.adapter)], files[strength] = run.path.parent, run.path
    settings = experiment.planner.settings.engine
    engine = open_engine(measured.settings, {}, {}, settings, folders)
    progress.update(0, sum(len(run.scenarios) for run in runs.values()))
    with closing(engine):
        run_episodes(list(runs.values()), engine, settings.max_live, lambda run, row: progress.advance())
    found: list[Strength] = []
    for strength, file in files.items():
        rows = [row for row in cast(list[Row], read_rows(file, "")) if row["text"]]
        found.append({"strength": strength, "perplexity": measured.perplexity(rows) if rows else None})
    return found


def _candidate(
    vector: Vector, experiment: Experiment, strength: float, prompts: set[str], work: Path
) -> CellRun:
    """The replies to the held-out ``prompts`` with the vector at ``strength``."""
    plain = vector.plain
    key = key_of({"vector": vector.key, "strength": strength})
    scenarios = [s for s in plain.scenarios.load(experiment.rows) if s.id in prompts]
    return CellRun(
        key=key,
        path=work / f"{strength:g}" / "replies.jsonl",
        labels={**plain.labels, "stage": vector.stage, "persona": vector.persona},
        format=plain.format,
        scenarios=scenarios,
        samples=1,
        rules=plain.rules,
        adapter=key,
        sampling=plain.sampling,
        thinking=plain.thinking,
    )


def chosen(vector: Vector, found: Sequence[Strength], report: dict[str, Any]) -> float:
    """The strength that is used. ``report`` gets whether its perplexity is within the limit.

    Where that of the smallest one is over it, the smallest one is used, so that a grid has all of its cells.
    """
    limit = vector.settings.max_perplexity * report["plain_perplexity"]
    strength = vectors.choose_strength(found, report["plain_perplexity"], vector.settings)
    report["within_limit"] = strength is not None
    if strength is not None:
        return strength
    smallest = found[0]["strength"]
    say(
        f"  {vector}: at the smallest strength, {smallest:g}, the perplexity is over its limit {limit:.2f}; it is used "
        "all the same. Smaller ones: stage.steering.strengths"
    )
    return smallest
