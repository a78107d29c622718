"""Training stages as data: what a stage's YAML may say, and how its hyper-parameters are put together."""

import dataclasses

import pytest

from offscript.errors import UserError
from offscript.experiment.planner import Planner
from offscript.settings import StageSettings, TrainingSettings
from tests.composed import experiment_of


def planner_with(**stages):
    """A planner that also knows ``stages``: name -> training node."""
    planner = experiment_of("experiment=smoke").planner
    known = {name: planner.options.stage[name] for name in ("base", "prompted", "distillation", "full")}
    known |= {
        name: StageSettings(name=name, weights=name, system="plain", training=TrainingSettings(**training))
        for name, training in stages.items()
    }
    return Planner(planner.settings, dataclasses.replace(planner.options, stage=known))


def sft(parent="base", **more):
    return {"parent": parent, "method": "sft", "data": "introspection", "recipe": "introspection", **more}


def test_hyper_parameters_replace_those_of_the_recipe_at_any_depth():
    planner = planner_with(other=sft(hyper_parameters={"turns": 4, "optimizer": {"epochs": 3}}))
    own, full = (planner.context.training(name).settings for name in ("other", "full"))
    assert (own.turns, own.optimizer.epochs) == (4, 3)
    assert own.optimizer.learning_rate == full.optimizer.learning_rate
    assert own.reflections == full.reflections


def test_a_stage_on_another_stage_is_planned_with_all_of_its_parents():
    adapter = planner_with(third=sft(parent="full")).adapter("pocket", "sarcasm", "third", 0)
    assert adapter.parent.stage == "full" and adapter.parent.parent.stage == "distillation"
    assert adapter.identity["recipe"]["training"]["parent"] == "full"


@pytest.mark.parametrize(
    ("stages", "line"),
    [
        ({"x": sft(method="dop")}, "conf/stage/x.yaml: training.method: unknown training method 'dop'; allowed: dpo, sft"),
        ({"x": sft(data="chats")}, "training.data: unknown kind of training data 'chats'; allowed: introspection, preference"),
        ({"x": sft(data="preference")}, "preference makes pairs, but sft takes conversations; allowed: introspection"),
        (
            {"x": {"parent": "full", "method": "dpo", "data": "preference", "recipe": "distillation"}},
            "training.parent: full, but dpo trains on the base only; allowed: base",
        ),
        ({"x": sft(hyper_parameters={"turns": 3})}, "training.hyper_parameters.turns: found 3; input should be a multiple of 2"),
        ({"x": sft(hyper_parameters={"beta": 1})}, "training.hyper_parameters.beta: unknown key; allowed: free_note"),
        ({"x": sft(recipe=None)}, "lora: missing; this key is needed"),
        (
            {"x": {"method": "dpo", "data": "preference", "recipe": "introspection"}},
            "conf/stage/x.yaml: training.recipe: introspection, whose reflections neither dpo nor preference has; name",
        ),
        (
            {"x": sft(recipe="distillation")},
            "conf/stage/x.yaml: training.recipe: distillation, whose prompts neither sft nor introspection has; name the",
        ),
        ({"x": sft(parent="prompted")}, "stage=prompted: has no training"),
        ({"x": sft(parent="y"), "y": sft(parent="x")}, "the parents form a circle (x -> y -> x)"),
    ],
)  # fmt: skip
def test_a_stage_that_cannot_be_trained_is_one_line(stages, line):
    with pytest.raises(UserError) as caught:
        planner_with(**stages).adapter("pocket", "sarcasm", "x", 0)
    assert line in str(caught.value) and "\n" not in str(caught.value)
