"""The jobs of a plan on SLURM: one array per layer and kind, and a last small job that looks at what is missing."""

import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from offscript.cluster.plan import Array, JobFailed, Plan, again, freeze, run_task, thaw
from offscript.console import say
from offscript.errors import UserError, one_of
from offscript.graph import needed
from offscript.settings import ClusterSettings, ResourceSettings
from offscript.store import read_json, write_json

SUBMITTED = "submitted.json"
TIMEOUTS = 50
"""Requeues that submitit allows a job: every job goes on from its own last state, so the budget only has to be large."""


class Task:
    """What an array task runs. SLURM tells it before the time limit; it is then requeued and finds its state on disk."""

    def __init__(self, plan: str, array: int, task: int) -> None:
        self.plan, self.array, self.task = plan, array, task

    def __call__(self) -> None:
        rank = int(os.environ.get("SLURM_PROCID", "0"))
        run_task(Path(self.plan), self.array, self.task, rank)

    def checkpoint(self) -> Any:
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class Supervisor:
    """The last job of a launch: submits again what is missing while there is budget, fails if anything is missing then."""

    def __init__(self, plan: str) -> None:
        self.plan = plan

    def __call__(self) -> None:
        os.chdir(read_json(Path(self.plan))["cwd"])
        plan = thaw(Path(self.plan))
        missing, _ = needed([plan.bench.planner.evaluation()], plan.bench)
        if not missing:
            say("everything is there")
            return
        jobs, attempts = again(plan, missing)
        if not jobs:
            for artifact in missing:
                say(f"missing: {artifact}")
            raise JobFailed(f"{len(missing)} artifacts are missing and their retries are used up")
        say(f"{len(missing)} artifacts are missing; submitting {len(jobs)} jobs again")
        submit(freeze(plan.bench, list(plan.artifacts.values()), jobs, attempts))

    def checkpoint(self) -> Any:
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


# ---------------------------------------------------------------- before anything is submitted


def check(cluster: ClusterSettings, kinds: Sequence[str]) -> None:
    """Refuses what the cluster would refuse, or would never start.

    Raises:
        UserError: there is no SLURM here, no such partition, or a job asks for more than its nodes have.
    """
    if shutil.which("sbatch") is None:
        raise UserError(
            "cluster", "no SLURM here (sbatch is not on the path)", "cluster=local, or a login node"
        )
    rows = [line.split("|") for line in _ask("sinfo", "-h", "-o", "%R|%l|%c|%m|%G|%D").splitlines()]
    names = sorted({row[0] for row in rows})
    if cluster.partition is not None and cluster.partition not in names:
        raise UserError("cluster.partition", f"no partition {cluster.partition!r}", one_of(names))
    own = [row for row in rows if cluster.partition in (None, row[0])]
    for kind in kinds:
        _check_size(f"cluster.jobs.{kind}", cluster.resources(kind), own)


def _check_size(where: str, asked: ResourceSettings, rows: Sequence[Sequence[str]]) -> None:
    tasks = asked.gpus or asked.tasks
    have = {
        "cpus": (asked.cpus * tasks, max(_number(row[2]) for row in rows)),
        "memory_gb": (asked.memory_gb, max(_number(row[3]) for row in rows) / 1024),
        "gpus": (asked.gpus, max(_gpus(row[4]) for row in rows)),
        "nodes": (asked.nodes, sum(_number(row[5]) for row in rows)),
        "minutes": (asked.minutes, max(_minutes(row[1]) for row in rows)),
    }
    for name, (wanted, most) in have.items():
        if wanted > most:
            raise UserError(f"{where}.{name}", f"asks for {wanted:g}", f"the partition has at most {most:g}")


def _number(text: str) -> int:
    return int("".join(c for c in text if c.isdigit()) or 0)


def _gpus(text: str) -> int:
    """``gpu:h100:4(S:0-1)`` -> 4; several kinds add up."""
    found = [part.split("(")[0].split(":")[-1] for part in text.split(",") if part.startswith("gpu")]
    return sum(int(n) for n in found if n.isdigit())


def _minutes(text: str) -> float:
    """``2-12:00:00``, ``12:00:00``, ``30:00`` or ``infinite``."""
    if not text[:1].isdigit():
        return float("inf")
    days, _, rest = text.rpartition("-")
    parts = [int(p) for p in rest.split(":")]
    hours, minutes = (parts[0], parts[1]) if len(parts) == 3 else (0, parts[0])
    return int(days or 0) * 1440 + hours * 60 + minutes


def _ask(*command: str) -> str:
    """What a SLURM command says.

    Raises:
        UserError: it fails, or the controller does not answer.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        raise UserError(
            command[0], "is not on the path", "no SLURM here: cluster=local, or a login node"
        ) from None
    except subprocess.TimeoutExpired:
        raise UserError(command[0], "no answer in 60 seconds", "is the SLURM controller up?") from None
    if done.returncode:
        reason = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[
            -1
        ]
        raise UserError(command[0], reason, "see what the cluster's status page says")
    return done.stdout


# ---------------------------------------------------------------- submitting


def submit(path: Path, waits_for: Sequence[str] = ()) -> list[str]:
    """Submits every array of a plan and the supervisor behind them; returns the array job ids, the supervisor's last.

    ``waits_for``: jobs of earlier launches that make inputs of this one. Each id is noted beside the plan the moment it
    is known.
    """
    plan = thaw(path)
    cluster = plan.bench.planner.settings.cluster
    ids: list[str] = []
    for number, array in enumerate(plan.arrays):
        before = ["afterany:" + ":".join([*(ids[a] for a in array.after), *waits_for])]
        pairs = [a for a in array.after if _index_by_index(plan, array, plan.arrays[a])]
        if pairs and not waits_for and len(array.after) == len(pairs):
            before = ["aftercorr:" + ":".join(ids[a] for a in pairs)]
        tasks = [Task(str(path), number, task) for task in range(len(array.tasks))]
        dependency = before[0] if array.after or waits_for else None
        ids.append(_array(path, cluster, array.kind, f"{array.layer}-{array.kind}", tasks, dependency))
        _note(path, ids)
    behind = "afterany:" + ":".join(ids)
    ids.append(_array(path, cluster, "supervisor", "supervisor", [Supervisor(str(path))], behind))
    _note(path, ids)
    return ids


def _index_by_index(plan: Plan, array: Array, other: Array) -> bool:
    """Whether task i needs everything that task i of ``other`` makes and nothing of its other tasks: then a failure
    there may cancel it, and it need not wait for the rest."""
    if len(array.tasks) != len(other.tasks):
        return False
    jobs = plan.plain["jobs"]
    place = {key: i for i, task in enumerate(other.tasks) for job in task for key in jobs[job]["keys"]}
    size = Counter(place.values())
    for i, task in enumerate(array.tasks):
        for key in (key for job in task for key in jobs[job]["keys"]):
            needs = {part.key: place[part.key] for part in plan.artifacts[key].inputs if part.key in place}
            if set(needs.values()) != {i} or len(needs) != size[i]:
                return False
    return True


def _array(
    path: Path, cluster: ClusterSettings, kind: str, name: str, tasks: Sequence[Any], dependency: str | None
) -> str:
    """One sbatch call; its id."""
    import submitit

    asked = cluster.resources(kind) if kind != "supervisor" else ResourceSettings(memory_gb=1, minutes=30)
    plain = read_json(path)
    extra: dict[str, Any] = {**cluster.extra, "requeue": True, "kill-on-invalid-dep": "yes"}
    if dependency is not None:
        extra["dependency"] = dependency
    if cluster.mail is not None and kind == "supervisor":
        extra |= {"mail-user": cluster.mail, "mail-type": "END,FAIL"}
    wanted: dict[str, Any] = {
        "job_name": f"{plain['settings']['name']}-{name}",
        "time": asked.minutes,
        "nodes": asked.nodes,
        "ntasks_per_node": asked.gpus or asked.tasks,
        "cpus_per_task": asked.cpus,
        "mem": f"{int(asked.memory_gb * 1024)}M",
        "gpus_per_node": asked.gpus or None,
        "array_parallelism": min(cluster.at_once or 256, max(1, len(tasks)))
        if cluster.at_once
        else len(tasks),
        "signal_delay_s": cluster.signal_s,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "setup": [*cluster.setup, f"export PYTHONPATH={_quoted(plain['home'])}:$PYTHONPATH"],
        "additional_parameters": extra,
        "stderr_to_stdout": True,
    }
    executor = submitit.SlurmExecutor(folder=path.parent / "slurm" / name, max_num_timeout=TIMEOUTS)
    executor.update_parameters(**{key: value for key, value in wanted.items() if value is not None})
    with executor.batch():
        jobs = [executor.submit(task) for task in tasks]
    return str(jobs[0].job_id).partition("_")[0]


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _note(path: Path, ids: Sequence[str]) -> None:
    write_json(path.parent / SUBMITTED, {"ids": list(ids)})


# ---------------------------------------------------------------- what is under way


def live(folder: Path) -> dict[str, dict[str, str]]:
    """Jobs of the experiment in ``folder`` that SLURM has not ended: launch folder -> job id -> state.

    An array that waits as a whole is one entry; a task that runs is ``id_task``.
    """
    launches = {
        path.parent.name: set(read_json(path)["ids"]) for path in sorted(folder.glob(f"launch/*/{SUBMITTED}"))
    }
    if not launches:
        return {}
    asked = _squeue()
    return {
        name: {job: state for job, state in asked.items() if job.partition("_")[0] in ids}
        for name, ids in launches.items()
    }


def _squeue() -> dict[str, str]:
    """Job ids of this user -> state; tasks that wait are ``id_task`` each."""
    lines = _ask("squeue", "--me", "-h", "-r", "-o", "%i|%T").splitlines()
    return {job: state for job, _, state in (line.partition("|") for line in lines)}


def in_flight(folder: Path) -> dict[str, str]:
    """Keys of artifacts that a job of an earlier launch will make or is making, and that job's id."""
    found: dict[str, str] = {}
    for name, jobs in live(folder).items():
        plain = read_json(folder / "launch" / name / "plan.json")
        ids: list[str] = read_json(folder / "launch" / name / SUBMITTED)["ids"]
        for number, array in enumerate(plain["arrays"][: len(ids)]):
            for task, members in enumerate(array["tasks"]):
                names = (f"{ids[number]}_{task}", ids[number])  # an array of one task is a plain job
                if (job := next((name for name in names if name in jobs), None)) is not None:
                    found |= {key: job for m in members for key in plain["jobs"][m]["keys"]}
    return found


def states(folder: Path) -> tuple[dict[str, str], list[str]]:
    """Key of an artifact -> state of the job that is to make it; and why the cluster could not be asked, if so."""
    if not any(folder.glob(f"launch/*/{SUBMITTED}")):
        return {}, []
    try:
        asked = _squeue()
        return {key: asked.get(job, "PENDING") for key, job in in_flight(folder).items()}, []
    except UserError as error:
        return {}, [f"the cluster cannot be asked ({error}); this is what the files say"]


def cancel(folder: Path) -> list[str]:
    """Cancels every job of the experiment that has not ended, the supervisors first; their ids."""
    ids = {job.partition("_")[0] for jobs in live(folder).values() for job in jobs}
    last = [read_json(path)["ids"][-1] for path in folder.glob(f"launch/*/{SUBMITTED}")]
    ordered = [*(i for i in last if i in ids), *(sorted(ids - set(last)))]
    if ordered:
        _ask("scancel", *ordered)
    return ordered


def accounted(ids: Sequence[str]) -> Mapping[str, str]:
    """State by task of ended jobs, from the accounting: ``id_task`` -> COMPLETED, FAILED, ..."""
    lines = (
        _ask("sacct", "-X", "-n", "-P", "-o", "JobID,State", "-j", ",".join(ids)).splitlines() if ids else []
    )
    return {job: state.split()[0] for job, _, state in (line.partition("|") for line in lines)}
