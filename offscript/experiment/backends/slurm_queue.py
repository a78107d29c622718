"""The launches of an experiment and what SLURM says of their jobs: what is under way, and how what has ended fared."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from offscript.errors import UserError
from offscript.experiment.backends.slurm_site import ask
from offscript.storage.files import read_json, write_json

SUBMITTED = "submitted.json"
SUPERVISOR = "supervisor"
"""What the last job of a launch is called."""

TAIL = 4096
"""Bytes of a log in which SLURM's last words are looked for."""

COMPLAINT = re.compile(r"slurmstepd\S*: error: (.*(?:memory limit|oom.kill|DUE TO).*)", re.IGNORECASE)

HURRY_S = 10.0
"""Patience of a command that has files to show while the cluster does not answer."""


@dataclass(frozen=True)
class Launch:
    """One plan that was submitted: ``ids`` of its arrays in order, and of the supervisor last once that is there;
    ``labels`` are what these jobs are called."""

    folder: Path
    ids: tuple[str, ...]
    labels: tuple[str, ...]

    @cached_property
    def plain(self) -> Mapping[str, Any]:
        return read_json(self.folder / "plan.json")

    @property
    def supervisor(self) -> str | None:
        return self.ids[-1] if self.labels[-1] == SUPERVISOR else None

    def tasks(self) -> Iterator[tuple[int, str, list[list[str]]]]:
        """Of every task that was submitted: its array, its name in SLURM, the keys that each of its processes makes."""
        jobs = self.plain["jobs"]
        arrays = [job for job, name in zip(self.ids, self.labels, strict=True) if name != SUPERVISOR]
        for number, (array, job) in enumerate(zip(self.plain["arrays"], arrays, strict=False)):
            for task, members in enumerate(array["tasks"]):
                name = (
                    f"{job}_{task}" if len(array["tasks"]) > 1 else job
                )  # submitit makes no array of one task
                yield number, name, [jobs[m]["keys"] for m in members]

    def log(self, array: int, name: str, process: int) -> Path:
        """Where a process of a task writes; the first one's file is also that of the batch script."""
        node = self.plain["arrays"][array]
        return self.folder / "slurm" / label(array, node["kind"]) / f"{name}_{process}_log.out"


def label(array: int, kind: str) -> str:
    """What an array is called in folders and in the queue."""
    return f"{array}-{kind}"


def launches(folder: Path) -> list[Launch]:
    """Launches of the experiment in ``folder`` of which something was submitted, oldest first."""
    found = []
    for path in sorted(folder.glob(f"launch/*/{SUBMITTED}")):
        jobs = read_json(path)["jobs"]
        found.append(Launch(path.parent, *(tuple(job[name] for job in jobs) for name in ("id", "label"))))
    return found


def note(folder: Path, jobs: Sequence[tuple[str, str]]) -> None:
    """Keeps the ids and labels of the jobs that were submitted for the plan in ``folder``."""
    write_json(folder / SUBMITTED, {"jobs": [{"id": job, "label": name} for job, name in jobs]})


# ---------------------------------------------------------------- what is under way


class Queued(NamedTuple):
    """A job that has not ended."""

    state: str
    name: str


def squeue(patience_s: float = 60.0) -> dict[str, Queued]:
    """Jobs of this user that have not ended; every task of an array is one, ``id_task``."""
    lines = ask("squeue", "--me", "-h", "-r", "-o", "%i|%T|%j", patience_s=patience_s).splitlines()
    return {job: Queued(*rest.split("|", 1)) for job, _, rest in (line.partition("|") for line in lines)}


def own(folder: Path, queue: Mapping[str, Queued]) -> dict[str, Queued]:
    """Those of ``queue`` that belong to launches of the experiment in ``folder``. Numbers alone do not tell: another
    cluster on the same disks, or this one set up anew, gives them again."""
    names = {
        number: f"{folder.name}-{launch_label}"
        for launch in launches(folder)
        for number, launch_label in zip(launch.ids, launch.labels, strict=False)
    }
    return {job: q for job, q in queue.items() if names.get(job.partition("_")[0]) == q.name}


def live(folder: Path, queue: Mapping[str, Queued]) -> list[Launch]:
    """Launches with a job that has not ended."""
    roots = {job.partition("_")[0] for job in own(folder, queue)}
    return [launch for launch in launches(folder) if roots & set(launch.ids)]


def in_flight(folder: Path, queue: Mapping[str, Queued] | None = None) -> dict[str, str]:
    """Keys of artifacts that a job makes or will make, and that job's name."""
    queue = own(folder, squeue() if queue is None else queue)
    return {
        key: name
        for launch in live(folder, queue)
        for _, name, made in launch.tasks()
        if name in queue
        for keys in made
        for key in keys
    }


def cancel(folder: Path) -> list[str]:
    """Cancels every job of the experiment that has not ended, supervisors first: they would submit again; the ids."""
    queue = own(folder, squeue())
    roots = {job.partition("_")[0] for job in queue}
    found = live(folder, queue)
    last = [launch.ids[-1] for launch in found]
    ids = [i for i in dict.fromkeys([*last, *(i for launch in found for i in launch.ids)]) if i in roots]
    if ids:
        ask("scancel", *ids)
    return ids


# ---------------------------------------------------------------- how it fared


@dataclass(frozen=True)
class Death:
    """How a job ended that left an artifact unmade, where it wrote, when its launch was planned, and when it ended (in
    seconds since 1970)."""

    reason: str
    log: Path
    planned: str
    ended: float = 0.0


@dataclass(frozen=True)
class Seen:
    """What the cluster says: the states of the jobs that make artifacts (by key), how others ended that should have made
    some, how many jobs of the experiment have not ended, and what could not be asked."""

    states: Mapping[str, str] = field(default_factory=dict)
    deaths: Mapping[str, Death] = field(default_factory=dict)
    jobs: int = 0
    notes: tuple[str, ...] = ()


def look(folder: Path, unfinished: Collection[str]) -> Seen:
    """What the cluster says of the artifacts ``unfinished`` (keys); asks nothing where nothing was submitted."""
    if not unfinished or not launches(folder):
        return Seen()
    try:
        queue = own(folder, squeue(HURRY_S))
    except UserError as error:
        return Seen(notes=(f"the cluster cannot be asked ({error}); this is what the files say",))
    flying = in_flight(folder, queue)
    states = {key: queue[name].state for key, name in flying.items()}
    try:
        return Seen(states, deaths(folder, [key for key in unfinished if key not in flying]), len(queue))
    except UserError as error:
        return Seen(states, {}, len(queue), (f"the accounting cannot be asked ({error})",))


def deaths(folder: Path, keys: Collection[str]) -> dict[str, Death]:
    """How the newest job of each of ``keys`` ended, where it did not end well."""
    left, found = set(keys), dict[str, Death]()
    for launch in reversed(launches(folder)):
        if not left:
            break
        last = [
            (name, launch.log(number, name, process), own)
            for number, name, made in launch.tasks()
            for process, members in enumerate(made)
            if (own := left & set(members))
        ]
        left -= {key for _, _, own in last for key in own}
        ended = accounted({name.partition("_")[0] for name, _, _ in last})
        for name, log, own in last:
            if name in ended:
                reason, when = ended[name]
                death = Death(reason + _complaint(log), log, launch.plain["created"], when)
                found |= dict.fromkeys(own, death)
    return found


def _complaint(log: Path) -> str:
    """What SLURM itself wrote last into the log of a job: that it exceeded its memory or its time, for example."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    said = [found[1].strip(" *") for line in lines if (found := COMPLAINT.match(line))]
    return f" ({said[-1]})" if said else ""


def accounted(ids: Collection[str]) -> dict[str, tuple[str, float]]:
    """How, in words, and when the tasks of jobs ``ids`` ended that did not end well."""
    if not ids:
        return {}
    command = ("sacct", "-X", "-n", "-P", "-o", "JobID,State,ExitCode,End", "-j", ",".join(sorted(ids)))
    found: dict[str, tuple[str, float]] = {}
    for line in ask(*command, patience_s=HURRY_S).splitlines():
        name, state, code, end = line.split("|")
        if (why := _in_words(state.split()[0], code)) is not None:
            when = float(end) if end.isdigit() else 0.0
            found |= {task: (f"SLURM job {task}: {why}", when) for task in _tasks(name)}
    return found


def _tasks(name: str) -> list[str]:
    """``12_3``, or ``12_[0,4-6%2]`` for tasks that never began, one by one."""
    from submitit.slurm.slurm import read_job_id

    parts = read_job_id(name)
    return [
        "_".join([part[0], str(i)]) if len(part) > 1 else part[0]
        for part in parts
        for i in (range(int(part[1]), int(part[-1]) + 1) if len(part) > 1 else (0,))
    ]


def _in_words(state: str, code: str) -> str | None:
    """``code`` is exit code and signal, as in ``1:0`` or ``0:9``; srun turns a killed process into 128 + signal."""
    if state in ("COMPLETED", "PENDING", "RUNNING", "REQUEUED", "RESIZING", "SUSPENDED"):
        return None
    exit_code, _, number = code.partition(":")
    killed = int(number or 0) or max(0, int(exit_code) - 128)
    if state == "FAILED":
        return f"killed by signal {killed}" if 0 < killed < 65 else f"exit code {exit_code}"
    return {
        "OUT_OF_MEMORY": "out of memory; give it more memory_gb",
        "TIMEOUT": "its time was up; give it more minutes",
        "NODE_FAIL": "its node failed",
    }.get(state, state.lower())
