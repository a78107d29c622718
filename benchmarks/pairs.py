"""What the benchmarks share: sides that are measured in alternation, a table of medians, and a line per case in a file.

results = [compare("chat", "episodes", {"one at a time": plain, "scheduler": ours}, options.pairs)]
report("rollouts", results, options.out)
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from offscript.experiment.folder import code_revision, versions
from offscript.storage.files import HOME

RESULTS = HOME / "benchmarks" / "results"

Work = Callable[[], float]
"""Does the work of a side once and returns how much it was, in the unit of its case."""


def add_options(parser: argparse.ArgumentParser, pairs: int = 5) -> None:
    """Adds ``--pairs`` and ``--out``."""
    add = parser.add_argument
    add("--pairs", type=int, default=pairs, help="measurements of each side, in turns (default: %(default)s)")
    add("--out", type=Path, default=RESULTS, help="folder of the results (default: benchmarks/results)")


def compare(
    case: str, unit: str, sides: Mapping[str, Work], pairs: int, warm_up: bool = True
) -> dict[str, Any]:
    """Measures every side ``pairs`` times, in turns and in changing order, after one run of each that is not counted.

    Returns: ``sides``: for each the seconds and the processor seconds of every run, and the medians of the amount of work
    per second of either clock; ``ratio`` and ``ratio_cpu``: for each side but the first, the median over the pairs of its
    rate divided by that of the first side.
    """
    if warm_up:
        for work in sides.values():
            work()
    runs: dict[str, list[tuple[float, float, float]]] = {name: [] for name in sides}
    for number in range(pairs):
        for name in list(sides)[:: 1 if number % 2 == 0 else -1]:
            start, start_cpu = time.perf_counter(), cpu_seconds()
            done = sides[name]()
            runs[name].append((done, time.perf_counter() - start, cpu_seconds() - start_cpu))
    first, *others = sides
    return {
        "case": case,
        "unit": unit,
        "pairs": pairs,
        "sides": {
            name: {
                "rate": statistics.median(done / wall for done, wall, _ in measured),
                "rate_cpu": statistics.median(done / cpu for done, _, cpu in measured),
                "amount": [done for done, _, _ in measured],
                "seconds": [round(wall, 4) for _, wall, _ in measured],
                "cpu_seconds": [round(cpu, 4) for _, _, cpu in measured],
            }
            for name, measured in runs.items()
        },
        "ratio": {name: _ratio(runs[first], runs[name], 1) for name in others},
        "ratio_cpu": {name: _ratio(runs[first], runs[name], 2) for name in others},
    }


def cpu_seconds() -> float:
    """Processor seconds of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _ratio(
    baseline: Sequence[tuple[float, float, float]], side: Sequence[tuple[float, float, float]], clock: int
) -> float:
    pairs = zip(baseline, side, strict=True)
    return statistics.median(ours[0] / ours[clock] * theirs[clock] / theirs[0] for theirs, ours in pairs)


def report(name: str, results: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Prints the machine and a table of ``results``, and appends them to ``<out>/<name>.jsonl``, one line per case."""
    where = machine()
    installed = ", ".join(f"{package} {version}" for package, version in where["versions"].items())
    print(
        f"{where['cpu']}, {where['cores']} cores, {where['threads']} threads; Python {where['python']}, {installed}"
    )
    print(f"medians of the runs of each side, in turns; commit {where['commit']}\n")
    print(table(results))
    out.mkdir(parents=True, exist_ok=True)
    with open(out / f"{name}.jsonl", "a", encoding="utf-8") as file:
        for result in results:
            file.write(json.dumps({**where, **result}, ensure_ascii=False) + "\n")


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """The medians of ``compare``, a line per side."""
    lines = [("case", "side", "unit", "per second", "per CPU second", "ratio", "ratio (CPU)")]
    for result in results:
        for side, measured in result["sides"].items():
            compared = side in result["ratio"]
            lines.append(
                (
                    result["case"],
                    side,
                    result["unit"],
                    f"{measured['rate']:,.2f}",
                    f"{measured['rate_cpu']:,.2f}",
                    f"{result['ratio'][side]:.2f}x" if compared else "",
                    f"{result['ratio_cpu'][side]:.2f}x" if compared else "",
                )
            )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    shown = [
        [t.ljust(w) if i < 3 else t.rjust(w) for i, (t, w) in enumerate(zip(line, widths, strict=True))]
        for line in lines
    ]
    return "\n".join("  ".join(line).rstrip() for line in shown)


def machine() -> dict[str, Any]:
    """What every line of the results says about where and when it was measured."""
    import torch

    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": code_revision(),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": versions(),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
