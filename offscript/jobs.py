"""Making artifacts: ``make`` runs what a set of wanted artifacts still needs, layer by layer. It holds the claims on what
is written and keeps a failure with what needs it.
"""

import contextlib
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from offscript.bench import Bench, checkpoint_of
from offscript.cell import Artifact
from offscript.console import say
from offscript.errors import MissingInput, UserError
from offscript.grid import layers
from offscript.store import claim, read_json, write_json, write_text
from offscript.work import RUN


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
    """Rollouts of one model share its weights and predictions its classifier; all else is a job of its own. A whole
    checkpoint takes the model's place: its rollouts are a job of their own too."""
    shared: dict[tuple[str, str, str], list[Artifact]] = {}
    for artifact in artifacts:
        if artifact.kind in ("rollout", "predictions"):
            whole = checkpoint_of(artifact) if artifact.kind == "rollout" else None
            place = (artifact.kind, artifact.labels["model"], whole.key if whole else "")
            shared.setdefault(place, []).append(artifact)
        else:
            shared[artifact.key, "", ""] = [artifact]
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


def write_index(bench: Bench, results: Iterable[Result]) -> None:
    """``index.json``: what is current, for people."""
    there = {str(r.artifact): r.artifact for r in results if r.status in ("ran", "reused")}
    if not there:
        return
    path = bench.folder / "index.json"
    current = read_json(path) if path.exists() else {}
    write_json(path, {**current, **{name: {"path": str(a.path), "key": a.key} for name, a in there.items()}})
