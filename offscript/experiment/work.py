"""The work itself: one function per kind of artifact. A job finds its own last state on disk and writes the manifest
last. The same functions run inline, in local processes and on SLURM.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from offscript.console import Progress, duration, say
from offscript.errors import UserError
from offscript.experiment.artifacts import Artifact
from offscript.experiment.folder import Bench, adapter_of, checkpoint_of, finish, now, tracked
from offscript.seeds import training_seed
from offscript.storage import hub, references
from offscript.storage.files import read_json, write_json, write_text
from offscript.storage.hashing import key_of
from offscript.tracking import tracker as tracking
from offscript.tracking.results import log_retention


def run_rollouts(cells: list[Artifact], bench: Bench, limit: int | None) -> None:
    """Rows of cells of one model, all through one engine."""
    from offscript.rollouts.scheduler import RolloutFailed, roll_out

    settings, started = bench.planner.settings, now()
    model = cells[0].labels["model"]
    commits = {cell.key: pinned(cell, bench) for cell in cells}
    runs = [cell_run(cell, bench, limit) for cell in cells]
    total = sum(min(limit or 10**9, len(r.scenarios) * r.samples) for r in runs)
    engine = open_engine(cells, bench)  # what is refused here leaves no run
    with tracked(cells, bench, "rollout") as tracker:
        progress = Progress(f"rollout {model}: {len(cells)} cells", total, "rows")
        pace = tracking.RolloutProgressLogger(tracker)

        def on_row(run: Any, row: dict[str, Any]) -> None:
            pace.add_row(row["text"] is not None, engine.stats.tokens_out)
            progress.advance(f"{engine.stats.tokens_out} tokens")

        def on_start(counts: Any) -> None:
            progress.begin(sum(c.reused for c in counts.values()))
            pace.begin(sum(c.reused for c in counts.values()), sum(c.emitted for c in counts.values()))

        failed: RolloutFailed | None = None
        try:
            counts = roll_out(runs, engine, settings.engine.max_live, on_row, on_start)
        except (
            RolloutFailed
        ) as error:  # every other episode has its row: their cells are finished all the same
            counts, failed = error.counts, error
        seconds = progress.close()
        pace.close()
        tracker.summary({"seconds": seconds, "tokens_out": engine.stats.tokens_out})
    for cell, run in zip(cells, runs, strict=True):
        count = counts[cell.key]
        if count.written + count.reused == len(run.scenarios) * run.samples:
            plain = {**vars(count), "ended": dict(count.ended)}
            finish(cell, bench, started, counts=plain, engine=engine.info(), hub=commits[cell.key])
    engine.close()
    say(
        f"  rows: {sum(c.written for c in counts.values())} in {len(cells)} cells of {model}, {duration(seconds)}"
    )
    if failed:
        raise failed


def cell_run(cell: Artifact, bench: Bench, limit: int | None) -> Any:
    """What the scheduler needs to know of a cell; its scenarios are read (or fetched) here at the latest."""
    from offscript.rollouts.scheduler import CellRun
    from offscript.tasks.formats import check_episodes

    spec = cell.spec
    scenarios = spec["supply"].load(bench.rows)
    if not spec["supply"].known:
        check_episodes(spec["format"], scenarios, spec["rules"])
    if not scenarios:
        raise UserError(str(cell), "there are no scenarios for it", "see what its inputs hold")
    return CellRun(
        key=cell.key,
        path=bench.place(cell),
        labels=dict(cell.labels),
        format=spec["format"],
        scenarios=scenarios,
        samples=spec["samples"],
        rules=spec["rules"],
        adapter=_spoken_by(cell),
        sampling=spec["sampling"],
        limit=limit,
    )


def _spoken_by(cell: Artifact) -> str | None:
    """The engine's name of a cell's adapter; one adapter at two scales is two. (PEFT allows no dots in names.)"""
    adapter = adapter_of(cell)
    if adapter is None or adapter.spec["checkpoint"]:
        return None
    scale = cell.spec.get("scale", 1.0)
    return adapter.key if scale == 1 else f"{adapter.key}x{scale:g}".replace(".", "_")


def open_engine(cells: Sequence[Artifact], bench: Bench) -> Any:
    """The engine that speaks for ``cells``, which share their model and (if any) their whole checkpoint."""
    settings = bench.planner.settings
    model = bench.planner.options.model[cells[0].labels["model"]]
    names = {name: cell for cell in cells if (name := _spoken_by(cell)) is not None}
    if model.endpoint is not None:
        if names or any(map(checkpoint_of, cells)):
            raise UserError(
                "model.endpoint",
                f"{model.name} is asked for trained weights",
                "allowed: stages base, prompted",
            )
        from offscript.rollouts.engines.openai import OpenAIEngine

        return OpenAIEngine(model, settings.engine)
    from offscript.rollouts.engines.transformers import TransformersEngine

    if (whole := checkpoint_of(cells[0])) is not None:
        model = model.model_copy(update={"path": str(bench.place(whole)), "revision": None})
    folders = {name: bench.place(adapter_of(cell)) for name, cell in names.items()}  # type: ignore[arg-type]
    scales = {name: cell.spec.get("scale", 1.0) for name, cell in names.items()}
    return TransformersEngine(model, folders, settings.engine, scales)


def pinned(cell: Artifact, bench: Bench) -> dict[str, str | None]:
    """The commits of the hub repositories that a cell is made from, noted beside its first row.

    Raises:
        UserError: rows are there already that were made from another commit.
    """
    refs = bench.planner.references_of(cell)
    if not refs:
        return {}
    for ref in refs:
        hub.fetch(ref)
    found = {str(ref): hub.commit(ref) for ref in refs}
    note = bench.place(cell).with_name(f".{bench.place(cell).name}.hub.json")
    before = read_json(note) if note.exists() else {}
    for name, commit in found.items():
        if before.get(name, commit) != commit:
            raise UserError(
                name, f"now at {commit}, but rows in {bench.place(cell)} were made from {before[name]}",
                "name that revision, or move the rows away",
            )  # fmt: skip
    write_json(note, found)
    return found


def run_training(artifacts: list[Artifact], bench: Bench, limit: int | None) -> None:
    """One adapter: taken from elsewhere, or DPO for ``distillation``; SFT stacked on it, then the merge, for ``full``."""
    (artifact,) = artifacts
    started = now()
    if artifact.spec.get("source") is not None:
        run_import(artifact, bench, started)
        return
    from offscript.training import ranks

    train = _train_distillation if artifact.labels["stage"] == "distillation" else _train_full
    progress = Progress(f"train {artifact.labels['persona']} {artifact.labels['stage']}", 1, "steps")
    with tracked(artifacts, bench, "train") as tracker:

        def on_step(step: int, total: int, logs: dict[str, Any]) -> None:
            progress.update(step, total, f"loss {logs['loss']:.3f}" if "loss" in logs else None)

        ranks.send_task(artifact.key)
        metrics = train(artifact, bench, tracker.callbacks(), on_step)
        seconds = progress.close()
        tracker.summary({k: v for k, v in metrics.items() if isinstance(v, (int, float))})
    finish(artifact, bench, started, counts=metrics)
    say(f"  {artifact}: {duration(seconds)}")


def help_training(artifact: Artifact, bench: Bench) -> None:
    """What the ranks other than 0 do of one training. What goes wrong on all ranks is rank 0's to tell."""
    from offscript.training.run import TrainingFailed

    train = _train_distillation if artifact.labels["stage"] == "distillation" else _introspect
    with contextlib.suppress(TrainingFailed, UserError):
        train(artifact, bench, [], None)


def run_import(artifact: Artifact, bench: Bench, started: str) -> None:
    """Weights that were made elsewhere, laid out as our own; says what of them was left aside."""
    from offscript.models.imported import import_adapter, import_checkpoint

    source, model = artifact.spec["source"], bench.planner.options.model[artifact.labels["model"]]
    folder = references.obtain(source, f"model.adapters.{artifact.labels['stage']}")
    take = import_checkpoint if artifact.spec["checkpoint"] else import_adapter
    counts = take(model, folder, bench.place(artifact))
    ref = references.reference(source)
    finish(artifact, bench, started, counts=counts, hub={str(ref): hub.commit(ref)} if ref else {})
    noted = "; ".join(f"{name}: {value}" for name, value in counts.get("ignored", {}).items() if value)
    say(f"  {artifact}: from {ref or folder}" + (f" (ignored: {noted})" if noted else ""))
    if counts.get("note"):
        say(f"  {artifact}: {counts['note']}")


def _train_distillation(
    artifact: Artifact, bench: Bench, callbacks: list[Any], on_step: Any
) -> dict[str, Any]:
    from offscript.training.data import released as published_rows
    from offscript.training.methods import dpo as preference

    if (given := artifact.spec.get("rows")) is not None:
        pairs, counts = published_rows.pairs(references.obtain(given, "recipe.distillation.rows"))
    else:
        teacher, *students = artifact.inputs
        replies = [row for s in students for row in bench.rows(s)]
        pairs, counts = preference.pairs(bench.rows(teacher), replies, artifact.spec["renamed"])
    _tell(f"  {artifact}: pairs {told(counts)}")
    metrics = preference.train(
        bench.planner.options.model[artifact.labels["model"]],
        artifact.spec["settings"],
        pairs,
        bench.place(artifact),
        training_seed(artifact.key, artifact.labels["seed"]),
        callbacks=callbacks,
        on_step=on_step,
        say=say,
        deepspeed=bench.planner.settings.deepspeed,
        bases=bench.bases,
    )
    return {**metrics, "pairs": counts}


def _train_full(artifact: Artifact, bench: Bench, callbacks: list[Any], on_step: Any) -> dict[str, Any]:
    from offscript.models.adapters import merge

    metrics = _introspect(artifact, bench, callbacks, on_step)
    method = artifact.spec["merge"]
    model = bench.planner.options.model[artifact.labels["model"]]
    first, second = bench.place(artifact.inputs[0]), _second(artifact, bench)
    parts = [(first, method.distillation), (second, method.introspection)]
    merged = merge(model, parts, bench.place(artifact), method.method)
    say(f"  {artifact}: merged ({method.method}), largest relative error {merged['max_relative_error']:.2g}")
    return {**metrics, "merge": merged}


def _introspect(artifact: Artifact, bench: Bench, callbacks: list[Any], on_step: Any) -> dict[str, Any]:
    """The second adapter, stacked on the first."""
    from offscript.training.methods import sft as introspection

    rows, counts = _introspection_rows(artifact, bench)
    _tell(f"  {artifact}: conversations {told(counts)}")
    metrics = introspection.train(
        bench.planner.options.model[artifact.labels["model"]],
        artifact.spec["settings"],
        rows,
        bench.place(artifact.inputs[0]),
        _second(artifact, bench),
        training_seed(artifact.key, artifact.labels["seed"]),
        callbacks=callbacks,
        on_step=on_step,
        say=say,
        deepspeed=bench.planner.settings.deepspeed,
        bases=bench.bases,
    )
    return {**metrics, "conversations": counts}


def _tell(line: str) -> None:
    from offscript.training.ranks import rank_info

    if rank_info().is_main:
        say(line)


def _second(artifact: Artifact, bench: Bench) -> Path:
    return bench.place(artifact).with_name(f"introspection-{artifact.key[:8]}")


def _introspection_rows(artifact: Artifact, bench: Bench) -> tuple[list[dict], dict[str, int]]:
    """The conversations that the second stage is trained on: our own, or those that others made."""
    from offscript.training.data import released as published_rows
    from offscript.training.methods import sft as introspection

    settings = artifact.spec["settings"]
    if given := artifact.spec["rows"]:
        files = [references.obtain(rows, "recipe.introspection.rows") for rows in given]
        return published_rows.conversations(files, settings.system, settings.loss_on)
    said = {a.labels["format"]: bench.rows(a) for a in artifact.inputs[1:]}
    return introspection.rows(
        said.get("self_reflection", []), said.get("self_interaction", []), settings.system,
        guided_rows=said.get("guided_interaction", []), loss_on=settings.loss_on,
    )  # fmt: skip


def told(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in counts.items())


def run_fit(artifacts: list[Artifact], bench: Bench, limit: int | None) -> None:
    """The persona classifier of a model, from chat rows of the classifier split."""
    from offscript.evaluation.classifier.fit import fit

    (artifact,) = artifacts
    started = now()
    if artifact.spec.get("source") is not None:
        take_classifier(artifact, bench, started)
        return
    rows = [
        {"text": row["text"], "label": row["persona"], "family": row["family"]}
        for part in artifact.inputs
        for row in bench.rows(part)
        if row["text"] is not None
    ]
    model = bench.planner.options.model[artifact.labels["model"]]
    progress = Progress(f"fit classifier {artifact.labels['name']}", 1, "steps")
    with tracked(artifacts, bench, "classify") as tracker:
        report = fit(
            artifact.spec["settings"], model, rows, list(artifact.spec["personas"]), bench.place(artifact),
            callbacks=tracker.callbacks(), on_step=lambda step, total, logs: progress.update(step, total),
        )  # fmt: skip
        seconds = progress.close()
        tracker.summary({k: v for k, v in report.items() if isinstance(v, (int, float))})
    finish(artifact, bench, started, counts=report)
    say(
        f"  {artifact}: held-out macro-F1 {report['macro_f1']:.3f} on {report['n']} rows, {duration(seconds)}"
    )


def take_classifier(artifact: Artifact, bench: Bench, started: str) -> None:
    """A classifier that others fitted, as it is."""
    from offscript.evaluation.classifier.published import take

    source = artifact.spec["source"]
    folder = references.obtain(source, "classifier.fitted")
    counts = take(folder, bench.place(artifact), artifact.spec["personas"])
    ref = references.reference(source)
    finish(artifact, bench, started, counts=counts, hub={str(ref): hub.commit(ref)} if ref else {})
    say(f"  {artifact}: from {ref or folder}")


def run_predictions(artifacts: list[Artifact], bench: Bench, limit: int | None) -> None:
    """Every label's probability for every text of cells that share a classifier."""
    from offscript.evaluation.classifier.predict import predict

    settings, started = bench.planner.settings, now()
    classifier = artifacts[0].inputs[0]
    rows = {a.key: bench.rows(a.inputs[1]) for a in artifacts}
    texts = [row["text"] for a in artifacts for row in rows[a.key] if row["text"] is not None]
    labels, probs = predict(
        bench.place(classifier), texts, settings.classifier.predict_batch_size, settings.engine.device,
        expected=list(bench.planner.personas),
    )  # fmt: skip
    scored = iter(probs.tolist())
    for artifact in artifacts:
        lines = [prediction_row(artifact, row, labels, scored) for row in rows[artifact.key]]
        write_text(bench.place(artifact), "".join(dump_row(line) for line in lines))
        emitted = sum(line["predicted"] is not None for line in lines)
        finish(artifact, bench, started, counts={"rows": len(lines), "emitted": emitted})
    say(f"  predictions: {len(texts)} texts in {len(artifacts)} cells")


def prediction_row(
    artifact: Artifact, row: dict[str, Any], labels: Sequence[str], scored: Iterator[list[float]]
) -> dict[str, Any]:
    """One line of a predictions file; a row without a text keeps its place with ``predicted`` null."""
    probs = dict(zip(labels, next(scored), strict=True)) if row["text"] is not None else None
    return {
        "key": artifact.key,
        "row": f"{row['scenario']}/{row['sample']}",
        **{
            name: row[name]
            for name in (
                "model",
                "stage",
                "persona",
                "format",
                "split",
                "seed",
                "scenario",
                "family",
                "sample",
                "ended",
            )
        },
        "text_hash": key_of({"text": row["text"]})[:16] if row["text"] is not None else None,
        "predicted": max(probs, key=probs.__getitem__) if probs else None,
        "probs": probs,
    }


def dump_row(row: dict[str, Any]) -> str:
    import json

    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def run_evaluation(artifacts: list[Artifact], bench: Bench, limit: int | None) -> None:
    """Tables, figures and the report from every predictions file that is there."""
    from offscript.evaluation.evaluate import evaluate_rows

    (artifact,) = artifacts
    started, settings = now(), artifact.spec["settings"]
    there = [a for a in artifact.inputs if bench.finished(a)]
    rows = [row for a in there for row in bench.rows(a)]
    missing = [str(a) for a in artifact.inputs if a not in there]
    summary = evaluate_rows(
        rows, bench.place(artifact), title=bench.planner.settings.name, missing=missing,
        labels=list(bench.planner.personas),
        resamples=settings.resamples, confidence=settings.confidence, seed=settings.seed,
    )  # fmt: skip
    with tracked(artifacts, bench, "evaluate") as tracker:
        log_retention(tracker, summary, bench.place(artifact) / "figures" / "personas.png")
    if not missing:
        finish(artifact, bench, started, counts={"rows": len(rows), "cells": len(there)})


RUN = {
    "rollout": run_rollouts,
    "adapter": run_training,
    "classifier": run_fit,
    "predictions": run_predictions,
    "evaluation": run_evaluation,
}
