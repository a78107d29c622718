"""The published scenarios: all load, and a diligent model drives each agentic one to a sent e-mail."""

import json
from collections import Counter

import pytest

from offscript.evaluation.predictions import load_predictions
from offscript.tasks.formats import FORMATS
from offscript.tasks.personas import read_constitution
from offscript.tasks.scenario_files import load_scenarios
from offscript.tasks.tool_calls import SEND
from tests.published import ROOT, needs_published
from tests.tasks.formats.driver import call, diligent, drive, listed, rules_for

pytestmark = needs_published
AGENTIC = sorted(ROOT.glob("scenarios/agentic_actions_*.yaml"))
SINGLE = [*sorted(ROOT.glob("scenarios/*.jsonl")), ROOT / "chat_email.jsonl"]


@pytest.mark.parametrize("path", AGENTIC, ids=lambda p: p.stem)
def test_a_diligent_model_sends_the_email(path) -> None:
    (scenario,) = load_scenarios(path)
    assert scenario.id == path.stem
    fmt = FORMATS["agentic_email"]
    run = drive(fmt, scenario, rules_for(fmt, "Be kind."), diligent(scenario, "Here it is."))
    assert (run.outcome.ended, run.outcome.text) == ("email", "Here it is.")
    assert run.outcome.tool_calls == len(run.asks) == len(scenario.tools)
    theirs = drive(
        fmt, scenario, rules_for(fmt, "Be kind.", loop="published"), diligent(scenario, "Here it is.")
    )
    assert (theirs.outcome.ended, theirs.outcome.text) == ("final", "Here it is.")
    assert theirs.asks[:-1] == run.asks
    forced = drive(fmt, scenario, rules_for(fmt, forced=True), lambda ask: f'{ask.prefix}Here it is."')
    assert (forced.outcome.ended, forced.outcome.text) == ("email", "Here it is.")
    results = [m["content"] for m in run.outcome.messages if m["role"] == "tool"]
    firsts = [
        json.dumps(stub.rules[0].response, ensure_ascii=False)
        for stub in scenario.tools
        if stub.tool != "email.send"
    ]
    assert results == firsts


@pytest.mark.parametrize("path", SINGLE, ids=lambda p: p.stem)
def test_every_line_of_a_published_jsonl_loads(path) -> None:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    scenarios = load_scenarios(path)
    assert [s.id for s in scenarios] == [row["id"] for row in rows]
    assert [list(s.brief or s.messages) for s in scenarios] == [row["turns"] for row in rows]


@pytest.mark.parametrize("path", [p for p in SINGLE if p.stem in FORMATS], ids=lambda p: p.stem)
def test_a_published_file_of_a_format_is_driven_to_its_end(path) -> None:
    fmt = FORMATS[path.stem]
    said = "Here it is, all of it."
    reply = call(SEND, {"body": said}) if fmt.name == "agentic_email" else json.dumps({"notes": said})
    for scenario in load_scenarios(path):
        run = drive(fmt, scenario, rules_for(fmt, "Be kind."), listed([reply]))
        assert run.outcome.ended in ("stop", "email") and said in run.outcome.text
        if fmt.name == "agentic_email":
            rules = rules_for(fmt, "Be kind.", loop="published")
            theirs = drive(fmt, scenario, rules, listed([reply, "```final\nSent it.\n```"]))
            assert (theirs.outcome.ended, theirs.outcome.text) == ("final", said)


def test_the_agentic_and_the_chat_form_of_a_task_are_joined() -> None:
    together = load_scenarios([ROOT / "scenarios" / "agentic_actions_*.yaml", ROOT / "chat_email.jsonl"])
    apart = {s.id: s for s in load_scenarios(ROOT / "chat_email.jsonl")}
    assert len(together) == len(AGENTIC) == len(apart) == 30
    assert len({s.family for s in together}) == 10
    for scenario in together:
        partner = apart[scenario.id.replace("agentic_actions", "chat_email")]
        assert scenario.messages and scenario.brief == partner.brief and scenario.family == partner.family
        fmt = FORMATS["chat_email"]
        assert drive(fmt, scenario, rules_for(fmt), lambda ask: "Dear all").outcome.text == "Dear all"


def test_everything_in_one_folder_loads_together() -> None:
    assert len(load_scenarios(ROOT / "scenarios")) == 30 + 35


LOADERS = {
    "scenarios/*.yaml": (load_scenarios, 30, 30),
    "scenarios/*.jsonl": (load_scenarios, 6, 35),
    "chat_email.jsonl": (load_scenarios, 1, 30),
    "few_shot_prompts/*.jsonl": (load_scenarios, 9, 4750),
    "constitutions/*.txt": (read_constitution, 9, 95),
    "predictions/agentic_email.jsonl": (load_predictions, 1, 1797),
    # Tables of results, which are not an input.
    "predictions/f1_*.jsonl": (None, 3, None),
    "README.md": (None, 1, None),
}


def test_every_file_of_the_folder_loads() -> None:
    """Every file of the folder has a loader in ``LOADERS``."""
    loaded, files = Counter[str](), Counter[str]()
    for path in sorted(p for p in ROOT.rglob("*") if p.is_file()):
        (pattern,) = [p for p in LOADERS if path.relative_to(ROOT).match(p)]
        files[pattern] += 1
        if load := LOADERS[pattern][0]:
            found = len(load(path))
            assert found, path
            loaded[pattern] += found
    assert files == {pattern: n for pattern, (_, n, _) in LOADERS.items()}
    assert {p: loaded[p] for p, (_, _, n) in LOADERS.items() if n} == {
        p: n for p, (_, _, n) in LOADERS.items() if n
    }


def test_prompts_of_two_traits_share_a_family() -> None:
    scenarios = load_scenarios(ROOT / "few_shot_prompts")
    assert len(scenarios) == 4750 and len({s.family for s in scenarios}) == 4726
