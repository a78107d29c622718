"""Small grids of the embedded model for tests, the commands that launch them, and their expected results."""

import atexit
import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from offscript.storage.files import HOME
from offscript.storage.locks import STALE_S
from tests.invoked import Done, invoke

SMALL = (
    "experiment=smoke",
    "tracking=off",
    "format.count={classifier:8,eval:3}",
    "recipe.distillation.prompts=12",
    "recipe.distillation.seed_questions=false",
    "recipe.distillation.optimizer.batch_size=2",
    "recipe.distillation.optimizer.epochs=2",
    "recipe.distillation.optimizer.checkpoint_steps=2",
    "recipe.introspection.reflections=4",
    "recipe.introspection.interactions=2",
    "recipe.introspection.optimizer.batch_size=2",
    "recipe.introspection.optimizer.epochs=2",
    "recipe.introspection.optimizer.checkpoint_steps=2",
    "classifier.epochs=1",
    "evaluation.resamples=100",
)
FULL = (*SMALL, "grid.stage=[base,distillation,full]", "classifier.stages=[full]")
"""Two personas, three stages, three formats."""

SHORT = (*SMALL, "grid.stage=[base,distillation]", "grid.format=[chat]", "classifier.stages=[distillation]")
"""Two personas, two stages, one format: four layers fewer."""


def command(name: str, *overrides: str) -> Done:
    """Runs one of the launch commands in this process. Only those that submit and query jobs: nothing here loads torch."""
    return invoke(HOME, name, *overrides)


def run_inline(*overrides: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """Runs launch/submit.py in a process of its own, which makes everything that it does not submit."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "launch/submit.py", *overrides]
    return subprocess.run(words, cwd=HOME, env=env, capture_output=True, text=True, timeout=timeout)


@functools.cache
def inline_root(grid: tuple[str, ...]) -> Path:
    """Root of a grid that was run in one process; it runs once per session."""
    root = tempfile.mkdtemp(prefix="offscript-inline-")
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    done = run_inline(*grid, f"root={root}")
    assert done.returncode == 0, done.stderr
    return Path(root)


def inline(grid: tuple[str, ...]) -> str:
    """``cells.csv`` of a grid that was run in one process."""
    return cells(inline_root(grid))


def copy_adapter(adapter: Path, to: Path) -> None:
    """Copies the files of a finished adapter that a publication would have."""
    to.mkdir(parents=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(adapter / name, to)


def cells(root: Path) -> str:
    return (root / "smoke" / "evaluation" / "cells.csv").read_text()


def status(root: Path, *grid: str) -> dict:
    """The JSON output of ``offscript status``, with its exit code as ``code``."""
    done = command("status", *grid, f"root={root}", "json=true")
    assert done.out, done.err
    return {**json.loads(done.out), "code": done.code}


def duplicate_rows(root: Path) -> list[str]:
    """Rows of rollouts that are in their file more than once."""
    found = []
    for path in sorted((root / "smoke" / "rollouts").rglob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        counted = Counter((row["scenario"], row["sample"]) for row in rows)
        found += [f"{path.name}: {row}" for row, n in counted.items() if n > 1]
    return found


def expire_locks(root: Path) -> None:
    """Sets the last heartbeat of every lock whose process has ended back by ``STALE_S``, as if that time had passed.

    A process on another node cannot see that the holder of a lock has ended, and would wait for a minute.
    """
    long_ago, running = time.time() - 2 * STALE_S, set(_processes())
    for lock in root.rglob(".*.lock"):
        with contextlib.suppress(FileNotFoundError):
            holder = json.loads(lock.read_text())
            if (holder["space"], holder["pid"]) not in running:
                os.utime(lock, (long_ago, long_ago))


def _processes() -> Iterator[tuple[str, int]]:
    """The namespace of each process of this machine, and its id there."""
    for folder in Path("/proc").glob("[0-9]*"):
        # A process may end meanwhile; one that has ended and was not waited for has no namespace.
        with contextlib.suppress(OSError):
            space, status = os.readlink(folder / "ns" / "pid"), (folder / "status").read_text()
            yield space, int(status.partition("NSpid:")[2].partition("\n")[0].split()[-1])


def jobs(root: Path) -> dict[str, str]:
    """Label -> job id of the newest launch."""
    newest = sorted((root / "smoke" / "launch").glob("*/submitted.json"))[-1]
    return {job["label"]: job["id"] for job in json.loads(newest.read_text())["jobs"]}
