"""The runner: ``make`` runs what a set of wanted artifacts still needs, layer by layer.

It holds the locks on what is written, and a failure stops only what needs the failed artifact.
"""

import contextlib
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from offscript import threads
from offscript.console import say
from offscript.errors import MissingInput, UserError
from offscript.experiment.artifacts import Adapter, Artifact, Vector
from offscript.experiment.folder import Experiment
from offscript.experiment.graph import jobs_of, needed
from offscript.experiment.jobs import RUN
from offscript.experiment.jobs.training import check_settings, help_train
from offscript.storage.files import read_json_object, system_refusal, write_json, write_text
from offscript.storage.locks import claim
from offscript.training.interrupt import Interrupted
from offscript.training.ranks import rank_info

T = TypeVar("T")


@dataclass
class Result:
    """What happened to one artifact: ``ran``, ``reused``, ``partial`` (a limit was set), ``failed`` or ``blocked``."""

    artifact: Artifact
    status: str
    seconds: float = 0.0
    note: str = ""
    error: BaseException | None = None


# ---------------------------------------------------------------- running what is needed


def make(
    wanted: Sequence[Artifact],
    experiment: Experiment,
    allowed: Callable[[Artifact], bool] = lambda artifact: True,
    limit: int | None = None,
) -> list[Result]:
    """Makes ``wanted`` and whatever they need in this process, layer by layer, going on past what fails.

    An artifact that ``allowed`` refuses fails with the command that would make it. A failed artifact blocks what is made
    from it and nothing else.

    Raises:
        UserError: a training cannot work, whatever its rows are. Nothing has been made then.
    """
    todo, reused = needed(wanted, experiment)
    check_settings(filter(allowed, todo), experiment, rank_info().world_size)
    results = {a.key: Result(a, "reused") for a in reused}
    for job in jobs_of(todo):
        ready = []
        for artifact in job.artifacts:
            if allowed(artifact):
                ready.append(artifact)
                continue
            missing = MissingInput(
                str(artifact), "not made yet", f"make it with: {experiment.command(artifact)}"
            )
            results[artifact.key] = Result(artifact, "failed", note=str(missing), error=missing)
        for result in run(ready, experiment, limit, {k: r.error for k, r in results.items() if r.error}):
            results[result.artifact.key] = result
    write_index(experiment, results.values())
    return list(results.values())


def run(
    artifacts: Sequence[Artifact],
    experiment: Experiment,
    limit: int | None = None,
    errors: Mapping[str, BaseException] | None = None,
) -> list[Result]:
    """Runs one job: makes those of ``artifacts`` (of one kind) whose inputs are finished; the others are blocked.

    ``errors`` holds, by key, the errors of artifacts that failed before.
    """
    threads.limit()
    results, ready = [], []
    for artifact in artifacts:
        if culprit := _blocker(artifact, experiment):
            error = (errors or {}).get(culprit.key)
            results.append(Result(artifact, "blocked", note=f"needs {culprit}", error=error))
        else:
            ready.append(artifact)
    # Trainings of one job follow one another on the loaded base; one that fails does not stop the next.
    groups = [[artifact] for artifact in ready] if ready and ready[0].all_ranks else [ready] * bool(ready)
    return results + [result for group in groups for result in _run_group(group, experiment, limit)]


def run_in_order(artifacts: Sequence[Artifact], experiment: Experiment) -> list[Result]:
    """Runs one job whose ``artifacts`` (inputs first) may need one another, as the adapters of several stages with the
    rollouts between them do."""
    return [result for step in jobs_of(artifacts) for result in run(step.artifacts, experiment)]


def on_all_ranks(everything: Iterable[Artifact], experiment: Experiment, main: Callable[[], T]) -> T | None:
    """Calls ``main`` on rank 0; the other ranks take part in every training that it starts, and get None.

    Planning, rollouts and scoring are done by rank 0 alone. With one process, ``main`` is called and nothing else happens.
    """
    from offscript.training import ranks

    threads.limit()
    if ranks.join().is_main:
        try:
            return main()
        finally:
            ranks.send_task(None)
            ranks.leave()
    known = {artifact.key: artifact for artifact in everything}
    try:
        # Rank 0 would wait in a collective for a rank that has raised anything else.
        with ranks.fail_together(expected=(Interrupted,)):
            while (key := ranks.receive_task()) is not None:
                help_train(known[key], experiment)
    finally:
        # Otherwise rank 0 would wait for this rank, in the few seconds that a signal leaves it.
        ranks.leave()
    return None


def _blocker(artifact: Artifact, experiment: Experiment) -> Artifact | None:
    """The first input that is missing and without which ``artifact`` cannot be made."""
    missing = [part for part in artifact.inputs if not experiment.is_finished(part)]
    if artifact.partial_inputs and len(missing) < len(artifact.inputs):
        return None
    return missing[0] if missing else None


def _run_group(group: list[Artifact], experiment: Experiment, limit: int | None) -> list[Result]:
    """Runs one job. If a job over several adapters or vectors fails, the artifacts of each are tried separately, so that one
    broken adapter does not cost the others their rows."""
    results = _run_job(group, experiment, limit)
    failed: dict[tuple[str, ...], list[Artifact]] = {}
    for result in results:
        if result.status == "failed":
            adapters = tuple(
                part.key for part in result.artifact.inputs if isinstance(part, Adapter | Vector)
            )
            failed.setdefault(adapters, []).append(result.artifact)
    if len(failed) < 2 or not any(failed):
        return results
    say("  trying the cells of each adapter separately")
    kept = [r for r in results if r.status != "failed"]
    return kept + [one for part in failed.values() for one in _run_job(part, experiment, limit)]


def _run_job(group: list[Artifact], experiment: Experiment, limit: int | None) -> list[Result]:
    started = time.monotonic()
    error: BaseException | None = None
    try:
        with contextlib.ExitStack() as stack:
            # All processes lock in one order, so that none waits for another in a circle.
            for artifact in sorted(group, key=lambda a: a.key):
                stack.enter_context(claim(experiment.path(artifact), say=say))
            fresh = [a for a in group if not experiment.is_finished(a)]
            if fresh:
                RUN[group[0].kind](fresh, experiment, limit)
    except Interrupted:
        raise
    except Exception as caught:
        error = system_refusal(caught) or caught
        _log_failure(group, experiment, error)
    seconds = time.monotonic() - started
    return [_result(a, experiment, seconds / len(group), error) for a in group]


def _result(
    artifact: Artifact, experiment: Experiment, seconds: float, error: BaseException | None
) -> Result:
    if experiment.is_finished(artifact):
        experiment.failure_record(artifact).unlink(missing_ok=True)
        return Result(artifact, "ran", seconds)
    # Without an error, a limit was set, or an evaluation was made from those inputs that exist.
    if error is None:
        return Result(artifact, "partial", seconds)
    note = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return Result(artifact, "failed", seconds, note.splitlines()[0] if note else "", error)


def _log_failure(group: list[Artifact], experiment: Experiment, error: Exception) -> None:
    """Reports and records a failure: one line for a UserError; for any other error also a log with the traceback."""
    what = str(group[0]) if len(group) == 1 else f"{group[0].kind} job of {len(group)} artifacts"
    path = experiment.folder / "logs" / f"{group[0].kind}-{group[0].key[:8]}.log"
    if isinstance(error, UserError):
        line = str(error)
        say(f"failed: {what}: {line}")
    else:
        line = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        say(f"failed: {what}: {line} (traceback: {path})")
    try:
        if not isinstance(error, UserError):
            write_text(path, "".join(traceback.format_exception(error)))
        for artifact in group:
            if not experiment.is_finished(artifact):
                experiment.record_failure(artifact, line, None if isinstance(error, UserError) else path)
    except (OSError, UserError) as full:
        # The disk is full or the folder cannot be written: the record of the failure cannot be written either.
        if not isinstance(error, UserError):
            say(f"not recorded: {full}\n{''.join(traceback.format_exception(error))}")


def write_index(experiment: Experiment, results: Iterable[Result]) -> None:
    """Updates ``index.json``, which lists the current artifacts for people."""
    finished = {str(r.artifact): r.artifact for r in results if r.status in ("ran", "reused")}
    if not finished:
        return
    path = experiment.folder / "index.json"
    current = read_json_object(path) if path.exists() else {}
    write_json(
        path, {**current, **{name: {"path": str(a.path), "key": a.key} for name, a in finished.items()}}
    )
