"""Making artifacts: one function per kind, and ``make``, which runs what a set of wanted artifacts still needs.

The same functions run inline, and later in local processes and on SLURM. A job finds its own last state on disk,
holds the claim on what it writes, and writes the manifest last.
"""

import contextlib
import functools
import importlib.metadata
import subprocess
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offscript import tracking
from offscript.cell import Artifact, key_of
from offscript.console import Progress, duration, say
from offscript.errors import MissingInput, UserError
from offscript.grid import Planner, layers
from offscript.seeds import training_seed
from offscript.store import (
    HOME,
    claim,
    read_json,
    read_manifest,
    read_rows,
    write_json,
    write_manifest,
    write_text,
)

PACKAGES = (
    "torch", "transformers", "trl", "peft", "accelerate", "datasets", "scikit-learn", "numpy", "hydra-core", "wandb",
)  # fmt: skip


@dataclass
class Bench:
    """Where an experiment's artifacts are made: its plan, its folder, and how to say a command that makes something."""

    planner: Planner
    overrides: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        return Path(self.planner.settings.root) / self.planner.settings.name

    def place(self, artifact: Artifact) -> Path:
        return self.folder / artifact.path

    def finished(self, artifact: Artifact) -> bool:
        """Whether ``artifact`` lies there complete, under its full key."""
        manifest = read_manifest(self.place(artifact))
        return manifest is not None and manifest["key"] == artifact.key

    def command(self, artifact: Artifact) -> str:
        """The command line that makes ``artifact``."""
        choices = {
            name: artifact.labels.get(name)
            for name in ("model", "persona", "stage", "format", "split", "seed")
        }
        script: str
        wanted: tuple[str, ...]
        if artifact.kind == "adapter":
            script, wanted = "train.py", ("model", "persona", "stage", "seed")
        elif artifact.kind == "rollout":
            script, wanted = "rollout.py", ("model", "persona", "stage", "format", "split", "seed")
        else:
            script, wanted = ("evaluate.py" if artifact.kind == "evaluation" else "classify.py"), ("model",)
        defaults = {"split": "eval", "seed": 0}
        words = [
            f"{n}={choices[n]}" for n in wanted if choices[n] is not None and choices[n] != defaults.get(n)
        ]
        return " ".join(["python", script, *self.overrides, *words])

    def rows(self, artifact: Artifact) -> list[dict[str, Any]]:
        return read_rows(self.place(artifact), self.command(artifact))


@dataclass
class Result:
    """How one artifact fared: ``ran``, ``reused``, ``partial`` (a limit was set), ``failed`` or ``blocked``."""

    artifact: Artifact
    status: str
    seconds: float = 0.0
    note: str = ""
    error: BaseException | None = None


# ---------------------------------------------------------------- what is needed, and running it


def needed(wanted: Iterable[Artifact], bench: Bench) -> tuple[list[Artifact], list[Artifact]]:
    """What is still to be made for ``wanted`` (inputs first), and which finished artifacts that builds on."""
    todo: dict[str, Artifact] = {}
    reused: dict[str, Artifact] = {}

    def visit(artifact: Artifact) -> None:
        if artifact.key in todo or artifact.key in reused:
            return
        if bench.finished(artifact):
            reused[artifact.key] = artifact
            return
        for part in artifact.inputs:
            visit(part)
        todo[artifact.key] = artifact

    for artifact in wanted:
        visit(artifact)
    return list(todo.values()), list(reused.values())


def make(
    wanted: Sequence[Artifact],
    bench: Bench,
    allowed: Callable[[Artifact], bool] = lambda artifact: True,
    limit: int | None = None,
) -> list[Result]:
    """Makes ``wanted`` and whatever they need, layer by layer, going on past what fails.

    What ``allowed`` refuses is not made: it fails with the command that would make it. A failed artifact blocks what
    was to be made from it and nothing else.
    """
    todo, reused = needed(wanted, bench)
    results = {a.key: Result(a, "reused") for a in reused}
    for layer in layers(todo):
        ready = []
        for artifact in layer:
            if not allowed(artifact):
                missing = MissingInput(
                    str(artifact), "not made yet", f"make it with: {bench.command(artifact)}"
                )
                results[artifact.key] = Result(artifact, "failed", note=str(missing), error=missing)
            elif culprit := _blocker(artifact, results):
                results[artifact.key] = Result(
                    artifact, "blocked", note=f"needs {culprit.artifact}", error=culprit.error
                )
            else:
                ready.append(artifact)
        for group in _groups(ready):
            for result in _run_group(group, bench, limit):
                results[result.artifact.key] = result
    write_index(bench, results.values())
    return list(results.values())


def _blocker(artifact: Artifact, results: dict[str, Result]) -> Result | None:
    """The first input that is not there. An evaluation is made from what there is."""
    if artifact.kind == "evaluation":
        inputs = [results[i.key] for i in artifact.inputs]
        return None if any(r.status in ("ran", "reused") for r in inputs) else inputs[0]
    for part in artifact.inputs:
        if results[part.key].status not in ("ran", "reused"):
            return results[part.key]
    return None


def _groups(artifacts: Sequence[Artifact]) -> Iterator[list[Artifact]]:
    """Rollouts of one model share its weights and predictions its classifier; all else is a job of its own."""
    shared: dict[tuple[str, str], list[Artifact]] = {}
    for artifact in artifacts:
        if artifact.kind in ("rollout", "predictions"):
            shared.setdefault((artifact.kind, artifact.labels["model"]), []).append(artifact)
        else:
            shared[artifact.key, ""] = [artifact]
    yield from shared.values()


def _run_group(group: list[Artifact], bench: Bench, limit: int | None) -> list[Result]:
    """Runs one job; where a job over several adapters fails, those of each adapter are tried by themselves, so that
    one broken adapter does not cost the others their rows."""
    outcome = _run_job(group, bench, limit)
    left: dict[tuple[str, ...], list[Artifact]] = {}
    for result in outcome:
        if result.status == "failed":
            left.setdefault(tuple(a.key for a in result.artifact.inputs if a.kind == "adapter"), []).append(
                result.artifact
            )
    if len(left) < 2 or not any(left):
        return outcome
    say("  trying the cells of each adapter by themselves")
    kept = [r for r in outcome if r.status != "failed"]
    return kept + [one for part in left.values() for one in _run_job(part, bench, limit)]


def _run_job(group: list[Artifact], bench: Bench, limit: int | None) -> list[Result]:
    started = time.monotonic()
    error: BaseException | None = None
    try:
        with contextlib.ExitStack() as stack:
            for artifact in sorted(group, key=lambda a: a.key):  # one order for all processes: no deadlock
                stack.enter_context(claim(bench.place(artifact), say=say))
            fresh = [a for a in group if not bench.finished(a)]
            if fresh:
                RUN[group[0].kind](fresh, bench, limit)
    except Exception as caught:
        error = caught
        _log_failure(group, bench, caught)
    seconds = time.monotonic() - started
    return [_result(a, bench, seconds / len(group), error, limit) for a in group]


def _result(
    artifact: Artifact, bench: Bench, seconds: float, error: BaseException | None, limit: int | None
) -> Result:
    if bench.finished(artifact):
        return Result(artifact, "ran", seconds)
    if error is None and limit is not None:
        return Result(artifact, "partial", seconds)
    note = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return Result(artifact, "failed", seconds, note.splitlines()[0] if note else "", error)


def _log_failure(group: list[Artifact], bench: Bench, error: Exception) -> None:
    """A user's mistake is one line; a failure of the work keeps its traceback in a log beside the artifact."""
    what = str(group[0]) if len(group) == 1 else f"{group[0].kind} job of {len(group)} artifacts"
    if isinstance(error, UserError):
        say(f"failed: {what}: {error}")
        return
    path = bench.folder / "logs" / f"{group[0].kind}-{group[0].key[:8]}.log"
    write_text(path, "".join(traceback.format_exception(error)))
    first_line = (str(error).splitlines() or [""])[0]
    say(f"failed: {what}: {type(error).__name__}: {first_line} (traceback: {path})")


# ---------------------------------------------------------------- one function per kind


def run_rollouts(cells: list[Artifact], bench: Bench, limit: int | None) -> None:
    """Rows of cells of one model, all through one engine."""
    from offscript.rollouts import RolloutFailed, roll_out

    settings, started = bench.planner.settings, now()
    model = cells[0].labels["model"]
    runs = [cell_run(cell, bench, limit) for cell in cells]
    adapters = {a.key: a for cell in cells for a in cell.inputs}
    total = sum(min(limit or 10**9, len(r.scenarios) * r.samples) for r in runs)
    with tracked(cells, bench, "rollout") as tracker:
        engine = open_engine(
            bench.planner.options.model[model], {k: bench.place(a) for k, a in adapters.items()}, settings
        )
        progress = Progress(f"rollout {model}: {len(cells)} cells", total, "rows")
        seen = {"rows": 0, "emitted": 0}

        def on_row(run: Any, row: dict[str, Any]) -> None:
            seen["rows"] += 1
            seen["emitted"] += row["text"] is not None
            progress.advance(f"{engine.stats.tokens_out} tokens")
            if seen["rows"] % 100 == 0:
                tracker.log(
                    {"rows": seen["rows"], "emission_rate": seen["emitted"] / seen["rows"]}, step=seen["rows"]
                )

        failed: RolloutFailed | None = None
        try:
            counts = roll_out(runs, engine, settings.engine.max_live, on_row)
        except (
            RolloutFailed
        ) as error:  # every other episode has its row: their cells are finished all the same
            counts, failed = error.counts, error
        seconds = progress.close()
        tracker.log(
            {"rows": seen["rows"], "emission_rate": seen["emitted"] / max(1, seen["rows"])}, step=seen["rows"]
        )
        tracker.summary({"seconds": seconds, "tokens_out": engine.stats.tokens_out, "rows": seen["rows"]})
    for cell, run in zip(cells, runs, strict=True):
        count = counts[cell.key]
        if count.written + count.reused == len(run.scenarios) * run.samples:
            finish(
                cell, bench, started, counts={**vars(count), "ended": dict(count.ended)}, engine=engine.info()
            )
    say(f"  rows: {seen['rows']} in {len(cells)} cells of {model}, {duration(seconds)}")
    if failed:
        raise failed


def cell_run(cell: Artifact, bench: Bench, limit: int | None) -> Any:
    """What the scheduler needs to know of a cell."""
    from offscript.rollouts import CellRun

    spec = cell.spec
    return CellRun(
        key=cell.key,
        path=bench.place(cell),
        labels=dict(cell.labels),
        format=spec["format"],
        scenarios=spec["scenarios"],
        samples=spec["samples"],
        rules=spec["rules"],
        adapter=cell.inputs[0].key if cell.inputs else None,
        sampling=spec["sampling"],
        limit=limit,
    )


def open_engine(model: Any, adapters: dict[str, Path], settings: Any) -> Any:
    from offscript.engines.transformers import TransformersEngine

    return TransformersEngine(model, adapters, settings.engine)


def run_training(artifacts: list[Artifact], bench: Bench, limit: int | None) -> None:
    """One adapter: DPO for ``distillation``; SFT stacked on it, then the exact merge, for ``full``."""
    (artifact,) = artifacts
    started = now()
    train = _train_distillation if artifact.labels["stage"] == "distillation" else _train_full
    progress = Progress(f"train {artifact.labels['persona']} {artifact.labels['stage']}", 1, "steps")
    with tracked(artifacts, bench, "train") as tracker:

        def on_step(step: int, total: int, logs: dict[str, Any]) -> None:
            progress.update(step, total, f"loss {logs['loss']:.3f}" if "loss" in logs else progress.note)

        metrics = train(artifact, bench, tracker.report_to, on_step)
        seconds = progress.close()
        tracker.summary({k: v for k, v in metrics.items() if isinstance(v, (int, float))})
    finish(artifact, bench, started, counts=metrics)
    say(f"  {artifact}: {duration(seconds)}")


def _train_distillation(artifact: Artifact, bench: Bench, report_to: str, on_step: Any) -> dict[str, Any]:
    from offscript.training import preference

    teacher, *students = artifact.inputs
    pairs, counts = preference.pairs(bench.rows(teacher), [row for s in students for row in bench.rows(s)])
    model = bench.planner.options.model[artifact.labels["model"]]
    seed = training_seed(artifact.key, artifact.labels["seed"])
    metrics = preference.train(
        model,
        artifact.spec["settings"],
        pairs,
        bench.place(artifact),
        seed,
        report_to=report_to,
        on_step=on_step,
        say=say,
    )
    return {**metrics, "pairs": counts}


def _train_full(artifact: Artifact, bench: Bench, report_to: str, on_step: Any) -> dict[str, Any]:
    from offscript.models.adapters import merge_exact
    from offscript.training import introspection

    first, *rows_of = artifact.inputs
    settings, merge = artifact.spec["settings"], artifact.spec["merge"]
    by_format = {a.labels["format"]: bench.rows(a) for a in rows_of}
    rows, counts = introspection.rows(
        by_format.get("self_reflection", []), by_format.get("self_interaction", []), settings.system
    )
    model = bench.planner.options.model[artifact.labels["model"]]
    distillation, out = bench.place(first), bench.place(artifact)
    second = out.with_name(f"introspection-{artifact.key[:8]}")
    seed = training_seed(artifact.key, artifact.labels["seed"])
    metrics = introspection.train(
        model, settings, rows, distillation, second, seed, report_to=report_to, on_step=on_step, say=say
    )
    merged = merge_exact(model, [(distillation, merge.distillation), (second, merge.introspection)], out)
    return {**metrics, "conversations": counts, "merge": merged}


def run_fit(artifacts: list[Artifact], bench: Bench, limit: int | None) -> None:
    """The persona classifier of a model, from chat rows of the classifier split."""
    from offscript.classifier.fit import fit

    (artifact,) = artifacts
    started = now()
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
            report_to=tracker.report_to, on_step=lambda step, total, logs: progress.update(step, total),
        )  # fmt: skip
        seconds = progress.close()
        tracker.summary({k: v for k, v in report.items() if isinstance(v, (int, float))})
    finish(artifact, bench, started, counts=report)
    say(
        f"  {artifact}: held-out macro-F1 {report['macro_f1']:.3f} on {report['n']} rows, {duration(seconds)}"
    )


def run_predictions(artifacts: list[Artifact], bench: Bench, limit: int | None) -> None:
    """Every label's probability for every text of cells that share a classifier."""
    from offscript.classifier.predict import predict

    settings, started = bench.planner.settings, now()
    classifier = artifacts[0].inputs[0]
    rows = {a.key: bench.rows(a.inputs[1]) for a in artifacts}
    texts = [row["text"] for a in artifacts for row in rows[a.key] if row["text"] is not None]
    labels, probs = predict(
        bench.place(classifier), texts, settings.classifier.predict_batch_size, settings.engine.device,
        expected=list(settings.grid.persona),
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
    from offscript.evaluation import evaluate_rows

    (artifact,) = artifacts
    started, settings = now(), artifact.spec["settings"]
    there = [a for a in artifact.inputs if bench.finished(a)]
    rows = [row for a in there for row in bench.rows(a)]
    missing = [str(a) for a in artifact.inputs if a not in there]
    summary = evaluate_rows(
        rows, bench.place(artifact), title=bench.planner.settings.name, missing=missing,
        labels=list(bench.planner.settings.grid.persona),
        resamples=settings.resamples, confidence=settings.confidence, seed=settings.seed,
    )  # fmt: skip
    with tracked(artifacts, bench, "evaluate") as tracker:
        log_retention(tracker, summary)
    if not missing:
        finish(artifact, bench, started, counts={"rows": len(rows), "cells": len(there)})


def log_retention(tracker: tracking.Tracker, summary: dict[str, Any]) -> None:
    """Headline numbers into the run's summary, the retention table as a logged table."""
    metric, groups = summary["metric"], summary["groups"]
    columns = ["model", "stage", "format", "training_seed", "planned", "emitted", "unique_texts", "accuracy"]
    rows = [
        [*(g[c] for c in columns), g["macro_f1"]["emitted"], *(g["interval_scenario"] or (None, None))]
        for g in groups
    ]
    tracker.table("retention", [*columns, metric, "low", "high"], rows)
    for g in groups:
        place = "/".join(str(g[c]) for c in ("model", "stage", "format"))
        tracker.summary(
            {f"{place}/{metric}": g["macro_f1"]["emitted"], f"{place}/emission_rate": g["emission_rate"]}
        )


RUN = {
    "rollout": run_rollouts,
    "adapter": run_training,
    "classifier": run_fit,
    "predictions": run_predictions,
    "evaluation": run_evaluation,
}


# ---------------------------------------------------------------- what every job leaves


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


@functools.cache
def versions() -> dict[str, str]:
    """Versions of the packages that texts and weights can depend on (engine and device: see the engine's info)."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


@functools.cache
def code_revision() -> str | None:
    """The commit that is checked out, with ``+`` if files differ from it; None outside a repository."""
    try:
        head = subprocess.run(
            ["git", "-C", HOME, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        )
        dirty = subprocess.run(
            ["git", "-C", HOME, "status", "--porcelain", "-uno"], capture_output=True, text=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def finish(artifact: Artifact, bench: Bench, started: str, **extra: Any) -> None:
    """Writes the manifest: the artifact counts as made from here on."""
    manifest = {
        "key": artifact.key,
        "kind": artifact.kind,
        "labels": dict(artifact.labels),
        "identity": dict(artifact.identity),
        "inputs": {str(a.path): a.key for a in artifact.inputs},
        "config": bench.planner.settings.model_dump(mode="json"),
        "versions": versions(),
        "code": code_revision(),
        "started": started,
        "finished": now(),
        **extra,
    }
    write_manifest(bench.place(artifact), manifest)


@contextlib.contextmanager
def tracked(artifacts: Sequence[Artifact], bench: Bench, job_type: str) -> Iterator[tracking.Tracker]:
    """The W&B run of a job; its id is made from what the job makes, so a job run again continues it."""
    settings = bench.planner.settings
    first = artifacts[0]
    names = ("model", "persona", "stage", "format")
    tags = sorted({str(a.labels[n]) for a in artifacts for n in names if a.labels.get(n) is not None})
    tracker = tracking.start(
        settings.tracking,
        bench.folder,
        run_id=key_of({"job": sorted(a.key for a in artifacts)})[:16],
        name=str(first)
        if len(artifacts) == 1
        else f"{first.kind} {first.labels.get('model', '')} x{len(artifacts)}",
        group=settings.name,
        job_type=job_type,
        tags=tags,
        config=settings.model_dump(mode="json"),
    )
    try:
        yield tracker
    except BaseException:
        tracker.finish(failed=True)
        raise
    tracker.finish()


def write_index(bench: Bench, results: Iterable[Result]) -> None:
    """``index.json``: what is current, for people."""
    there = {str(r.artifact): r.artifact for r in results if r.status in ("ran", "reused")}
    if not there:
        return
    path = bench.folder / "index.json"
    current = read_json(path) if path.exists() else {}
    write_json(path, {**current, **{name: {"path": str(a.path), "key": a.key} for name, a in there.items()}})
