"""A frozen plan: all that the jobs of one launch need to know, in one JSON file that is written before anything is
submitted. A job that starts hours later runs what was planned, whatever has been edited in between; where that is not
possible any more (a scenario file or a model has changed), it says so and makes nothing.
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
from typing import Any, TypeVar

from offscript.console import say
from offscript.errors import UserError
from offscript.experiment.artifacts import KINDS, Artifact, in_order
from offscript.experiment.folder import REVISION, Experiment, code_revision, now
from offscript.experiment.graph import Job, jobs_of
from offscript.experiment.planner import Options, Planner
from offscript.experiment.runner import Result, on_all_ranks, run
from offscript.settings import GROUPS, ClusterSettings, Settings, parse
from offscript.storage.files import HOME, ensure_folder, read_json, write_text

T = TypeVar("T")

GRID_FIELDS = ("name", "model", "data", "recipe", "classifier", "evaluation", "grid", "format")
"""Settings that say which artifacts a grid consists of; a launch with others is of another grid."""

CODE = ("offscript", "assets", "data")
"""What a copy of the code consists of; composed settings are in the plan."""

MOST_TASKS = 1000
"""Of one array: SLURM's MaxArraySize is 1001 unless somebody changed it."""


class JobFailed(RuntimeError):
    """Some of what a job was to make is not there; its log says why."""


@dataclass(frozen=True)
class Array:
    """One submission: jobs of one kind and layer. ``tasks[i]`` are the jobs of task i, one for each of its processes
    (training: one job, which all processes of the task run together); ``after`` are the arrays that come before."""

    kind: str
    layer: int
    tasks: tuple[tuple[int, ...], ...]
    after: tuple[int, ...]


def arrays_of(jobs: Sequence[Job], width: int = 1, most: int = MOST_TASKS) -> list[Array]:
    """One array per layer and kind (several where it has over ``most`` tasks). ``width`` rollout jobs are a task's, one
    for each of its processes."""
    arrays: list[Array] = []
    inside: dict[int, int] = {}
    groups: dict[tuple[int, str], list[Job]] = {}
    for job in jobs:
        groups.setdefault((job.layer, job.kind), []).append(job)
    for (layer, kind), own in groups.items():
        step = width if KINDS[kind].shards else 1
        for part in _cut(_cut(own, step), most):
            after = {inside[need] for task in part for job in task for need in job.needs}
            inside |= dict.fromkeys((job.index for task in part for job in task), len(arrays))
            tasks = tuple(tuple(job.index for job in task) for task in part)
            arrays.append(Array(kind, layer, tasks, tuple(sorted(after))))
    return arrays


def _cut(things: Sequence[T], size: int) -> list[Sequence[T]]:
    return [things[i : i + size] for i in range(0, len(things), size)]


def shards(cluster: ClusterSettings) -> int:
    """Rollout jobs that the cells of a model are cut into: as many tasks as asked for, and one for each of their
    processes."""
    return cluster.shards * _width(cluster)


def _width(cluster: ClusterSettings) -> int:
    asked = cluster.resources("rollout")
    return asked.nodes * (asked.gpus or asked.tasks)


# ---------------------------------------------------------------- freezing


def freeze(
    experiment: Experiment,
    everything: Sequence[Artifact],
    jobs: Sequence[Job],
    attempts: Mapping[str, int] | None = None,
    before: "Plan | None" = None,
) -> "Plan":
    """Writes the plan of ``jobs`` into a new folder below ``<experiment>/launch/``.

    ``everything`` is the whole grid, of which ``jobs`` make what is missing; ``attempts`` counts how often each artifact
    (by key) was tried again before; ``before`` is the plan that is tried again, with the code that it froze.

    Raises:
        UserError: two artifacts would lie in one place, or the folder cannot be written.
    """
    _check_places(everything)
    settings = experiment.planner.settings
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime()) + "-" + uuid.uuid4().hex[:4]
    folder = ensure_folder(experiment.folder.absolute() / "launch" / stamp)
    plain = {
        "settings": settings.model_copy(update={"root": str(Path(settings.root).absolute())}).model_dump(
            mode="json"
        ),
        "options": {group: _made(getattr(experiment.planner.options, group)) for group in GROUPS},
        "overrides": list(experiment.overrides),
        **(_origin(before.plain) if before else _here(folder, settings.cluster.snapshot)),
        "created": now(),
        "attempts": dict(attempts or {}),
        "artifacts": listing(everything),
        "jobs": [
            {"kind": j.kind, "layer": j.layer, "name": str(j), "keys": [a.key for a in j.artifacts]}
            for j in jobs
        ],
        "arrays": [vars(array) for array in arrays_of(jobs, _width(settings.cluster))],
    }
    write_text(
        folder / "plan.json", json.dumps(plain, ensure_ascii=False, allow_nan=False)
    )  # indented is slow
    return Plan(folder / "plan.json", plain, experiment, {a.key: a for a in everything})


def _origin(plain: Mapping[str, Any]) -> dict[str, Any]:
    return {name: plain[name] for name in ("home", "cwd", "code")}


def _here(folder: Path, snapshot: bool) -> dict[str, Any]:
    """Where the code of the jobs lies, the folder that they work in, and which revision that code is of."""
    cwd, code = Path.cwd(), code_revision()
    home = _snapshot(folder, code) if snapshot else HOME
    return {"home": str(home), "cwd": str(home if cwd == HOME else cwd), "code": code}


def _check_places(artifacts: Sequence[Artifact]) -> None:
    places: dict[Path, Artifact] = {}
    for artifact in artifacts:
        if (other := places.setdefault(artifact.path, artifact)) != artifact:
            raise UserError(
                str(artifact.path), f"two artifacts would lie there: {other} and {artifact}", "rename one"
            )


def listing(artifacts: Sequence[Artifact]) -> list[dict[str, Any]]:
    """What status needs to know of artifacts; ``needs`` are the places in this list of what each is made from."""
    place = {artifact.key: i for i, artifact in enumerate(artifacts)}
    return [
        {
            "key": a.key, "name": str(a), "kind": a.kind, "path": str(a.path), "planned": a.planned,
            "needs": [place[part.key] for part in a.inputs],
        }
        for a in artifacts
    ]  # fmt: skip


def newest(experiment: Experiment) -> dict[str, Any] | None:
    """The plan of the experiment's newest launch, as plain data, if it was made from the same settings."""
    plans = sorted(experiment.folder.glob("launch/*/plan.json"))
    if not plans:
        return None
    plain, now_ = read_json(plans[-1]), experiment.planner.settings.model_dump(mode="json")
    return plain if all(plain["settings"][k] == v for k, v in now_.items() if k in GRID_FIELDS) else None


def _made(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that the plan has asked for, by name."""
    return {name: node.model_dump(mode="json") for name, node in getattr(options, "made", options).items()}


def _snapshot(folder: Path, code: str | None) -> Path:
    """A copy of the code and of what is shipped with it, for the jobs to run."""
    home = folder / "code"
    for part in CODE:
        shutil.copytree(HOME / part, home / part, ignore=shutil.ignore_patterns("__pycache__"))
    write_text(home / REVISION, f"{code or ''}\n")
    return home


# ---------------------------------------------------------------- thawing


@dataclass(frozen=True)
class Plan:
    """A plan read back: what is in its file, and the experiment and artifacts that it stands for."""

    path: Path
    plain: Mapping[str, Any]
    experiment: Experiment
    artifacts: Mapping[str, Artifact]

    @property
    def arrays(self) -> list[Array]:
        return [
            Array(a["kind"], a["layer"], tuple(map(tuple, a["tasks"])), tuple(a["after"]))
            for a in self.plain["arrays"]
        ]

    def made_by(self, job: int) -> list[Artifact]:
        """What a job is to make.

        Raises:
            UserError: what was planned cannot be found any more.
        """
        keys = self.plain["jobs"][job]["keys"]
        if gone := [key for key in keys if key not in self.artifacts]:
            raise UserError(
                str(self.path), f"{len(gone)} of {len(keys)} artifacts of job {job} are not what was planned",
                "a scenario file, a model or the code has changed since: submit again",
            )  # fmt: skip
        return [self.artifacts[key] for key in keys]


def thaw(path: Path) -> Plan:
    """The plan in ``path``, without composing anything."""
    plain = read_json(path)
    settings = parse(Settings, plain["settings"], str(path))
    options = {
        group: {
            name: parse(schema, node, f"{path}: {group}") for name, node in plain["options"][group].items()
        }
        for group, schema in GROUPS.items()
    }
    planner = Planner(settings, Options(**options))  # type: ignore[arg-type]
    experiment = Experiment(planner, tuple(plain["overrides"]))
    return Plan(path, plain, experiment, {a.key: a for a in in_order([experiment.planner.evaluation()])})


# ---------------------------------------------------------------- running


def run_task(path: Path, array: int, task: int, rank: int = 0, local_rank: int = 0) -> None:
    """What process ``rank`` of a task does.

    Raises:
        JobFailed: not all that the job was to make is there now.
        Interrupted: a signal ended a training, which goes on when the task is run again.
    """
    os.chdir(read_json(path)["cwd"])
    plan = thaw(path)
    this = plan.arrays[array]
    jobs = this.tasks[task]
    if KINDS[this.kind].all_ranks:
        artifacts = plan.made_by(jobs[0])
        on_all_ranks(artifacts, plan.experiment, lambda: check(run(artifacts, plan.experiment)))
    elif rank < len(jobs):
        _take_own_gpu(local_rank)
        check(run(plan.made_by(jobs[rank]), plan.experiment))


def _take_own_gpu(local_rank: int) -> None:
    """Of the GPUs that a task was given, each of its processes on the node sees one."""
    visible = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    if len(visible) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[local_rank % len(visible)]


def check(results: Sequence[Result]) -> None:
    """Raises JobFailed unless all went well."""
    bad = [r for r in results if r.status in ("failed", "blocked")]
    for result in bad:
        say(f"{result.status}: {result.artifact}: {result.note}")
    if bad:
        raise JobFailed(f"{len(bad)} of {len(results)} artifacts of this job were not made")


def again(
    plan: Plan, missing: Sequence[Artifact], flying: Collection[str] = ()
) -> tuple[list[Job], dict[str, int]]:
    """The jobs that try ``missing`` (inputs first) once more, and the counts of attempts after them.

    An artifact whose inputs are there was tried and failed: it has the cluster's budget of retries. One that waits for
    others is tried with them, and costs nothing. ``flying`` (keys) are under way elsewhere.
    """
    cluster, attempts = plan.experiment.planner.settings.cluster, {**plan.plain["attempts"]}
    absent = {artifact.key for artifact in missing}
    tried: dict[str, Artifact] = {}
    for artifact in missing:
        lacking = [part.key for part in artifact.inputs if part.key in absent]
        if artifact.key in flying:
            continue
        if not lacking:
            if attempts.get(artifact.key, 0) >= cluster.retries:
                continue
            attempts[artifact.key] = attempts.get(artifact.key, 0) + 1
        hopeful = [key in tried or key in flying for key in lacking]
        if all(hopeful) or (artifact.partial_inputs and any(hopeful)):
            tried[artifact.key] = artifact
    return jobs_of(list(tried.values()), shards(cluster)), attempts


if __name__ == "__main__":
    try:
        run_task(Path(sys.argv[1]), *map(int, sys.argv[2:]))
    except (JobFailed, UserError) as error:
        say(f"failed: {error}")
        sys.exit(2 if isinstance(error, UserError) else 1)
