"""Time to plan and to submit a grid of 10,000 cells, and to read its status.

    python benchmarks/launch.py                  # 10,002 cells of the embedded model; no job runs
    python benchmarks/launch.py --seeds 15       # a tenth of the cells

If SLURM is installed, the grid is submitted (held, and cancelled at the end). For comparison, ``--calls`` jobs are
submitted with one sbatch call each, and extrapolated to one call per cell. The status is read from a folder in which
every other artifact is finished.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from offscript.experiment.artifacts import in_order
from offscript.experiment.backends import plan, slurm
from offscript.experiment.backends import slurm_queue as queue
from offscript.experiment.backends.plan_file import ArtifactRecord
from offscript.experiment.backends.status import read_status, table
from offscript.experiment.folder import Experiment
from offscript.experiment.graph import jobs_of, needed
from offscript.storage.files import HOME
from offscript.storage.manifests import manifest_path
from offscript.storage.options import options_of


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seeds", type=int, default=151, help="training seeds of the grid: 66 cells each, and 36"
    )
    parser.add_argument("--calls", type=int, default=50, help="single sbatch calls to measure")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        words = [
            "experiment=demo",
            "name=launch-benchmark",
            "cluster=slurm",
            "+cluster.extra.hold=true",
            f"root={root}",
            f"grid.persona=[{','.join(options_of('persona'))}]",
            f"grid.seed=[{','.join(map(str, range(options.seeds)))}]",
        ]
        written = show_plan(words)
        held = show_submission(written, options.calls) if shutil.which("sbatch") else []
        if not held:
            print("SLURM is not installed: submission is not measured")
        show_status(written, words)
        if held:
            subprocess.run(["scancel", *held], check=True)


T = TypeVar("T")


def timed(name: str, function: Callable[[], T]) -> T:
    """Calls ``function``, prints its wall and processor time, and returns its result."""
    start, spent = time.perf_counter(), time.process_time()
    value = function()
    show_time(time.perf_counter() - start, name, time.process_time() - spent)
    return value


def show_time(seconds: float, name: str, spent: float | None = None) -> None:
    cpu = "" if spent is None else f"({spent:.2f} s of CPU)"
    print(f"{seconds:8.2f} s {cpu:>18}  {name}", flush=True)


def show_plan(words: list[str]) -> plan.Plan:
    started, spent = time.perf_counter(), time.process_time()
    experiment = timed("compose the configuration", lambda: composed(words))
    evaluation = timed("plan every artifact", lambda: experiment.planner.evaluation())
    everything = in_order([evaluation])
    todo, _ = timed("find missing artifacts", lambda: needed([evaluation], experiment))
    jobs = timed("group into jobs", lambda: jobs_of(todo, plan.shard_count(experiment.planner.settings)))
    written = timed("write the plan", lambda: plan.write_plan(experiment, everything, jobs))
    cells, tasks = len(evaluation.inputs), sum(len(array.tasks) for array in written.arrays)
    size = f"{cells} cells, {len(everything)} artifacts, {len(written.arrays)} arrays of {tasks} tasks"
    show_time(time.perf_counter() - started, f"all of that: {size}", time.process_time() - spent)
    return written


def composed(words: list[str]) -> Experiment:
    """The experiment of a command line with the overrides ``words``."""
    import hydra

    from offscript.cli import assemble, to_container

    hydra.initialize_config_dir(str(HOME / "conf"), version_base="1.3")
    return assemble(to_container(hydra.compose("launch", words)), words, "launch")[1]


def show_submission(written: plan.Plan, calls: int) -> list[str]:
    """Submits the plan and the single jobs, all held; returns their ids."""
    cells = len(written.experiment.planner.evaluation().inputs)
    start = time.perf_counter()
    ids = slurm.submit(written)
    show_time(time.perf_counter() - start, f"submit with {len(ids)} sbatch calls")
    jobs = timed("query squeue", queue.squeue)
    print(f"{'':29}  {len(jobs)} tasks are in the queue")
    start = time.perf_counter()
    held = [
        subprocess.run(
            ["sbatch", "--parsable", "--hold", "--output=/dev/null", "--wrap=true"],
            check=True,
            capture_output=True,
        ).stdout.decode()
        for _ in range(calls)
    ]
    each = (time.perf_counter() - start) / calls
    show_time(
        each * cells, f"one sbatch call per cell (extrapolated from {calls}: {each * 1000:.0f} ms each)"
    )
    return [*ids, *(job.strip() for job in held)]


def show_status(written: plan.Plan, words: list[str]) -> None:
    folder = written.experiment.folder
    timed("(write half of the artifacts)", lambda: write_artifacts(folder, written.content["artifacts"][::2]))
    status = timed("status from files alone", lambda: read_status(folder, written.content["artifacts"]))
    timed("status as a table", lambda: table(status))
    command = [sys.executable, str(HOME / "launch" / "status.py"), *words]
    done = timed(
        "the whole command launch/status.py",
        lambda: subprocess.run(command, cwd=HOME, capture_output=True, text=True),
    )
    print(done.stdout or done.stderr)


def write_artifacts(folder: Path, artifacts: list[ArtifactRecord]) -> None:
    """Writes empty artifacts with manifests."""
    for artifact in artifacts:
        place = folder / artifact["path"]
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.suffix:
            place.write_text("{}\n" * (artifact["planned"] or 1))
        else:
            place.mkdir(exist_ok=True)
        manifest_path(place).write_text(f'{{"key": "{artifact["key"]}", "files": {{}}}}')


if __name__ == "__main__":
    main()
