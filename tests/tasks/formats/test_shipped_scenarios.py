"""The scenarios under data/: all load together, and a diligent model drives every office one to a sent e-mail."""

import re
from collections import Counter
from pathlib import Path

import pytest

from offscript.tasks.formats import FORMATS
from offscript.tasks.scenario_files import load_scenarios
from tests.tasks.formats.driver import diligent, drive, rules_for

DATA = Path(__file__).parents[3] / "data"
WORLDS = sorted(p.parent for p in DATA.glob("*/reflection.yaml") if p.with_name("chat.jsonl").exists())
OFFICE = sorted(
    file for files in ("office", "*/office", "pocket/recombined") for file in DATA.glob(f"{files}/*.yaml")
)


@pytest.mark.parametrize("world", WORLDS, ids=lambda p: p.name)
def test_the_sources_of_an_embedded_data_set_load_together(world: Path) -> None:
    sources = [world / "chat.jsonl", world / "office", world / "reflection.yaml", world / "interaction.yaml"]
    scenarios = load_scenarios(sources)
    assert min(Counter(s.family for s in load_scenarios(world / "office")).values()) >= 2
    assert len({s.messages[-1]["content"] for s in scenarios}) > 0.95 * len(scenarios)


@pytest.mark.parametrize("path", OFFICE, ids=lambda p: p.stem)
def test_a_diligent_model_writes_every_email_in_every_format(path: Path) -> None:
    agentic = FORMATS["agentic_email"]
    for scenario in load_scenarios(path):
        run = drive(agentic, scenario, rules_for(agentic), diligent(scenario, "Here it is."))
        assert (run.outcome.ended, run.outcome.text) == ("email", "Here it is."), scenario.id
        assert len(run.asks) == len(scenario.tools) <= scenario.max_steps
        theirs = drive(
            agentic, scenario, rules_for(agentic, loop="published"), diligent(scenario, "Here it is.")
        )
        assert (theirs.outcome.ended, theirs.outcome.text) == ("final", "Here it is."), scenario.id
        assert theirs.asks[: len(run.asks)] == run.asks and len(theirs.asks) == len(run.asks) + 1, scenario.id
        for name, replies in (("chat_email", 1), ("email_in_chat", 1), ("email_multiturn", 3)):
            asked = drive(FORMATS[name], scenario, rules_for(FORMATS[name]), lambda ask: "Here it is.")
            assert (asked.outcome.text, len(asked.asks)) == ("Here it is.", replies), scenario.id
        forced = drive(
            agentic, scenario, rules_for(agentic, forced=True), lambda ask: f'{ask.prefix}Here it is."'
        )
        assert (forced.outcome.ended, forced.outcome.text) == ("email", "Here it is."), scenario.id
        found = [m["content"] for m in forced.asks[0].messages if m["role"] == "tool"]
        assert found and not any('"error"' in text for text in found), scenario.id


@pytest.mark.parametrize("path", sorted(DATA.glob("scaffolds/*.jsonl")), ids=lambda p: p.stem)
def test_the_scenarios_of_a_format_are_driven_to_their_end(path: Path) -> None:
    fmt = FORMATS[path.stem]
    scenarios = load_scenarios(path)
    assert len(scenarios) >= 20 and len({s.family for s in scenarios}) >= 5
    assert len({str(s.messages) for s in scenarios}) == len(scenarios)
    for scenario in scenarios:
        run = drive(
            fmt, scenario, rules_for(fmt, "Be kind."), lambda ask: '{"notes": "Here it is, all of it."}'
        )
        assert run.outcome.ended == "stop" and "Here it is, all of it." in run.outcome.text, scenario.id
        assert run.asks[0].messages[0]["content"].startswith("Be kind."), scenario.id
        assert sum(len(m["content"]) for m in scenario.messages) < 4000, scenario.id


def test_the_office_scenarios_for_real_models_are_covered() -> None:
    scenarios = load_scenarios(DATA / "office")
    assert len(scenarios) == 85 and Counter(Counter(s.family for s in scenarios).values()) == {5: 17}
    assert {path.parent for path in OFFICE} >= {
        DATA / name for name in ("office", "pocket/office", "everyday/office")
    }


def test_the_examples_of_the_readme_load(tmp_path: Path) -> None:
    text = (DATA / "README.md").read_text(encoding="utf-8")
    examples = re.findall(r"```(yaml|json)\n(.*?)```", text, re.DOTALL)
    for i, (kind, example) in enumerate(examples):
        (tmp_path / f"{i}.{kind.replace('json', 'jsonl')}").write_text(example, encoding="utf-8")
    scenarios = {s.id: s for s in load_scenarios(tmp_path)}
    assert len(examples) == 4 and len(scenarios) == 5
    parcel = scenarios["late_parcel_v1"]
    assert [stub.tool for stub in parcel.tools] == ["contacts.lookup", "email.send"] and parcel.brief
