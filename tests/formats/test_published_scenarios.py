"""The published scenarios: all load, and a diligent model drives each agentic one to a sent e-mail."""

import json

import pytest

from offscript.formats import FORMATS
from offscript.scenarios import load_scenarios
from tests.formats.driver import diligent, drive, rules_for
from tests.published import ROOT, needs_published

pytestmark = needs_published
AGENTIC = sorted(ROOT.glob("scenarios/agentic_actions_*.yaml"))
SINGLE = [*sorted(ROOT.glob("scenarios/*.jsonl")), ROOT / "chat_email.jsonl"]


@pytest.mark.parametrize("path", AGENTIC, ids=lambda p: p.stem)
def test_a_diligent_model_sends_the_email(path) -> None:
    (scenario,) = load_scenarios(path)
    assert scenario.id == path.stem
    form = FORMATS["agentic_email"]
    run = drive(form, scenario, rules_for(form, "Be kind."), diligent(scenario, "Here it is."))
    assert (run.outcome.ended, run.outcome.text) == ("email", "Here it is.")
    assert run.outcome.tool_calls == len(run.asks) == len(scenario.tools)
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


def test_the_two_forms_of_a_task_meet() -> None:
    together = load_scenarios([ROOT / "scenarios" / "agentic_actions_*.yaml", ROOT / "chat_email.jsonl"])
    apart = {s.id: s for s in load_scenarios(ROOT / "chat_email.jsonl")}
    assert len(together) == len(AGENTIC) == len(apart) == 30
    assert len({s.family for s in together}) == 10
    for scenario in together:
        partner = apart[scenario.id.replace("agentic_actions", "chat_email")]
        assert scenario.messages and scenario.brief == partner.brief and scenario.family == partner.family
        form = FORMATS["chat_email"]
        assert drive(form, scenario, rules_for(form), lambda ask: "Dear all").outcome.text == "Dear all"


def test_everything_in_one_folder_loads_together() -> None:
    assert len(load_scenarios(ROOT / "scenarios")) == 30 + 35
