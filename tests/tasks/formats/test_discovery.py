"""Formats are found by folder, and one that is added as a single file and a YAML can be run."""

from pathlib import Path

import pytest

from offscript.errors import UserError
from offscript.rollouts.engines.base import Sampling
from offscript.rollouts.engines.scripted import ScriptedEngine
from offscript.rollouts.scheduler import CellRun, run_episodes
from offscript.storage.rows import read_rows
from offscript.tasks import formats
from offscript.tasks.formats import FOLDER, FORMATS, check_episodes, formats_in, get_format
from offscript.tasks.formats.base import TYPICAL_COST, Rules
from offscript.tasks.scenario_files import load_scenarios
from tests.composed import settings_of

CONFIGURED = FOLDER.parents[2] / "conf" / "format"
DOUBT = """
from offscript.tasks.formats.base import Ask, Format, Outcome
from offscript.tasks.formats.episodes import assistant_message, require, with_system


def episode(scenario, rules):
    messages = with_system(rules.system, require(scenario, "messages"))
    first = yield Ask(messages)
    question = {"role": "user", "content": rules.options["question"]}
    messages = (*messages, assistant_message(first.text), question)
    second = yield Ask(messages)
    return Outcome(second.text, (*messages, assistant_message(second.text)), "doubted")


FORMAT = Format("doubt", version=1, source="chat", episode=episode, options={"question": "Sure?"}, order=25)
"""
DOUBT_YAML = """
name: doubt
max_tokens: 32
count: {eval: 3}
options: {question: "Are you sure?"}
"""


def write(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_a_format_of_one_file_and_one_yaml_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = write(tmp_path / "code", "doubt.py", DOUBT)
    write(code, "helper.py", "NOTHING = 1\n")
    write(tmp_path / "conf", "README.md", "")
    write(tmp_path / "conf" / "format", "doubt.yaml", DOUBT_YAML)
    monkeypatch.setattr(formats, "FORMATS", formats_in(FOLDER, code))
    names = list(formats.FORMATS)
    assert names.index("break_character") < names.index("doubt") < names.index("chat_email")
    assert (get_format("doubt").in_distribution, get_format("doubt").cost) == (False, TYPICAL_COST)

    settings = settings_of("format=doubt", f"hydra.searchpath=[file://{tmp_path / 'conf'}]")
    fmt = get_format(settings.format.name)
    rules = Rules("Be brief.", {**fmt.defaults, **settings.format.options})
    scenarios = load_scenarios("data/pocket/chat.jsonl")[: settings.format.count["eval"]]
    check_episodes(fmt, scenarios, rules)
    sampling = Sampling(max_tokens=settings.format.max_tokens)
    labels = {"format": fmt.name}
    run = CellRun("key", tmp_path / "rows.jsonl", labels, fmt, scenarios, 2, rules, None, sampling)
    engine = ScriptedEngine(lambda request: f"{len(request.messages)} messages, then a reply")
    counts = run_episodes([run], engine, max_live=4)["key"]
    rows = read_rows(run.path, "")
    assert (counts.planned, counts.written, counts.emitted) == (6, 6, 6)
    assert {(row["text"], row["ended"], row["turns"]) for row in rows} == {
        ("4 messages, then a reply", "doubted", 2)
    }
    assert {row["messages"][-2]["content"] for row in rows} == {"Are you sure?"}
    assert all(request.sampling.max_tokens == 32 for request in engine.seen)


@pytest.mark.parametrize(
    ("name", "code", "line"),
    [
        ("sure.py", DOUBT, "sure.py: FORMAT.name: found 'doubt'; must be 'sure', the file's name"),
        ("doubt.py", "FORMAT = 'doubt'\n", "doubt.py: FORMAT: found str; must be a Format"),
    ],
)
def test_a_file_that_is_no_format_is_refused(tmp_path: Path, name: str, code: str, line: str) -> None:
    with pytest.raises(UserError) as error:
        formats_in(FOLDER, write(tmp_path, name, code))
    assert str(error.value).startswith(f"{tmp_path}/{line}")


def test_two_files_of_one_name_are_refused_with_both_paths(tmp_path: Path) -> None:
    own = write(tmp_path, "chat.py", DOUBT.replace("doubt", "chat")) / "chat.py"
    with pytest.raises(UserError, match="a second Format 'chat'; rename it") as error:
        formats_in(FOLDER, tmp_path)
    assert str(own) in str(error.value) and str(FOLDER / "chat.py") in str(error.value)


def test_every_format_has_a_yaml_of_its_name_and_every_yaml_a_format() -> None:
    configured = {path.stem for path in CONFIGURED.glob("*.yaml")}
    assert set(FORMATS) - configured == set(), "formats without a file in conf/format"
    assert configured - set(FORMATS) == set(), "files in conf/format without a format"


def test_the_four_first_formats_keep_their_order_whatever_stands_between_them() -> None:
    first = ["chat", "break_character", "chat_email", "agentic_email"]
    assert [name for name in FORMATS if name in first] == first
    assert all(FORMATS[name].scored for name in first)
    assert [name for name in first if FORMATS[name].in_distribution] == ["chat"]
