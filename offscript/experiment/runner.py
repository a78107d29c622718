"""Making artifacts: ``make`` runs what a set of wanted artifacts still needs, layer by layer. It holds the claims on what
is written and keeps a failure with what needs it.
"""

import contextlib
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from offscript.console import say
from offscript.errors import MissingInput, UserError
from offscript.experiment.artifacts import Artifact
from offscript.experiment.folder import Bench
from offscript.experiment.graph import jobs_of, needed
from offscript.experiment.work import RUN, help_training
from offscript.storage.files import read_json, write_json, write_text
from offscript.storage.locks import claim
from offscript.training.interrupt import Interrupted

T = TypeVar("T")


@dataclass
class Result:
    """How one artifact fared: ``ran``, ``reused``, ``partial`` (a limit was set), ``failed`` or ``blocked``."""

    artifact: Artifact
    status: str
    seconds: float = 0.0
    note: str = ""
    error: BaseException | None = None


# ---------------------------------------------------------------- running what is needed


def make(
    wanted: Sequence[Artifact],
    bench: Bench,
    allowed: Callable[[Artifact], bool] = lambda artifact: True,
    limit: int | None = None,
) -> list[Result]:
    """Makes ``wanted`` and whatever they need in this process, layer by layer, going on past what fails.

    What ``allowed`` refuses is not made: it fails with the command that would make it. A failed artifact blocks what
    was to be made from it and nothing else.
    """
    todo, reused = needed(wanted, bench)
    results = {a.key: Result(a, "reused") for a in reused}
    for job in jobs_of(todo):
        ready = []
        for artifact in job.artifacts:
            if allowed(artifact):
                ready.append(artifact)
                continue
            missing = MissingInput(str(artifact), "not made yet", f"make it with: {bench.command(artifact)}")
            results[artifact.key] = Result(artifact, "failed", note=str(missing), error=missing)
        for result in run(ready, bench, limit, {k: r.error for k, r in results.items() if r.error}):
            results[result.artifact.key] = result
    write_index(bench, results.values())
    return list(results.values())


def run(
    artifacts: Sequence[Artifact],
    bench: Bench,
    limit: int | None = None,
    errors: Mapping[str, BaseException] | None = None,
) -> list[Result]:
    """Runs one job: makes those of ``artifacts`` (of one kind) whose inputs are on disk; the others are blocked.

    ``errors``: why artifacts that were tried before failed, by key.
    """
    results, ready = [], []
    for artifact in artifacts:
        if culprit := _blocker(artifact, bench):
            error = (errors or {}).get(culprit.key)
            results.append(Result(artifact, "blocked", note=f"needs {culprit}", error=error))
        else:
            ready.append(artifact)
    return results + (_run_group(ready, bench, limit) if ready else [])


def together(everything: Iterable[Artifact], bench: Bench, lead: Callable[[], T]) -> T | None:
    """``lead()`` on rank 0 of a training with several processes; the others help with every training that it announces.

    What is not training (planning, rows, classifiers) is rank 0's alone. A process by itself just leads. Returns None on
    the other ranks.
    """
    from offscript.training import ranks

    me = ranks.join()
    if me.is_main:
        try:
            return lead()
        finally:
            ranks.send_task(None)
            ranks.leave()
    known = {artifact.key: artifact for artifact in everything}
    try:
        while (key := ranks.receive_task()) is not None:
            help_training(known[key], bench)
    except Interrupted:  # rank 0 would wait for this one, in the few seconds that a signal leaves it
        ranks.leave()
        raise
    ranks.leave()
    return None


def _blocker(artifact: Artifact, bench: Bench) -> Artifact | None:
    """The first input that is not there. An evaluation is made from what there is."""
    missing = [part for part in artifact.inputs if not bench.finished(part)]
    if artifact.kind == "evaluation" and len(missing) < len(artifact.inputs):
        return None
    return missing[0] if missing else None


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
    except Interrupted:
        raise
    except Exception as caught:
        error = caught
        _log_failure(group, bench, caught)
    seconds = time.monotonic() - started
    return [_result(a, bench, seconds / len(group), error) for a in group]


def _result(artifact: Artifact, bench: Bench, seconds: float, error: BaseException | None) -> Result:
    if bench.finished(artifact):
        bench.failure(artifact).unlink(missing_ok=True)
        return Result(artifact, "ran", seconds)
    if error is None:  # a limit was set, or an evaluation was made from the part that is there
        return Result(artifact, "partial", seconds)
    note = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return Result(artifact, "failed", seconds, note.splitlines()[0] if note else "", error)


def _log_failure(group: list[Artifact], bench: Bench, error: Exception) -> None:
    """A user's mistake is one line; a failure of the work keeps its traceback in a log. Both are noted for status."""
    what = str(group[0]) if len(group) == 1 else f"{group[0].kind} job of {len(group)} artifacts"
    path = bench.folder / "logs" / f"{group[0].kind}-{group[0].key[:8]}.log"
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
            if not bench.finished(artifact):
                bench.note_failure(artifact, line, None if isinstance(error, UserError) else path)
    except (OSError, UserError) as full:  # no space, no folder: nothing can be noted either
        if not isinstance(error, UserError):
            say(f"not noted: {full}\n{''.join(traceback.format_exception(error))}")


def write_index(bench: Bench, results: Iterable[Result]) -> None:
    """``index.json``: what is current, for people."""
    there = {str(r.artifact): r.artifact for r in results if r.status in ("ran", "reused")}
    if not there:
        return
    path = bench.folder / "index.json"
    current = read_json(path) if path.exists() else {}
    write_json(path, {**current, **{name: {"path": str(a.path), "key": a.key} for name, a in there.items()}})
