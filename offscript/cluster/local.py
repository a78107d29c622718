"""The jobs of a plan as processes of this machine, some at a time."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from offscript.cluster.plan import Array, Plan, thaw
from offscript.console import say


def run(path: Path, at_once: int | None) -> None:
    """Runs every task of the plan, layer by layer; ``at_once`` processes at a time (null: one per CPU).

    A task that fails is told with its log and stops nothing: what needs it finds it missing.
    """
    plan = thaw(path)
    with ThreadPoolExecutor(at_once or os.cpu_count() or 1) as pool:
        for layer in sorted({array.layer for array in plan.arrays}):
            tasks = [
                (number, array, task)
                for number, array in enumerate(plan.arrays)
                if array.layer == layer
                for task in range(len(array.tasks))
            ]
            list(pool.map(lambda t: _run_task(plan, *t), tasks))


def _run_task(plan: Plan, number: int, array: Array, task: int) -> None:
    log = plan.path.parent / "logs" / f"{number}_{task}.log"
    log.parent.mkdir(exist_ok=True)
    names = ", ".join(plan.plain["jobs"][job]["name"] for job in array.tasks[task])
    command = [sys.executable, "-m", "offscript.cluster.plan", str(plan.path), str(number), str(task)]
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([plan.plain["home"], os.environ.get("PYTHONPATH", "")]),
    }
    with open(log, "w", encoding="utf-8") as file:
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=env).returncode
    say(
        f"  {'done' if code == 0 else 'failed'}: {names}"
        + ("" if code == 0 else f" (exit code {code}, {log})")
    )
