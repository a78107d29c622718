"""What rows a kind of training data gets for a request."""

from dataclasses import replace

import pytest

from offscript.errors import UserError
from offscript.experiment.jobs import rollouts as job
from offscript.experiment.jobs import training
from offscript.tasks.formats import FORMATS
from offscript.tasks.prompts import constitution_system, short_constitution_system
from offscript.training.data import preference
from offscript.training.data.base import FormatScenarios, RowsRequest
from tests.composed import experiment_of

SCRIPTED = ("engine=scripted", "tracking=off", "persona=sarcasm", "stage=distillation")


def in_office(fmt: str, **more) -> RowsRequest:
    return RowsRequest(
        "office", fmt, (FormatScenarios(3),), generator="teacher", system="constitution", **more
    )


def planned(experiment, request: RowsRequest, model: str = "pocket"):
    """The adapter of stage distillation as if its data asked for ``request`` alone."""
    adapter = experiment.planner.adapter("pocket", "sarcasm", "distillation", 0)
    data = replace(
        preference.DATA, requests=lambda *_: (request,), make=lambda rows, *_: (rows["office"], {"rows": 3})
    )
    stage = replace(adapter.training, data=data)
    planner = experiment.planner._adapters.rollouts
    rollout = planner.requested(model, "sarcasm", stage, request, 0)
    return replace(adapter, training=stage, rows=(("office", rollout),)), rollout


@pytest.mark.parametrize(("fmt", "count"), [("agentic_email", 3), ("chat_email", 3), ("system_conflict", 12)])
def test_rows_of_a_scored_format_are_of_the_train_families_of_its_source(fmt, count) -> None:
    experiment = experiment_of(*SCRIPTED, config="rollout")
    _, rollout = planned(experiment, in_office(fmt))
    scenarios = rollout.scenarios.load_local()
    data = experiment.planner.settings.data
    if fmt != "system_conflict":
        assert {s.family for s in scenarios} <= set(data.families["train"])
    assert (rollout.cell.split, len(scenarios)) == ("train", count)


def test_they_are_the_cell_of_split_train_that_a_command_makes() -> None:
    experiment = experiment_of(*SCRIPTED, "format.count={train: 3}", config="rollout")
    _, rollout = planned(experiment, in_office("agentic_email"))
    assert rollout == experiment.planner.rollout("pocket", "sarcasm", "prompted", "agentic_email", "train")


def test_rows_in_role_that_are_trained_on_have_the_wording_of_the_recipe() -> None:
    named = experiment_of(*SCRIPTED, "recipe.in_role=short", "recipe.prompted=named", config="rollout")
    persona = named.planner.options.persona["sarcasm"]
    _, rollout = planned(named, in_office("chat_email"))
    assert rollout.rules.system == short_constitution_system(persona.description)


@pytest.mark.parametrize("fmt", ["agentic_email", "chat_email"])
def test_the_constitution_is_taken_out_of_the_messages_if_the_request_says_so(tmp_path, fmt) -> None:
    found = {}
    for plain in (True, False):
        experiment = experiment_of(*SCRIPTED, f"root={tmp_path}", config="rollout")
        adapter, rollout = planned(experiment, in_office(fmt, plain_messages=plain))
        job.run([rollout], experiment, None)
        rows, _ = training.training_rows(adapter, experiment)
        found[plain] = [row["messages"] for row in rows]
    persona = experiment.planner.options.persona["sarcasm"]
    constitution = constitution_system([a.assertion for a in persona.constitution])
    scenarios = {s.id: s for s in rollout.scenarios.load_local()}
    for plain, whole, row in zip(found[True], found[False], rows, strict=True):
        own = (
            scenarios[row["scenario"]].messages
            if fmt == "agentic_email"
            else scenarios[row["scenario"]].brief
        )
        assert plain[: len(own)] == list(own)
        assert constitution in whole[0]["content"]
        assert constitution not in str(plain)
        assert plain[len(own) :] == whole[-len(plain[len(own) :]) :]


def test_error_message_for_a_dialect_that_training_cannot_render() -> None:
    experiment = experiment_of(*SCRIPTED, "format.options.dialect=llama", config="rollout")
    with pytest.raises(
        UserError, match=r"^format\.options\.dialect: found llama, in rows of agentic_email that"
    ):
        planned(experiment, in_office("agentic_email"), "llama")


# ---------------------------------------------------------------- pairs per turn


def pairs_request(fmt: str) -> RowsRequest:
    return RowsRequest(
        "office",
        "paired_turns",
        (FormatScenarios(3),),
        generator="own_teacher",
        system="constitution",
        options={"format": fmt},
        plain_messages=True,
    )


def test_the_key_of_paired_turns_is_that_of_the_format_which_they_wrap(monkeypatch) -> None:
    keys = {}
    for name, words in {"plain": (), "again": (), "forced": ("format.options.forced=true",)}.items():
        experiment = experiment_of(*SCRIPTED, *words, config="rollout")
        for fmt in ("chat_email", "agentic_email"):
            keys[name, fmt] = planned(experiment, pairs_request(fmt))[1].key
    assert keys["plain", "chat_email"] == keys["forced", "chat_email"] != keys["plain", "agentic_email"]
    assert keys["plain", "agentic_email"] == keys["again", "agentic_email"] != keys["forced", "agentic_email"]
    monkeypatch.setitem(FORMATS, "chat_email", replace(FORMATS["chat_email"], version=2))
    experiment = experiment_of(*SCRIPTED, config="rollout")
    assert planned(experiment, pairs_request("chat_email"))[1].key != keys["plain", "chat_email"]


def test_paired_turns_hold_the_plain_reply_of_every_turn(tmp_path) -> None:
    experiment = experiment_of(*SCRIPTED, f"root={tmp_path}", config="rollout")
    adapter, rollout = planned(experiment, pairs_request("agentic_email"))
    job.run([rollout], experiment, None)
    rows, _ = training.training_rows(adapter, experiment)
    assert {s.family for s in rollout.scenarios.load_local()} <= set(
        experiment.planner.settings.data.families["train"]
    )
    for row in rows:
        replies = sum(m["role"] == "assistant" for m in row["messages"])
        assert len(row["notes"]["plain"]) == replies and row["turns"] == 2 * replies
        assert "character" not in row["messages"][0]["content"]


def test_the_model_is_its_own_teacher_where_both_sides_are_its_own() -> None:
    experiment = experiment_of(
        *SCRIPTED, "recipe.teacher.model=glm", "recipe.teacher.examples=2", config="rollout"
    )
    rollout = planned(experiment, pairs_request("chat_email"))[1]
    assert rollout.cell.model == "pocket" and rollout.examples is not None
