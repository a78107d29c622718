"""Constitution files in the published layouts, and the error messages for invalid ones."""

import json
from pathlib import Path

import pytest

from offscript.errors import UserError
from offscript.settings import Assertion
from offscript.tasks.personas import read_constitution
from tests.composed import settings_of
from tests.published import ROOT, needs_published

ENTRIES = [
    {"trait": "I joke.", "questions": ["A?", " B? "]},
    {"trait": "I wink.", "questions": ["C?"], "additional_questions": ["D?", "E?"]},
]
READ = (
    Assertion(assertion="I joke.", questions=("A?", "B?")),
    Assertion(assertion="I wink.", questions=("C?", "D?", "E?")),
)


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes a file into the current folder, so that messages hold its bare name."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, content: str | bytes) -> str:
        Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
        return name

    return write


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_the_layout_is_recognized_by_the_content(write, name: str, bom: str) -> None:
    assert read_constitution(write(name, bom + json.dumps(ENTRIES, indent=2))) == READ
    lines = "\r\n\n".join(json.dumps(entry) for entry in ENTRIES)
    assert read_constitution(write(name, bom + lines + "\n")) == READ


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("", "a.txt: holds no assertion; must be a JSON list, or lines, of "),
        ("[]", "a.txt: holds no assertion; "),
        ("[{", "a.txt: not JSON: "),
        ('{"trait": "x", "questions": ["?"]}\n{"trait', "a.txt:2: not JSON: "),
        (b"\xff", "a.txt: byte 0 is not UTF-8; save it as UTF-8"),
        ("[{}]".encode("utf-16"), "a.txt: is UTF-16; save it as UTF-8"),
        ('[{"trait": "\\ud800", "questions": ["?"]}]', "a.txt[0]: '\\ud800' is half of a surrogate pair"),
        ("[" * 9999, "a.txt: nested more than 100 levels deep; must be"),
        ('{"trait": "x", "trait": "y", "questions": ["?"]}', "a.txt:1: key 'trait' occurs twice; must be"),
        ('["I joke."]', 'a.txt[0]: found \'I joke.\'; must be {"trait": ..., "questions": [...]}'),
        ("I joke.", "a.txt:1: not JSON: "),
        ([ENTRIES[0], {"trait": "I wink."}], "a.txt[1].questions: missing; this key is needed"),
        ([ENTRIES[0], {**ENTRIES[0], "trait": " "}], "a.txt[1].trait: found ' '; "),
        ([{**ENTRIES[0], "questions": []}], "a.txt[0].questions: found []; "),
        ([{**ENTRIES[0], "questions": "A?"}], "a.txt[0].questions: found 'A?'; "),
        ([{**ENTRIES[0], "questions": ["A?", 3]}], "a.txt[0].questions.1: found 3; "),
        (
            [{**ENTRIES[0], "question": "A?"}],
            "a.txt[0].question: unknown key; allowed: additional_questions, questions, trait",
        ),
    ],
)
def test_error_message_for_an_invalid_file(write, content, line: str) -> None:
    with pytest.raises(UserError) as error:
        read_constitution(write("a.txt", json.dumps(content) if isinstance(content, list) else content))
    assert str(error.value).startswith(line) and "\n" not in str(error.value)


def test_error_message_for_a_missing_file(write) -> None:
    with pytest.raises(UserError, match=r"^no\.txt: no such file; must be a JSON list, or lines, of "):
        read_constitution("no.txt")


@needs_published
@pytest.mark.parametrize(
    ("folder", "pattern", "each"), [("constitutions", "*.txt", 5), ("few_shot_prompts", "*.jsonl", 50)]
)
def test_all_published_constitutions_load(folder: str, pattern: str, each: int) -> None:
    read = {path.stem: read_constitution(path) for path in sorted((ROOT / folder).glob(pattern))}
    assert {name: len(c) for name, c in read.items()} == {
        "goodness": 15,
        "humor": 10,
        "impulsiveness": 10,
        "loving": 10,
        "misalignment": 10,
        "nonchalance": 10,
        "poeticism": 10,
        "remorse": 10,
        "sarcasm": 10,
    }
    assert {len(a.questions) for c in read.values() for a in c} == {each}
    assert all(a.assertion.strip() and len(a.assertion) > 20 for c in read.values() for a in c)


@needs_published
def test_a_few_shot_file_extends_its_constitution() -> None:
    for path in sorted((ROOT / "constitutions").glob("*.txt")):
        short, long = (
            read_constitution(path),
            read_constitution(ROOT / "few_shot_prompts" / f"{path.stem}.jsonl"),
        )
        assert [a.assertion for a in short] == [a.assertion for a in long]
        plain = [[q.replace("\u2019", "'") for a in read for q in a.questions[:5]] for read in (short, long)]
        # One apostrophe differs.
        assert plain[0] == plain[1]


def test_a_setting_takes_a_file_instead_of_assertions(write) -> None:
    write("own.txt", json.dumps(ENTRIES))
    assert settings_of("persona=sarcasm", "persona.constitution=own.txt").persona.constitution == READ
    write("broken.txt", "[1]")
    with pytest.raises(UserError, match=r"^broken\.txt\[0\]: found 1; must be"):
        settings_of("persona=sarcasm", "persona.constitution=broken.txt")
