"""Runs the jobs of a plan as processes on this machine, several at a time."""

import itertools
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from offscript.console import say
from offscript.errors import UserError
from offscript.experiment.backends.plan import Plan, gpus_per_process
from offscript.experiment.folder import now
from offscript.signals import before_end
from offscript.threads import available, shared_by

GpuSlots = queue.Queue[str]
"""One entry per worker: the GPU that its job sees, or "" where there is no choice."""


def run_plan(plan: Plan, max_processes: int | None) -> None:
    """Runs every job of the plan, layer by layer, in at most ``max_processes`` processes (None: one per CPU).

    A failed job is reported with its log and stops nothing; jobs that need its artifacts then find them missing.

    Raises:
        UserError: vLLM would divide the weights among several GPUs.
    """
    if (each := gpus_per_process(plan.experiment.planner.settings.engine, "rollout")) > 1:
        found = f"{each}, but with cluster=local each process has one GPU"
        raise UserError("engine.tensor_parallel", found, "allowed: 1, or another cluster=")
    workers = max_processes or available()
    gpus, processes = _gpu_slots(workers), _Processes()
    with ThreadPoolExecutor(workers) as pool, processes.end_with_this_one():
        for _, arrays in itertools.groupby(enumerate(plan.arrays), lambda pair: pair[1].layer):
            jobs = [
                (number, task, rank)
                for number, array in arrays
                for task, members in enumerate(array.tasks)
                for rank in range(len(members))
            ]
            at_once = min(workers, len(jobs))
            with shared_by(at_once) as threads:
                if at_once > 1:
                    say(f"{len(jobs)} jobs, {at_once} at a time, threads of each: {threads}")
                list(pool.map(lambda job: _run_job(plan, gpus, processes, *job), jobs))


class _Processes:
    """The processes that are running. After ``end``, no further one is started."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.RLock()
        self.ended = False

    def run(self, command: Sequence[str], log: IO[str], env: Mapping[str, str]) -> int | None:
        """Runs ``command`` and returns its exit code; None if it was not started, or was ended."""
        with self._lock:
            if self.ended:
                return None
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env)
            self._running.add(process)
        code = process.wait()
        with self._lock:
            self._running.remove(process)
            return None if self.ended else code

    def end(self, number: int = signal.SIGTERM) -> None:
        """Sends the signal ``number`` to every process."""
        with self._lock:
            self.ended = True
            for process in self._running:
                process.send_signal(number)

    def wait(self) -> None:
        """Waits for every process: a training writes a checkpoint before it ends."""
        for process in [*self._running]:
            process.wait()

    @contextmanager
    def end_with_this_one(self) -> Iterator[None]:
        """Within the block, a signal or an exception that ends this process ends the others too."""
        with before_end(self.end, self.wait):
            try:
                yield
            except BaseException:
                self.end()
                raise


def _run_job(plan: Plan, gpus: GpuSlots, processes: _Processes, array: int, task: int, rank: int) -> None:
    log = plan.path.parent / "logs" / f"{array}_{task}_{rank}.log"
    log.parent.mkdir(exist_ok=True)
    job, started = plan.arrays[array].tasks[task][rank], now()
    command = [sys.executable, "-m", "offscript.experiment.backends.plan", str(plan.path)]
    path = os.pathsep.join(filter(None, [plan.content["home"], os.environ.get("PYTHONPATH")]))
    with _acquire_gpu(gpus) as gpu, open(log, "w", encoding="utf-8") as file:
        # PYTHONSAFEPATH: the job must not import the code in the current folder.
        env = {**os.environ, **gpu, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
        code = processes.run([*command, str(array), str(task), str(rank)], file, env)
    name = plan.content["jobs"][job]["name"]
    if code is None:
        return
    if code == 0:
        say(f"  done: {name}")
        return
    reason = _describe_exit(code)
    say(f"  failed: {name} ({reason}, log: {log})")
    _record_failures(plan, job, reason, log, started)


def _describe_exit(code: int) -> str:
    return f"exit code {code}" if code > 0 else f"killed by {signal.Signals(-code).name}"


def _record_failures(plan: Plan, job: int, reason: str, log: Path, started: str) -> None:
    """Records a failure for each artifact that the process tried, did not make, and recorded no failure of itself."""
    experiment = plan.experiment
    for artifact in plan.artifacts_of(job):
        blocked = any(not experiment.is_finished(part) for part in artifact.inputs)
        recorded = experiment.has_failed(artifact, since=started)
        if not blocked and not recorded and not experiment.is_finished(artifact):
            experiment.record_failure(artifact, reason, log)


def _gpu_slots(workers: int) -> GpuSlots:
    """Distributes the GPUs of this machine over the workers, if there are several."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = sorted(p.name.removeprefix("nvidia") for p in Path("/dev").glob("nvidia[0-9]*"))
    names = found if visible is None else [gpu for gpu in visible.split(",") if gpu]
    slots: GpuSlots = queue.Queue()
    for i in range(workers):
        slots.put(names[i % len(names)] if len(names) > 1 else "")
    return slots


@contextmanager
def _acquire_gpu(gpus: GpuSlots) -> Iterator[dict[str, str]]:
    """Takes a slot for the block, and yields the environment variable that selects its GPU."""
    gpu = gpus.get()
    try:
        yield {"CUDA_VISIBLE_DEVICES": gpu} if gpu else {}
    finally:
        gpus.put(gpu)
