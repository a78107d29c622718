"""Runs a plan on SLURM: one array per layer and kind, then a supervisor, which submits what is missing again."""

import contextlib
import os
import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from offscript.console import say
from offscript.errors import UserError, command_line
from offscript.experiment.artifacts import KINDS, Artifact
from offscript.experiment.backends import slurm_queue as queue
from offscript.experiment.backends.plan import (
    GRID_FIELDS,
    Array,
    JobFailed,
    Plan,
    processes_per_node,
    read_plan,
    retry_jobs,
    run_task,
    write_plan,
)
from offscript.experiment.backends.plan_file import PLAN, read_plan_file
from offscript.experiment.backends.requeue import forward_signal_to_submitit
from offscript.experiment.backends.slurm_site import max_array_tasks, refusal, run_command
from offscript.experiment.folder import Experiment
from offscript.experiment.graph import needed
from offscript.experiment.runner import Result, write_index
from offscript.settings import ResourceSettings
from offscript.storage.locks import claim
from offscript.training.interrupt import Interrupted

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

MAX_REQUEUES = 10_000
"""Requeues at the time limit that submitit allows a job. A training continues from its last checkpoint, so the number
of time limits that it needs is not a sign of a failure."""

SUPERVISOR_RESOURCES = ResourceSettings(memory_gb=2, minutes=60)

RETRY_PAUSES_S = (60.0, 300.0, 900.0)


class Task:
    """One task of an array, as submitit pickles it: the path of the plan and two numbers.

    SLURM sends it a signal before the time limit; it is then requeued and continues from its files.
    """

    def __init__(self, plan: str, array: int, task: int) -> None:
        self.plan, self.array, self.task = plan, array, task

    def __call__(self) -> None:
        rank = int(os.environ.get("SLURM_PROCID", "0"))
        local_rank = int(os.environ.get("SLURM_LOCALID", "0"))
        try:
            run_task(Path(self.plan), self.array, self.task, rank, local_rank)
        except Interrupted as stop:
            forward_signal_to_submitit(stop)
            raise

    def checkpoint(self) -> "DelayedSubmission":
        return _requeue(self)


class Supervisor:
    """The last job of a launch: retries missing artifacts within the budget, and fails if any are missing then."""

    def __init__(self, plan: str) -> None:
        self.plan = plan

    def __call__(self) -> None:
        os.chdir(read_plan_file(Path(self.plan))["cwd"])
        plan = read_plan(Path(self.plan))
        with submission_lock(plan.experiment.folder):
            left = _retry_on_error(lambda: self._submit_missing(plan))
            finished = [a for a in plan.artifacts.values() if plan.experiment.is_finished(a)]
            write_index(plan.experiment, [Result(artifact, "reused") for artifact in finished])
        if left:
            raise JobFailed(f"{left} artifacts are missing and their retries are used up")

    def _submit_missing(self, plan: Plan) -> int:
        """Submits the missing artifacts again; returns how many of them no job will make.

        A supervisor that SLURM has requeued finds the jobs that it submitted in flight.
        """
        missing, _ = needed([plan.experiment.planner.evaluation()], plan.experiment)
        if not missing:
            say("every artifact is finished")
            return 0
        record_killed_jobs(plan.experiment, missing)
        in_flight = queue.in_flight(plan.experiment.folder)
        jobs, attempts = retry_jobs(plan, missing, in_flight)
        for artifact in missing:
            job = in_flight.get(artifact.key)
            say(f"missing: {artifact}" if job is None else f"in flight in job {job}: {artifact}")
        if not jobs:
            return sum(artifact.key not in in_flight for artifact in missing)
        say(f"submitting {len(jobs)} jobs again")
        everything = list(plan.artifacts.values())
        again = write_plan(plan.experiment, everything, jobs, attempts, plan, max_array_tasks())
        submit(again, in_flight)
        return 0

    def checkpoint(self) -> "DelayedSubmission":
        return _requeue(self)


def _requeue(job: Task | Supervisor) -> "DelayedSubmission":
    """What submitit runs after a requeue: the same job."""
    from submitit.helpers import DelayedSubmission

    return DelayedSubmission(job)


def _retry_on_error(action: Callable[[], int]) -> int:
    """Calls ``action``; if SLURM refuses or does not answer, calls it again after each of ``RETRY_PAUSES_S``."""
    for pause in RETRY_PAUSES_S:
        try:
            return action()
        except UserError as error:
            say(f"{error}; trying again in {pause:.0f} seconds")
            time.sleep(pause)
    return action()


def record_killed_jobs(experiment: Experiment, missing: Sequence[Artifact]) -> None:
    """Records why jobs failed that could not record it themselves. SLURM's accounting may forget it later."""
    absent = {artifact.key for artifact in missing}
    tried = [a.key for a in missing if not any(part.key in absent for part in a.inputs)]
    try:
        found = queue.failed_jobs(experiment.folder, tried)
    except UserError as error:
        say(f"why earlier jobs failed is unknown, since the accounting cannot be queried: {error}")
        return
    for artifact in missing:
        job = found.get(artifact.key)
        if job is not None and not experiment.has_failed(artifact, since=job.planned):
            experiment.record_failure(artifact, job.reason, job.log)


# ---------------------------------------------------------------- submitting


@contextlib.contextmanager
def submission_lock(folder: Path) -> Iterator[None]:
    """Held while a process decides what to submit, so that two of them do not submit the same jobs."""
    with claim(folder / "launch" / "submission", say=say):
        yield


def refuse_other_settings(experiment: Experiment) -> None:
    """Checks the settings of the jobs in flight: two grids in one folder would write the same evaluation.

    Raises:
        UserError: jobs of the same experiment with other settings are in flight.
    """
    settings = experiment.planner.settings.model_dump(mode="json")
    for launch in queue.active_launches(experiment.folder, queue.squeue()):
        theirs = launch.plan["settings"]
        if different := [name for name in GRID_FIELDS if theirs.get(name) != settings[name]]:
            cancel = command_line("cancel", *experiment.overrides)
            raise UserError(
                f"name={settings['name']}",
                f"its jobs {', '.join(launch.ids)}, with another {different[0]}, are in flight",
                f"cancel them with: {cancel}, or choose another name=",
            )


def submit(plan: Plan, in_flight: Mapping[str, str] | None = None) -> list[str]:
    """Submits every array of a plan and its supervisor; returns the job ids, the supervisor's last.

    ``in_flight``: artifacts that jobs of earlier launches make (key -> job). Each id is recorded beside the plan as soon
    as it is known.

    Raises:
        UserError: SLURM refused one; those before it are cancelled.
    """
    ids: list[str] = []
    labels = [queue.array_label(number, array.kind) for number, array in enumerate(plan.arrays)]
    try:
        for number, array in enumerate(plan.arrays):
            tasks = [Task(str(plan.path), number, task) for task in range(len(array.tasks))]
            after = dependency(plan, array, ids, in_flight or {})
            ids.append(_sbatch(plan, array.kind, labels[number], tasks, after))
            queue.record_jobs(plan.path.parent, list(zip(ids, labels, strict=False)))
        ids.append(submit_supervisor(plan, ids, labels))
    except UserError:
        if ids:
            run_command("scancel", *ids)
        raise
    return ids


def submit_supervisor(plan: Plan, ids: Sequence[str], labels: Sequence[str]) -> str:
    """Submits the supervisor of a launch whose arrays are ``ids``; returns its id."""
    after = "afterany:" + ":".join(ids)
    job = _sbatch(plan, queue.SUPERVISOR, queue.SUPERVISOR, [Supervisor(str(plan.path))], after)
    queue.record_jobs(plan.path.parent, [*zip(ids, labels, strict=False), (job, queue.SUPERVISOR)])
    return job


def add_missing_supervisors(folder: Path) -> list[tuple[str, str]]:
    """Submits a supervisor for each active launch without one: its submission was interrupted.

    Returns the names of these launches and the ids of the new jobs.
    """
    found = []
    for launch in queue.active_launches(folder, queue.squeue()):
        if launch.supervisor is None:
            job = submit_supervisor(read_plan(launch.folder / PLAN), launch.ids, launch.labels)
            found.append((launch.folder.name, job))
    return found


def dependency(plan: Plan, array: Array, ids: Sequence[str], in_flight: Mapping[str, str]) -> str | None:
    """The ``--dependency`` of an array, None if it can start at once.

    Where task i of an earlier array makes the inputs of task i alone, each task starts when its own one has succeeded
    (``aftercorr``). Otherwise the array waits for the end of the earlier one (``afterany``), and makes what it can if
    some tasks of that failed.
    """
    others = {
        queue.root_id(in_flight[part.key])
        for task in array.tasks
        for job in task
        for artifact in plan.artifacts_of(job)
        for part in artifact.inputs
        if part.key in in_flight
    }
    pairs = [n for n in array.after if matches_task_by_task(plan, array, plan.arrays[n])]
    condition = "aftercorr" if len(array.tasks) > 1 else "afterok"
    parts = [f"{condition if n in pairs else 'afterany'}:{ids[n]}" for n in array.after]
    parts += [f"afterany:{job}" for job in sorted(others)]
    own = plan.experiment.planner.settings.cluster.extra.get("dependency")
    if own is not None and not array.after:
        parts.append(str(own))
    return ",".join(parts) or None


def matches_task_by_task(plan: Plan, array: Array, other: Array) -> bool:
    """Whether each task i of ``array`` needs everything that task i of ``other`` makes, and nothing of its other tasks.

    False for kinds that are made from those inputs that exist: a failed input must not cancel them.
    """
    if KINDS[array.kind].partial_inputs or len(array.tasks) != len(other.tasks):
        return False
    task_of = {a.key: i for i, task in enumerate(other.tasks) for job in task for a in plan.artifacts_of(job)}
    count = Counter(task_of.values())
    for i, task in enumerate(array.tasks):
        for artifact in (a for job in task for a in plan.artifacts_of(job)):
            needs = [task_of[part.key] for part in artifact.inputs if part.key in task_of]
            if set(needs) != {i} or len(needs) != count[i]:
                return False
    return True


def _sbatch(plan: Plan, kind: str, label: str, tasks: Sequence[Callable[[], None]], after: str | None) -> str:
    """Calls sbatch once and returns the job id.

    Raises:
        UserError: SLURM refuses it.
    """
    import submitit
    from submitit.core.utils import FailedJobError

    executor = submitit.SlurmExecutor(folder=plan.path.parent / "slurm" / label, max_num_timeout=MAX_REQUEUES)
    executor.update_parameters(**_parameters(plan, kind, label, len(tasks), after))
    try:
        with _without_job_variables(), executor.batch():
            jobs = [executor.submit(task) for task in tasks]
    except FailedJobError as error:
        raise refusal("sbatch", str(error), f"sbatch ({label})", "see cluster=") from None
    return queue.root_id(str(jobs[0].job_id))


def _parameters(plan: Plan, kind: str, label: str, tasks: int, after: str | None) -> dict[str, object]:
    """submitit's parameters of an array of ``tasks`` tasks."""
    settings = plan.experiment.planner.settings
    cluster, supervisor = settings.cluster, kind == queue.SUPERVISOR
    resources = SUPERVISOR_RESOURCES if supervisor else cluster.resources(kind)
    extra: dict[str, str | int | bool] = {
        key: value for key, value in cluster.extra.items() if value is not False and key != "dependency"
    }
    extra |= {"requeue": True, "kill-on-invalid-dep": "yes"}
    if after is not None:
        extra["dependency"] = after
    if cluster.mail is not None and supervisor:
        extra |= {"mail-user": cluster.mail, "mail-type": "END,FAIL"}
    parameters = {
        "job_name": f"{settings.name}-{label}",
        "time": resources.minutes,
        "nodes": resources.nodes,
        "ntasks_per_node": 1 if supervisor else processes_per_node(settings, kind),
        "cpus_per_task": resources.cpus,
        "mem": f"{int(resources.memory_gb * 1024)}M",
        "gpus_per_node": resources.gpus or None,
        "array_parallelism": min(tasks, cluster.at_once or tasks),
        "signal_delay_s": cluster.signal_s,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "setup": [*cluster.setup, *_import_setup(plan)],
        "additional_parameters": extra,
        "stderr_to_stdout": True,
    }
    return {key: value for key, value in parameters.items() if value is not None}


def _import_setup(plan: Plan) -> list[str]:
    """Shell lines that make a job import the code of its plan, and not the code of its working folder."""
    home = shlex.quote(plan.content["home"])
    return ["export PYTHONSAFEPATH=1", f"export PYTHONPATH={home}${{PYTHONPATH:+:$PYTHONPATH}}"]


@contextlib.contextmanager
def _without_job_variables() -> Iterator[None]:
    """Removes the variables of the job that this process may run in: srun in the new job would apply them."""
    hidden = {
        name: os.environ.pop(name)
        for name in list(os.environ)
        if name.startswith(("SLURM_", "SLURMD_", "SUBMITIT_")) and name != "SLURM_CONF"
    }
    try:
        yield
    finally:
        os.environ.update(hidden)
