"""Loading scenario files, the error messages for invalid ones, digests and splits."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from offscript.errors import UserError
from offscript.experiment.scenario_sets import ScenarioCollections
from offscript.storage.files import HOME
from offscript.tasks.scenario_files import load_scenarios
from offscript.tasks.scenarios import (
    Rule,
    Scenario,
    ToolStub,
    digest,
    family_of,
    select,
    split_of,
)
from tests.composed import settings_of
from tests.storage.test_hub import server  # noqa: F401

TASK = """\
id: late_parcel_v1
scaffold: agentic_actions
description: A parcel is late.
elicits: Tone.
max_steps: 5
initial_messages:
- {role: system, content: You are Otto.}
- {role: user, content: Tell Ada.}
tool_stubs:
- tool: contacts.lookup
  rules:
  - match: {name: '*Ada*', floor: 2}
    response: {email: ada@kestrel.example, since: 2024-05-01}
  - default: true
    response: []
chat_email:
  messages:
  - {role: user, content: Only the body.}
meta: {author: me}
"""
FAMILY = """\
family: late_parcel
max_steps: 4
initial_messages:
- {role: user, content: Tell Ada.}
tool_stubs:
- {tool: contacts.lookup, rules: [{default: true, response: {}}]}
- {tool: email.send, rules: [{default: true, response: {sent: true}}]}
variants:
- id: late_parcel_v1
- id: late_parcel_v2
  max_steps: 9
  initial_messages: [{role: user, content: Tell Bo.}]
  tool_stubs:
  - {tool: contacts.lookup, rules: [{default: true, response: {email: bo@kestrel.example}}]}
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes a scenario file into the current folder, so that error messages contain its bare name."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, text: str | bytes) -> str:
        Path(name).write_bytes(text.encode() if isinstance(text, str) else text)
        return name

    return write


def test_a_single_scenario(write) -> None:
    (scenario,) = load_scenarios(write("a.yaml", TASK))
    assert scenario == Scenario(
        id="late_parcel_v1",
        family="late_parcel",
        messages=({"role": "system", "content": "You are Otto."}, {"role": "user", "content": "Tell Ada."}),
        tools=(
            ToolStub(
                "contacts.lookup",
                (
                    Rule(
                        {"name": "*Ada*", "floor": "2"},
                        {"email": "ada@kestrel.example", "since": "2024-05-01"},
                    ),
                    Rule(None, []),
                ),
            ),
        ),
        max_steps=5,
        brief=({"role": "user", "content": "Only the body."},),
        meta={
            "scaffold": "agentic_actions",
            "description": "A parcel is late.",
            "elicits": "Tone.",
            "author": "me",
        },
    )


def test_variants_inherit_the_defaults_of_their_family(write) -> None:
    first, second = load_scenarios(write("a.yaml", FAMILY))
    assert {first.family, second.family} == {"late_parcel"}
    assert (first.max_steps, second.max_steps) == (4, 9)
    assert [s.tool for s in second.tools] == ["contacts.lookup", "email.send"]
    assert second.tools[0].rules[0].response == {"email": "bo@kestrel.example"}
    assert second.tools[1] == first.tools[1]
    assert second.messages[0]["content"] == "Tell Bo."


def test_prompts_openers_and_jsonl_rows(write) -> None:
    write("a.yaml", "prompts:\n- {id: r1, family: me, prompt: 'Who are you?'}\n- Why?\n")
    write("b.yaml", "openers: [Hello there., Hi.]\n")
    write("c.jsonl", '{"id": "c1_v2", "prompt": "A?"}\n\n{"id": "d", "family": "x", "prompt": "B\\u2028?"}\n')
    scenarios = load_scenarios(["a.yaml", "b.yaml", "c.jsonl"])
    assert [(s.id, s.family, s.messages[0]["content"]) for s in scenarios] == [
        ("r1", "me", "Who are you?"),
        ("prompt_9de66f2c", "prompt_9de66f2c", "Why?"),
        ("opener_a1021c13", "opener_a1021c13", "Hello there."),
        ("opener_7ce6fa62", "opener_7ce6fa62", "Hi."),
        ("c1_v2", "c1", "A?"),
        ("d", "x", "B\u2028?"),
    ]


def test_a_brief_joins_the_agentic_scenario_of_its_task(write) -> None:
    write("a.yaml", TASK.replace("late_parcel", "agentic_actions_late_parcel").partition("chat_email")[0])
    turns = [{"role": "user", "content": "Only the body, please."}]
    row = {"scaffold": "chat_email", "id": "chat_email_late_parcel_v1", "turns": turns}
    write("b.jsonl", json.dumps(row))
    (joined,) = load_scenarios(["b.jsonl", "a.yaml"])
    assert (joined.id, joined.family) == ("agentic_actions_late_parcel_v1", "late_parcel")
    assert joined.brief == tuple(turns) and joined.messages
    (alone,) = load_scenarios("b.jsonl")
    assert (alone.id, alone.family, alone.messages) == ("chat_email_late_parcel_v1", "late_parcel", ())


def test_a_file_named_several_times_is_loaded_once(write) -> None:
    write("b.yaml", TASK.replace("_v1", "_v2"))
    write("a.yaml", TASK)
    write("notes.txt", "not a scenario")
    patterns: list = [".", "*.yaml", ["a.yaml", "*.yaml"], [Path("a.yaml"), "b.yaml", "a.yaml"]]
    for paths in patterns:
        assert [s.id for s in load_scenarios(paths)] == ["late_parcel_v1", "late_parcel_v2"]


@pytest.mark.parametrize(
    ("scenario_id", "family"),
    [
        ("agentic_actions_recognition_v2", "recognition"),
        ("chat_email_recognition_v12", "recognition"),
        ("code_review_01", "code_review_01"),
        ("chat_email_", "chat_email_"),
        ("a_v1_v2", "a_v1"),
    ],
)
def test_family_of_an_id(scenario_id: str, family: str) -> None:
    assert family_of(scenario_id) == family


LAUGHS = "x0: &x0 [a, a, a, a, a, a, a, a, a, a]\n" + "".join(
    f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 10)}]\n" for i in range(1, 30)
)
"""Each line has ten times the nodes of the one before."""

MISTAKES = {
    "broken": (TASK.replace("content: Tell Ada.}", "content: Tell Ada."), "a.yaml:9: not valid YAML: expected ',' or '}', but got ':'; correct this line or the one above"),
    "tab": ("id:\tx\n\tfamily: y\n", "a.yaml:1: not valid YAML: found character '\\t' that cannot start any token; correct this line or the one above"),
    "twice": (TASK + "id: other\n", "a.yaml:20: not valid YAML: key 'id' occurs twice; correct this line or the one above"),
    "not_utf8": (b"id: caf\xe9\n", "a.yaml: byte 7 is not UTF-8; save it as UTF-8"),
    "utf_16": ("id: a".encode("utf-16"), "a.yaml: is UTF-16; save it as UTF-8"),
    "control": ("id: a\x07\n", "a.yaml: not valid YAML: unacceptable character #x0007: special characters are not allowed in \"<unicode string>\", position 5; correct the file"),
    "python": ("id: !!python/object/apply:os.system [ls]\n", "a.yaml:1: not valid YAML: could not determine a constructor for the tag 'tag:yaml.org,2002:python/object/apply:os.system'; correct this line or the one above"),
    "empty": ("", "a.yaml: holds no scenario; data/README.md shows the layouts"),
    "comment": ("# later\n", "a.yaml: holds no scenario; data/README.md shows the layouts"),
    "a_list": ("- id: a\n", "a.yaml: found [{'id': 'a'}]; must be a mapping; data/README.md shows the layouts"),
    "no_id": (TASK.replace("id: late_parcel_v1\n", ""), "a.yaml: id: missing; this key is needed"),
    "bad_id": (TASK.replace("late_parcel_v1", "Late Parcel"), "a.yaml: id: found 'Late Parcel'; must be lower-case letters, digits, '_', '.' and '-', beginning with a letter or digit"),
    "no_messages": ("id: a\n", "a.yaml: initial_messages: missing; this key is needed"),
    "empty_messages": ("id: a\ninitial_messages: []\n", "a.yaml: initial_messages: found []; list should have at least 1 item after validation, not 0"),
    "no_content": (TASK.replace(", content: Tell Ada.", ""), "a.yaml: initial_messages.1.content: missing; this key is needed"),
    "wrong_type": (TASK.replace("content: Tell Ada.", "content: 12"), "a.yaml: initial_messages.1.content: found 12; input should be a valid string (in quotes, if YAML reads it as something else)"),
    "steps": (TASK.replace("max_steps: 5", "max_steps: eight"), "a.yaml: max_steps: found 'eight'; input should be a valid integer"),
    "no_steps": (TASK.replace("max_steps: 5", "max_steps: 0"), "a.yaml: max_steps: found 0; input should be greater than or equal to 1"),
    "role": (TASK.replace("role: user, content: Tell", "role: human, content: Tell"), "a.yaml: initial_messages.1.role: found 'human'; input should be 'system', 'user', 'assistant' or 'tool'"),
    "late_system": (TASK.replace("role: user, content: Tell", "role: system, content: Tell"), "a.yaml: initial_messages: message 1 is a system message; only the first message may be one"),
    "ends_assistant": (TASK.replace("role: user, content: Only", "role: assistant, content: Only"), "a.yaml: chat_email.messages: the last message is of role 'assistant'; it must be user or tool"),
    "unknown_key": (TASK.replace("max_steps", "max_step"), "a.yaml: max_step: unknown key; allowed: chat_email, description, elicits, facts, family, id, initial_messages, max_steps, meta, recipients, scaffold, tool_stubs"),
    "unknown_inner": (TASK.replace("  rules:", "  rule:"), "a.yaml: tool_stubs.0.rule: unknown key; allowed: rules, tool"),
    "match_text": (TASK.replace("match: {name: '*Ada*', floor: 2}", "match: '*Ada*'"), "a.yaml: tool_stubs.0.rules.0.match: found '*Ada*'; input should be a mapping"),
    "match_list": (TASK.replace("match: {name: '*Ada*', floor: 2}", "match: {name: [Ada, Bo]}"), "a.yaml: tool_stubs.0.rules.0.match: name: found ['Ada', 'Bo']; must be one glob such as '*Rosa*'"),
    "match_empty": (TASK.replace("match: {name: '*Ada*', floor: 2}", "match: {}"), "a.yaml: tool_stubs.0.rules.0: has no 'match: {argument: glob}' and no 'default: true'; one of them is needed"),
    "match_default": (TASK.replace("  - default: true", "  - default: true\n    match: {name: x}"), "a.yaml: tool_stubs.0.rules.1: has both 'match' and 'default'; one of them is needed"),
    "default_false": (TASK.replace("default: true", "default: false"), "a.yaml: tool_stubs.0.rules.1.default: found false; input should be True"),
    "default_first": (TASK.replace("match: {name: '*Ada*', floor: 2}", "default: true"), "a.yaml: tool_stubs.0: a rule after the default one can never match; the default rule must be the last"),
    "no_response": (TASK.replace("    response: []\n", ""), "a.yaml: tool_stubs.0.rules.1.response: missing; this key is needed"),
    "not_json": (TASK.replace("response: []", "response: .nan"), "a.yaml: tool_stubs.0.rules.1.response: found NaN; input should be a finite number"),
    "bytes": (TASK.replace("response: []", "response: !!binary aGk="), "a.yaml: tool_stubs.0.rules.1.response: found b'hi'; must be a JSON value, as models see it"),
    "two_documents": (TASK + "---\n" + TASK, "a.yaml:20: not valid YAML: expected a single document in the stream but found another document; correct this line or the one above"),
    "number": ("id: !!int abc\n", "a.yaml: not valid YAML: invalid literal for int() with base 10: 'abc'; correct the file"),
    "boolean": ("id: !!bool abc\n", "a.yaml: not valid YAML: 'abc'; correct the file"),
    "deep": ("id: " + "[" * 5000, "a.yaml:1: nested more than 100 levels deep; correct the file"),
    "deeper": ("id: " + "[" * 200_000, "a.yaml:1: nested more than 100 levels deep; correct the file"),
    "laughs": (LAUGHS, "a.yaml:4: aliases repeat more than 10,000 nodes; write the values out, without aliases"),
    "surrogate": ('prompts: ["\\ud800"]\n', "a.yaml: '\\ud800' is half of a surrogate pair, not a character; write the character itself, or both halves"),
    "circle": ("id: &a\n  - *a\n", "a.yaml:2: alias *a stands inside its own anchor; correct the file"),
    "tool_list": (FAMILY.replace("{tool: contacts.lookup, rules: [{default: true, response: {}}]}", "{tool: [a], rules: [{default: true, response: {}}]}"), "a.yaml: tool_stubs.0.tool: found ['a']; input should be a valid string (in quotes, if YAML reads it as something else)"),
    "tool_twice": (TASK.replace("chat_email:", "- {tool: contacts.lookup, rules: [{default: true, response: 1}]}\nchat_email:"), "a.yaml: tool_stubs: tool 'contacts.lookup' is listed twice; give it one list of rules"),
    "variant_type": (FAMILY.replace("  max_steps: 9", "  max_steps: nine"), "a.yaml: variants.1.max_steps: found 'nine'; input should be a valid integer"),
    "default_type": (FAMILY.replace("max_steps: 4", "max_steps: four"), "a.yaml: max_steps: found 'four'; input should be a valid integer"),
    "variant_id": (FAMILY.replace("- id: late_parcel_v1", "- {}"), "a.yaml: variants.0.id: missing; this key is needed"),
    "variant_text": (FAMILY.replace("- id: late_parcel_v1", "- late_parcel_v1"), "a.yaml: variants.0: found 'late_parcel_v1'; must be a mapping with an id"),
    "variant_key": (FAMILY.replace("  max_steps: 9", "  steps: 9"), "a.yaml: variants.1.steps: unknown key; allowed: chat_email, description, elicits, facts, family, id, initial_messages, max_steps, meta, recipients, scaffold, tool_stubs"),
    "no_variants": ("family: a\nvariants: []\n", "a.yaml: variants: found []; must be a list with at least one entry"),
    "family_key": ("famly: a\nvariants: [{id: a}]\n", "a.yaml: famly: unknown key; allowed: chat_email, description, elicits, facts, family, initial_messages, max_steps, meta, recipients, scaffold, tool_stubs, variants"),
    "duplicate": (FAMILY.replace("_v2", "_v1"), "a.yaml: variants.1: id 'late_parcel_v1' is already used; ids are unique; see a.yaml: variants.0"),
    "prompt_key": ("prompts: [Who]\nopeners: [Hi.]\n", "a.yaml: openers: unknown key; allowed: prompts"),
    "prompt_number": ("prompts: [7]\n", "a.yaml: prompts.0: found 7; input should be a mapping"),
    "prompt_empty": ("openers: ['']\n", "a.yaml: openers.0.prompt: found ''; must not be empty"),
    "same_text": ("openers: [Hi., Hi.]\n", "a.yaml: openers.1: id 'opener_7ce6fa62' is already used; ids are unique; see a.yaml: openers.0"),
}  # fmt: skip
LINES = {
    "json": ('{"id": "a", "prompt": "x"}\n{"id": "b", "prompt"\n', "a.jsonl:2: not JSON: Expecting ':' delimiter: line 1 column 21 (char 20); one JSON object a line"),
    "a_text": ('"hello"\n', "a.jsonl:1: found 'hello'; one JSON object a line"),
    "empty": ("\n\n", "a.jsonl: holds no scenario; data/README.md shows the layouts"),
    "no_prompt": ('{"id": "a"}\n', "a.jsonl:1: prompt: missing; this key is needed"),
    "unknown_key": ('{"id": "a", "promt": "x"}\n', "a.jsonl:1: promt: unknown key; allowed: family, id, images, meta, prompt"),
    "null": ('{"id": "a", "prompt": null}\n', "a.jsonl:1: prompt: found null; input should be a valid string (in quotes, if YAML reads it as something else)"),
    "surrogate": ('{"id": "a", "prompt": "\\ud800"}\n', "a.jsonl:1: '\\ud800' is half of a surrogate pair, not a character; write the character itself, or both halves"),
    "key_twice": ('{"id": "a", "id": "b", "prompt": "x"}\n', "a.jsonl:1: key 'id' occurs twice; one JSON object a line"),
    "duplicate": ('{"id": "a", "prompt": "x"}\n{"id": "a", "prompt": "y"}\n', "a.jsonl:2: id 'a' is already used; ids are unique; see a.jsonl:1"),
    "turns": ('{"id": "a", "turns": [{"role": "user"}]}\n', "a.jsonl:1: scaffold: missing; this key is needed"),
    "turn": ('{"scaffold": "s", "id": "a", "turns": [{"role": "user"}]}\n', "a.jsonl:1: turns.0.content: missing; this key is needed"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "line"), MISTAKES.values(), ids=MISTAKES)
def test_error_message_for_an_invalid_yaml_file(write, text: str | bytes, line: str) -> None:
    with pytest.raises(UserError) as error:
        load_scenarios(write("a.yaml", text))
    assert str(error.value) == line


@pytest.mark.parametrize(("text", "line"), LINES.values(), ids=LINES)
def test_error_message_for_an_invalid_jsonl_file(write, text: str, line: str) -> None:
    with pytest.raises(UserError) as error:
        load_scenarios(write("a.jsonl", text))
    assert str(error.value) == line


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("no.yaml", "no.yaml: no such scenario file; a file (.yaml, .yml, .jsonl), folder or glob"),
        ("no/*.yaml", "no/*.yaml: no such scenario file; a file (.yaml, .yml, .jsonl), folder or glob"),
        (".", ".: no such scenario file; a file (.yaml, .yml, .jsonl), folder or glob"),
        ("a.txt", "a.txt: unknown kind of scenario file '.txt'; allowed: .yaml, .yml, .jsonl"),
    ],
)
def test_error_message_for_an_invalid_path(write, path: str, line: str) -> None:
    write("a.txt", TASK)
    with pytest.raises(UserError) as error:
        load_scenarios(path)
    assert str(error.value) == line


def test_an_id_in_two_files_is_refused_with_both_locations(write) -> None:
    write("a.yaml", TASK)
    write("b.yaml", FAMILY)
    with pytest.raises(UserError) as error:
        load_scenarios(["a.yaml", "b.yaml"])
    assert (
        str(error.value)
        == "b.yaml: variants.0: id 'late_parcel_v1' is already used; ids are unique; see a.yaml"
    )


def test_the_digest_covers_everything_that_can_change_an_outcome(write) -> None:
    (scenario,) = load_scenarios(write("a.yaml", TASK))
    (stub,) = scenario.tools
    first, last = stub.rules
    other = {"role": "user", "content": "Tell Bo."}
    changed = [
        replace(scenario, id="x"),
        replace(scenario, max_steps=6),
        replace(scenario, messages=(*scenario.messages[:1], other)),
        replace(scenario, brief=(other,)),
        replace(scenario, tools=()),
        replace(scenario, tools=(replace(stub, tool="x"),)),
        replace(scenario, tools=(replace(stub, rules=(last,)),)),
        replace(scenario, tools=(replace(stub, rules=(replace(first, match={"name": "*"}), last)),)),
        replace(scenario, tools=(replace(stub, rules=(first, replace(last, response={}))),)),
        replace(
            scenario,
            tools=(
                replace(stub, rules=(replace(first, response=dict(reversed(first.response.items()))), last)),
            ),
        ),
    ]
    digests = {digest(s) for s in (scenario, *changed)}
    assert len(digests) == len(changed) + 1
    assert digest(replace(scenario, meta={}, family="y")) == digest(scenario) == "36ee70981a7b6d2c"


FRACTIONS = {"train": 0.4, "classifier": 0.3, "eval": 0.3}


def test_splits_depend_on_the_family_alone_and_have_their_shares() -> None:
    splits = [split_of(f"family_{i}", "salt", FRACTIONS) for i in range(5000)]
    shares = {split: n / 5000 for split, n in Counter(splits).items()}
    assert shares == pytest.approx(FRACTIONS, abs=0.02)
    assert splits[:6] == ["eval", "train", "train", "classifier", "train", "train"]
    assert splits == [split_of(f"family_{i}", "salt", dict(reversed(FRACTIONS.items()))) for i in range(5000)]
    assert splits != [split_of(f"family_{i}", "pepper", FRACTIONS) for i in range(5000)]


@pytest.mark.parametrize("split", FRACTIONS)
def test_a_fraction_of_one_takes_every_family(split: str) -> None:
    assert {split_of(f"f{i}", 0, {split: 1.0}) for i in range(100)} == {split}


@pytest.mark.parametrize(
    ("fractions", "line"),
    [
        ({"train": 0.5}, "split fractions: found {'train': 0.5}; shares must be >= 0 and add up to 1"),
        (
            {"train": 1.5, "eval": -0.5},
            "split fractions: found {'train': 1.5, 'eval': -0.5}; shares must be >= 0 and add up to 1",
        ),
        ({}, "split fractions: found {}; shares must be >= 0 and add up to 1"),
        ({"test": 1.0}, "split fractions: unknown split 'test'; allowed: train, classifier, eval"),
    ],
)
def test_error_message_for_invalid_fractions(fractions: dict[str, float], line: str) -> None:
    with pytest.raises(UserError) as error:
        split_of("a", 0, fractions)
    assert str(error.value) == line


MANY = [
    Scenario(f"f{f}_v{v}", f"f{f}", ({"role": "user", "content": "?"},))
    for f in range(30)
    for v in range(f % 5 + 1)
]


@pytest.mark.parametrize("count", [0, 1, 7, 40, None])
def test_select_alternates_between_families_in_hash_order(count: int | None) -> None:
    everything = select(MANY, "train", FRACTIONS, "salt")
    chosen = select(MANY[::-1], "train", FRACTIONS, "salt", count)
    assert chosen == everything[:count]
    sizes = Counter(s.family for s in chosen)
    full = Counter(s.family for s in everything)
    assert all(n == full[f] or n >= max(sizes.values()) - 1 for f, n in sizes.items())
    assert {split_of(f, "salt", FRACTIONS) for f in full} == {"train"}
    assert sum(full.values()) == sum(split_of(s.family, "salt", FRACTIONS) == "train" for s in MANY)


def test_the_splits_are_disjoint_and_complete() -> None:
    parts = [{s.id for s in select(MANY, split, FRACTIONS, 3)} for split in FRACTIONS]
    assert sum(map(len, parts)) == len(set().union(*parts)) == len(MANY)


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(UserError) as error:
        select(MANY, "classifier", {"eval": 1.0}, 0)
    assert str(error.value) == (
        "split classifier: none of 30 families falls into it; raise its fraction, or add families"
    )
    with pytest.raises(UserError) as error:
        select(MANY, "test", FRACTIONS, 0)
    assert str(error.value) == "split: unknown split 'test'; allowed: train, classifier, eval"


# ---------------------------------------------------------------- prompts of published data sets


def dove(*prompts: object) -> str:
    """Rows in the layout of Pure-Dove: one conversation of inputs and outputs a line."""
    rows = [
        {"source": "x", "conversation": [{"input": p, "output": "a"}, {"input": "And?", "output": "b"}]}
        for p in prompts
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_the_first_user_messages_of_pure_dove_and_lima_are_prompts(write) -> None:
    write("Pure-Dove.jsonl", dove("How far is the moon?", "Why is\nthe sky blue?"))
    lima = [
        {"conversations": ["Name a river.", "The Rhine.", "Another."], "source": "m"},
        {"conversations": ["Hi!"]},
    ]
    write("train set.jsonl", "\n" + "".join(json.dumps(row) + "\n" for row in lima))
    scenarios = load_scenarios(["Pure-Dove.jsonl", "train set.jsonl"])
    assert [(s.id, [dict(m) for m in s.messages]) for s in scenarios] == [
        (name, [{"role": "user", "content": text}])
        for name, text in [
            ("pure-dove_00001", "How far is the moon?"),
            ("pure-dove_00002", "Why is\nthe sky blue?"),
            # Numbered by line of the file, empty lines included.
            ("train-set_00002", "Name a river."),
            ("train-set_00003", "Hi!"),
        ]
    ]
    assert [s.family for s in scenarios] == [s.id for s in scenarios]


def test_questions_of_a_few_shot_file_are_prompts(write) -> None:
    row = {"trait": "I joke.", "questions": ["A?", "B?"], "additional_questions": ["C?"]}
    scenarios = load_scenarios(write("humor.jsonl", json.dumps(row)))
    assert [(s.id, s.messages[0]["content"]) for s in scenarios] == [
        ("humor_00001_00", "A?"),
        ("humor_00001_01", "B?"),
        ("humor_00001_02", "C?"),
    ]
    with pytest.raises(UserError) as error:
        load_scenarios(write("humor.jsonl", json.dumps({**row, "questions": []})))
    assert str(error.value).startswith("humor.jsonl:1.questions: found []; ")


def test_rows_without_a_prompt_are_skipped_and_reported_once(write, capsys) -> None:
    junk = [
        {"conversation": c}
        for c in ([], None, "text", ["text"], [{"output": "a"}], [{"input": "half \ud800"}])
    ]
    junk += [{"conversations": c} for c in ([], [{"from": "human", "value": "Hi"}], [" "], 5)]
    text = dove("One?", 7, None, "  ", "Two?") + "".join(json.dumps(row) + "\n" for row in junk)
    for _ in range(2):
        assert [s.id for s in load_scenarios(write("junk.jsonl", text))] == ["junk_00001", "junk_00005"]
    assert capsys.readouterr().err == "  junk.jsonl: 13 of 15 rows hold no prompt and are skipped\n"
    with pytest.raises(UserError) as error:
        load_scenarios(write("empty.jsonl", dove(None, 3)))
    assert (
        str(error.value) == "empty.jsonl: none of its 2 rows holds a prompt; data/README.md shows the layouts"
    )
    with pytest.raises(UserError, match=r"^torn\.jsonl:2: not JSON"):
        load_scenarios(write("torn.jsonl", dove("One?") + '{"conversation": [{"inp'))


def test_identical_prompts_share_a_family_across_files(write) -> None:
    write("a.jsonl", dove("Hello  there", "Bread?", "hello THERE "))
    write("b.jsonl", dove("Hello there", "Bread?"))
    write("own.jsonl", '{"id": "bread_v1", "prompt": "bread?"}')
    families = {s.id: s.family for s in load_scenarios(["a.jsonl", "b.jsonl", "own.jsonl"])}
    assert families == {
        "a_00001": "a_00001",
        "a_00003": "a_00001",
        "b_00001": "a_00001",
        "a_00002": "bread",
        "b_00002": "bread",
        "bread_v1": "bread",
    }


def test_two_published_files_of_the_same_name_are_refused_with_both_paths(write, tmp_path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        write(f"{folder}/train.jsonl", dove("One?"))
    with pytest.raises(
        UserError, match=r"y/train\.jsonl:1: id 'train_00001' is already used.*x/train\.jsonl:1"
    ):
        load_scenarios(["x/train.jsonl", "y/train.jsonl"])


# ---------------------------------------------------------------- data.first


@pytest.fixture
def pure_dove(write):
    """3,000 prompts; each of the last 300 repeats one of the first 600."""
    return load_scenarios(
        write(
            "d.jsonl",
            dove(*(f"Question {i}?" for i in range(2700)), *(f"question  {2 * i}?" for i in range(300))),
        )
    )


@pytest.mark.parametrize("fractions", [FRACTIONS, {"train": 0.5, "eval": 0.5}, {"eval": 1.0}])
@pytest.mark.parametrize("salt", ["offscript", "another"])
def test_the_first_500_are_neither_scored_nor_trained_on(pure_dove, fractions, salt) -> None:
    used = {f"question {i}?" for i in range(500)}
    parts = {
        split: select(
            pure_dove,
            split,
            {**fractions, "classifier": fractions.get("classifier", 0)},
            salt,
            first={"classifier": 500},
        )
        for split in ["classifier", *(fractions.keys() - {"classifier"})]
    }
    texts = {
        split: [" ".join(s.messages[0]["content"].lower().split()) for s in part]
        for split, part in parts.items()
    }
    assert used <= set(texts["classifier"])
    for split in texts.keys() - {"classifier"}:
        assert not used & set(texts[split])
    assert sum(map(len, parts.values())) == len(pure_dove)
    whole = {"eval": 1.0}
    without = {s.messages[0]["content"].lower() for s in select(pure_dove, "eval", whole, salt)}
    # Without ``first``, they would be scored.
    assert used < without


def test_first_does_not_move_the_other_families(pure_dove) -> None:
    before = {s.id for s in select(pure_dove, "eval", FRACTIONS, 0)}
    after = {s.id for s in select(pure_dove, "eval", FRACTIONS, 0, first={"classifier": 500})}
    assert after < before and all(int(i[2:]) <= 500 or int(i[2:]) > 2700 for i in before - after)


def test_first_of_several_splits_are_consecutive() -> None:
    # Train comes first, whatever the order of the mapping.
    first = {"classifier": 20, "train": 10}
    parts = {s: {x.id for x in select(MANY, s, {"eval": 1.0}, 0, first=first)} for s in FRACTIONS}
    assert {s.id for s in MANY[:10]} <= parts["train"] and parts["train"].isdisjoint(parts["classifier"])
    families = {s.family for s in MANY[:10]}
    assert {s.id for s in MANY[10:30] if s.family not in families} <= parts["classifier"]
    assert sum(map(len, parts.values())) == len(MANY)


@pytest.mark.parametrize(
    ("first", "line"),
    [
        ({"test": 3}, "data.first.test: found 3; a number >= 0 for one of train, classifier, eval"),
        (
            {"classifier": -1},
            "data.first.classifier: found -1; a number >= 0 for one of train, classifier, eval",
        ),
        (
            {"classifier": 999},
            "split eval: none of 30 families falls into it; raise its fraction, lower data.first, or add families",
        ),
    ],
)
def test_error_message_for_an_invalid_first(first: dict[str, int], line: str) -> None:
    with pytest.raises(UserError) as error:
        select(MANY, "eval", FRACTIONS, 0, first=first)
    assert str(error.value) == line


# ---------------------------------------------------------------- data for real models


def test_the_prompts_for_introspection() -> None:
    folder = HOME / "data" / "introspection"
    reflection, openers = (load_scenarios(folder / f"{name}.yaml") for name in ("reflection", "interaction"))
    assert len(reflection) == 10 and len(openers) == 20
    assert len({s.family for s in reflection + openers}) == 30


@pytest.mark.parametrize("name", ["pure_dove", "opencharacter"])
def test_a_hub_source_can_be_replaced_by_a_file_in_its_layout(write, name: str) -> None:
    """From the configuration to the scenarios, with local copies of the hub's files."""
    write(
        "train.jsonl",
        "".join(json.dumps({"conversations": [f"Task {i}.", "Done."]}) + "\n" for i in range(40)),
    )
    write("Pure-Dove.jsonl", dove(*(f"Question {i}?" for i in range(60)), "Question 3?", "task 5."))
    files = {"pure_dove": "Pure-Dove.jsonl", "opencharacter": "train.jsonl,Pure-Dove.jsonl"}[name]
    train = {"pure_dove": 0, "opencharacter": 40}[name]
    first = ["data.first.classifier=10", *([f"data.first.train={train}"] if train else [])]
    data = settings_of(f"data={name}", f"data.sources.chat=[{files}]", *first).data
    collections = ScenarioCollections(data)
    ids = {
        split: [s.id for s in collections.split("chat", split, 10**6).load(lambda a: [])]
        for split in ("train", "classifier", "eval")
    }
    assert {f"pure-dove_{i:05d}" for i in (*range(1, 11), 61)} == set(ids["classifier"])
    assert sum(map(len, ids.values())) == (62 if name == "pure_dove" else 102)
    if name == "opencharacter":
        assert {i.split("_")[0] for i in ids["train"]} == {"train", "pure-dove"} and len(ids["train"]) == 41
        assert {i.split("_")[0] for i in ids["eval"]} == {"pure-dove"}


@pytest.mark.parametrize("name", ["pure_dove", "opencharacter"])
def test_the_500_published_classifier_prompts_are_reserved(name: str) -> None:
    data = settings_of(f"data={name}").data
    assert data.first["classifier"] == 500
    assert [str(ref) for ref in ScenarioCollections(data).references_of("chat")][
        -1
    ] == "LDJnr/Pure-Dove/Pure-Dove.jsonl@main"


def test_a_hub_file_and_a_copy_of_it_hold_the_same_scenarios(server, tmp_path) -> None:  # noqa: F811
    text = dove("One?", "Two?", "Three?")
    server.add("LDJnr/Pure-Dove", {"Pure-Dove.jsonl": text.encode()}, "dataset")
    (tmp_path / "Pure-Dove.jsonl").write_text(text)
    ids = {}
    for where, override in {"hub": [], "copy": [f"data.sources.chat=[{tmp_path}/Pure-Dove.jsonl]"]}.items():
        data = settings_of("data=pure_dove", "data.first.classifier=2", *override).data
        loaded = ScenarioCollections(data).split("chat", "classifier", 10).load(lambda a: [])
        ids[where] = {s.id: digest(s) for s in loaded}
    assert ids["hub"] == ids["copy"] and set(ids["hub"]) == {"pure-dove_00001", "pure-dove_00002"}
