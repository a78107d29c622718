"""The installed command ``offscript``, and what pyproject.toml says of the package."""

import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import offscript
from offscript.command_line import COMMANDS
from offscript.storage.files import HOME

INSTALLED = Path(sys.executable).with_name("offscript")
PYPROJECT = tomllib.loads((HOME / "pyproject.toml").read_text(encoding="utf-8"))


def run(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [str(INSTALLED)] if INSTALLED.exists() else [sys.executable, "-m", "offscript"]
    return subprocess.run([*command, *words], cwd=cwd, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",), ("help",)], ids=" ".join)
def test_without_a_command_all_commands_are_listed_with_a_line_each(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    done = run(*words, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    for name, command in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(command.summary)}$", done.stdout, flags=re.M)


def test_an_unknown_command_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    done = run("experiment=demo", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: experiment=demo: no such command; allowed: {', '.join(COMMANDS)}\n"


def test_a_command_takes_the_arguments_of_its_script(tmp_path: Path) -> None:
    words = ("experiment=demo", "dry_run=true")
    done = run("submit", *words, cwd=tmp_path)
    script = subprocess.run(
        [sys.executable, str(HOME / "launch" / "submit.py"), *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == script.returncode == 0, done.stderr
    assert done.stdout == script.stdout and "classifier pocket" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_help_of_a_command_and_bad_input(tmp_path: Path) -> None:
    done = run("train", "--help", cwd=tmp_path)
    assert done.returncode == 0 and "offscript train model=pocket persona=sarcasm" in done.stdout
    done = run("rollout", "format=email", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: format=email: no such format; allowed: ")


def test_the_list_of_commands_imports_neither_hydra_nor_torch(tmp_path: Path) -> None:
    code = """
import sys
from offscript.command_line import main
sys.argv = ["offscript", "--help"]
try:
    main()
except SystemExit:
    pass
print(sorted({"hydra", "omegaconf", "torch", "numpy", "pydantic", "yaml"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr


def test_a_package_without_the_repository_says_so_in_one_line(tmp_path: Path) -> None:
    shutil.copytree(HOME / "offscript", tmp_path / "offscript", ignore=shutil.ignore_patterns("__pycache__"))
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from offscript.command_line import run; run('train')"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: {tmp_path / 'conf'}: no such folder; offscript runs from a checkout of its repository: pip install -e .\n"
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_script_and_a_configuration_with_help(name: str) -> None:
    command = COMMANDS[name]
    assert f'run("{name}")' in (HOME / command.script).read_text(encoding="utf-8")
    config = yaml.safe_load((HOME / "conf" / f"{command.config}.yaml").read_text(encoding="utf-8"))
    help_ = config["hydra"]["help"]
    assert help_["app_name"] == f"offscript {name}" and f"  offscript {name} " in help_["template"]
    assert len(command.summary) < 80


def test_every_script_is_a_command() -> None:
    scripts = {str(p.relative_to(HOME)) for p in [*HOME.glob("*.py"), *(HOME / "launch").glob("*.py")]}
    assert scripts == {command.script for command in COMMANDS.values()}


def test_dependencies_stand_once_and_pinned_in_the_requirements_files() -> None:
    dynamic = PYPROJECT["tool"]["setuptools"]["dynamic"]
    files = [*dynamic["dependencies"]["file"], *dynamic["optional-dependencies"]["dev"]["file"]]
    names = []
    for file in files:
        lines = (HOME / file).read_text(encoding="utf-8").splitlines()
        pins = [line for line in lines if line and not line.startswith("#")]
        # setuptools reads no options, such as -r, in these files.
        assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins), file
        names += [pin.partition("==")[0].lower() for pin in pins]
    assert len(set(names)) == len(names)
    assert "dependencies" not in PYPROJECT["project"] and "dependencies" in PYPROJECT["project"]["dynamic"]


def test_every_file_that_is_no_module_is_package_data() -> None:
    package = HOME / "offscript"
    (patterns,) = PYPROJECT["tool"]["setuptools"]["package-data"].values()
    shipped = {path for pattern in patterns for path in package.glob(pattern)}
    others = {path for path in package.rglob("*.*") if path.suffix not in (".py", ".pyc") and path.is_file()}
    assert others - shipped == set()


def test_the_version_is_the_same_everywhere() -> None:
    citation = yaml.safe_load((HOME / "CITATION.cff").read_text(encoding="utf-8"))
    changes = re.findall(
        r"^## (\S+) \(([\d-]+)\)$", (HOME / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.M
    )
    assert (citation["version"], str(citation["date-released"])) == changes[0]
    assert changes[0][0] == offscript.__version__


@pytest.mark.skipif(not INSTALLED.exists(), reason="offscript is not installed in this environment")
def test_the_installed_package_is_typed_and_names_its_dependencies() -> None:
    assert (Path(offscript.__file__).parent / "py.typed").exists()
    needed = importlib.metadata.requires("offscript") or []
    assert any(line.startswith("torch==") for line in needed)


def test_the_hooks_of_pre_commit_run_the_checks_of_make_lint() -> None:
    hooks = yaml.safe_load((HOME / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert [repo["repo"] for repo in hooks] == ["local"]
    entries = [hook["entry"] for hook in hooks[0]["hooks"]]
    lint = re.search(r"^lint:.*\n\t(.*)$", (HOME / "Makefile").read_text(encoding="utf-8"), flags=re.M)
    assert lint is not None
    for command in ("ruff check", "ruff format --check", "mypy offscript tools"):
        assert any(entry.startswith(f".venv/bin/{command}") for entry in entries)
        assert command in lint[1]
