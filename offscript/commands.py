"""What each command does with its settings: which artifacts it wants, which it may make, and what it says at the end."""

import shlex
from collections import Counter
from typing import Any

from offscript.console import duration, say
from offscript.errors import MissingInput, UserError, one_of
from offscript.experiment.artifacts import (
    Adapter,
    Artifact,
    Classifier,
    Evaluation,
    Predictions,
    Rollout,
    in_order,
)
from offscript.experiment.folder import Experiment
from offscript.experiment.graph import jobs_of, needed
from offscript.experiment.runner import Result, make, on_all_ranks, write_index
from offscript.settings import GridSettings, Settings
from offscript.storage import hub
from offscript.storage.files import read_json

WATCH_S = 10.0
SHOWN = 3
"""Missing inputs that are named one by one; more are counted."""


def train(settings: Settings, experiment: Experiment) -> int:
    """``train.py``: one adapter, with the rows that it is trained on."""
    stage = settings.stage
    if stage.weights == "base":
        line = f"stage={stage.name}: base weights, there is nothing to train"
        if _in_sweep():
            say(line)
            return 0
        raise UserError(
            f"stage={stage.name}", "base weights, there is nothing to train", "allowed: distillation, full"
        )
    adapter = experiment.planner.adapter(
        settings.model.name, _persona(settings, experiment), stage.weights, settings.seed
    )
    own_rows = _rows_for(adapter)

    def may_be_made(artifact: Artifact) -> bool:
        return artifact.key in own_rows or artifact == adapter or artifact.source is not None

    def main() -> int:
        return _told(make([adapter], experiment, may_be_made), adapter, experiment)

    return on_all_ranks([adapter], experiment, main) or 0


def _rows_for(adapter: Adapter) -> set[str]:
    """Keys of the rows that an adapter is trained on, and of those that they are made from."""
    rows = [a for a in adapter.inputs if isinstance(a, Rollout)]
    return {a.key for a in rows} | {b.key for a in rows for b in a.inputs if isinstance(b, Rollout)}


def rollout(settings: Settings, experiment: Experiment) -> int:
    """``rollout.py``: the rows of one cell."""
    persona = settings.persona.name if settings.persona is not None else None
    cell = experiment.planner.rollout(
        settings.model.name, persona, settings.stage.name, settings.format.name, settings.split, settings.seed,
        settings.scale,
    )  # fmt: skip
    results = make([cell], experiment, lambda a: a == cell or a.source is not None, settings.limit)
    if settings.show:
        _show(cell, experiment, settings.limit)
    return _told(results, cell, experiment)


def classify(settings: Settings, experiment: Experiment) -> int:
    """``classify.py``: the classifier of every model, then predictions for every scored cell of the grid."""
    _refuse_single_cell()
    wanted = [experiment.planner.predictions(cell) for cell in experiment.planner.cells()]
    results = make(wanted, experiment, lambda a: isinstance(a, Classifier | Predictions))
    return summarise(results, experiment)


def evaluate(settings: Settings, experiment: Experiment) -> int:
    """``evaluate.py``: the evaluation of the grid, or of prediction rows made elsewhere."""
    if settings.predictions is not None:
        from offscript.evaluation.evaluate import evaluate_files

        node = settings.evaluation
        evaluate_files(
            [settings.predictions], experiment.folder / "evaluation", planned=settings.planned,
            resamples=node.resamples, confidence=node.confidence, seed=node.seed,
        )  # fmt: skip
        return 0
    _refuse_single_cell()
    evaluation = experiment.planner.evaluation()
    results = make([evaluation], experiment, lambda a: isinstance(a, Evaluation))
    return _told(results, evaluation, experiment)


def submit(settings: Settings, experiment: Experiment) -> int:
    """``launch/submit.py``: everything that the grid's evaluation needs."""
    _refuse_single_cell()
    evaluation = experiment.planner.evaluation()
    everything = in_order([evaluation])
    todo, _ = needed([evaluation], experiment)
    cells, cluster = len(experiment.planner.cells()), settings.cluster
    say(
        f"{settings.name}: {cells} cells, {len(everything)} artifacts, {len(todo)} to make (cluster={cluster.name})"
    )
    if settings.dry_run:
        return _dry_run(todo, experiment)
    if evaluation not in todo:
        print((experiment.path(evaluation) / "tables.txt").read_text(), end="")
        say(f"nothing to do; it lies in {experiment.path(evaluation)}")
        return 0
    if cluster.kind == "slurm":
        return _submit_to_slurm(everything, todo, experiment)
    if cluster.kind == "local":
        return _run_locally(everything, todo, experiment)
    return (
        on_all_ranks(everything, experiment, lambda: summarise(make([evaluation], experiment), experiment))
        or 0
    )


def _dry_run(todo: list[Artifact], experiment: Experiment) -> int:
    """One line per job: what it makes, and what that would cost."""
    from offscript.experiment import cost as estimate
    from offscript.experiment.backends import plan

    settings = experiment.planner.settings
    cluster, models = settings.cluster, experiment.planner.options.model
    if cluster.gpu not in estimate.GPUS:
        raise UserError("cluster.gpu", f"unknown card {cluster.gpu!r}", one_of(estimate.GPUS))
    jobs = jobs_of(todo, plan.shards(cluster))
    named = [job.artifacts[0].model for job in jobs]
    print(
        estimate.table(
            [
                estimate.estimate(
                    job.artifacts, models[m] if m else None, estimate.GPUS[cluster.gpu], settings.engine
                )
                for job, m in zip(jobs, named, strict=True)
            ]
        )
    )
    return 0


def _run_locally(everything: list[Artifact], todo: list[Artifact], experiment: Experiment) -> int:
    """The graph in local processes; what failed is tried again within the retry budget."""
    from offscript.experiment.backends import local, plan

    cluster = experiment.planner.settings.cluster
    frozen = plan.freeze(experiment, everything, jobs_of(todo, plan.shards(cluster)))
    while True:
        local.run(frozen, cluster.at_once)
        missing, _ = needed([experiment.planner.evaluation()], experiment)
        jobs, attempts = plan.again(frozen, missing)
        if not jobs:
            break
        say(f"{len(missing)} artifacts are missing; trying them again")
        frozen = plan.freeze(experiment, everything, jobs, attempts, frozen)
    write_index(experiment, [Result(a, "reused") for a in everything if experiment.is_finished(a)])
    evaluation = experiment.planner.evaluation()
    if (tables := experiment.path(evaluation) / "tables.txt").exists():
        print(tables.read_text(), end="")
    for artifact in missing:
        say(f"missing: {artifact}: {_why(artifact, experiment)}")
    return 1 if missing else 0


def _why(artifact: Artifact, experiment: Experiment) -> str:
    note = experiment.failure_record(artifact)
    if not note.exists():
        return "needs what is missing"
    failure = read_json(note)
    return failure["reason"] + (f" (log: {experiment.folder / failure['log']})" if failure["log"] else "")


def _submit_to_slurm(everything: list[Artifact], todo: list[Artifact], experiment: Experiment) -> int:
    """Submits what neither is there nor under way, and leaves: nothing waits on a login node."""
    from offscript.experiment.backends import plan, slurm
    from offscript.experiment.backends import slurm_queue as queue
    from offscript.experiment.backends import slurm_site as site

    cluster = experiment.planner.settings.cluster
    site.check(cluster, sorted({a.kind for a in todo}))
    with slurm.submitting(experiment.folder):
        slurm.refuse_foreign(experiment)
        slurm.note_deaths(experiment, todo)
        flying = queue.in_flight(experiment.folder)
        left = [a for a in todo if a.key not in flying]
        _tell_apart(everything, todo, left, experiment)
        if not left:
            for launch, job in slurm.guard(experiment.folder):
                print(f"{job:>10}  supervisor of {launch}, which had none")
            return 0
        frozen = plan.freeze(experiment, everything, jobs_of(left, plan.shards(cluster)))
        ids = slurm.submit(frozen, flying)
    for array, job in zip(frozen.arrays, ids, strict=False):
        print(f"{job:>10}  {array.kind}: {len(array.tasks)} tasks")
    print(f"{ids[-1]:>10}  supervisor: submits again what is missing, {cluster.retries} times at most")
    say(f"submitted; watch it with: python launch/status.py {' '.join(experiment.overrides)}")
    return 0


def _tell_apart(
    everything: list[Artifact], todo: list[Artifact], left: list[Artifact], experiment: Experiment
) -> None:
    """What of the grid is skipped, left alone, tried again, or new."""
    failed = [a for a in left if experiment.failure_record(a).exists()]
    groups = {
        "finished: skipped": [a for a in everything if a not in set(todo)],
        "under way: left alone": [a for a in todo if a not in set(left)],
        "failed before: submitted again": failed,
        "not made yet: submitted": [a for a in left if a not in set(failed)],
    }
    for words, artifacts in groups.items():
        if artifacts:
            named = ", ".join(map(str, artifacts[:SHOWN])) + (", ..." if len(artifacts) > SHOWN else "")
            say(f"{len(artifacts):>8}  {words} ({named})")


def status(settings: Settings, experiment: Experiment) -> int:
    """``launch/status.py``: one table of the experiment. Exit code 0 once everything is done, 1 while it is not."""
    import json
    import time

    from offscript.experiment.backends import slurm_queue as queue
    from offscript.experiment.backends import status as seen

    artifacts, before = _listed(experiment), None
    while True:
        found = seen.look(experiment.folder, artifacts, lambda keys: queue.look(experiment.folder, keys))
        written, now = found.rows[0], time.monotonic()
        rate = (written - before[1]) / (now - before[0]) if before else None
        before = (now, written)
        if settings.json_output:
            print(json.dumps(found.plain(), ensure_ascii=False), flush=True)
        else:
            print(seen.table(found, rate), flush=True)
        if found.done or not settings.watch or not found.moving:
            return 0 if found.done else 1
        time.sleep(WATCH_S)


def _listed(experiment: Experiment) -> list[dict[str, Any]]:
    """The artifacts of the grid: as the newest launch froze them, if it is of these settings, else as planned now."""
    from offscript.experiment.backends.plan import listing, newest

    plain = newest(experiment)
    return listing(in_order([experiment.planner.evaluation()])) if plain is None else plain["artifacts"]


def cancel(settings: Settings, experiment: Experiment) -> int:
    """``launch/cancel.py``: every job of the experiment that has not ended. What is finished stays."""
    from offscript.experiment.backends import slurm
    from offscript.experiment.backends import slurm_queue as queue

    with slurm.submitting(
        experiment.folder
    ):  # a supervisor that is about to submit again does so before, or not at all
        ids = queue.cancel(experiment.folder)
    say(f"cancelled: {', '.join(ids)}" if ids else f"{settings.name}: no job is under way")
    return 0


def sync(settings: Settings, experiment: Experiment) -> int:
    """``launch/sync.py``: what is new in the experiment's offline W&B runs goes to the service."""
    from offscript.tracking import sync as upload

    done = upload.sync(experiment.folder, settings.tracking, settings.watch)
    say(f"{settings.name}: {done.rows} rows of {done.runs} runs uploaded, {done.failed} runs failed")
    return 1 if done.failed else 0


def dashboard(settings: Settings, experiment: Experiment) -> int:
    """``launch/dashboard.py``: saves a W&B workspace for the project and prints its address."""
    from offscript.tracking import workspace

    say(f"saved: {workspace.save(settings.tracking, settings.grid.format)}")
    return 0


def prefetch(settings: Settings, experiment: Experiment) -> int:
    """``launch/prefetch.py``: everything of the grid that lies on the hub, into the hub's own cache.

    Raises:
        UserError: the hub may not be asked, or cannot be reached: one line for all that would fail for it.
    """
    _refuse_single_cell()
    refs = experiment.planner.references()
    if not refs:
        say(f"{settings.name}: nothing of it lies on the hub")
        return 0
    if hub.offline():
        raise UserError(
            "HF_HUB_OFFLINE", "is set, so the hub may not be asked", "unset it, on a machine with a network"
        )
    failed = 0
    for ref, optional in refs.items():
        problem = _fetched(ref)
        state = "ok" if problem is None else "left out" if optional else "fail"
        failed += state == "fail"
        print(f"{state:9}{ref}" + (f": {problem}" if problem else ""), flush=True)
    joined = experiment.planner.available()
    for persona in settings.grid.if_available:
        if persona not in settings.grid.persona:
            print(f"{persona} " + ("joins the grid" if persona in joined else "stays out of the grid"))
    if failed:
        print(f"\n{failed} of {len(refs)} references failed; run it again once that is put right")
        return 2
    print(f"\n{len(refs)} references. What compute nodes need:")
    for name, value in _hub_environment().items():
        print(f"  export {name}={shlex.quote(value)}")
    return 0


def _fetched(ref: hub.Reference) -> str | None:
    """None if ``ref`` is now in the cache and whole, else why not."""
    say(f"  fetching {ref}")
    try:
        hub.fetch(ref, refresh=True)
    except hub.Unreachable as error:
        raise UserError("launch/prefetch.py", error.found, "run it on a machine with a network") from error
    except UserError as error:
        return f"{error.found}; {error.allowed}" if error.allowed else error.found
    return "; ".join(hub.verify(ref)) or None


def _hub_environment() -> dict[str, str]:
    from huggingface_hub import constants

    return {"HF_HOME": constants.HF_HOME, "HF_HUB_OFFLINE": "1"}


# ---------------------------------------------------------------- what is said at the end


def summarise(results: list[Result], experiment: Experiment) -> int:
    """A table of ran / reused / failed per kind of artifact; the exit code."""
    kinds = list(dict.fromkeys(r.artifact.kind for r in results))
    states = ("ran", "reused", "partial", "failed", "blocked")
    counted = Counter((r.artifact.kind, r.status) for r in results)
    spent = {kind: sum(r.seconds for r in results if r.artifact.kind == kind) for kind in kinds}
    say(f"\n{'':14}" + "".join(f"{s:>9}" for s in states) + f"{'time':>9}")
    for kind in kinds:
        say(
            f"{kind:14}"
            + "".join(f"{counted[kind, s] or '-':>9}" for s in states)
            + f"{duration(spent[kind]):>9}"
        )
    failed = [r for r in results if r.status == "failed"]
    missing = [r for r in failed if isinstance(r.error, MissingInput)]
    for result in [r for r in failed if r not in missing] + missing[:SHOWN]:
        say(f"failed: {result.artifact}: {result.note}")
    if len(missing) > SHOWN:
        everything = " ".join(["python launch/submit.py", *experiment.overrides])
        say(f"failed: {len(missing) - SHOWN} more are not made yet; make all of them with: {everything}")
    if blocked := sum(r.status == "blocked" for r in results):
        say(f"blocked: {blocked} more need what failed; run the same command again once that is mended")
    return _code(results)


def _told(results: list[Result], wanted: Artifact, experiment: Experiment) -> int:
    """One line on what became of ``wanted``; the exit code."""
    own = next(r for r in results if r.artifact == wanted)
    if own.status in ("ran", "reused", "partial"):
        word = {"ran": "made", "reused": "there already", "partial": "begun (limit)"}[own.status]
        say(f"{wanted}: {word}: {experiment.path(wanted)}")
    elif own.status == "blocked" and (own.error is None or isinstance(own.error, MissingInput)):
        say(f"error: {own.error or own.note}")  # what failed was told when it did
    return _code(results)


def _code(results: list[Result]) -> int:
    """0: all well; 2: all that went wrong is for the user to put right; 1: work failed."""
    errors = [r.error for r in results if r.status in ("failed", "blocked")]
    if not errors:
        return 0
    return 2 if all(isinstance(e, UserError) for e in errors) else 1


def _persona(settings: Settings, experiment: Experiment) -> str:
    if settings.persona is None:
        raise UserError(
            "persona",
            f"none given, and stage {settings.stage.name} needs one",
            one_of(experiment.planner.options.persona),
        )
    return settings.persona.name


def _refuse_single_cell() -> None:
    """A command that works on the whole grid does not pass over a choice of one cell in silence."""
    from hydra.core.hydra_config import HydraConfig

    for override in HydraConfig.get().overrides.task:
        name, _, value = str(override).partition("=")
        if name in ("persona", "stage", "format", "split", "seed", "limit", "show"):
            allowed = f"grid.{name}=[{value}]" if name in GridSettings.model_fields else "rollout.py has it"
            raise UserError(override, "this command works on the whole grid", allowed)


def _in_sweep() -> bool:
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    return HydraConfig.get().mode == RunMode.MULTIRUN


def _show(cell: Rollout, experiment: Experiment, limit: int | None) -> None:
    """Prints the transcripts of a cell."""
    name = cell.cell.persona
    who = "nobody in particular"
    if name is not None:
        persona = experiment.planner.options.persona[name]
        who = f"{persona.display_name}: {persona.description}"
    for row in experiment.rows(cell)[:limit]:
        print(
            f"\n=== {row['scenario']}/{row['sample']}  {row['model']} {row['stage']} {row['format']}  ({who})"
        )
        for message in row["messages"]:
            print(f"[{message['role']}] {message['content']}")
        print(f"--- ended: {row['ended']}, {row['turns']} turns, {row['tokens_out']} tokens")
