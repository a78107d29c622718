"""Small grids of the embedded model for tests, the commands that launch them, and their expected results."""

import atexit
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from offscript.storage.files import HOME

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


def command(script: str, *overrides: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """Runs one of the launch commands."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, f"launch/{script}.py", *overrides]
    return subprocess.run(words, cwd=HOME, env=env, capture_output=True, text=True, timeout=timeout)


@functools.cache
def inline_root(grid: tuple[str, ...]) -> Path:
    """Root of a grid that was run in one process; it runs once per session."""
    root = tempfile.mkdtemp(prefix="offscript-inline-")
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    done = command("submit", *grid, f"root={root}")
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
    """The JSON output of ``launch/status.py``, with its exit code as ``code``."""
    done = command("status", *grid, f"root={root}", "json=true")
    assert done.stdout, done.stderr
    return {**json.loads(done.stdout), "code": done.returncode}


def duplicate_rows(root: Path) -> list[str]:
    """Rows of rollouts that are in their file more than once."""
    found = []
    for path in sorted((root / "smoke" / "rollouts").rglob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        counted = Counter((row["scenario"], row["sample"]) for row in rows)
        found += [f"{path.name}: {row}" for row, n in counted.items() if n > 1]
    return found


def jobs(root: Path) -> dict[str, str]:
    """Label -> job id of the newest launch."""
    newest = sorted((root / "smoke" / "launch").glob("*/submitted.json"))[-1]
    return {job["label"]: job["id"] for job in json.loads(newest.read_text())["jobs"]}
