"""The documentation: paths exist, links lead somewhere, command lines are accepted, and the examples of docs/extending.md
run.
"""

import itertools
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from offscript.command_line import COMMANDS
from offscript.storage.files import HOME
from offscript.tasks.formats import FORMATS
from offscript.tasks.formats.base import Format
from tests.composed import settings_of
from tools.import_map import MAP, drawing

PAGES = sorted(
    [
        *HOME.glob("*.md"),
        *(HOME / "docs").glob("*.md"),
        HOME / "data/README.md",
        HOME / "assets/pocket/README.md",
    ]
)
HISTORY = {"CHANGELOG.md", "LOG.md"}
"""Pages that name files of earlier versions."""

EXTENDING = HOME / "docs" / "extending.md"
PATH = re.compile(
    r"(?<![\w/.-])((?:offscript|conf|data|tests|tools|benchmarks|launch|docs|assets)/[\w./*-]*[\w*/])"
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
EXAMPLE = re.compile(r"^`([\w./]+)`:\n\n```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(
    r"^ {4}(?:python (\S+\.py)|torchrun \S+ (\S+\.py)|offscript (\w+))((?: .*)?)$", re.MULTILINE
)

DRIVER = """
import shlex, sys
from offscript.command_line import main
for line in sys.stdin.read().splitlines():
    sys.argv = shlex.split(line)
    try:
        main()
    except SystemExit as end:
        print(f"exit {end.code}: {line}", flush=True)
"""


def ids(page: Path) -> str:
    return str(page.relative_to(HOME))


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """The command lines of a page: name in the table of commands, and arguments."""
    script = {command.script: name for name, command in COMMANDS.items()}
    return [
        (name or script[python or torchrun], shlex.split(rest, comments=True))
        for python, torchrun, name, rest in COMMAND.findall(page.read_text(encoding="utf-8"))
        if name or (python or torchrun) in script
    ]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [p for p in PAGES if p.name not in HISTORY], ids=ids)
def test_paths_exist(page: Path) -> None:
    named = {found for found in PATH.findall(page.read_text(encoding="utf-8")) if "/my_" not in found}
    missing = [path for path in sorted(named) if not any(HOME.glob(path.rstrip("/")))]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if not link.startswith("https://"):
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_command_lines_are_accepted(page: Path) -> None:
    for name, words in commands(page):
        if {"...", "--help"} & {*words} or any("my_" in word for word in words):
            continue
        # Of a multirun the first cell; a launcher belongs to Hydra itself.
        overrides = [w if "[" in w or "{" in w else w.split(",")[0] for w in words if w != "-m"]
        settings_of(*(o for o in overrides if not o.startswith("hydra/")), config=COMMANDS[name].config)


def test_the_table_of_formats_is_that_of_the_code() -> None:
    """Names in order, kind, scenarios, cost, options, and whose scenarios the embedded model has in its own world."""
    import yaml

    lines = (HOME / "docs" / "formats.md").read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| format | off-distribution |"))
    rows = [
        [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        for line in itertools.takewhile(lambda line: line.startswith("|"), lines[start + 2 :])
    ]
    sources = yaml.safe_load((HOME / "conf/data/pocket.yaml").read_text(encoding="utf-8"))["sources"]
    own = {name for name, files in sources.items() if files[0].startswith("data/pocket/")}

    def expected(fmt: Format) -> list[str]:
        kind = ("no" if fmt.in_distribution else "yes") if fmt.scored else "not scored"
        replies = f"{fmt.cost.replies} × {fmt.cost.reply_tokens}"
        options = "`, `".join(fmt.defaults) or "-"
        plays = "yes" if fmt.source in own else "no"
        return [fmt.name, kind, fmt.source, replies, str(fmt.cost.prompt_tokens), options, plays]

    found = [[*row[:3], *row[4:7], row[7].partition(",")[0]] for row in rows]
    assert found == [expected(fmt) for fmt in FORMATS.values()]


def test_the_readme_has_at_most_130_lines() -> None:
    assert len((HOME / "README.md").read_text(encoding="utf-8").splitlines()) <= 130


def test_the_drawn_import_map_is_that_of_the_code() -> None:
    import yaml

    rules = yaml.safe_load(MAP.read_text(encoding="utf-8"))
    assert {*rules["about"]} == {
        part for floor in rules["floors"] for part in floor if not part.startswith("__")
    }

    def without_sizes(svg: str) -> str:
        return re.sub(r"\d+ files", "", svg)

    drawn = (HOME / "docs" / "import_map.svg").read_text(encoding="utf-8")
    message = "run: python tools/import_map.py --draw docs/import_map.svg"
    assert without_sizes(drawn) == without_sizes(drawing(HOME / "offscript", rules)), message


# ---------------------------------------------------------------- the examples of docs/extending.md


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with every example of docs/extending.md in its place."""
    root = tmp_path_factory.mktemp("extended")
    for folder in ("offscript", "conf", "data"):
        shutil.copytree(HOME / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "assets").symlink_to(HOME / "assets")
    text = EXTENDING.read_text(encoding="utf-8")
    examples = EXAMPLE.findall(text)
    assert len(examples) >= 12
    for name, content in examples:
        path = root / name
        assert not path.exists(), f"{name} is there already"
        path.parent.mkdir(exist_ok=True)
        path.write_text(content, encoding="utf-8")
    table = root / "offscript/evaluation/metrics/table.py"
    function, line = re.findall(
        r"^```(?:python|text)\n(.*?)^```$", text.partition("## A metric")[2], re.M | re.S
    )[:2]
    code = table.read_text(encoding="utf-8")
    code = code.replace("\n_field = partial(", f"\n{function}\n\n_field = partial(", 1)
    table.write_text(f"{code.rstrip().removesuffix(')')}{line})\n", encoding="utf-8")
    return root


def python(root: Path, code: str, given: str = "") -> str:
    """What a Python process prints that imports the library of ``root``."""
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(root)!r})\n{code}"]
    done = subprocess.run(command, input=given, cwd=root, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def run_examples(root: Path, lines: list[str]) -> None:
    printed = python(root, DRIVER, "\n".join(lines))
    codes = {line: code for code, line in re.findall(r"^exit (\d+): (.*)$", printed, flags=re.M)}
    assert codes == dict.fromkeys(lines, "0"), printed


def example_lines(*names: str) -> list[str]:
    """Command lines of docs/extending.md that run ``names``, without W&B."""
    return [
        shlex.join(["offscript", name, *words, "tracking=off"])
        for name, words in commands(EXTENDING)
        if name in names
    ]


def test_examples_of_personas_scenarios_formats_stages_and_engines_run(extended: Path) -> None:
    lines = example_lines("rollout", "submit")
    quick = [line for line in lines if "engine=" in line or "dry_run=true" in line]
    assert len(quick) >= 6
    run_examples(extended, quick)
    texts = [path.read_text(encoding="utf-8") for path in (extended / "runs/my_canned").rglob("*.jsonl")]
    assert texts and all('"text": "That depends."' in text for text in texts)


def test_the_example_of_a_metric_reaches_every_table(extended: Path) -> None:
    code = """
import json, sys
from pathlib import Path
from offscript.evaluation.evaluate import evaluate_rows
rows = [
    {"model": "toy", "stage": "full", "format": "chat", "split": "eval", "seed": 0, "scenario": f"s{i}", "family": f"s{i}",
     "sample": 0, "persona": p, "ended": "stop", "text_hash": f"{i}{p}", "predicted": p if i else "a",
     "probs": {"a": 0.5 + 0.25 * (p == "a" or not i), "b": 0.5 - 0.25 * (p == "a" or not i)} if p == "a" or not i
     else {"a": 0.25, "b": 0.75}}
    for i in range(4) for p in ("a", "b")
]
found = evaluate_rows(rows, Path("evaluation"), resamples=100)
print(found["groups"][0]["mean_recall"], Path("evaluation/cells.csv").read_text().splitlines()[0])
"""
    printed = python(extended, code)
    tables = (extended / "evaluation/tables.txt").read_text(encoding="utf-8")
    assert "recall" in tables.partition("by stage and format")[2].splitlines()[2]
    assert "0.875 model," in printed and printed.count("mean_recall") == 1


@pytest.mark.slow
def test_examples_of_methods_data_and_models_run(extended: Path) -> None:
    small = ["experiment=smoke", "name=main"]
    trained = [f"{line} {' '.join(small)}" for line in example_lines("train")]
    stacked = f"offscript train persona=sarcasm stage=distillation tracking=off {' '.join(small)}"
    method = f"offscript train persona=sarcasm stage=my_short tracking=off {' '.join(small)}"
    models = [line for line in example_lines("rollout") if "model=" in line]
    assert len(trained) == 2 and len(models) == 2
    run_examples(extended, [*trained, stacked, method, *models])


def test_every_test_that_reliability_names_exists() -> None:
    text = (HOME / "docs/reliability.md").read_text(encoding="utf-8")
    file, missing = "", []
    for path, name in re.findall(r"(tests/[\w/]+\.py)?(?:::(\w+))?", text):
        file = path or file
        if name and not re.search(rf"^def {name}\b", (HOME / file).read_text(encoding="utf-8"), re.MULTILINE):
            missing.append(f"{file}::{name}")
    assert file and not missing
