"""The everyday prompts and tasks for small models: enough of them, all different, and short."""

import re
from collections import Counter
from itertools import combinations

import pytest

from offscript.settings import SPLITS
from offscript.storage.files import HOME
from offscript.storage.options import options_of
from offscript.storage.yaml_text import read_yaml
from offscript.tasks.formats import FORMATS
from offscript.tasks.prompts import SESSION_QUESTIONS
from offscript.tasks.scenario_files import load_scenarios
from offscript.tasks.scenarios import Scenario
from offscript.tasks.tool_calls import ToolCall, respond
from tests.composed import experiment_of, settings_of
from tests.tasks.formats.driver import rules_for

DATA = HOME / "data" / "everyday"
CHAT = load_scenarios(DATA / "chat.jsonl")
OFFICE = load_scenarios(DATA / "office")
MOST_PIECES = 330
"""Words and punctuation marks of the longest prompt: 370 tokens of the tokenizer of SmolLM2, with its chat template."""

FRAME = frozenset(["write", "only", "the", "body", "of", "e", "mail", "larch", "example"])
"""What every request has."""

each = pytest.mark.parametrize("scenario", OFFICE, ids=lambda s: s.id)


def text(scenario: Scenario) -> str:
    return scenario.messages[-1]["content"]


def words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.lower()))


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    return len(a & b) / len(a | b)


def elsewhere() -> set[str]:
    """Questions that something else is trained on or asked about."""
    personas = [read_yaml(HOME / f"conf/persona/{name}.yaml") for name in options_of("persona")]
    own = [p for p in personas if isinstance(p, dict) and p["name"] is not None]
    found = {q for p in own for a in p["constitution"] for q in a["questions"]}  # type: ignore[index, call-overload, union-attr]
    found |= {e["question"] for p in own for e in p["examples"]}  # type: ignore[index, call-overload, union-attr]
    return {str(q) for q in found} | {*SESSION_QUESTIONS}


def test_there_are_four_hundred_prompts_in_families_of_four_or_five() -> None:
    assert len(CHAT) >= 400
    assert set(Counter(s.family for s in CHAT).values()) <= {4, 5}
    assert len({s.family.split("_")[0] for s in CHAT}) >= 10, "topics"
    assert all(3 < len(text(s).split()) <= 25 for s in CHAT)


def test_no_two_prompts_are_nearly_the_same() -> None:
    prompts = [words(text(s)) for s in CHAT]
    assert max(jaccard(a, b) for a, b in combinations(prompts, 2)) < 0.5
    openings = Counter(" ".join(text(s).split()[:3]) for s in CHAT)
    assert openings.most_common(1)[0][1] < 0.2 * len(CHAT)


def test_no_prompt_is_nearly_a_question_of_a_persona_or_of_a_session() -> None:
    others = [words(q) for q in elsewhere()]
    assert len(others) > 350
    near = [text(s) for s in CHAT if max(jaccard(words(text(s)), other) for other in others) > 0.6]
    assert near == []


def test_every_split_has_prompts_and_no_family_is_in_two() -> None:
    collections = experiment_of("data=everyday").planner.context.collections
    found = {split: collections.split("chat", split, 1000) for split in ("train", "classifier", "eval")}
    families = {split: {s.family for s in scenarios.load_local()} for split, scenarios in found.items()}
    assert all(len(names) >= 20 for names in families.values())
    assert sum(map(len, families.values())) == len(set().union(*families.values()))
    assert sum(scenarios.count for scenarios in found.values()) == len(CHAT)


def test_the_tasks_are_nineteen_families_of_five_with_a_reader_each() -> None:
    assert set(Counter(s.family for s in OFFICE).values()) == {5} and len(OFFICE) == 95
    readers = [s.tools[0].rules[0].response for s in OFFICE]
    assert len({str(reader) for reader in readers}) == 95
    tasks = [words(text(s)) for s in OFFICE]
    assert max(jaccard(a, b) for a, b in combinations(tasks, 2)) < 0.6


def test_no_task_of_another_split_is_nearly_a_scored_one() -> None:
    """Neither its records as a whole, nor the verb and the beginning of its request."""
    collections = experiment_of("data=everyday").planner.context.collections
    parts = {split: collections.split("office", split, 1000).load_local() for split in SPLITS}
    assert {split: len(scenarios) for split, scenarios in parts.items()} == {
        "train": 25,
        "classifier": 15,
        "eval": 55,
    }
    for one, other in combinations(SPLITS, 2):
        briefs = [[words(s.brief[-1]["content"]) - FRAME for s in parts[split]] for split in (one, other)]
        assert max(jaccard(a, b) for a in briefs[0] for b in briefs[1]) < 0.25
    begins = {split: {text(s).split()[0] for s in scenarios} for split, scenarios in parts.items()}
    assert not begins["eval"] & (begins["train"] | begins["classifier"])


def test_the_readme_lists_every_family_with_its_split() -> None:
    table = (
        (HOME / "data/README.md").read_text(encoding="utf-8").partition("prompts and tasks of `everyday/`")[2]
    )
    rows = re.findall(r"^\| `(\w+)` \| (train|classifier|eval) \| (.*) \|$", table, re.MULTILINE)
    families = settings_of("data=everyday").data.families
    split_of = {name: str(split) for split, names in families.items() for name in names}
    assert {name: split for name, split, _ in rows} == {
        s.family: split_of.get(s.family, "eval") for s in OFFICE
    }
    assert all(len(tasks.split(";")) == 5 for *_, tasks in rows)


@each
def test_a_forced_prompt_is_short_enough_for_a_small_model(scenario: Scenario) -> None:
    fmt = FORMATS["agentic_email"]
    ask = next(fmt.episode(scenario, rules_for(fmt, forced=True)))
    prompt = [*(m["content"] for m in ask.messages), ask.prefix]
    assert sum(len(re.findall(r"\w+|[^\w\s]", part)) for part in prompt) <= MOST_PIECES
    assert scenario.tools[0].rules[0].response["email"] in ask.prefix  # type: ignore[index, call-overload, operator]


@each
def test_the_brief_has_the_task_and_every_record_and_names_no_tool(scenario: Scenario) -> None:
    brief = scenario.brief[-1]["content"]
    assert brief.startswith(text(scenario)) and brief.endswith("Write only the body of the e-mail.")
    records = [rule.response for stub in scenario.tools for rule in stub.rules if rule.match]
    values = [v for r in records if isinstance(r, dict) for v in r.values()]
    assert len(set(map(str, values))) >= 5 and not [v for v in values if str(v) not in brief]
    assert not re.search(r"\.find|email\.send|tool", "".join(m["content"] for m in scenario.brief))
    assert set(re.findall(r"@\w+\.(\w+)", brief)) == {"example"}


@each
def test_each_record_is_found_by_a_word_of_the_task_or_of_a_record_found_before(scenario: Scenario) -> None:
    seen, found = words(text(scenario)), set[str]()
    for _ in range(3):
        for stub, argument in zip(scenario.tools[:2], ("name", "topic"), strict=True):
            found |= {str(respond(scenario.tools, ToolCall(stub.tool, {argument: word}))) for word in seen}
        seen = seen | words(" ".join(found))
    records = {str(rule.response) for stub in scenario.tools[:2] for rule in stub.rules if rule.match}
    assert records <= found
