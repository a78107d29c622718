"""The plan of a launch: everything that its jobs need to know, in one JSON file written before anything is submitted.

A job that starts hours later runs what was planned, whatever was edited in between. If that is no longer possible (a
scenario file or a model has changed), the job reports it and makes nothing.
"""

import json
import os
import shutil
import sys
import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from offscript.console import say
from offscript.errors import UserError
from offscript.experiment.artifacts import KINDS, Artifact, in_order
from offscript.experiment.backends.plan_file import (
    PLAN,
    ArrayRecord,
    ArtifactRecord,
    CodeLocation,
    JobRecord,
    PlanFile,
    read_plan_file,
)
from offscript.experiment.folder import REVISION, Experiment, code_revision, now
from offscript.experiment.graph import Job, jobs_of
from offscript.experiment.planner import Options, Planner
from offscript.experiment.runner import Result, on_all_ranks, run, run_in_order
from offscript.json_types import Json
from offscript.settings import (
    GROUPS,
    EngineSettings,
    FormatSettings,
    ModelSettings,
    Named,
    PersonaSettings,
    Settings,
    StageSettings,
    parse,
)
from offscript.storage.files import HOME, ensure_folder, write_text
from offscript.training.interrupt import Interrupted

T = TypeVar("T")
S = TypeVar("S", bound=Named)

GRID_FIELDS = ("name", "model", "data", "recipe", "classifier", "evaluation", "grid", "format")
"""Settings that decide which artifacts a grid has; launches that differ in one of them are of different grids."""

SNAPSHOT_FOLDERS = ("offscript", "assets", "conf", "data")
"""The parts of the repository that a snapshot copies. The settings are in the plan; of ``conf``, the names are read."""

MAX_TASKS = 1000
"""Tasks of one array where the cluster does not say how many it allows; SLURM's default MaxArraySize is 1001."""


class JobFailed(RuntimeError):
    """A job ended without some of its artifacts; its log has the reason."""


@dataclass(frozen=True)
class Array:
    """One submission: jobs of one kind and layer.

    ``tasks[i]`` are the jobs of task i, one per process (a training task: one job, which all its processes run
    together); ``after`` are the arrays that must end before.
    """

    kind: str
    layer: int
    tasks: tuple[tuple[int, ...], ...]
    after: tuple[int, ...]

    @classmethod
    def from_record(cls, record: ArrayRecord) -> "Array":
        return cls(
            record["kind"], record["layer"], tuple(map(tuple, record["tasks"])), tuple(record["after"])
        )

    def record(self) -> ArrayRecord:
        tasks = [list(task) for task in self.tasks]
        return {"kind": self.kind, "layer": self.layer, "tasks": tasks, "after": list(self.after)}


def arrays_of(jobs: Sequence[Job], processes: int = 1, max_tasks: int = MAX_TASKS) -> list[Array]:
    """Groups ``jobs`` into one array per layer and kind, or several where it would have over ``max_tasks`` tasks.

    A task holds one job; of a kind that can be sharded it holds ``processes`` jobs, one per process.
    """
    arrays: list[Array] = []
    array_of: dict[int, int] = {}
    groups: dict[tuple[int, str], list[Job]] = {}
    for job in jobs:
        groups.setdefault((job.layer, job.kind), []).append(job)
    for (layer, kind), group in groups.items():
        tasks = _chunks(group, processes if KINDS[kind].shards else 1)
        for part in _chunks(tasks, max_tasks):
            after = {array_of[needed] for task in part for job in task for needed in job.needs}
            array_of |= dict.fromkeys((job.index for task in part for job in task), len(arrays))
            indices = tuple(tuple(job.index for job in task) for task in part)
            arrays.append(Array(kind, layer, indices, tuple(sorted(after))))
    return arrays


def _chunks(items: Sequence[T], size: int) -> list[Sequence[T]]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def planned_jobs(todo: Sequence[Artifact], settings: Settings) -> list[Job]:
    """The jobs of a launch that make ``todo`` (inputs first), under the settings of the cluster.

    Raises:
        UserError: as ``processes_per_node``; or a training job has too few GPUs for the rollouts that it makes too.
    """
    cluster = settings.cluster
    if cluster.stages_together and cluster.kind == "slurm":
        _check_rollouts_fit(settings)
    return jobs_of(todo, shard_count(settings), cluster.trainings, cluster.stages_together)


def _check_rollouts_fit(settings: Settings) -> None:
    """Rank 0 of a training job makes the rollouts between two stages, on the GPUs that it sees."""
    needed, gpus = gpus_per_process(settings.engine, "rollout"), settings.cluster.resources("adapter").gpus
    if needed > max(1, gpus):
        found = (
            f"{gpus}, and vLLM takes {needed} (engine.tensor_parallel) for the rollouts between two stages"
        )
        remedy = f"at least {needed}, or cluster.stages_together=false"
        raise UserError("cluster.jobs.adapter.gpus", found, remedy)


def shard_count(settings: Settings) -> int:
    """Into how many rollout jobs the cells of a model are cut: ``cluster.shards`` tasks, one job per process of each."""
    return settings.cluster.shards * processes_per_task(settings, "rollout")


def processes_per_task(settings: Settings, kind: str) -> int:
    """The number of processes of one SLURM task of an array that makes artifacts of ``kind``."""
    return settings.cluster.resources(kind).nodes * processes_per_node(settings, kind)


def processes_per_node(settings: Settings, kind: str) -> int:
    """The number of processes that a task of ``kind`` has on each of its nodes.

    Raises:
        UserError: the GPUs of a rollout job cannot be divided among processes of ``engine.tensor_parallel`` GPUs.
    """
    resources, each = settings.cluster.resources(kind), gpus_per_process(settings.engine, kind)
    if resources.gpus % each:
        found = f"{resources.gpus}, and each process of vLLM takes {each} (engine.tensor_parallel)"
        raise UserError(f"cluster.jobs.{kind}.gpus", found, f"a multiple of {each}")
    return resources.gpus // each or resources.tasks


def gpus_per_process(engine: EngineSettings, kind: str) -> int:
    """The number of GPUs that each process of a task of ``kind`` uses, if it has any."""
    return engine.tensor_parallel if engine.name == "vllm" and kind == "rollout" else 1


# ---------------------------------------------------------------- writing


def write_plan(
    experiment: Experiment,
    everything: Sequence[Artifact],
    jobs: Sequence[Job],
    attempts: Mapping[str, int] | None = None,
    previous: "Plan | None" = None,
    max_tasks: int = MAX_TASKS,
) -> "Plan":
    """Writes the plan of ``jobs`` into a new folder below ``<experiment>/launch/``.

    ``everything`` is the whole grid, of which ``jobs`` make the missing part; ``attempts`` counts the earlier retries of
    each artifact, by key; ``previous`` is the plan that is retried: the new one runs the same code. ``max_tasks``: see
    ``arrays_of``.

    Raises:
        UserError: two artifacts have the same path, or the folder cannot be written.
    """
    _check_paths_differ(everything)
    settings = experiment.planner.settings
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime()) + "-" + uuid.uuid4().hex[:4]
    folder = ensure_folder(experiment.folder.absolute() / "launch" / stamp)
    absolute = settings.model_copy(update={"root": str(experiment.folder.parent.absolute())})
    location = previous.content if previous else _locate_code(folder, settings.cluster.snapshot)
    content: PlanFile = {
        "settings": absolute.model_dump(mode="json"),
        "options": {group: _composed(getattr(experiment.planner.options, group)) for group in GROUPS},
        "overrides": list(experiment.overrides),
        "home": location["home"],
        "cwd": location["cwd"],
        "code": location["code"],
        "created": now(),
        "attempts": dict(attempts or {}),
        "artifacts": artifact_records(everything),
        "jobs": [_job_record(job) for job in jobs],
        "arrays": [
            array.record() for array in arrays_of(jobs, processes_per_task(settings, "rollout"), max_tasks)
        ],
    }
    # Not indented: the plan of 10,000 cells would take seconds to write and to read.
    write_text(folder / PLAN, json.dumps(content, ensure_ascii=False, allow_nan=False))
    return Plan(folder / PLAN, content, experiment, {a.key: a for a in everything})


def _job_record(job: Job) -> JobRecord:
    keys = [artifact.key for artifact in job.artifacts]
    return {"kind": job.kind, "layer": job.layer, "name": str(job), "keys": keys}


def _locate_code(folder: Path, snapshot: bool) -> CodeLocation:
    cwd, code = Path.cwd(), code_revision()
    home = _copy_code(folder, code) if snapshot else HOME
    return {"home": str(home), "cwd": str(home if cwd == HOME else cwd), "code": code}


def _copy_code(folder: Path, code: str | None) -> Path:
    """Copies the code and the files that it ships into ``folder``, and records its commit there."""
    home = folder / "code"
    for part in SNAPSHOT_FOLDERS:
        shutil.copytree(HOME / part, home / part, ignore=shutil.ignore_patterns("__pycache__"))
    write_text(home / REVISION, f"{code or ''}\n")
    return home


def _check_paths_differ(artifacts: Sequence[Artifact]) -> None:
    by_path: dict[Path, Artifact] = {}
    for artifact in artifacts:
        if (other := by_path.setdefault(artifact.path, artifact)) != artifact:
            found = f"two artifacts have this path: {other} and {artifact}"
            raise UserError(str(artifact.path), found, "rename one")


def artifact_records(artifacts: Sequence[Artifact]) -> list[ArtifactRecord]:
    """The records of ``artifacts`` (inputs first), from which the status is read."""
    position = {artifact.key: i for i, artifact in enumerate(artifacts)}
    return [
        {
            "key": artifact.key,
            "name": str(artifact),
            "kind": artifact.kind,
            "path": str(artifact.path),
            "planned": artifact.planned_rows,
            "needs": [position[part.key] for part in artifact.inputs],
        }
        for artifact in artifacts
    ]


def newest_plan(experiment: Experiment) -> PlanFile | None:
    """The plan of the experiment's newest launch; None if there is none, or if it is of another grid."""
    paths = sorted(experiment.folder.glob(f"launch/*/{PLAN}"))
    if not paths:
        return None
    content, current = read_plan_file(paths[-1]), experiment.planner.settings.model_dump(mode="json")
    return content if all(content["settings"].get(name) == current[name] for name in GRID_FIELDS) else None


def _composed(options: Mapping[str, Named]) -> dict[str, Json]:
    """The options of one group that planning has used, by name. Options of the command line are composed on demand, and
    keep in ``made`` those that were."""
    used: Mapping[str, Named] = getattr(options, "made", options)
    return {name: node.model_dump(mode="json") for name, node in used.items()}


# ---------------------------------------------------------------- reading


@dataclass(frozen=True)
class Plan:
    """A plan: its file and content, and the experiment and artifacts (by key) that were rebuilt from it."""

    path: Path
    content: PlanFile
    experiment: Experiment
    artifacts: Mapping[str, Artifact]

    @property
    def arrays(self) -> list[Array]:
        return [Array.from_record(record) for record in self.content["arrays"]]

    def artifacts_of(self, job: int) -> list[Artifact]:
        """The artifacts that job number ``job`` makes.

        Raises:
            UserError: the inputs have changed since planning, so some of them have another key now.
        """
        keys = self.content["jobs"][job]["keys"]
        if changed := [key for key in keys if key not in self.artifacts]:
            found = f"{len(changed)} of {len(keys)} artifacts of job {job} are not what was planned"
            remedy = "a scenario file, a model or the code has changed since: submit again"
            raise UserError(str(self.path), found, remedy)
        return [self.artifacts[key] for key in keys]


def read_plan(path: Path) -> Plan:
    """Rebuilds the plan in ``path`` from its own settings; the configuration is not composed again."""
    content = read_plan_file(path)
    settings = parse(Settings, content["settings"], str(path))

    def options(group: str, schema: type[S]) -> dict[str, S]:
        nodes = content["options"][group]
        return {name: parse(schema, node, f"{path}: {group}") for name, node in nodes.items()}

    planner = Planner(
        settings,
        Options(
            options("model", ModelSettings),
            options("persona", PersonaSettings),
            options("stage", StageSettings),
            options("format", FormatSettings),
        ),
    )
    experiment = Experiment(planner, tuple(content["overrides"]))
    return Plan(path, content, experiment, {a.key: a for a in in_order([planner.evaluation()])})


# ---------------------------------------------------------------- running


def run_task(path: Path, array: int, task: int, rank: int = 0, local_rank: int = 0) -> None:
    """Runs the part of process ``rank`` in one task of the plan in ``path``.

    Raises:
        JobFailed: some artifacts of the job are still missing.
        Interrupted: a signal stopped a training, which continues when the task runs again.
    """
    os.chdir(read_plan_file(path)["cwd"])
    plan = read_plan(path)
    current = plan.arrays[array]
    jobs = current.tasks[task]
    if KINDS[current.kind].all_ranks:
        artifacts = plan.artifacts_of(jobs[0])
        on_all_ranks(
            artifacts, plan.experiment, lambda: raise_on_failure(run_in_order(artifacts, plan.experiment))
        )
    elif rank < len(jobs):
        _select_gpus(local_rank, gpus_per_process(plan.experiment.planner.settings.engine, current.kind))
        raise_on_failure(run(plan.artifacts_of(jobs[rank]), plan.experiment))


def _select_gpus(local_rank: int, each: int) -> None:
    """Gives each process of a task on one node ``each`` of the task's GPUs."""
    visible = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    if len(visible) > each:
        first = local_rank * each % len(visible)
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(visible[first : first + each])


def raise_on_failure(results: Sequence[Result]) -> None:
    """Prints the results that failed or are blocked.

    Raises:
        JobFailed: there are any.
    """
    failed = [result for result in results if result.status in ("failed", "blocked")]
    for result in failed:
        say(f"{result.status}: {result.artifact}: {result.note}")
    if failed:
        raise JobFailed(f"{len(failed)} of {len(results)} artifacts of this job were not made")


def retry_jobs(
    plan: Plan, missing: Sequence[Artifact], in_flight: Collection[str] = ()
) -> tuple[list[Job], dict[str, int]]:
    """The jobs that try ``missing`` (inputs first) again, and the counts of attempts after them.

    An artifact whose inputs exist was tried and failed: it is retried ``cluster.retries`` times. An artifact that waits
    for others is retried with them, which is not counted. Each training that is retried has a job of its own, also with
    ``cluster.stages_together``, so that one that ends its process costs the others no attempt. ``in_flight`` holds the keys that other jobs are making.
    """
    settings, attempts = plan.experiment.planner.settings, {**plan.content["attempts"]}
    absent = {artifact.key for artifact in missing}
    retried: dict[str, Artifact] = {}
    for artifact in missing:
        lacking = [part.key for part in artifact.inputs if part.key in absent]
        if artifact.key in in_flight:
            continue
        if not lacking:
            if attempts.get(artifact.key, 0) >= settings.cluster.retries:
                continue
            attempts[artifact.key] = attempts.get(artifact.key, 0) + 1
        expected = [key in retried or key in in_flight for key in lacking]
        if all(expected) or (artifact.partial_inputs and any(expected)):
            retried[artifact.key] = artifact
    return jobs_of(list(retried.values()), shard_count(settings)), attempts


if __name__ == "__main__":
    try:
        run_task(Path(sys.argv[1]), *map(int, sys.argv[2:]))
    except (JobFailed, UserError) as error:
        say(f"failed: {error}")
        sys.exit(2 if isinstance(error, UserError) else 1)
    except Interrupted as stop:
        say(str(stop))
        sys.exit(stop.exit_code)
    except KeyboardInterrupt:
        say("interrupted")
        sys.exit(130)
