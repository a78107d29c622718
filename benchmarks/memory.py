"""Peak memory of work on 1, 10 and 100 times as many rows.

    python benchmarks/memory.py                        # 200, 2,000 and 20,000 rows, about three minutes
    python benchmarks/memory.py --rows 50 --factors 1 10

Each measurement is a process of its own: the peak of its resident memory, and what of it came after the imports. Work:

    rollouts     episodes of chat through the scheduler and the scripted engine, into one file
    resume       the same file opened again, with all rows in it
    evaluation   scores, intervals and report of that many predictions with texts (``evaluate_files``)

Rollouts hold what is running, so their memory is to stay within 10%. A resumed file is read once to see what is in it, and an
evaluation holds a column for each of its fields and the texts of its page, so both grow with their rows.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from pairs import RESULTS, machine
from report import rows as prediction_rows

from offscript.rollouts.engines.base import Request, Sampling
from offscript.rollouts.engines.scripted import ScriptedEngine
from offscript.rollouts.scheduler import CellRun, run_episodes
from offscript.storage.files import HOME
from offscript.tasks.formats import get_format
from offscript.tasks.formats.base import Rules
from offscript.tasks.scenario_files import load_scenarios

WORK = ("rollouts", "resume", "evaluation")
FLAT = ("rollouts",)
ALLOWED = 1.1
"""Ratio of the largest peak to the smallest within which memory is called flat."""
REPLY = "The report of our client is late, so please send it to me before noon. " * 20


def reply(request: Request) -> str:
    return REPLY


def run_scheduler(folder: Path, rows: int) -> None:
    scenarios = load_scenarios(str(HOME / "data/pocket/chat.jsonl"))
    run = CellRun(
        key="memory",
        path=folder / "rows.jsonl",
        labels={},
        format=get_format("chat"),
        scenarios=scenarios,
        samples=-(-rows // len(scenarios)),
        rules=Rules(options=get_format("chat").defaults),
        adapter=None,
        sampling=Sampling(),
        limit=rows,
    )
    counts = run_episodes([run], ScriptedEngine(reply), max_live=100)
    assert counts["memory"].written + counts["memory"].reused == rows


def evaluate(folder: Path, rows: int) -> None:
    from offscript.evaluation.evaluate import evaluate_files

    source = folder / "predictions.jsonl"
    with open(source, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in prediction_rows(rows, random.Random(0)))
    evaluate_files(source, folder / "evaluation", quiet=True, title="benchmark")


def child(work: str, rows: int, folder: Path) -> None:
    """Does the work and prints the peak of the resident memory in MiB before and after it."""
    before = _peak()
    if work == "evaluation":
        evaluate(folder, rows)
    else:
        run_scheduler(folder, rows)
    print(json.dumps({"before": before, "peak": _peak()}))


def _peak() -> float:
    # KiB on Linux.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(work: str, rows: int, folder: Path) -> dict[str, float]:
    """``child`` in a process of its own. Files of the work stay in ``folder``."""
    command = [sys.executable, __file__, "--child", work, str(rows), str(folder)]
    done = subprocess.run(command, cwd=HOME, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare_sizes(work: str, sizes: list[int], root: Path) -> dict[str, Any]:
    peaks = {}
    for rows in sizes:
        folder = root / str(rows)
        folder.mkdir(exist_ok=True)
        peaks[rows] = measure(work, rows, folder)
    highest = [found["peak"] for found in peaks.values()]
    return {
        "case": work,
        "mib": {str(rows): found for rows, found in peaks.items()},
        "ratio": max(highest) / min(highest),
        "kib_per_row": 1024 * (highest[-1] - highest[0]) / max(1, sizes[-1] - sizes[0]),
    }


def show(result: dict[str, Any]) -> None:
    for rows, found in result["mib"].items():
        print(
            f"{result['case']:12}{int(rows):>9,} rows {found['peak']:9.1f} MiB, {found['before']:.1f} before"
        )
    growth = f"{result['ratio']:.2f}x, {result['kib_per_row']:.2f} KiB a row"
    verdict = f"flat within {ALLOWED - 1:.0%}" if result["ratio"] <= ALLOWED else "grows"
    print(f"{'':12}{growth}: {verdict}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--rows", type=int, default=200, help="rows of the smallest size (default: %(default)s)")
    add("--factors", type=int, nargs="+", default=[1, 10, 100])
    add("--work", nargs="*", default=list(WORK), choices=WORK)
    add("--out", type=Path, default=RESULTS, help="folder of the results (default: benchmarks/results)")
    add("--child", nargs=3, metavar=("WORK", "ROWS", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        work, rows, folder = options.child
        child(work, int(rows), Path(folder))
        return
    sizes = [factor * options.rows for factor in options.factors]
    with tempfile.TemporaryDirectory() as root:
        results = [compare_sizes(work, sizes, Path(root)) for work in options.work]
    for result in results:
        show(result)
    options.out.mkdir(parents=True, exist_ok=True)
    with open(options.out / "memory.jsonl", "a", encoding="utf-8") as file:
        file.writelines(json.dumps({**machine(), **result}) + "\n" for result in results)
    if grown := [r["case"] for r in results if r["case"] in FLAT and r["ratio"] > ALLOWED]:
        raise SystemExit(f"not flat: {', '.join(grown)}")


if __name__ == "__main__":
    main()
