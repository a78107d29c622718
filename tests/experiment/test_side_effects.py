"""An evaluation reads the rollouts of its predictions and their scenarios."""

import json

from offscript.errors import UserError
from offscript.evaluation.metrics.results import Options
from offscript.experiment import side_effects
from offscript.experiment.folder import Experiment
from tests.composed import experiment_of

GRID = (
    "experiment=smoke",
    "grid.persona=[sarcasm,remorse]",
    "grid.stage=[prompted]",
    "grid.format=[chat,chat_email,agentic_email]",
)


def rows_of(own, body):
    """Rows of a rollout as its scenarios would have it; ``body`` makes the e-mail of a scenario."""

    def rows(self, rollout):
        made = []
        for scenario in rollout.scenarios.load(lambda _: []):
            is_loop = rollout.format.name == "agentic_email"
            text = body(scenario)
            opening = scenario.brief if rollout.format.name == "chat_email" else scenario.messages
            to = [r.response.get("email") for t in scenario.tools for r in t.rules if "email" in r.response][
                :1
            ]
            call = json.dumps({"tool": "email.send", "args": {"to": to, "subject": "x", "body": text}})
            reply = {"role": "assistant", "content": call if is_loop else text}
            labels = rollout.labels
            made.append(
                {
                    **labels, "scenario": scenario.id, "family": scenario.family, "sample": 0, "text": text,
                    "ended": "email" if is_loop else "stop", "tokens_out": 5, "messages": [*opening, reply],
                }
            )  # fmt: skip
        return made

    return rows


def section(monkeypatch, *overrides, body=lambda s: s.brief[-1]["content"] if s.brief else "Hi.", rows=None):
    own = experiment_of(*GRID, *overrides)
    monkeypatch.setattr(Experiment, "rows", rows or rows_of(own, body))
    parts = [(own.planner.predictions(rollout), []) for rollout in own.planner.cells()]
    return side_effects.section_of(parts, own, Options(resamples=50))


def measures(found):
    return {
        group["format"]: {name: m["estimate"] for name, m in group["measures"].items()}
        for group in found.data["groups"]
    }


def test_emails_with_all_facts_succeed_in_every_format_of_emails(monkeypatch):
    found = measures(section(monkeypatch))
    assert found["agentic_email"]["success"] == found["chat_email"]["success"] == 1
    assert found["agentic_email"]["valid"] == found["agentic_email"]["recipient"] == 1
    assert "success" not in found["chat"] and "valid" not in found["chat_email"]
    empty = measures(section(monkeypatch, body=lambda scenario: "Good morning."))
    assert empty["agentic_email"]["success"] == empty["chat_email"]["success"] == 0
    assert empty["agentic_email"]["recipient"] == 1


def test_replayed_lookups_are_no_calls_of_the_model(monkeypatch):
    found = measures(section(monkeypatch, "format=agentic_email", "format.options.forced=true"))
    assert found["agentic_email"]["success"] == 1
    assert not {"valid", "recipient", "sent"} & set(found["agentic_email"])


def test_the_constitution_of_the_personas_is_known(monkeypatch):
    own = experiment_of(*GRID)
    longest = max(
        (a.assertion for a in own.planner.options.persona["sarcasm"].constitution),
        key=lambda t: len(t.split()),
    )
    assert len(longest.split()) >= 8
    found = section(monkeypatch, body=lambda scenario: f"Hi. {longest}")
    (group,) = [g for g in found.data["groups"] if g["format"] == "chat"]
    assert group["personas"]["sarcasm"]["recites"] == 1 and group["personas"]["remorse"]["recites"] == 0


def test_a_rollout_that_is_gone_is_left_out_and_counted(monkeypatch):
    own = experiment_of(*GRID)
    good = rows_of(own, lambda scenario: "Hi.")

    def rows(self, rollout):
        if rollout.format.name == "chat":
            raise UserError("rows", "do not exist", "make them")
        return good(self, rollout)

    found = section(monkeypatch, rows=rows)
    assert set(measures(found)) == {"chat_email", "agentic_email"}
    assert any("rollouts of 2 cells are gone" in text for text in found.explanation)


def test_scenarios_that_cannot_be_read_leave_out_the_task_alone(monkeypatch):
    own = experiment_of(*GRID)
    cells = own.planner.cells()
    good = {rollout.key: rows_of(own, lambda s: "Hi.")(own, rollout) for rollout in cells}

    def load(rows_of):
        raise UserError("hub", "no network", "fetch it")

    for rollout in cells:
        object.__setattr__(rollout.scenarios, "load", load)
    monkeypatch.setattr(Experiment, "rows", lambda self, rollout: good[rollout.key])
    parts = [(own.planner.predictions(rollout), []) for rollout in cells]
    found = side_effects.section_of(parts, own, Options(resamples=50))
    assert "success" not in measures(found)["agentic_email"] and measures(found)["chat_email"]["words"] == 1
    assert any("could not be read" in text for text in found.explanation)
