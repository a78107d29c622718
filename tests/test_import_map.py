"""The import map: which part imports which, and what starts without heavy libraries."""

import subprocess
import sys

import pytest
import yaml

from offscript.storage.files import HOME
from tools.import_map import MAP, circles, file_edges, imports, part_of

PACKAGE = HOME / "offscript"
RULES = yaml.safe_load(MAP.read_text())
FLOOR = {part: number for number, parts in enumerate(RULES["floors"], start=1) for part in parts}
MODULES = sorted(PACKAGE.rglob("*.py"))
HEAVY = tuple(RULES["late"])


def test_every_part_is_on_the_map_and_the_map_has_at_most_nine_floors():
    assert {part_of(p, PACKAGE) for p in MODULES} - {"__init__"} == set(FLOOR)
    assert len(RULES["floors"]) <= 9


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(HOME)))
def test_a_part_imports_itself_and_lower_floors_only(path):
    here = part_of(path, PACKAGE)
    for name in imports(path):
        if name.startswith("offscript.") and here != "__init__":
            there = name.split(".")[1]
            allowed = there == here or FLOOR[there] < FLOOR[here] or FLOOR[here] in (1, len(RULES["floors"]))
            assert allowed, f"{path.name} (floor {FLOOR[here]}) imports {name} (floor {FLOOR[there]})"


def test_no_files_import_one_another():
    assert circles(file_edges(PACKAGE)) == []


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(HOME)))
def test_libraries_are_imported_where_the_map_says(path):
    place = path.relative_to(PACKAGE).as_posix()
    used = {name.split(".")[0] for name in imports(path)}
    for library, places in RULES["only"].items():
        assert library not in used or place.startswith(tuple(places)), f"{place} imports {library}"
    assert "tools" not in used, f"{place} imports a tool"
    if not place.startswith(tuple(RULES["late_except"])):
        early = {name.split(".")[0] for name in imports(path, top_only=True)} & set(HEAVY)
        assert not early, f"{place} imports {early} before it is needed"


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


def test_rollouts_of_the_base_model_need_no_training_libraries(tmp_path):
    """``accelerate`` is left out: transformers imports it for its models."""
    words = ["stage=base", "format=chat", "limit=1", "tracking=off", f"root={tmp_path}"]
    code = f"""
import sys
from offscript.command_line import main
sys.argv = ["offscript", "rollout", *{words!r}]
try:
    main()
except SystemExit:
    pass
print(sorted(set(sys.modules) & set({HEAVY!r})))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=HOME, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "['torch', 'transformers']", (
        done.stdout[-300:] + done.stderr[-300:]
    )
    (rows,) = tmp_path.rglob("chat-eval-*.jsonl")
    assert len(rows.read_text().splitlines()) == 1


def test_entry_points_and_launch_import_the_library_and_never_each_other():
    entries = [*HOME.glob("*.py"), *(HOME / "launch").glob("*.py")]
    assert len(entries) >= 5
    for path in entries:
        assert {name.split(".")[0] for name in imports(path)} <= {"offscript"}, path
