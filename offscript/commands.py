"""The commands: which artifacts each one needs, which of them it may make, and its report and exit code."""

import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING

from offscript import threads
from offscript.arguments import key_of
from offscript.console import counted, duration, say, show
from offscript.errors import MissingInput, UserError, command_line, one_of
from offscript.experiment.artifacts import (
    Adapter,
    Artifact,
    Classifier,
    Evaluation,
    Predictions,
    Projections,
    Rollout,
    Selection,
    Vector,
    in_order,
)
from offscript.experiment.folder import Experiment, read_failure
from offscript.experiment.graph import needed
from offscript.experiment.jobs.training import check_settings
from offscript.experiment.runner import Result, make, on_all_ranks, write_index
from offscript.json_types import Json
from offscript.settings import Settings
from offscript.storage import hub
from offscript.storage.files import write_json, write_text
from offscript.storage.hashing import fingerprint
from offscript.storage.hashing import key_of as hash_of
from offscript.storage.manifests import digests, remove_manifests, write_manifest
from offscript.tasks.formats import check_options, get_format
from offscript.tasks.messages import readable
from offscript.training.stages import BASE

if TYPE_CHECKING:
    from offscript.experiment.backends.plan_file import ArtifactRecord

WATCH_S = 10.0

SHOWN = 3
"""Artifacts of one state that are listed; further ones are counted."""


def train(settings: Settings, experiment: Experiment) -> int:
    """``train.py``: makes one adapter or persona vector, and the rows that it is made from."""
    stage = settings.stage
    if stage.weights == BASE and stage.steering is None:
        found = "base weights, there is nothing to train"
        if _in_sweep():
            say(f"stage={stage.name}: {found}")
            return 0
        raise UserError(f"stage={stage.name}", found, one_of(_trained_stages(experiment)))
    persona = _persona_name(settings, experiment)
    planner, model = experiment.planner, settings.model.name
    own: Adapter | Vector
    if stage.steering is not None:
        own = planner.vector(model, persona, stage.name)
        wanted: list[Artifact] = [own]
    else:
        own = planner.adapter(model, persona, stage.weights, settings.seed)
        wanted = [own, *planner.remerged(own)]
    own_rows = _rows_for(own)

    def allowed(artifact: Artifact) -> bool:
        return artifact.key in own_rows or artifact in wanted or artifact.source is not None

    def main() -> int:
        return _report_result(make(wanted, experiment, allowed), own, experiment)

    return on_all_ranks(wanted, experiment, main) or 0


def _trained_stages(experiment: Experiment) -> list[str]:
    """Stages whose adapter or vector can be made."""
    stages = experiment.planner.options.stage
    return [name for name in stages if stages[name].training or stages[name].steering]


def _rows_for(artifact: Artifact) -> set[str]:
    """Keys of the rows that ``artifact`` is made from, and of the rows that those are made from."""
    rows = [a for a in artifact.inputs if isinstance(a, Rollout | Selection)]
    return {a.key for a in rows}.union(*(_rows_for(a) for a in rows))


def rollout(settings: Settings, experiment: Experiment) -> int:
    """``rollout.py``: makes the rows of one cell."""
    persona = settings.persona.name if settings.persona is not None else None
    check_options(get_format(settings.format.name), _given_options(settings, experiment))
    names = (settings.model.name, persona, settings.stage.name, settings.format.name)
    rows = experiment.planner.rollout(*names, settings.split, settings.seed, settings.scale)
    results = make([rows], experiment, lambda a: a == rows or a.source is not None, settings.limit)
    if settings.show:
        _print_transcripts(rows, experiment, settings.limit)
    return _report_result(results, rows, experiment)


def _given_options(settings: Settings, experiment: Experiment) -> dict[str, Json]:
    """The format's options that stand on the command line. Those of an experiment are for all formats of its grid, and
    some of them for other formats than this."""
    keys = {key_of(override) for override in experiment.overrides}
    if "format.options" in keys:
        return dict(settings.format.options)
    return {k: v for k, v in settings.format.options.items() if f"format.options.{k}" in keys}


def classify(settings: Settings, experiment: Experiment) -> int:
    """``classify.py``: makes the classifier of every model, then the predictions of every scored cell of the grid, and with
    ``evaluation.projections`` their projections."""
    parts = experiment.planner.evaluation().inputs
    wanted = [part for part in parts if isinstance(part, Predictions | Projections)]
    results = make(wanted, experiment, lambda a: isinstance(a, Classifier | Predictions | Projections))
    return summarise(results, experiment)


def evaluate(settings: Settings, experiment: Experiment) -> int:
    """``evaluate.py``: evaluates the grid, or a file of prediction rows that this experiment did not make; or compares the
    grid with another, or has its texts labelled."""
    _check_evaluate(settings)
    if settings.compare is not None:
        _evaluate_compare(settings.compare, settings)
        return 0
    if settings.labels is not None:
        _evaluate_labels(settings.labels, settings, experiment)
        return 0
    if settings.predictions is not None:
        _evaluate_other_rows(settings.predictions, settings, experiment)
        return 0
    if settings.beside is not None:
        _evaluate_beside(settings.beside, settings, experiment)
        return 0
    evaluation = experiment.planner.evaluation()
    results = make([evaluation], experiment, lambda a: isinstance(a, Evaluation))
    if missing := [r for r in results if isinstance(r.error, MissingInput)]:
        found = _missing_inputs(missing, experiment)
        if len(missing) == len(results):
            raise found
        say(f"not made: {found}")
    return _report_result(results, evaluation, experiment)


def _check_evaluate(settings: Settings) -> None:
    """Checks that the options of ``offscript evaluate`` go together."""
    given = [
        name for name in ("compare", "beside", "labels", "predictions") if getattr(settings, name) is not None
    ]
    if len(given) > 1 and given != ["labels", "predictions"]:
        first, second = given[:2]
        raise UserError(first, f"cannot be combined with {second}=", "leave one of them out")
    if settings.predictions is None and _is_given("format"):
        name = settings.format.name
        raise UserError(f"format={name}", "a grid has its own formats", f"write grid.format=[{name}]")
    if settings.planned is not None and given != ["predictions"]:
        raise UserError("planned", "is only for the rows of predictions=", "leave it out")


def _evaluate_labels(labels: int | str | list[str], settings: Settings, experiment: Experiment) -> None:
    """Writes a sheet of texts to label, or reads labels and prints what they say of the classifier."""
    from offscript.evaluation.predictions import load_predictions
    from offscript.experiment import labels as sheets

    parts: list[Predictions] = []
    if settings.predictions is not None:
        rows = load_predictions(settings.predictions, settings.format.name if _is_given("format") else None)
    else:
        parts, missing = _predictions_of(experiment)
        if missing:
            raise _not_made(missing, experiment)
        rows = sheets.rows_with_texts(parts, experiment)
    if isinstance(labels, int):
        sheets.write_sheet(rows, labels, experiment)
    else:
        sheets.write_audit(rows, [labels] if isinstance(labels, str) else labels, experiment, parts)


def _evaluate_other_rows(predictions: str, settings: Settings, experiment: Experiment) -> None:
    """Evaluates prediction rows that this experiment did not make, in a folder of their own."""
    from offscript.evaluation.evaluate import EvaluateOptions, evaluate_files, options_from, result_files
    from offscript.evaluation.predictions import prediction_files
    from offscript.evaluation.report.provenance import Provenance, Source

    options: EvaluateOptions = {**options_from(settings.evaluation), "planned": settings.planned}
    format_ = settings.format.name if _is_given("format") else None
    # The name of a file can be the format of its rows. Files of several folders may have the same name.
    content = [[path.name, fingerprint(path)] for path in prediction_files(predictions)]
    oracle, multiverse = settings.evaluation.oracle, settings.evaluation.multiverse
    further: dict[str, Json] = {
        name: False for name, wanted in (("oracle", oracle), ("multiverse", multiverse)) if not wanted
    }
    if format_:
        further["format"] = format_
    key = hash_of({"predictions": content, **options, **further})
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(predictions).stem).strip("-.")[:40] or "rows"
    folder = experiment.folder / "evaluations" / f"{name}-{key[:8]}"
    remove_manifests(folder)
    sources = tuple(
        Source("file", path.name, str(path), digest)
        for path, (_, digest) in zip(prediction_files(predictions), content, strict=True)
    )
    evaluate_files(
        [predictions],
        folder,
        provenance=Provenance({"key": key}, {}, sources),
        oracle=oracle,
        format_=format_,
        multiverse=multiverse,
        **options,
    )
    files = digests(folder, result_files(folder))
    write_manifest(folder, {"key": key, "predictions": content, "options": options, "files": files})


def _evaluate_beside(words: str, settings: Settings, experiment: Experiment) -> None:
    """Compares this grid with the one that the options ``words`` change. Both are read from their finished predictions,
    which may be in one folder, and no evaluation of either is replaced."""
    from offscript.cli import composed_beside
    from offscript.evaluation import comparison
    from offscript.evaluation.metrics.results import Options
    from offscript.experiment.beside import differing_settings, rows_of

    _, other = composed_beside(words)
    sides = []
    for run in (experiment, other):
        parts, missing = _predictions_of(run)
        if missing:
            raise _not_made(missing, run)
        sides.append(rows_of(parts, run))
    labels = [p for p in experiment.planner.personas if p in other.planner.personas]
    chosen = settings.evaluation
    options = Options(chosen.resamples, chosen.confidence, chosen.seed, chosen.resample)
    compared = comparison.compare(sides[0], sides[1], labels, options)
    differing = differing_settings(experiment, other)
    keys = [e.planner.evaluation().key for e in (experiment, other)]
    title = f"{settings.name}, beside {words}: macro-F1 and its difference"
    folder = experiment.folder / "evaluations" / f"beside-{hash_of({'beside': keys})[:8]}"
    _write_comparison(
        folder,
        comparison.text(compared, title, differing, f"{chosen.confidence:.0%}"),
        comparison.as_json(compared, differing),
        {"key": hash_of({"beside": keys}), "evaluations": keys, "beside": words},
    )


def _evaluate_compare(words: Sequence[str], settings: Settings) -> None:
    """Compares two finished experiments. Groups that are not comparable are named with the reason."""
    from offscript.evaluation import comparison
    from offscript.evaluation.metrics.results import Options
    from offscript.experiment import compare

    first, other = (compare.read_finished(word, settings.root) for word in words)
    if first.folder.resolve() == other.folder.resolve():
        raise UserError("compare", f"both are {first.folder}", "two experiments are needed")
    refused = compare.refused(first, other)
    kept = {*first.conditions, *other.conditions} - set(refused)
    if not kept:
        reasons = "; ".join(dict.fromkeys(refused.values()))
        raise UserError(
            f"compare=[{','.join(words)}]", f"no group is comparable: {reasons}", "see docs/measurement.md"
        )
    sides = [
        [p for p in run.rows if (p.model, p.stage, p.format, p.training_seed) in kept]
        for run in (first, other)
    ]
    chosen = settings.evaluation
    options = Options(chosen.resamples, chosen.confidence, chosen.seed, chosen.resample)
    compared = comparison.compare(sides[0], sides[1], first.labels, options)
    differing = compare.differing_settings(first, other)
    names = ("first", "second")
    title = f"{words[0]} (first) and {words[1]} (second): macro-F1 and first - second"
    key = hash_of({"compare": [first.key, other.key], "options": list(astuple(options))})
    _write_comparison(
        first.folder / "evaluations" / f"compare-{key[:8]}",
        comparison.text(compared, title, differing, f"{chosen.confidence:.0%}", names, refused),
        comparison.as_json(compared, differing, names, refused),
        {"key": key, "evaluations": [first.key, other.key], "compare": list(words)},
    )


def _write_comparison(folder: Path, text: str, content: Json, manifest: Mapping[str, object]) -> None:
    """Prints a comparison and writes it into ``folder``."""
    show(text, end="")
    remove_manifests(folder)
    write_text(folder / "comparison.txt", text)
    write_json(folder / "comparison.json", content)
    files = digests(folder, [folder / "comparison.txt", folder / "comparison.json"])
    write_manifest(folder, {**manifest, "files": files})
    show(f"\nwritten to {folder}")


def _predictions_of(experiment: Experiment) -> tuple[list[Predictions], list[Predictions]]:
    """The finished predictions of the grid, and the missing ones."""
    parts = [part for part in experiment.planner.evaluation().inputs if isinstance(part, Predictions)]
    missing = [part for part in parts if not experiment.is_finished(part)]
    return [part for part in parts if part not in missing], missing


def export(settings: Settings, experiment: Experiment) -> int:
    """``launch/export.py``: writes the finished predictions, their rows and their tables for other programs. Exit code 2 if
    some predictions of the grid are not made yet."""
    from offscript.experiment.export import export as write

    finished, missing = _predictions_of(experiment)
    if not finished:
        raise _not_made(missing, experiment)
    written = write(settings.export_as, finished, list(map(str, missing)), experiment)
    for form, files in written.items():
        show(f"{form:10}{experiment.folder / 'export' / form}: {len(files)} files")
    if missing:
        say(f"left out: {_not_made(missing, experiment)}")
    return 2 if missing else 0


def submit(settings: Settings, experiment: Experiment) -> int:
    """``launch/submit.py``: makes everything that the grid's evaluation needs, on the chosen cluster."""
    evaluation = experiment.planner.evaluation()
    everything = in_order([evaluation])
    todo, _ = needed([evaluation], experiment)
    cells, cluster = len(experiment.planner.cells()), settings.cluster
    size = f"{cells} cells, {len(everything)} artifacts, {len(todo)} to make"
    say(f"{settings.name}: {size} (cluster={cluster.name})")
    if settings.dry_run:
        return _dry_run(todo, experiment)
    threads.given()
    if evaluation not in todo:
        show(experiment.tables(evaluation) or "", end="")
        say(f"nothing to do; the evaluation is in {experiment.path(evaluation)}")
        return 0
    if cluster.kind == "slurm":
        return _submit_to_slurm(everything, todo, experiment)
    if cluster.kind == "local":
        return _run_locally(everything, todo, experiment)

    def main() -> int:
        return summarise(make([evaluation], experiment), experiment)

    return on_all_ranks(everything, experiment, main) or 0


def _dry_run(todo: list[Artifact], experiment: Experiment) -> int:
    """Prints one line per job: what it makes, and its estimated cost."""
    from offscript.experiment import cost, fidelity
    from offscript.experiment.backends.plan import planned_jobs

    settings = experiment.planner.settings
    cluster, models = settings.cluster, experiment.planner.options.model
    if cluster.gpu not in cost.GPUS:
        raise UserError("cluster.gpu", f"unknown card {cluster.gpu!r}", one_of(cost.GPUS))
    gpu, estimates = cost.GPUS[cluster.gpu], []
    for job in planned_jobs(todo, settings):
        name = job.artifacts[0].model
        estimates.append(cost.estimate(job.artifacts, models[name] if name else None, gpu, settings.engine))
    show(cost.table(estimates))
    say(fidelity.described(experiment.planner))
    return 0


def _run_locally(everything: list[Artifact], todo: list[Artifact], experiment: Experiment) -> int:
    """Runs the job graph in local processes; failed artifacts are retried ``cluster.retries`` times."""
    from offscript.experiment.backends import plan
    from offscript.experiment.backends.local import run_plan

    settings = experiment.planner.settings
    evaluation = experiment.planner.evaluation()
    check_settings(todo, experiment, processes=1)
    jobs = plan.planned_jobs(todo, settings)
    current = plan.write_plan(experiment, everything, jobs)
    while True:
        run_plan(current, settings.cluster.at_once)
        missing, _ = needed([evaluation], experiment)
        jobs, attempts = plan.retry_jobs(current, missing)
        if not jobs:
            break
        say(f"{len(missing)} artifacts are missing; trying them again")
        current = plan.write_plan(experiment, everything, jobs, attempts, current)
    write_index(experiment, [Result(a, "reused") for a in everything if experiment.is_finished(a)])
    if (tables := experiment.tables(evaluation)) is not None:
        show(tables, end="")
    for artifact in missing:
        say(f"missing: {artifact}: {_recorded_reason(artifact, experiment)}")
    return 1 if missing else 0


def _recorded_reason(artifact: Artifact, experiment: Experiment) -> str:
    failure = read_failure(experiment.failure_record(artifact))
    if failure is None:
        return "an input of it is missing"
    log = f" (log: {experiment.folder / failure['log']})" if failure["log"] else ""
    return f"{failure['reason']}{log}"


def _submit_to_slurm(everything: list[Artifact], todo: list[Artifact], experiment: Experiment) -> int:
    """Submits the artifacts that are neither finished nor in flight, and returns without waiting for the jobs."""
    from offscript.experiment.backends import slurm
    from offscript.experiment.backends import slurm_queue as queue
    from offscript.experiment.backends.plan import planned_jobs, processes_per_task, write_plan
    from offscript.experiment.backends.slurm_site import check_cluster, max_array_tasks

    settings = experiment.planner.settings
    check_cluster(settings.cluster, sorted({a.kind for a in todo}))
    check_settings(todo, experiment, processes_per_task(settings, "adapter"))
    with slurm.submission_lock(experiment.folder):
        slurm.refuse_other_settings(experiment)
        slurm.record_killed_jobs(experiment, todo)
        in_flight = queue.in_flight(experiment.folder)
        left = [a for a in todo if a.key not in in_flight]
        _report_submission(everything, todo, left, experiment)
        if not left:
            for launch, job in slurm.add_missing_supervisors(experiment.folder):
                show(f"{job:>10}  supervisor of {launch}, which had none")
            return 0
        jobs = planned_jobs(left, settings)
        plan = write_plan(experiment, everything, jobs, max_tasks=max_array_tasks())
        ids = slurm.submit(plan, in_flight)
    for array, job in zip(plan.arrays, ids, strict=False):
        show(f"{job:>10}  {array.kind}: {len(array.tasks)} tasks")
    show(
        f"{ids[-1]:>10}  supervisor: submits missing artifacts again, at most {settings.cluster.retries} times"
    )
    say(f"submitted; follow it with: {command_line('status', *experiment.overrides)}")
    return 0


def _report_submission(
    everything: list[Artifact], todo: list[Artifact], left: list[Artifact], experiment: Experiment
) -> None:
    """Prints which artifacts of the grid are skipped, left alone, retried, or new."""
    failed = [a for a in left if experiment.failure_record(a).exists()]
    groups = {
        "finished: skipped": [a for a in everything if a not in set(todo)],
        "in flight: left alone": [a for a in todo if a not in set(left)],
        "failed before: submitted again": failed,
        "not made yet: submitted": [a for a in left if a not in set(failed)],
    }
    for state, artifacts in groups.items():
        if artifacts:
            listed = ", ".join(map(str, artifacts[:SHOWN])) + (", ..." if len(artifacts) > SHOWN else "")
            say(f"{len(artifacts):>8}  {state} ({listed})")


def status(settings: Settings, experiment: Experiment) -> int:
    """``launch/status.py``: prints the state of the experiment. Exit code 0 once everything is done, 1 until then."""
    import json
    import time

    from offscript.experiment.backends.slurm_queue import query_cluster
    from offscript.experiment.backends.status import read_status, table

    artifacts, previous = _artifact_records(experiment), None
    while True:
        found = read_status(experiment.folder, artifacts, lambda keys: query_cluster(experiment.folder, keys))
        written, now = found.rows[0], time.monotonic()
        rate = (written - previous[1]) / (now - previous[0]) if previous else None
        previous = (now, written)
        if settings.json_output:
            show(json.dumps(found.as_json()))
        else:
            show(table(found, rate))
        if found.done or not settings.watch or not found.in_progress:
            return 0 if found.done else 1
        time.sleep(WATCH_S)


def _artifact_records(experiment: Experiment) -> "list[ArtifactRecord]":
    """The artifacts of the grid: from the plan of the newest launch if it is of the same grid, else planned now."""
    from offscript.experiment.backends.plan import artifact_records, newest_plan

    plan = newest_plan(experiment)
    return plan["artifacts"] if plan else artifact_records(in_order([experiment.planner.evaluation()]))


def cancel(settings: Settings, experiment: Experiment) -> int:
    """``launch/cancel.py``: cancels every job of the experiment that has not ended. Finished artifacts stay."""
    from offscript.experiment.backends import slurm_queue as queue
    from offscript.experiment.backends.slurm import submission_lock

    if not queue.launches(experiment.folder):
        say(f"{settings.name}: no SLURM job was submitted from {experiment.folder}")
        return 0
    # Under the lock, a supervisor either has submitted its jobs before, or is cancelled before it submits any.
    with submission_lock(experiment.folder):
        ids = queue.cancel(experiment.folder)
    say(f"cancelled: {', '.join(ids)}" if ids else f"{settings.name}: no job is in flight")
    return 0


def sync(settings: Settings, experiment: Experiment) -> int:
    """``launch/sync.py``: uploads what is new in the experiment's offline W&B runs."""
    from offscript.tracking import sync as upload

    done = upload.sync(experiment.folder, settings.tracking, settings.watch)
    say(f"{settings.name}: {done.rows} rows of {done.runs} runs uploaded, {done.failed} runs failed")
    return 1 if done.failed else 0


def dashboard(settings: Settings, experiment: Experiment) -> int:
    """``launch/dashboard.py``: saves a W&B workspace for the project and prints its URL."""
    from offscript.tracking import workspace

    say(f"saved: {workspace.save(settings.tracking, settings.grid.format)}")
    return 0


def prefetch(settings: Settings, experiment: Experiment) -> int:
    """``launch/prefetch.py``: downloads everything that the grid needs from the hub into the hub's cache.

    Raises:
        UserError: offline mode is set, or the hub cannot be reached, so no reference can be fetched.
    """
    refs = experiment.planner.references()
    if not refs:
        say(f"{settings.name}: the grid needs nothing from the hub")
        return 0
    if hub.offline():
        found = "is set, so the hub may not be asked"
        raise UserError("HF_HUB_OFFLINE", found, "unset it, on a machine with a network")
    failed = 0
    for ref, optional in refs.items():
        problem = _fetch(ref)
        state = "ok" if problem is None else "left out" if optional else "fail"
        failed += state == "fail"
        show(f"{state:9}{ref}" + (f": {problem}" if problem else ""))
    joined = experiment.planner.available()
    for persona in settings.grid.if_available:
        if persona not in settings.grid.persona:
            show(f"{persona} " + ("joins the grid" if persona in joined else "stays out of the grid"))
    if failed:
        show(f"\n{failed} of {len(refs)} references failed; fix them and run it again")
        return 2
    show(f"\n{len(refs)} references. What compute nodes need:")
    for name, value in _hub_environment().items():
        show(f"  export {name}={shlex.quote(value)}")
    return 0


def _fetch(ref: hub.Reference) -> str | None:
    """Downloads ``ref`` and verifies it; returns the problem, None if there is none."""
    say(f"  fetching {ref}")
    try:
        hub.fetch(ref, refresh=True)
    except hub.Unreachable as error:
        raise UserError(
            command_line("prefetch"), error.found, "run it on a machine with a network"
        ) from error
    except UserError as error:
        return f"{error.found}; {error.allowed}" if error.allowed else error.found
    return "; ".join(hub.verify(ref)) or None


def _hub_environment() -> dict[str, str]:
    from huggingface_hub import constants

    return {"HF_HOME": constants.HF_HOME, "HF_HUB_OFFLINE": "1"}


# ---------------------------------------------------------------- reports and exit codes


def summarise(results: list[Result], experiment: Experiment) -> int:
    """Prints a table of results per kind of artifact, then the failures; returns the exit code."""
    missing = [r for r in results if isinstance(r.error, MissingInput)]
    if len(missing) == len(results):
        raise _missing_inputs(missing, experiment)
    kinds = list(dict.fromkeys(r.artifact.kind for r in results))
    states = ("ran", "reused", "partial", "failed", "blocked")
    counted = Counter((r.artifact.kind, r.status) for r in results)
    say(f"\n{'':14}" + "".join(f"{state:>9}" for state in states) + f"{'time':>9}")
    for kind in kinds:
        counts = "".join(f"{counted[kind, state] or '-':>9}" for state in states)
        seconds = sum(r.seconds for r in results if r.artifact.kind == kind)
        say(f"{kind:14}{counts}{duration(seconds):>9}")
    for result in results:
        if result.status == "failed" and result not in missing:
            say(f"failed: {result.artifact}: {result.note}")
    if missing:
        say(f"not made: {_missing_inputs(missing, experiment)}")
    if blocked := sum(r.status == "blocked" and r not in missing for r in results):
        say(f"blocked: {blocked} more have inputs that failed; fix those and run the same command again")
    return _exit_code(results)


def _missing_inputs(missing: list[Result], experiment: Experiment) -> MissingInput:
    """What other commands have to make first, with the one that makes all of it."""
    return _not_made(
        [r.artifact for r in missing if r.status == "failed"] or [r.artifact for r in missing], experiment
    )


def _not_made(missing: Sequence[Artifact], experiment: Experiment) -> MissingInput:
    first, *others = missing
    names = f"{first} and {len(others)} more are" if others else f"{first} is"
    command = command_line("submit", *experiment.overrides)
    return MissingInput(
        experiment.planner.settings.name, f"{names} not made yet", f"make all with: {command}"
    )


def _report_result(results: list[Result], wanted: Artifact, experiment: Experiment) -> int:
    """Prints one line on the result of ``wanted``; returns the exit code."""
    own = next(r for r in results if r.artifact == wanted)
    if own.status in ("ran", "reused", "partial"):
        partial = "partial (limit)" if experiment.planner.settings.limit else "partial (inputs are missing)"
        outcome = {"ran": "made", "reused": "reused", "partial": partial}[own.status]
        say(f"{wanted}: {outcome}: {experiment.path(wanted)}")
    elif own.status == "blocked" and (own.error is None or isinstance(own.error, MissingInput)):
        # Other errors were printed when they occurred.
        say(f"error: {own.error or own.note}")
    return _exit_code(results)


def _exit_code(results: list[Result]) -> int:
    """0: no failure; 2: every failure is a mistake of the user; 1: otherwise."""
    errors = [r.error for r in results if r.status in ("failed", "blocked")]
    if not errors:
        return 0
    return 2 if all(isinstance(e, UserError) for e in errors) else 1


def _persona_name(settings: Settings, experiment: Experiment) -> str:
    if settings.persona is None:
        found = f"none given, and stage {settings.stage.name} needs one"
        raise UserError("persona", found, one_of(experiment.planner.options.persona))
    return settings.persona.name


def _is_given(option: str) -> bool:
    """Whether ``option`` stands on the command line, if there is one."""
    from hydra.core.hydra_config import HydraConfig

    given = HydraConfig.get().overrides.task if HydraConfig.initialized() else ()
    return option in {key_of(str(override)) for override in given}


def _in_sweep() -> bool:
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    return HydraConfig.get().mode == RunMode.MULTIRUN


def _print_transcripts(rollout: Rollout, experiment: Experiment, limit: int | None) -> None:
    description = "no persona"
    if rollout.cell.persona is not None:
        persona = experiment.planner.options.persona[rollout.cell.persona]
        description = f"{persona.display_name}: {persona.description}"
    for row in experiment.rows(rollout)[:limit]:
        labels = f"{row['model']} {row['stage']} {row['format']}"
        show(f"\n=== {row['scenario']}/{row['sample']}  {labels}  ({description})")
        if shown := row.get("examples"):
            show(f"(after examples {', '.join(str(i + 1) for i in shown)} of conf/persona)")
        for message in row["messages"]:
            show(f"[{message['role']}] {readable(message)}")
        show(
            f"--- ended: {row['ended']}, {counted(row['turns'], 'turn')}, {counted(row['tokens_out'], 'token')}"
        )
