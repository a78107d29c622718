"""The house as the README draws it: what imports what, and what starts fast."""

import ast
import re
import subprocess
import sys

import pytest

from offscript.store import HOME

FLOORS = [
    ["errors", "console", "store", "seeds"],
    ["settings", "personas", "prompts", "scenarios", "cell", "hub", "sources", "tracking", "transaction_log"],
    ["mailbox", "formats", "models", "engines", "supply"],
    ["grid", "estimate", "rollouts", "training", "classifier", "predictions", "metrics"],
    [
        "report",
        "evaluation",
        "bench",
        "work",
        "graph",
        "jobs",
        "cluster",
        "commands",
        "cli",
        "doctor",
        "dashboard",
        "sync",
        "pocket",
    ],
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS, start=1) for room in rooms}
MODULES = sorted((HOME / "offscript").rglob("*.py"))
HEAVY = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "deepspeed",
    "vllm",
    "matplotlib",
    "datasets",
    "sklearn",
    "wandb",
)


def room_of(path):
    return path.relative_to(HOME / "offscript").parts[0].removesuffix(".py")


def imports(path, top_only=False):
    """Dotted names that a module imports, with ``from a import b`` as ``a.b``."""
    tree = ast.parse(path.read_text())
    for node in ast.iter_child_nodes(tree) if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_room_is_on_the_map():
    rooms = {room_of(p) for p in MODULES} - {"__init__"}
    assert rooms == set(FLOOR)
    readme = (HOME / "README.md").read_text()
    for number, names in enumerate(FLOORS, start=1):
        drawn = readme.split(f"  floor {number}  ")[1].split("  floor")[0].split("```")[0]
        found = re.findall(r"^(?: {11})?(\w+)(?:\.py|/)(?=\s)", drawn, flags=re.MULTILINE)
        assert sorted(found) == sorted(names)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(HOME)))
def test_a_module_imports_only_from_its_own_floor_or_below(path):
    here = room_of(path)
    for name in imports(path):
        if name.startswith("offscript.") and here != "__init__":
            there = name.split(".")[1]
            assert FLOOR[there] <= FLOOR[here], f"{path.name} (floor {FLOOR[here]}) imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(HOME)))
def test_only_the_wrapper_imports_hydra_and_nothing_heavy_is_imported_at_the_top(path):
    used = {name.split(".")[0] for name in imports(path)}
    if path.name not in ("cli.py", "commands.py"):
        assert "hydra" not in used
    assert "submitit" not in used or path.parent.name == "cluster"
    if room_of(path) not in ("engines", "pocket"):
        heavy = {name.split(".")[0] for name in imports(path, top_only=True)} & set(HEAVY)
        assert not heavy, f"{path} imports {heavy} before it is needed"


@pytest.mark.parametrize("command", ["launch/submit.py", "evaluate.py"])
def test_planning_needs_no_torch(command, tmp_path):
    code = f"""
import runpy, sys
sys.argv = ["x", "experiment=demo", "dry_run=true"] if "submit" in {command!r} else ["x", "experiment=demo"]
try:
    runpy.run_path({str(HOME / command)!r}, run_name="__main__")
except SystemExit:
    pass
print(sorted(set(sys.modules) & set({HEAVY!r})))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout[-300:] + done.stderr[-300:]


def test_entry_points_and_launch_import_the_library_and_never_each_other():
    entries = [*HOME.glob("*.py"), *(HOME / "launch").glob("*.py")]
    assert len(entries) >= 5
    for path in entries:
        assert {name.split(".")[0] for name in imports(path)} <= {"offscript"}, path
