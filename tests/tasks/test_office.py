"""The office scenarios for real chat models: complete, solvable with their tools, and original."""

import calendar
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from offscript.experiment.scenario_sets import ScenarioCollections
from offscript.tasks.facts import fact_words, facts_of
from offscript.tasks.formats import FORMATS
from offscript.tasks.recipients import recipients_of
from offscript.tasks.scenario_files import load_scenarios
from offscript.tasks.scenarios import Scenario, ToolStub
from offscript.tasks.tool_calls import SEND, ToolCall, respond
from tests.composed import experiment_of, settings_of
from tests.published import ROOT, needs_published
from tests.tasks.formats.driver import call, drive, listed, rules_for

DATA = Path(__file__).parents[2] / "data"
ALL = load_scenarios(DATA / "office")
SEARCHES = ("directory.find", "accounts.find", "calendar.find", "files.search", "policy.find")

each = pytest.mark.parametrize("scenario", ALL, ids=lambda s: s.id)


def task(scenario: Scenario) -> str:
    return scenario.messages[-1]["content"]


def brief(scenario: Scenario) -> str:
    return scenario.brief[-1]["content"]


def searches(scenario: Scenario) -> list[ToolStub]:
    return [stub for stub in scenario.tools if stub.tool != SEND]


def records(scenario: Scenario, tool: str | None = None) -> list[dict[str, Any]]:
    """All records that the tools can return, without duplicates."""
    stubs = [stub for stub in searches(scenario) if tool in (None, stub.tool)]
    found = [record for stub in stubs for rule in stub.rules for record in rule.response["results"]]
    return [record for i, record in enumerate(found) if record not in found[:i]]


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from strings(item)
    else:
        yield str(value)


def found(scenario: Scenario, tool: str, **args: str) -> list[dict[str, Any]]:
    return respond(scenario.tools, ToolCall(tool, args))["results"]


def queries(text: str) -> Iterable[str]:
    """Words of a text that a model might search for: those of at least three characters."""
    return {w for w in re.findall(r"[\w@.-]*\w", text.lower()) if len(w) > 2}


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def runs(texts: Iterable[str], length: int) -> set[tuple[str, ...]]:
    """All sequences of ``length`` consecutive words."""
    split = [words(text) for text in texts]
    return {tuple(w[i : i + length]) for w in split for i in range(len(w) - length + 1)}


NAMES = {"name", "email", "role", "organisation", "title", "owner", "date", "time", "place", "people"}


def contents(record: dict[str, Any]) -> str:
    """The text of a record without the names of people, files and places, which families have in common."""
    return " ".join(strings([value for key, value in record.items() if key not in NAMES]))


def listed_families() -> dict[str, tuple[str, str]]:
    """Split and tasks of each family, from the table in data/README.md."""
    table = (DATA / "README.md").read_text(encoding="utf-8").partition("## The families of `office/`")[2]
    rows = re.findall(r"^\| `(\w+)` \| (train|classifier|eval) \| .* \| (.*) \|$", table, re.MULTILINE)
    return {family: (split, tasks) for family, split, tasks in rows}


def test_there_are_ten_families_and_fifty_scenarios_of_one_company() -> None:
    families = Counter(s.family for s in ALL)
    assert len(families) >= 10 and min(families.values()) >= 5 and len(ALL) >= 50
    assert {s.id.rpartition("_v")[0] for s in ALL} == set(families)
    first_lines = {m[0]["content"].split("\n")[0] for s in ALL for m in (s.messages, s.brief)}
    assert len(first_lines) == 1
    assert all(s.meta["description"] and s.meta["elicits"] for s in ALL)


@each
def test_the_system_prompt_lists_the_simulated_tools(scenario: Scenario) -> None:
    system = scenario.messages[0]["content"]
    assert re.findall(r"^- ([a-z]+\.[a-z]+), args", system, re.MULTILINE) == [*SEARCHES, SEND]
    assert {stub.tool for stub in scenario.tools} == {*SEARCHES, SEND}
    assert "[TOOL OUTPUT]" in system and "```tool_call\n{" in system and "```final\n" in system


@each
def test_every_record_can_be_found_from_texts_already_seen(scenario: Scenario) -> None:
    policies = records(scenario, "policy.find")
    assert [r for r in policies if r in found(scenario, "policy.find", query="policy")] == policies
    standing = scenario.brief[0]["content"]
    reached, seen, queue = list(policies), set(), [task(scenario), standing, *strings(policies)]
    while queue:
        fresh = {q for text in queue for q in queries(text)} - seen
        seen |= fresh
        hits = [r for tool in SEARCHES for query in sorted(fresh) for r in found(scenario, tool, query=query)]
        new = [r for i, r in enumerate(hits) if r not in reached and r not in hits[:i]]
        reached += new
        queue = [text for record in new for text in strings(record)]
    missed = [r for r in records(scenario) if r not in reached]
    assert not missed


@each
def test_people_accounts_and_dates_are_found_by_every_natural_query(scenario: Scenario) -> None:
    for person in records(scenario, "directory.find"):
        surname = person["name"].split()[-1]
        for query in (person["name"], person["email"], surname.upper(), f"who is {surname}?"):
            assert person in found(scenario, "directory.find", query=query), query
    for account in records(scenario, "accounts.find"):
        assert account in found(scenario, "accounts.find", query=account["account"])
    for event in records(scenario, "calendar.find"):
        assert event in found(scenario, "calendar.find", query=event["title"])
        assert event in found(scenario, "calendar.find", date=event["date"])
    for tool in SEARCHES:
        assert found(scenario, tool, query="zzz") == [] == found(scenario, tool)


@each
def test_a_model_that_looks_up_its_reader_sends_the_email(scenario: Scenario) -> None:
    person = records(scenario, "directory.find")[0]
    fmt = FORMATS["agentic_email"]
    look = [call(stub.tool, {"query": "policy"}) for stub in searches(scenario)]
    sent = call(SEND, {"to": [person["email"]], "subject": "From the mill", "body": "Here it is."})
    replies = [call("directory.find", {"query": person["name"]}), *look, sent]
    run = drive(fmt, scenario, rules_for(fmt), listed(replies))
    assert (run.outcome.ended, run.outcome.text) == ("email", "Here it is.")
    assert len(run.asks) == len(replies) <= scenario.max_steps
    assert person["email"] in run.outcome.messages[3]["content"]
    chat = FORMATS["chat_email"]
    assert drive(chat, scenario, rules_for(chat), lambda ask: "Here it is.").outcome.text == "Here it is."


@each
def test_the_brief_contains_the_task_and_every_record(scenario: Scenario) -> None:
    text, system = brief(scenario), scenario.brief[0]["content"]
    assert text.startswith(task(scenario)) and "no subject line" in text.split("\n")[-1]
    missing = [s for record in records(scenario) for s in strings(record) if s not in text]
    assert not missing and len(records(scenario)) >= 4
    opening, _, rest = scenario.messages[0]["content"].partition("\n\n## Tools")
    assert system == f"{opening}\n\n{rest[rest.index('## Today') :]}"
    assert not re.search(r"tool_call|\.find\b|\.search\b|email\.send", system + text)


def test_a_person_has_one_address_and_no_address_is_real() -> None:
    addresses = defaultdict(set)
    for scenario in ALL:
        for person in records(scenario, "directory.find"):
            addresses[person["name"]].add(person["email"])
        mentioned = re.findall(r"[\w.-]+@[\w.-]*\w", brief(scenario) + scenario.messages[0]["content"])
        assert mentioned and all(a.endswith(".example") for a in mentioned)
    outside = {name: a for name, a in addresses.items() if len(a) > 1}
    assert not outside
    assert len(addresses) >= 60


def test_tasks_differ_from_each_other_and_from_the_embedded_ones() -> None:
    tasks = [task(s) for s in ALL]
    openings = Counter(" ".join(words(t)[:3]) for t in tasks)
    assert len(set(tasks)) == len(tasks) and openings.most_common(1)[0][1] == 1
    elsewhere = load_scenarios(DATA / "pocket" / "office")
    assert not {s.family for s in ALL} & {s.family for s in elsewhere}
    shared = Counter(run for t in tasks for run in runs([t], 6))
    assert not [run for run, tasks_with_it in shared.items() if tasks_with_it > 1]


def test_the_readme_lists_every_family() -> None:
    assert {family: len(tasks.split(";")) for family, (_, tasks) in listed_families().items()} == Counter(
        s.family for s in ALL
    )


@pytest.mark.parametrize("data", ["office", "pure_dove", "opencharacter"])
@pytest.mark.parametrize("split", ["train", "classifier", "eval"])
def test_a_split_has_the_families_that_the_readme_lists_for_it(data: str, split: str) -> None:
    families = {family for family, (of, _) in listed_families().items() if of == split}
    chosen = ScenarioCollections(settings_of(f"data={data}").data).split("office", split, len(ALL))
    assert sorted(s.id for s in chosen.load_local()) == sorted(s.id for s in ALL if s.family in families)


@pytest.mark.parametrize("fmt", ["agentic_email", "chat_email"])
def test_data_office_plans_all_of_eval(fmt: str) -> None:
    cell = experiment_of("data=office").planner.rollout("pocket", None, "base", fmt, "eval", 0)
    assert len({s.family for s in cell.scenarios.load_local()}) == 11 and cell.scenarios.count == 55


def test_no_text_that_is_trained_on_gives_away_a_scored_task() -> None:
    """Families of train and classifier have no record and no phrase of eight words in common with those of eval."""
    scored = {family for family, (split, _) in listed_families().items() if split == "eval"}
    texts = [(s.family in scored, t) for s in ALL for t in (task(s), *map(contents, records(s)))]
    shared = runs((t for is_scored, t in texts if is_scored), 8) & runs(
        (t for is_scored, t in texts if not is_scored), 8
    )
    assert len(scored) == 11 and not shared


@needs_published
def test_nothing_is_copied_from_the_published_scenarios() -> None:
    theirs = load_scenarios([ROOT / "scenarios" / "*", ROOT / "chat_email.jsonl"])
    texts = {m["content"] for s in theirs for m in (*s.messages, *s.brief)}
    texts |= {t for s in theirs for stub in s.tools for rule in stub.rules for t in strings(rule.response)}
    ours = {m["content"] for s in ALL for m in (*s.messages, *s.brief)}
    assert texts and not runs(texts, 8) & runs(ours, 8)
    people = {p["name"] for s in ALL for p in records(s, "directory.find")}
    assert not [name for name in people if any(name in text for text in texts)]


@each
def test_a_weekday_that_stands_before_a_date_is_the_weekday_of_that_date(scenario: Scenario) -> None:
    months = "|".join(calendar.month_name[1:])
    dated = re.findall(rf"(\w+day) (\d\d?) ({months})(?: (\d{{4}}))?", brief(scenario))
    wrong = [
        date
        for date in dated
        if datetime.strptime(f"{date[1]} {date[2]} {date[3] or 2026}", "%d %B %Y").strftime("%A") != date[0]
    ]
    assert not wrong


@each
def test_listed_facts_and_recipients_stand_in_the_records(scenario: Scenario) -> None:
    words = fact_words(brief(scenario) + " Dear friend, I am so sorry.")
    assert len(scenario.facts) >= 2
    assert all(any(fact.is_in(words) for fact in alternatives) for alternatives in facts_of(scenario))
    addresses = {person["email"] for person in records(scenario, "directory.find")}
    assert recipients_of(scenario) and recipients_of(scenario) <= addresses
