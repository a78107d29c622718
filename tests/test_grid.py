"""Which artifacts change their key when a setting changes: the promise behind "a finished row is never made twice"."""

import dataclasses

import pytest

from offscript.grid import Planner, in_order, layers
from tests.composed import bench_of

SMALL = (
    "experiment=demo",
    "grid.persona=[sarcasm,remorse]",
    "format.count={classifier:6,eval:4}",
    "recipe.distillation.prompts=6",
)


def artifacts(planner):
    return {str(a): a for a in in_order([planner.evaluation()])}


def changed(*overrides, persona_edit=None):
    """Names of the artifacts whose keys differ once ``overrides`` are given, or a persona is edited."""
    before = artifacts(bench_of(*SMALL).planner)
    planner = bench_of(*SMALL, *overrides).planner
    if persona_edit:
        name, update = persona_edit
        personas = {p: planner.options.persona[p] for p in planner.settings.grid.persona}
        personas[name] = personas[name].model_copy(update=update)
        planner = Planner(planner.settings, dataclasses.replace(planner.options, persona=personas))
    after = artifacts(planner)
    assert before.keys() == after.keys()
    return {name for name in before if before[name].key != after[name].key}


ALL = set(artifacts(bench_of(*SMALL).planner))


def having(*words):
    return {name for name in ALL if all(w in name.split() for w in words)}


def of_kind(*kinds):
    return {name for name in ALL if name.split()[0] in kinds}


SCORES = of_kind("classifier", "predictions", "evaluation")
TRAINED = {
    n
    for n in ALL
    if n.split()[0] in ("rollout", "adapter") and set(n.split()) & {"distillation", "full", "introspection"}
}

TABLE = {
    "engine.batch_size=3": set(),
    "engine.max_live=5": set(),
    "tracking=off": set(),
    "recipe.distillation.optimizer.micro_batch_size=2": set(),
    "recipe.distillation.optimizer.checkpoint_steps=2": set(),
    "classifier.predict_batch_size=3": set(),
    "evaluation.resamples=500": of_kind("evaluation"),
    "classifier.seed=1": SCORES,
    "recipe.merge.introspection=0.5": {
        n for n in ALL if "full" in n.split() and n.split()[0] in ("adapter", "rollout")
    }
    | SCORES,
    "recipe.introspection.optimizer.learning_rate=0.1": {
        n for n in ALL if "full" in n.split() and n.split()[0] in ("adapter", "rollout")
    }
    | SCORES,
    "recipe.distillation.beta=0.2": TRAINED | SCORES,
    "model.sampling.temperature=0.6": ALL,
    "model.dtype=bfloat16": ALL,
}


@pytest.mark.parametrize("override", TABLE)
def test_a_setting_changes_exactly_what_depends_on_it(override):
    assert changed(override) == TABLE[override]


def test_a_constitution_changes_what_its_persona_said_and_the_scores_and_nothing_else():
    planner = bench_of(*SMALL).planner
    old = planner.options.persona["sarcasm"]
    other = old.constitution[0].model_copy(update={"assertion": "I sigh at everything."})
    edited = changed(persona_edit=("sarcasm", {"constitution": (other, *old.constitution[1:])}))
    assert edited == {n for n in ALL if "sarcasm" in n.split()} | SCORES
    assert not any("remorse" in n.split() and n.split()[0] in ("rollout", "adapter") for n in edited)


def test_a_description_is_for_people():
    assert changed(persona_edit=("sarcasm", {"description": "other", "display_name": "Other"})) == set()


def test_scenario_text_is_part_of_the_key(tmp_path):
    cell = bench_of(*SMALL).planner.rollout("pocket", None, "base", "agentic_email", "eval", 0)
    planner = bench_of(*SMALL).planner
    planner._answers["_source", "office"] = [
        dataclasses.replace(s, max_steps=s.max_steps + 1) if s.id == cell.spec["scenarios"][0].id else s
        for s in planner._source("office")
    ]
    edited = planner.rollout("pocket", None, "base", "agentic_email", "eval", 0)
    assert [s.id for s in edited.spec["scenarios"]] == [s.id for s in cell.spec["scenarios"]]
    assert edited.key != cell.key


def test_base_texts_belong_to_no_persona_and_no_seed():
    planner = bench_of(*SMALL, "grid.seed=[0,1]").planner
    cells = planner.cells()
    assert len([c for c in cells if c.labels["stage"] == "base"]) == 3
    assert len([c for c in cells if c.labels["stage"] == "prompted"]) == 3 * 2
    assert len([c for c in cells if c.labels["stage"] == "full"]) == 3 * 2 * 2
    one = planner.rollout("pocket", "sarcasm", "base", "chat", "eval", 1)
    assert one is planner.rollout("pocket", "remorse", "base", "chat", "eval", 0)


def test_splits_share_no_family_and_training_never_sees_an_eval_prompt():
    planner = bench_of("experiment=demo").planner
    families = {}
    for artifact in in_order([planner.evaluation()]):
        if artifact.kind == "rollout":
            found = families.setdefault(artifact.labels["split"], set())
            found |= {s.family for s in artifact.spec["scenarios"]}
    assert families["train"] and families["classifier"] and families["eval"]
    assert not families["train"] & families["classifier"]
    assert not families["train"] & families["eval"]
    assert not families["classifier"] & families["eval"]


def test_layers_put_inputs_first():
    planner = bench_of(*SMALL).planner
    done = set()
    for layer in layers(in_order([planner.evaluation()])):
        assert all(part.key in done for a in layer for part in a.inputs)
        done |= {a.key for a in layer}
    assert len(done) == len(ALL)


def test_paths_carry_the_key_and_never_collide():
    planner = bench_of(*SMALL, "grid.seed=[0,1]").planner
    everything = in_order([planner.evaluation()])
    paths = [a.path for a in everything]
    assert len(set(paths)) == len(paths)
    assert all(a.key[:8] in a.path.name for a in everything if a.kind != "evaluation")


def test_seed_questions_make_rows_of_their_own_persona_only():
    planner = bench_of(*SMALL, "recipe.distillation.seed_questions=true").planner
    shared, own = planner.students("pocket", "sarcasm")
    assert shared is planner.students("pocket", "remorse")[0]
    assert own.labels["persona"] == "sarcasm" and all(
        s.id.startswith("sarcasm_") for s in own.spec["scenarios"]
    )
    assert {s.id for s in planner.teacher("pocket", "sarcasm").spec["scenarios"]} == {
        s.id for part in (shared, own) for s in part.spec["scenarios"]
    }
