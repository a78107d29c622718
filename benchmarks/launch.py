"""Launching a grid of 10,000 cells: seconds to plan and to submit it, and to say how it stands.

    python benchmarks/launch.py                  # 10,002 cells of the embedded model, nothing is run
    python benchmarks/launch.py --seeds 15       # a tenth of it

Where SLURM is at hand the grid is really submitted (held, and cancelled at the end), and beside it as many jobs as
``--calls`` with one sbatch call each, from which the time for one call per cell is extrapolated. Status is asked of a
folder in which every other artifact is finished.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from offscript.experiment.backends import plan, slurm
from offscript.experiment.backends import slurm_queue as queue
from offscript.experiment.backends import status as seen
from offscript.experiment.folder import Experiment
from offscript.experiment.graph import jobs_of, needed
from offscript.experiment.planner import in_order
from offscript.settings import PERSONAS
from offscript.storage.files import HOME
from offscript.storage.manifests import manifest_path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seeds", type=int, default=151, help="training seeds of the grid: 66 cells each, and 36"
    )
    parser.add_argument("--calls", type=int, default=50, help="single sbatch calls to measure")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        words = [
            "experiment=demo",
            "name=launch-benchmark",
            "cluster=slurm",
            "+cluster.extra.hold=true",
            f"root={root}",
            f"grid.persona=[{','.join(PERSONAS)}]",
            f"grid.seed=[{','.join(map(str, range(asked.seeds)))}]",
        ]
        frozen = show_plan(words)
        held = show_submission(frozen, asked.calls) if shutil.which("sbatch") else []
        if not held:
            print("no SLURM here: submission is not measured")
        show_status(frozen, words)
        if held:
            subprocess.run(["scancel", *held], check=True)


def timed(name: str, function: Callable[[], Any]) -> Any:
    """Prints how long ``function`` took on the clock and in this process; what it returned."""
    start, spent = time.perf_counter(), time.process_time()
    value = function()
    say(time.perf_counter() - start, name, time.process_time() - spent)
    return value


def say(seconds: float, name: str, spent: float | None = None) -> None:
    print(
        f"{seconds:8.2f} s {f'({spent:.2f} s of CPU)' if spent is not None else '':>18}  {name}", flush=True
    )


def show_plan(words: list[str]) -> plan.Plan:
    started, spent = time.perf_counter(), time.process_time()
    experiment = timed("compose the configuration", lambda: composed(words))
    evaluation = timed("plan every artifact", lambda: experiment.planner.evaluation())
    everything = in_order([evaluation])
    todo, _ = timed("look for what is there", lambda: needed([evaluation], experiment))
    jobs = timed("group into jobs", lambda: jobs_of(todo, plan.shards(experiment.planner.settings.cluster)))
    frozen = timed("freeze the plan", lambda: plan.freeze(experiment, everything, jobs))
    cells, tasks = len(evaluation.inputs), sum(len(array.tasks) for array in frozen.arrays)
    size = f"{cells} cells, {len(everything)} artifacts, {len(frozen.arrays)} arrays of {tasks} tasks"
    say(time.perf_counter() - started, f"all of that: {size}", time.process_time() - spent)
    return frozen


def composed(words: list[str]) -> Experiment:
    """What the command line would make of ``words``."""
    import hydra

    from offscript.cli import assemble, to_container

    hydra.initialize_config_dir(str(HOME / "conf"), version_base="1.3")
    return assemble(to_container(hydra.compose("launch", words)), words, "launch")[1]


def show_submission(frozen: plan.Plan, calls: int) -> list[str]:
    """Returns the jobs that are held now."""
    cells = len(frozen.experiment.planner.evaluation().inputs)
    start = time.perf_counter()
    ids = slurm.submit(frozen)
    say(time.perf_counter() - start, f"submit with {len(ids)} sbatch calls")
    asked = timed("ask squeue", queue.squeue)
    print(f"{'':29}  {len(asked)} tasks are in the queue")
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
    say(each * cells, f"one sbatch call per cell (extrapolated from {calls}: {each * 1000:.0f} ms each)")
    return [*ids, *(job.strip() for job in held)]


def show_status(frozen: plan.Plan, words: list[str]) -> None:
    folder = frozen.experiment.folder
    timed("(make half of the artifacts up)", lambda: pretend(folder, frozen.plain["artifacts"][::2]))
    status = timed("status from files alone", lambda: seen.look(folder, frozen.plain["artifacts"]))
    timed("status as a table", lambda: seen.table(status))
    command = [sys.executable, str(HOME / "launch" / "status.py"), *words]
    done = timed(
        "the whole command launch/status.py",
        lambda: subprocess.run(command, cwd=HOME, capture_output=True, text=True),
    )
    print(done.stdout or done.stderr)


def pretend(folder: Path, artifacts: list[dict[str, Any]]) -> None:
    for artifact in artifacts:
        place = folder / artifact["path"]
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.suffix:
            place.write_text("{}\n" * (artifact["planned"] or 1))
        else:
            place.mkdir(exist_ok=True)
        manifest_path(place).write_text(f'{{"key": "{artifact["key"]}"}}')


if __name__ == "__main__":
    main()
