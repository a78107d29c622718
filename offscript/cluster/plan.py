"""A frozen plan: all that the jobs of one launch need to know, in one JSON file that is written before anything is
submitted. A job that starts hours later runs what was planned, whatever has been edited in between; where that is not
possible any more (a scenario file or a model has changed), it says so and makes nothing.
"""

import os
import shutil
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offscript.bench import Bench, code_revision, now
from offscript.cell import Artifact
from offscript.console import say
from offscript.errors import UserError
from offscript.graph import Job, jobs_of
from offscript.grid import Options, Planner, in_order
from offscript.jobs import Result, run, together
from offscript.settings import (
    FormatSettings,
    ModelSettings,
    Node,
    PersonaSettings,
    Settings,
    StageSettings,
    parse,
)
from offscript.store import HOME, ensure_folder, read_json, write_json

GROUPS: dict[str, type[Node]] = {
    "model": ModelSettings,
    "persona": PersonaSettings,
    "stage": StageSettings,
    "format": FormatSettings,
}
GRID_FIELDS = ("name", "model", "data", "recipe", "classifier", "evaluation", "grid", "format")
"""Settings that say which artifacts a grid consists of; a launch with others is of another grid."""

CODE = ("offscript", "assets", "data")


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


def arrays_of(jobs: Sequence[Job], processes: Mapping[str, int]) -> list[Array]:
    """One array per layer and kind; ``processes`` are those of a task, by kind."""
    arrays: list[Array] = []
    inside: dict[int, int] = {}
    for layer, kind in dict.fromkeys((job.layer, job.kind) for job in jobs):
        own = [job for job in jobs if (job.layer, job.kind) == (layer, kind)]
        width = processes.get(kind, 1) if kind == "rollout" else 1
        indices = [job.index for job in own]
        tasks = tuple(tuple(indices[i : i + width]) for i in range(0, len(indices), width))
        after = {inside[need] for job in own for need in job.needs}
        inside |= dict.fromkeys(indices, len(arrays))
        arrays.append(Array(kind, layer, tasks, tuple(sorted(after))))
    return arrays


# ---------------------------------------------------------------- freezing


def freeze(
    bench: Bench,
    everything: Sequence[Artifact],
    jobs: Sequence[Job],
    attempts: Mapping[str, int] | None = None,
) -> Path:
    """Writes the plan of ``jobs`` into a new folder below ``<experiment>/launch/``; returns the plan's path.

    ``everything`` is the whole grid, of which ``jobs`` make what is missing; ``attempts`` counts how often each artifact
    (by key) was submitted again before.
    """
    settings = bench.planner.settings
    stamp = time.strftime("%Y%m%d-%H%M%S") + "-" + uuid.uuid4().hex[:4]
    folder = ensure_folder(bench.folder.absolute() / "launch" / stamp)
    home = _snapshot(folder) if settings.cluster.snapshot else HOME
    cwd = Path.cwd()
    plain = settings.model_copy(update={"root": str(Path(settings.root).absolute())}).model_dump(mode="json")
    processes = {job.kind: _processes(settings, job.kind) for job in jobs}
    write_json(
        folder / "plan.json",
        {
            "settings": plain,
            "options": {group: _made(getattr(bench.planner.options, group)) for group in GROUPS},
            "overrides": list(bench.overrides),
            "home": str(home),
            "cwd": str(home if cwd == HOME else cwd),
            "code": code_revision(),
            "created": now(),
            "attempts": dict(attempts or {}),
            "artifacts": listing(everything),
            "jobs": [
                {"kind": j.kind, "layer": j.layer, "name": str(j), "keys": [a.key for a in j.artifacts]}
                for j in jobs
            ],
            "arrays": [vars(array) for array in arrays_of(jobs, processes)],
        },
    )
    return folder / "plan.json"


def listing(artifacts: Sequence[Artifact]) -> list[dict[str, Any]]:
    """What status needs to know of artifacts."""
    return [
        {"key": a.key, "name": str(a), "kind": a.kind, "path": str(a.path), "planned": a.spec.get("planned")}
        for a in artifacts
    ]


def newest(bench: Bench) -> Path | None:
    """The plan of the experiment's newest launch, if it was made from the same settings."""
    plans = sorted(bench.folder.glob("launch/*/plan.json"))
    if not plans:
        return None
    then, now_ = read_json(plans[-1])["settings"], bench.planner.settings.model_dump(mode="json")
    return plans[-1] if all(then[k] == v for k, v in now_.items() if k in GRID_FIELDS) else None


def _processes(settings: Settings, kind: str) -> int:
    asked = settings.cluster.resources(kind)
    return asked.nodes * (asked.gpus or asked.tasks)


def _made(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that the plan has asked for, by name."""
    return {name: node.model_dump(mode="json") for name, node in getattr(options, "made", options).items()}


def _snapshot(folder: Path) -> Path:
    """A copy of the code and of what is shipped with it, for the jobs to run."""
    home = folder / "code"
    for part in CODE:
        shutil.copytree(HOME / part, home / part, ignore=shutil.ignore_patterns("__pycache__"))
    return home


# ---------------------------------------------------------------- thawing


@dataclass(frozen=True)
class Plan:
    """A plan read back: what is in its file, and the bench and artifacts that it stands for."""

    path: Path
    plain: Mapping[str, Any]
    bench: Bench
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
    bench = Bench(Planner(settings, Options(**options)), tuple(plain["overrides"]))
    return Plan(path, plain, bench, {a.key: a for a in in_order([bench.planner.evaluation()])})


# ---------------------------------------------------------------- running


def run_task(path: Path, array: int, task: int, rank: int = 0) -> None:
    """What process ``rank`` of a task does.

    Raises:
        JobFailed: not all that the job was to make is there now.
    """
    os.chdir(read_json(path)["cwd"])
    plan = thaw(path)
    this = plan.arrays[array]
    jobs = this.tasks[task]
    if this.kind == "adapter":  # all processes train together
        artifacts = plan.made_by(jobs[0])
        together(artifacts, plan.bench, lambda: check(run(artifacts, plan.bench)))
    elif rank < len(jobs):
        check(run(plan.made_by(jobs[rank]), plan.bench))


def check(results: Sequence[Result]) -> None:
    """Raises JobFailed unless all went well."""
    bad = [r for r in results if r.status in ("failed", "blocked")]
    for result in bad:
        say(f"{result.status}: {result.artifact}: {result.note}")
    if bad:
        raise JobFailed(f"{len(bad)} of {len(results)} artifacts of this job were not made")


def attempts_left(plan: Plan, artifact: Artifact) -> int:
    return plan.bench.planner.settings.cluster.retries - plan.plain["attempts"].get(artifact.key, 0)


def again(plan: Plan, missing: Sequence[Artifact]) -> tuple[list[Job], dict[str, int]]:
    """The jobs that try ``missing`` once more within the retry budget, and the counts of attempts after them."""
    allowed = [a for a in missing if attempts_left(plan, a) > 0]
    attempts = {**plan.plain["attempts"]}
    for artifact in allowed:
        attempts[artifact.key] = attempts.get(artifact.key, 0) + 1
    return jobs_of(allowed, plan.bench.planner.settings.cluster.shards), attempts


if __name__ == "__main__":
    try:
        run_task(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    except (JobFailed, UserError) as error:
        say(f"failed: {error}")
        sys.exit(2 if isinstance(error, UserError) else 1)
