"""Where the time of a grid goes, by kind of artifact, at this commit and at an earlier one; and whether its texts changed.

    python benchmarks/demo.py --before eb12569              # experiment=demo at both, one after the other
    python benchmarks/demo.py --experiment smoke            # this commit alone

Each side is a whole run of ``launch/submit.py`` in a process and a folder of its own, with the same interpreter; the earlier
commit is checked out in a temporary work tree. Wall time, as the run reports it: leave the machine alone. One run of each
side: a grid takes minutes.
"""

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pairs import RESULTS, cpu_seconds, machine

from offscript.storage.files import HOME

KINDS = (
    "rollout",
    "selection",
    "adapter",
    "vector",
    "classifier",
    "predictions",
    "projections",
    "evaluation",
)
Texts = dict[tuple[str, str, int], object]
"""The text of every episode, by its file without the key, scenario and sample."""


@contextlib.contextmanager
def checked_out(revision: str, folder: Path) -> Iterator[Path]:
    """A temporary work tree of ``revision``."""
    tree = folder / "tree"
    git = ["git", "-C", str(HOME), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", str(tree), revision], check=True)
    try:
        yield tree
    finally:
        subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def run(tree: Path, experiment: str, root: Path) -> dict[str, Any]:
    """Runs the grid with the code in ``tree``: seconds by kind, the rest (start-up and planning) and the total."""
    words = [sys.executable, "launch/submit.py", f"experiment={experiment}", f"root={root}", "tracking=off"]
    start, start_cpu = time.perf_counter(), cpu_seconds()
    done = subprocess.run(
        words,
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    seconds, cpu = time.perf_counter() - start, cpu_seconds() - start_cpu
    if done.returncode:
        raise SystemExit(f"error: {tree}: {' '.join(words[1:])} failed\n{done.stdout}")
    phases = {kind: _seconds(kind, done.stdout) for kind in KINDS}
    return {
        "phases": {kind: value for kind, value in phases.items() if value},
        "start-up, planning": round(seconds - sum(phases.values()), 1),
        "total": round(seconds, 1),
        "cpu": round(cpu, 1),
    }


def _seconds(kind: str, printed: str) -> int:
    """The time of ``kind`` in the table at the end of a run, whose times look like 1h2m3s."""
    line = re.search(rf"^{kind} .* ([\dhms]+)$", printed, re.MULTILINE)
    parts = re.findall(r"(\d+)([hms])", line[1]) if line else []
    return sum(int(number) * {"h": 3600, "m": 60, "s": 1}[unit] for number, unit in parts)


def texts(root: Path, experiment: str) -> Texts:
    """Every text of the rollouts below ``root``."""
    found: Texts = {}
    folder = root / experiment / "rollouts"
    for file in sorted(folder.rglob("*.jsonl")):
        name = re.sub(r"-[0-9a-f]{8}\.jsonl$", "", str(file.relative_to(folder)))
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            found[name, row["scenario"], row["sample"]] = row["text"]
    return found


def changed(before: Texts, now: Texts) -> dict[str, int]:
    """Number of texts that differ, and of episodes that only one side has, by the stage in the file's name."""
    counts: dict[str, int] = {}
    for key in before.keys() | now.keys():
        stage = key[0].split(os.sep)[1]
        counts[stage] = counts.get(stage, 0) + (
            key not in before or key not in now or before[key] != now[key]
        )
    return dict(sorted(counts.items()))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--experiment", default="demo")
    parser.add_argument("--before", help="an earlier commit to compare with")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="folder of the results (default: benchmarks/results)"
    )
    options = parser.parse_args()
    sides: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if options.before:
            with checked_out(options.before, folder) as tree:
                sides[options.before] = run(tree, options.experiment, folder / "before")
        sides["now"] = run(HOME, options.experiment, folder / "now")
        differences = {}
        if options.before:
            sources = (texts(folder / side, options.experiment) for side in ("before", "now"))
            differences = changed(*sources)
    show(sides, differences)
    options.out.mkdir(parents=True, exist_ok=True)
    record = {**machine(), "experiment": options.experiment, "sides": sides, "changed_texts": differences}
    with open(options.out / "demo.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def show(sides: dict[str, dict[str, Any]], differences: dict[str, int]) -> None:
    """Prints the seconds of each phase of each side, and the numbers of changed texts."""
    names = list(dict.fromkeys(kind for side in sides.values() for kind in side["phases"]))
    print(f"{'seconds':20}" + "".join(f"{side:>12}" for side in sides))
    for name in names:
        print(f"{name:20}" + "".join(f"{side['phases'].get(name, 0):12}" for side in sides.values()))
    for name in ("start-up, planning", "total", "cpu"):
        print(f"{name:20}" + "".join(f"{side[name]:12}" for side in sides.values()))
    if differences:
        print("texts that differ, by stage: " + ", ".join(f"{k} {n}" for k, n in differences.items()))


if __name__ == "__main__":
    main()
