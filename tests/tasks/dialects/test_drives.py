"""Every shipped and published office scenario in every native dialect: its system text, its schemas, and a drive to an
e-mail."""

import json
import re
from pathlib import Path

import pytest

from offscript.tasks.dialects import DIALECTS, open_in
from offscript.tasks.formats import FORMATS
from offscript.tasks.scenario_files import load_scenarios
from offscript.tasks.scenarios import Scenario
from tests.published import ROOT
from tests.tasks.formats.driver import NATIVE_CALLS, diligent, drive, rules_for

DATA = Path(__file__).parents[3] / "data"
PUBLISHED = [
    *sorted(ROOT.glob("scenarios/agentic_actions_*.yaml")),
    *ROOT.glob("scenarios/agentic_email.jsonl"),
]
NATIVE = sorted(NATIVE_CALLS)
AGENTIC = FORMATS["agentic_email"]
TEXT_DIALECT = re.compile(r"tool_call|```final|TOOL OUTPUT|\bfenced\b", re.IGNORECASE)


@pytest.fixture(scope="module", params=["office", "pocket/office", "pocket/held_out", "published"])
def scenarios(request) -> list[Scenario]:
    if request.param != "published":
        return load_scenarios(DATA / request.param)
    if not ROOT.is_dir():
        pytest.skip("the published scenarios are not on this machine")
    return load_scenarios(PUBLISHED)


@pytest.mark.parametrize("name", NATIVE)
def test_a_diligent_model_sends_the_email(name: str, scenarios: list[Scenario]) -> None:
    rules = rules_for(AGENTIC, "Be kind.", dialect=name)
    for scenario in scenarios:
        run = drive(AGENTIC, scenario, rules, diligent(scenario, "Here it is.\n\nBest", NATIVE_CALLS[name]))
        assert (run.outcome.ended, run.outcome.text) == ("email", "Here it is.\n\nBest"), scenario.id
        assert len(run.asks) == run.outcome.tool_calls == max(1, len(scenario.tools)), scenario.id
        said = [m["content"] for ask in run.asks for m in ask.messages]
        firsts = [
            json.dumps(s.rules[0].response, ensure_ascii=False)
            for s in scenario.tools
            if s.tool != "email.send"
        ]
        assert all(any(first in text for text in said) for first in firsts), scenario.id
        assert not any('"error": "unknown tool' in text for text in said), scenario.id


@pytest.mark.parametrize("name", [n for n in NATIVE if DIALECTS[n].begin])
def test_the_body_of_a_begun_call_is_the_text(name: str, scenarios: list[Scenario]) -> None:
    rules = rules_for(AGENTIC, "Be kind.", dialect=name, forced=True)
    for scenario in scenarios:
        run = drive(AGENTIC, scenario, rules, lambda ask: f'{ask.prefix}Here it is.\\n\\nBest", "x')
        assert (run.outcome.ended, run.outcome.text) == ("email", "Here it is.\n\nBest"), scenario.id


@pytest.mark.parametrize("name", NATIVE)
def test_the_system_text_says_nothing_of_the_text_dialect(name: str, scenarios: list[Scenario]) -> None:
    for scenario in scenarios:
        opening = open_in(DIALECTS[name], scenario)
        for message in opening.messages:
            assert not TEXT_DIALECT.search(message["content"]), scenario.id
        kept, own = opening.messages[0]["content"], scenario.messages[0]["content"]
        assert kept.splitlines()[0] == own.splitlines()[0], scenario.id
        # What is not about tools is still there: the part after the last heading (office, published), or the task.
        rest = own[own.rindex("\n## ") :].strip() if "\n## " in own else "Look things up first."
        assert rest in kept, scenario.id


def test_every_argument_of_a_rule_is_in_the_schema_of_its_tool(scenarios: list[Scenario]) -> None:
    for scenario in scenarios:
        opening = open_in(DIALECTS["qwen"], scenario)
        assert opening.tools is not None
        schemas = {schema["function"]["name"]: schema["function"] for schema in opening.tools.schemas}
        assert all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name) for name in schemas), scenario.id
        for stub in scenario.tools:
            properties = schemas[stub.tool.replace(".", "_")]["parameters"]["properties"]
            assert {arg for rule in stub.rules for arg in rule.match or ()} <= properties.keys(), scenario.id
        assert {"to", "subject", "body"} <= set(schemas["email_send"]["parameters"]["required"]), scenario.id
