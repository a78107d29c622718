"""The jobs of a plan on SLURM: one array per layer and kind, and a last small job that looks at what is missing."""

import contextlib
import os
import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from offscript.console import say
from offscript.errors import UserError
from offscript.experiment.artifacts import KINDS
from offscript.experiment.backends import slurm_queue as queue
from offscript.experiment.backends import slurm_site as site
from offscript.experiment.backends.plan import (
    GRID_FIELDS,
    Array,
    JobFailed,
    Plan,
    again,
    freeze,
    run_task,
    thaw,
)
from offscript.experiment.backends.sweep import give_way
from offscript.experiment.folder import Experiment
from offscript.experiment.graph import needed
from offscript.experiment.runner import Result, write_index
from offscript.settings import ClusterSettings, ResourceSettings
from offscript.storage.files import read_json
from offscript.storage.locks import claim
from offscript.training.interrupt import Interrupted

TIMEOUTS = 10_000
"""Requeues that submitit allows a job: each goes on from its own last state, so only the time limits of people bound
them."""

SMALL = ResourceSettings(memory_gb=2, minutes=60)
"""What a supervisor asks for."""

PAUSES_S = (60.0, 300.0, 900.0)


class Task:
    """What an array task runs. SLURM warns it before the time limit; it is then queued again and finds its state on
    disk. submitit carries this to the job: a path and two numbers."""

    def __init__(self, plan: str, array: int, task: int) -> None:
        self.plan, self.array, self.task = plan, array, task

    def __call__(self) -> None:
        try:
            run_task(Path(self.plan), self.array, self.task, *_place())
        except Interrupted as stop:
            give_way(stop)
            raise

    def checkpoint(self) -> Any:
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _place() -> tuple[int, int]:
    """The rank of this process in its task, and on its node."""
    return int(os.environ.get("SLURM_PROCID", "0")), int(os.environ.get("SLURM_LOCALID", "0"))


class Supervisor:
    """The last job of a launch: submits again what is missing while there is budget, fails if anything is missing then."""

    def __init__(self, plan: str) -> None:
        self.plan = plan

    def __call__(self) -> None:
        os.chdir(read_json(Path(self.plan))["cwd"])
        plan = thaw(Path(self.plan))
        with submitting(plan.experiment.folder):
            left = _patiently(lambda: self._submit_again(plan))
            there = [a for a in plan.artifacts.values() if plan.experiment.is_finished(a)]
            write_index(plan.experiment, [Result(a, "reused") for a in there])
        if left:
            raise JobFailed(f"{left} artifacts are missing and their retries are used up")

    def _submit_again(self, plan: Plan) -> int:
        """How many artifacts are missing for good. Started again by SLURM, it finds its own jobs under way."""
        missing, _ = needed([plan.experiment.planner.evaluation()], plan.experiment)
        if not missing:
            say("everything is there")
            return 0
        note_deaths(plan.experiment, missing)
        flying = queue.in_flight(plan.experiment.folder)
        jobs, attempts = again(plan, missing, flying)
        for artifact in missing:
            state = f"under way in job {flying[artifact.key]}" if artifact.key in flying else "missing"
            say(f"{state}: {artifact}")
        if not jobs:
            return sum(artifact.key not in flying for artifact in missing)
        say(f"submitting {len(jobs)} jobs again")
        submit(freeze(plan.experiment, list(plan.artifacts.values()), jobs, attempts, plan), flying)
        return 0

    def checkpoint(self) -> Any:
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _patiently(act: Callable[[], int]) -> int:
    """What ``act`` returns; tried again after some minutes where SLURM refuses or does not answer, since nobody looks."""
    for pause in PAUSES_S:
        try:
            return act()
        except UserError as error:
            say(f"{error}; trying again in {pause:.0f} seconds")
            time.sleep(pause)
    return act()


def note_deaths(experiment: Experiment, missing: Sequence[Any]) -> None:
    """Keeps, for when SLURM has forgotten it, how jobs ended that could not say it themselves."""
    absent = {artifact.key for artifact in missing}
    tried = [a.key for a in missing if not any(part.key in absent for part in a.inputs)]
    try:
        found = queue.deaths(experiment.folder, tried)
    except UserError as error:  # a cluster without accounting
        say(f"how earlier jobs ended is not known: {error}")
        return
    for artifact in missing:
        death = found.get(artifact.key)
        if death is not None and not experiment.has_failed(artifact, since=death.planned):
            experiment.record_failure(artifact, death.reason, death.log)


# ---------------------------------------------------------------- submitting


@contextlib.contextmanager
def submitting(folder: Path) -> Iterator[None]:
    """One launch of an experiment at a time decides what to submit."""
    with claim(folder / "launch" / "submission", say=say):
        yield


def refuse_foreign(experiment: Experiment) -> None:
    """Two grids in one folder would write one evaluation.

    Raises:
        UserError: jobs of the same experiment, but of other settings, are under way.
    """
    plain = experiment.planner.settings.model_dump(mode="json")
    for launch in queue.live(experiment.folder, queue.squeue()):
        then = launch.plain["settings"]
        if other := [name for name in GRID_FIELDS if then[name] != plain[name]]:
            raise UserError(
                f"name={plain['name']}", f"jobs {', '.join(launch.ids)} of it with another {other[0]} are under way",
                f"end them with: python launch/cancel.py {' '.join(experiment.overrides)}, or choose another name=",
            )  # fmt: skip


def submit(plan: Plan, flying: dict[str, str] | None = None) -> list[str]:
    """Submits every array of a plan and the supervisor behind them; returns the job ids, the supervisor's last.

    ``flying``: artifacts that jobs of earlier launches make (key -> job). Each id is noted beside the plan the moment it
    is known.

    Raises:
        UserError: SLURM refused one; those before it are cancelled.
    """
    ids: list[str] = []
    labels = [queue.label(number, array.kind) for number, array in enumerate(plan.arrays)]
    try:
        for number, array in enumerate(plan.arrays):
            tasks = [Task(str(plan.path), number, task) for task in range(len(array.tasks))]
            behind = dependency(plan, array, ids, flying or {})
            ids.append(_sbatch(plan, array.kind, labels[number], tasks, behind))
            queue.note(plan.path.parent, list(zip(ids, labels, strict=False)))
        ids.append(supervise(plan, ids, labels))
    except UserError:
        if ids:
            site.ask("scancel", *ids)
        raise
    return ids


def supervise(plan: Plan, ids: Sequence[str], labels: Sequence[str]) -> str:
    """Submits the supervisor of a launch whose arrays are ``ids``; its id."""
    behind = "afterany:" + ":".join(ids)
    job = _sbatch(plan, queue.SUPERVISOR, queue.SUPERVISOR, [Supervisor(str(plan.path))], behind)
    queue.note(plan.path.parent, [*zip(ids, labels, strict=False), (job, queue.SUPERVISOR)])
    return job


def guard(folder: Path) -> list[tuple[str, str]]:
    """Submits a supervisor for each launch under way that has none (whoever submitted it was stopped half-way); names of
    launches and the new jobs."""
    found = []
    for launch in queue.live(folder, queue.squeue()):
        if launch.supervisor is None:
            job = supervise(thaw(launch.folder / "plan.json"), launch.ids, launch.labels)
            found.append((launch.folder.name, job))
    return found


def dependency(plan: Plan, array: Array, ids: Sequence[str], flying: dict[str, str]) -> str | None:
    """What an array waits for: the end of the arrays before it, or task by task where it needs them so; where some of
    their tasks failed, it makes what can be made of the rest."""
    elsewhere = {
        flying[part.key].partition("_")[0]
        for task in array.tasks
        for job in task
        for artifact in plan.made_by(job)
        for part in artifact.inputs
        if part.key in flying
    }
    pairs = [n for n in array.after if task_by_task(plan, array, plan.arrays[n])]
    kind = "aftercorr" if len(array.tasks) > 1 else "afterok"
    parts = [f"{kind if n in pairs else 'afterany'}:{ids[n]}" for n in array.after]
    parts += [f"afterany:{job}" for job in sorted(elsewhere)]
    own = plan.experiment.planner.settings.cluster.extra.get("dependency")
    if own is not None and not array.after:
        parts.append(str(own))
    return ",".join(parts) or None


def task_by_task(plan: Plan, array: Array, other: Array) -> bool:
    """Whether task i needs all that task i of ``other`` makes, and nothing of its other tasks: then a failure there may
    cancel it, and it need not wait for the rest."""
    if KINDS[array.kind].partial_inputs or len(array.tasks) != len(
        other.tasks
    ):  # tables are made of what there is
        return False
    place = {a.key: i for i, task in enumerate(other.tasks) for job in task for a in plan.made_by(job)}
    size = Counter(place.values())
    for i, task in enumerate(array.tasks):
        for artifact in (a for job in task for a in plan.made_by(job)):
            needs = [place[part.key] for part in artifact.inputs if part.key in place]
            if set(needs) != {i} or len(needs) != size[i]:
                return False
    return True


def _sbatch(plan: Plan, kind: str, name: str, tasks: Sequence[Any], behind: str | None) -> str:
    """One sbatch call; its job id.

    Raises:
        UserError: SLURM refuses it.
    """
    import submitit
    from submitit.core.utils import FailedJobError

    cluster = plan.experiment.planner.settings.cluster
    executor = submitit.SlurmExecutor(folder=plan.path.parent / "slurm" / name, max_num_timeout=TIMEOUTS)
    executor.update_parameters(**_parameters(plan, cluster, kind, name, len(tasks), behind))
    try:
        with _outside_a_job(), executor.batch():
            jobs = [executor.submit(task) for task in tasks]
    except FailedJobError as error:
        said = [line for line in str(error).splitlines() if "error" in line] or [str(error)]
        raise UserError(
            f"sbatch ({name})", said[-1].removeprefix("sbatch: error: "), "see cluster="
        ) from None
    return str(jobs[0].job_id).partition("_")[0]


def _parameters(
    plan: Plan, cluster: ClusterSettings, kind: str, name: str, tasks: int, behind: str | None
) -> dict[str, Any]:
    """What submitit is told of an array."""
    asked = SMALL if kind == queue.SUPERVISOR else cluster.resources(kind)
    extra: dict[str, Any] = {k: v for k, v in cluster.extra.items() if v is not False and k != "dependency"}
    extra |= {"requeue": True, "kill-on-invalid-dep": "yes"}
    if behind is not None:
        extra["dependency"] = behind
    if cluster.mail is not None and kind == queue.SUPERVISOR:
        extra |= {"mail-user": cluster.mail, "mail-type": "END,FAIL"}
    wanted = {
        "job_name": f"{plan.plain['settings']['name']}-{name}",
        "time": asked.minutes,
        "nodes": asked.nodes,
        "ntasks_per_node": asked.gpus or asked.tasks,
        "cpus_per_task": asked.cpus,
        "mem": f"{int(asked.memory_gb * 1024)}M",
        "gpus_per_node": asked.gpus or None,
        "array_parallelism": min(tasks, cluster.at_once or tasks),
        "signal_delay_s": cluster.signal_s,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "setup": [*cluster.setup, *_code_of(plan)],
        "additional_parameters": extra,
        "stderr_to_stdout": True,
    }
    return {key: value for key, value in wanted.items() if value is not None}


def _code_of(plan: Plan) -> list[str]:
    """Lines by which a job finds the code of its plan, and not what lies in the folder that it was submitted from."""
    home = shlex.quote(plan.plain["home"])
    return ["export PYTHONSAFEPATH=1", f"export PYTHONPATH={home}${{PYTHONPATH:+:$PYTHONPATH}}"]


@contextlib.contextmanager
def _outside_a_job() -> Iterator[None]:
    """Without the variables of a job that this process may itself be in: srun in the new job would obey them."""
    hidden = {
        name: os.environ.pop(name)
        for name in list(os.environ)
        if name.startswith(("SLURM_", "SLURMD_", "SUBMITIT_")) and name != "SLURM_CONF"
    }
    try:
        yield
    finally:
        os.environ.update(hidden)
