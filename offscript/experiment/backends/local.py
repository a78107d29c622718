"""The jobs of a plan as processes of this machine, some at a time."""

import itertools
import os
import queue
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from offscript.console import say
from offscript.experiment.backends.plan import Plan
from offscript.experiment.folder import now


def run(plan: Plan, at_once: int | None) -> None:
    """Runs every job of the plan, layer by layer; ``at_once`` processes at a time (null: one per CPU).

    A job that fails is told with its log and stops nothing: what needs it finds it missing.
    """
    workers = at_once or os.cpu_count() or 1
    gpus = _gpus(workers)
    with ThreadPoolExecutor(workers) as pool:
        for _, arrays in itertools.groupby(enumerate(plan.arrays), lambda pair: pair[1].layer):
            jobs = [
                (number, task, rank)
                for number, array in arrays
                for task, members in enumerate(array.tasks)
                for rank in range(len(members))
            ]
            list(pool.map(lambda job: _run_job(plan, job, gpus), jobs))


def _run_job(plan: Plan, place: tuple[int, int, int], gpus: "queue.Queue[str]") -> None:
    array, task, rank = place
    log = plan.path.parent / "logs" / f"{array}_{task}_{rank}.log"
    log.parent.mkdir(exist_ok=True)
    job, started = plan.arrays[array].tasks[task][rank], now()
    command = [
        sys.executable,
        "-m",
        "offscript.experiment.backends.plan",
        str(plan.path),
        str(array),
        str(task),
        str(rank),
    ]
    path = os.pathsep.join(filter(None, [plan.plain["home"], os.environ.get("PYTHONPATH")]))
    with _one_of(gpus) as gpu, open(log, "w", encoding="utf-8") as file:
        env = {
            **os.environ,
            **gpu,
            "PYTHONPATH": path,
            "PYTHONSAFEPATH": "1",
        }  # not the code of the folder we are in
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=env).returncode
    name = plan.plain["jobs"][job]["name"]
    if code == 0:
        say(f"  done: {name}")
        return
    say(f"  failed: {name} ({_in_words(code)}, log: {log})")
    _note(plan, job, _in_words(code), log, started)


def _in_words(code: int) -> str:
    return f"exit code {code}" if code > 0 else f"killed by {signal.Signals(-code).name}"


def _note(plan: Plan, job: int, reason: str, log: Path, started: str) -> None:
    """Notes the end of a process that could not do it itself."""
    experiment = plan.experiment
    for artifact in plan.made_by(job):
        blocked = any(not experiment.is_finished(part) for part in artifact.inputs)
        if (
            not blocked
            and not experiment.is_finished(artifact)
            and not experiment.has_failed(artifact, since=started)
        ):
            experiment.record_failure(artifact, reason, log)


def _gpus(workers: int) -> "queue.Queue[str]":
    """A place for each worker: with several GPUs in the machine, one of them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = sorted(p.name.removeprefix("nvidia") for p in Path("/dev").glob("nvidia[0-9]*"))
    names = found if given is None else [gpu for gpu in given.split(",") if gpu]
    places: queue.Queue[str] = queue.Queue()
    for i in range(workers):
        places.put(names[i % len(names)] if len(names) > 1 else "")
    return places


@contextmanager
def _one_of(gpus: "queue.Queue[str]") -> Iterator[dict[str, str]]:
    """The environment of a job that has a GPU for itself (or nothing, where there are no GPUs to choose from)."""
    gpu = gpus.get()
    try:
        yield {"CUDA_VISIBLE_DEVICES": gpu} if gpu else {}
    finally:
        gpus.put(gpu)
