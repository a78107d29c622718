"""The launches of an experiment and the state of their jobs in SLURM: which are in flight, and how others failed."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from typing_extensions import TypedDict

from offscript.errors import UserError
from offscript.experiment.backends.plan_file import PLAN, PlanFile, read_plan_file
from offscript.experiment.backends.slurm_site import fields, run_command
from offscript.storage.files import read_record, write_json

SUBMITTED = "submitted.json"
"""The file beside a plan that lists the ids and labels of its jobs."""

SUPERVISOR = "supervisor"
"""Label of the last job of a launch."""

LOG_TAIL = 4096
"""Bytes at the end of a log that are searched for SLURM's error messages."""

SLURM_ERROR = re.compile(r"slurmstepd\S*: error: (.*(?:memory limit|oom.kill|DUE TO).*)", re.IGNORECASE)

QUERY_TIMEOUT_S = 10.0
"""Timeout of queries of ``launch/status.py``, which can show the state of the files without an answer."""


class SubmittedJob(TypedDict):
    id: str
    label: str


class Submitted(TypedDict):
    """The layout of ``submitted.json``."""

    jobs: list[SubmittedJob]


@dataclass(frozen=True)
class Launch:
    """One submitted plan: the job ``ids`` of its arrays in order, then of its supervisor once that is submitted;
    ``labels`` are the labels of these jobs."""

    folder: Path
    ids: tuple[str, ...]
    labels: tuple[str, ...]

    @cached_property
    def plan(self) -> PlanFile:
        return read_plan_file(self.folder / PLAN)

    @property
    def supervisor(self) -> str | None:
        """Job id of the supervisor; None before it is submitted."""
        return self.ids[-1] if self.labels[-1] == SUPERVISOR else None

    def tasks(self) -> Iterator[tuple[int, str, list[list[str]]]]:
        """Each submitted task: the number of its array, its name in SLURM, and the keys that each of its processes
        makes."""
        jobs = self.plan["jobs"]
        ids = [job for job, name in zip(self.ids, self.labels, strict=True) if name != SUPERVISOR]
        for number, (array, job) in enumerate(zip(self.plan["arrays"], ids, strict=False)):
            for task, members in enumerate(array["tasks"]):
                # submitit makes no array of a single task.
                name = f"{job}_{task}" if len(array["tasks"]) > 1 else job
                yield number, name, [jobs[member]["keys"] for member in members]

    def log(self, array: int, name: str, process: int) -> Path:
        """Log of one process of a task; that of process 0 also holds the output of the batch script."""
        kind = self.plan["arrays"][array]["kind"]
        return self.folder / "slurm" / array_label(array, kind) / f"{name}_{process}_log.out"


def array_label(array: int, kind: str) -> str:
    """Label of an array, in the names of folders and of SLURM jobs."""
    return f"{array}-{kind}"


def launches(folder: Path) -> list[Launch]:
    """The launches of the experiment in ``folder`` that submitted any job, oldest first."""
    found = []
    for path in sorted(folder.glob(f"launch/*/{SUBMITTED}")):
        jobs = read_record(path, Submitted, f"delete {path.parent} to forget this launch; its jobs run on")[
            "jobs"
        ]
        if jobs:
            ids, labels = (tuple(job["id"] for job in jobs), tuple(job["label"] for job in jobs))
            found.append(Launch(path.parent, ids, labels))
    return found


def record_jobs(folder: Path, jobs: Sequence[tuple[str, str]]) -> None:
    """Writes the ids and labels of the jobs that were submitted for the plan in ``folder``."""
    write_json(folder / SUBMITTED, {"jobs": [{"id": job, "label": label} for job, label in jobs]})


# ---------------------------------------------------------------- jobs in flight


class QueuedJob(NamedTuple):
    """A job that has not ended: its SLURM state and job name."""

    state: str
    name: str


def squeue(timeout_s: float = 60.0) -> dict[str, QueuedJob]:
    """Jobs of this user that have not ended, by id; each task of an array is one, ``id_task``.

    Raises:
        UserError: see ``run_command``.
    """
    output = run_command("squeue", "--me", "-h", "-r", "-o", "%i|%T|%j", timeout_s=timeout_s)
    rows = (fields("squeue", line, 3) for line in output.splitlines() if line.strip())
    return {job: QueuedJob(state, name) for job, state, name in rows}


def jobs_of_experiment(folder: Path, queue: Mapping[str, QueuedJob]) -> dict[str, QueuedJob]:
    """The jobs in ``queue`` that belong to launches of the experiment in ``folder``.

    Ids alone do not identify a job: another cluster on the same disks, or a reinstalled one, uses the same ids again.
    """
    names = {
        job: f"{folder.name}-{label}"
        for launch in launches(folder)
        for job, label in zip(launch.ids, launch.labels, strict=False)
    }
    return {job: queued for job, queued in queue.items() if names.get(root_id(job)) == queued.name}


def root_id(job: str) -> str:
    """Id of the array that a task belongs to: ``12_3`` -> ``12``."""
    return job.partition("_")[0]


def active_launches(folder: Path, queue: Mapping[str, QueuedJob]) -> list[Launch]:
    """Launches with a job that has not ended."""
    roots = {root_id(job) for job in jobs_of_experiment(folder, queue)}
    return [launch for launch in launches(folder) if roots & set(launch.ids)]


def in_flight(folder: Path, queue: Mapping[str, QueuedJob] | None = None) -> dict[str, str]:
    """Keys of the artifacts that a running or waiting job makes -> name of that job."""
    queue = jobs_of_experiment(folder, squeue() if queue is None else queue)
    return {
        key: name
        for launch in active_launches(folder, queue)
        for _, name, made in launch.tasks()
        if name in queue
        for keys in made
        for key in keys
    }


def cancel(folder: Path) -> list[str]:
    """Cancels every job of the experiment that has not ended; returns the ids.

    Supervisors are cancelled first, since they would submit the cancelled jobs again.
    """
    queue = jobs_of_experiment(folder, squeue())
    roots = {root_id(job) for job in queue}
    found = active_launches(folder, queue)
    last = [launch.ids[-1] for launch in found]
    ids = [i for i in dict.fromkeys([*last, *(i for launch in found for i in launch.ids)]) if i in roots]
    if ids:
        run_command("scancel", *ids)
    return ids


# ---------------------------------------------------------------- failed jobs


@dataclass(frozen=True)
class FailedJob:
    """A job that ended without making an artifact: the reason, its log, when its launch was planned, and when it ended
    (seconds since 1970)."""

    reason: str
    log: Path
    planned: str
    ended: float = 0.0


@dataclass(frozen=True)
class ClusterState:
    """What SLURM reports for an experiment: states of the jobs in flight and failed jobs (both by artifact key), the
    number of jobs that have not ended, and notes on queries that failed."""

    states: Mapping[str, str] = field(default_factory=dict)
    failed: Mapping[str, FailedJob] = field(default_factory=dict)
    jobs: int = 0
    notes: tuple[str, ...] = ()


def query_cluster(folder: Path, unfinished: Collection[str]) -> ClusterState:
    """The state of the jobs that make the artifacts ``unfinished`` (keys). Without launches, SLURM is not queried."""
    if not unfinished or not launches(folder):
        return ClusterState()
    try:
        queue = jobs_of_experiment(folder, squeue(QUERY_TIMEOUT_S))
    except UserError as error:
        note = f"the cluster cannot be queried ({error}); states are read from files alone"
        return ClusterState(notes=(note,))
    active = in_flight(folder, queue)
    states = {key: queue[name].state for key, name in active.items()}
    try:
        failed = failed_jobs(folder, [key for key in unfinished if key not in active])
    except UserError as error:
        return ClusterState(states, {}, len(queue), (f"the accounting cannot be queried ({error})",))
    return ClusterState(states, failed, len(queue))


def failed_jobs(folder: Path, keys: Collection[str]) -> dict[str, FailedJob]:
    """The newest job of each of ``keys``, for those whose newest job failed.

    Raises:
        UserError: the cluster keeps no accounting, or does not answer.
    """
    left, found = set(keys), dict[str, FailedJob]()
    for launch in reversed(launches(folder)):
        if not left:
            break
        newest = [
            (name, launch.log(number, name, process), own)
            for number, name, made in launch.tasks()
            for process, members in enumerate(made)
            if (own := left & set(members))
        ]
        left -= {key for _, _, own in newest for key in own}
        failures = sacct_failures({root_id(name) for name, _, _ in newest})
        for name, log, own in newest:
            if name in failures:
                reason, ended = failures[name]
                job = FailedJob(reason + _slurm_error(log), log, launch.plan["created"], ended)
                found |= dict.fromkeys(own, job)
    return found


def _slurm_error(log: Path) -> str:
    """The last error that SLURM wrote into the log of a job, in brackets: an exceeded memory limit, for example."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, log.stat().st_size - LOG_TAIL))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    errors = [match[1].strip(" *") for line in lines if (match := SLURM_ERROR.match(line))]
    return f" ({errors[-1]})" if errors else ""


def sacct_failures(ids: Collection[str]) -> dict[str, tuple[str, float]]:
    """Tasks of the jobs ``ids`` that failed -> the reason, and when they ended (seconds since 1970).

    Raises:
        UserError: the cluster keeps no accounting, or does not answer.
    """
    if not ids:
        return {}
    command = ("sacct", "-X", "-n", "-P", "-o", "JobID,State,ExitCode,End", "-j", ",".join(sorted(ids)))
    found: dict[str, tuple[str, float]] = {}
    for line in run_command(*command, timeout_s=QUERY_TIMEOUT_S).splitlines():
        name, state, code, end = fields("sacct", line, 4)
        if (reason := _failure_reason(state.partition(" ")[0], code)) is not None:
            ended = float(end) if end.isdigit() else 0.0
            found |= {task: (f"SLURM job {task}: {reason}", ended) for task in _task_names(name)}
    return found


def _task_names(name: str) -> list[str]:
    """``12_3`` -> itself; ``12_[0,4-6%2]``, which are tasks that never started -> ``12_0``, ``12_4`` and so on."""
    from submitit.slurm.slurm import read_job_id

    found = []
    for job, *tasks in read_job_id(name):
        if tasks:
            found += [f"{job}_{i}" for i in range(int(tasks[0]), int(tasks[-1]) + 1)]
        else:
            found.append(job)
    return found


def _failure_reason(state: str, code: str) -> str | None:
    """Why a job failed, None if it did not. ``code`` is ``exit code:signal``; srun reports a killed process as exit code
    128 + signal."""
    if state in ("COMPLETED", "PENDING", "RUNNING", "REQUEUED", "RESIZING", "SUSPENDED"):
        return None
    exit_code, _, number = code.partition(":")
    if not state or not (exit_code + number).isdecimal():
        return state.lower() or "unknown"
    signal_number = int(number or 0) or max(0, int(exit_code or 0) - 128)
    if state == "FAILED":
        killed = 0 < signal_number < 65
        return f"killed by signal {signal_number}" if killed else f"exit code {exit_code}"
    return {
        "OUT_OF_MEMORY": "out of memory; increase memory_gb",
        "TIMEOUT": "time limit reached; increase minutes",
        "NODE_FAIL": "node failure",
    }.get(state, state.lower())
