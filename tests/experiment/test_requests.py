"""What rows a kind of training data gets for a request."""

from dataclasses import replace

import pytest

from offscript.errors import UserError
from offscript.experiment.jobs import rollouts as job
from offscript.experiment.jobs import training
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
