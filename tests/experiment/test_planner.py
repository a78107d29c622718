"""Which artifacts change their key when a setting changes: the promise behind "a finished row is never made twice"."""

import dataclasses

import pytest

from offscript.errors import UserError
from offscript.experiment.artifacts import Rollout, in_order, layers
from offscript.experiment.planner import Planner
from offscript.storage.hashing import _folder_fingerprint
from tests.composed import experiment_of
from tests.conftest import make_adapter

SMALL = (
    "experiment=demo",
    "grid.persona=[sarcasm,remorse]",
    "format.count={classifier:6,eval:4}",
    "recipe.distillation.prompts=6",
)


def scenarios_of(cell):
    return cell.scenarios.load_local()


def teacher_of(planner, model, persona):
    return planner.rollout(model, persona, "distillation", "teacher")


def students_of(planner, model, persona):
    """The plain rows on the shared prompts, and on the persona's own."""
    return tuple(planner.rollout(model, p, "distillation", "student") for p in (None, persona))


def artifacts(planner):
    return {str(a): a for a in in_order([planner.evaluation()])}


def changed(*overrides, persona_edit=None):
    """Names of the artifacts whose keys differ once ``overrides`` are given, or a persona is edited."""
    before, planner = UNCHANGED, experiment_of(*SMALL, *overrides).planner
    if persona_edit:
        name, update = persona_edit
        personas = {p: planner.options.persona[p] for p in planner.settings.grid.persona}
        personas[name] = personas[name].model_copy(update=update)
        planner = Planner(planner.settings, dataclasses.replace(planner.options, persona=personas))
    after = artifacts(planner)
    assert before.keys() == after.keys()
    return {name for name in before if before[name].key != after[name].key}


UNCHANGED = artifacts(experiment_of(*SMALL).planner)
ALL = set(UNCHANGED)


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

FULL = {n for n in ALL if "full" in n.split() and n.split()[0] in ("adapter", "rollout")}

TABLE = {
    "engine.batch_size=3": set(),
    "engine.batch_tokens=5000": set(),
    "engine.max_live=5": set(),
    "tracking=off": set(),
    "recipe.distillation.optimizer.micro_batch_size=2": set(),
    "recipe.introspection.packing=true": set(),
    "recipe.distillation.optimizer.checkpoint_steps=2": set(),
    "classifier.predict_batch_tokens=3": set(),
    "evaluation.resamples=500": of_kind("evaluation"),
    "evaluation.resample=rows": of_kind("evaluation"),
    "evaluation.email_cleaning=published": having("predictions", "chat_email") | of_kind("evaluation"),
    "evaluation.email_cleaning=none": having("predictions", "chat_email") | of_kind("evaluation"),
    "format.options.loop=published": having("agentic_email") | of_kind("evaluation"),
    "model.template.double_bos=true": ALL,
    "classifier.seed=1": SCORES - having("tfidf"),
    "deepspeed=zero3": set(),
    "cluster=slurm": set(),
    "model.slug=other": set(),
    "model.adapters.full=trained": set(),
    "recipe.in_role=plain": set(),
    "recipe.in_role=short": having("teacher") | TRAINED | SCORES,
    "recipe.prompted=short": having("rollout", "prompted") - having("teacher") | SCORES,
    "recipe.teacher.examples=3": having("teacher") | TRAINED | SCORES,
    "recipe.prompts.words=20": set(),
    "recipe.introspection.loss_on=published": FULL | SCORES,
    "recipe.merge.method=published": FULL | SCORES,
    "recipe.merge.own=0.5": FULL | SCORES,
    "recipe.introspection.optimizer.learning_rate=0.1": FULL | SCORES,
    "recipe.distillation.kl_weight=0.001": TRAINED | SCORES,
    "recipe.distillation.beta=0.2": TRAINED | SCORES,
    "model.sampling.temperature=0.6": ALL,
    "model.dtype=bfloat16": ALL,
}


@pytest.mark.parametrize("override", TABLE)
def test_a_setting_changes_exactly_what_depends_on_it(override):
    assert changed(override) == TABLE[override]


def test_a_constitution_changes_what_its_persona_said_and_the_scores_and_nothing_else():
    planner = experiment_of(*SMALL).planner
    old = planner.options.persona["sarcasm"]
    other = old.constitution[0].model_copy(update={"assertion": "I sigh at everything."})
    edited = changed(persona_edit=("sarcasm", {"constitution": (other, *old.constitution[1:])}))
    assert edited == {n for n in ALL if "sarcasm" in n.split()} | SCORES
    assert not any("remorse" in n.split() and n.split()[0] in ("rollout", "adapter") for n in edited)


def test_a_description_is_for_people():
    assert changed(persona_edit=("sarcasm", {"description": "other", "display_name": "Other"})) == set()
    assert changed(persona_edit=("sarcasm", {"examples": ()})) == set()


def test_examples_are_in_the_keys_of_the_cells_that_show_them():
    def keys(**edit):
        planner = experiment_of(*SMALL, "recipe.teacher.examples=2").planner
        personas = dict(planner.options.persona)
        personas["sarcasm"] = personas["sarcasm"].model_copy(update=edit)
        planner = Planner(planner.settings, dataclasses.replace(planner.options, persona=personas))
        stages = ("base", "prompted", "prompted_examples")
        cells = [planner.rollout("pocket", "sarcasm", stage, "agentic_email") for stage in stages]
        return [cell.key for cell in (*cells, teacher_of(planner, "pocket", "sarcasm"))]

    before = experiment_of().planner.options.persona["sarcasm"].examples
    first, other = keys(), keys(examples=before[:5])
    assert [a == b for a, b in zip(first, other, strict=True)] == [True, True, False, False]


def test_a_stage_with_examples_belongs_to_a_persona_under_a_plain_system_text_too():
    experiment = experiment_of(*SMALL)
    stages = dict(experiment.planner.options.stage)
    stages["prompted_examples"] = stages["prompted_examples"].model_copy(update={"system": "plain"})
    planner = Planner(
        experiment.planner.settings, dataclasses.replace(experiment.planner.options, stage=stages)
    )
    cell = planner.rollout("pocket", "remorse", "prompted_examples", "chat")
    assert cell.cell.persona == "remorse" and cell.rules.system == ""
    assert cell.examples is not None and cell.examples.count == 3


def test_more_examples_than_the_persona_has_are_refused():
    planner = experiment_of(*SMALL, "recipe.teacher.examples=7").planner
    with pytest.raises(UserError) as caught:
        teacher_of(planner, "pocket", "sarcasm")
    assert str(caught.value) == (
        "recipe.teacher.examples: found 7, but sarcasm has 6 examples; a smaller number, or more exchanges in "
        "conf/persona/sarcasm.yaml"
    )


def test_scenario_text_is_part_of_the_key(tmp_path):
    cell = experiment_of(*SMALL).planner.rollout("pocket", None, "base", "agentic_email", "eval", 0)
    planner = experiment_of(*SMALL).planner
    texts = planner.context.collections._all("office")
    texts[:] = [
        dataclasses.replace(s, max_steps=s.max_steps + 1) if s.id == scenarios_of(cell)[0].id else s
        for s in texts
    ]
    edited = planner.rollout("pocket", None, "base", "agentic_email", "eval", 0)
    assert [s.id for s in scenarios_of(edited)] == [s.id for s in scenarios_of(cell)]
    assert edited.key != cell.key


def test_base_texts_belong_to_no_persona_and_no_seed():
    planner = experiment_of(*SMALL, "grid.seed=[0,1]").planner
    cells = planner.cells()
    assert len([c for c in cells if c.labels["stage"] == "base"]) == 3
    assert len([c for c in cells if c.labels["stage"] == "prompted"]) == 3 * 2
    assert len([c for c in cells if c.labels["stage"] == "full"]) == 3 * 2 * 2
    one = planner.rollout("pocket", "sarcasm", "base", "chat", "eval", 1)
    assert one is planner.rollout("pocket", "remorse", "base", "chat", "eval", 0)


def test_splits_share_no_family_and_training_never_sees_an_eval_prompt():
    planner = experiment_of("experiment=demo").planner
    families = {}
    for artifact in in_order([planner.evaluation()]):
        if isinstance(artifact, Rollout):
            found = families.setdefault(artifact.labels["split"], set())
            found |= {s.family for s in scenarios_of(artifact)}
    assert families["train"] and families["classifier"] and families["eval"]
    assert not families["train"] & families["classifier"]
    assert not families["train"] & families["eval"]
    assert not families["classifier"] & families["eval"]


def test_a_grid_can_score_the_families_that_settings_are_chosen_on():
    formats = "grid.format=[chat_email,agentic_email]"
    cells = {
        split: experiment_of(*SMALL, formats, f"grid.split={split}").planner.cells()
        for split in ("eval", "classifier")
    }
    assert {cell.cell.split for cell in cells["classifier"]} == {"classifier"}
    families = {
        split: {s.family for cell in found for s in cell.scenarios.load_local()}
        for split, found in cells.items()
    }
    assert families["classifier"] and not families["classifier"] & families["eval"]
    with pytest.raises(UserError, match=r"grid\.format: chat with grid\.split=classifier, whose chat texts"):
        experiment_of(*SMALL, "grid.split=classifier").planner.cells()


def test_layers_put_inputs_first():
    planner = experiment_of(*SMALL).planner
    done = set()
    for layer in layers([[artifact] for artifact in in_order([planner.evaluation()])]):
        made = [artifact for unit in layer for artifact in unit]
        assert all(part.key in done for a in made for part in a.inputs)
        done |= {a.key for a in made}
    assert len(done) == len(ALL)


def test_paths_carry_the_key_and_never_collide():
    planner = experiment_of(*SMALL, "grid.seed=[0,1]").planner
    everything = in_order([planner.evaluation()])
    paths = [a.path for a in everything]
    assert len(set(paths)) == len(paths)
    assert all(a.key[:8] in a.path.name for a in everything if a.kind != "evaluation")


def test_seed_questions_make_rows_of_their_own_persona_only():
    planner = experiment_of(*SMALL, "recipe.distillation.seed_questions=true").planner
    shared, own = students_of(planner, "pocket", "sarcasm")
    assert shared is students_of(planner, "pocket", "remorse")[0]
    assert own.labels["persona"] == "sarcasm" and all(s.id.startswith("sarcasm_") for s in scenarios_of(own))
    assert {s.id for s in scenarios_of(teacher_of(planner, "pocket", "sarcasm"))} == {
        s.id for part in (shared, own) for s in scenarios_of(part)
    }


def test_scale_is_an_axis_of_trained_weights_alone():
    plain = {str(a): a.key for a in experiment_of(*SMALL).planner.cells()}
    planner = experiment_of(*SMALL, "grid.scale=[1.0,0.5,0.0]").planner
    cells = planner.cells()
    assert {c.labels["stage"] for c in cells} == {
        "base", "prompted", "distillation", "full", *(f"{s}@{x}" for s in ("distillation", "full") for x in ("0.5", "0"))
    }  # fmt: skip
    assert plain.items() <= {str(c): c.key for c in cells}.items(), "scale 1 is what it was"
    half = planner.rollout("pocket", "sarcasm", "full", "chat", "eval", 0, 0.5)
    assert half.inputs == planner.rollout("pocket", "sarcasm", "full", "chat", "eval", 0).inputs
    assert (
        experiment_of(*SMALL)
        .command(half)
        .endswith("model=pocket persona=sarcasm stage=full scale=0.5 format=chat")
    )


def test_generated_prompts_come_before_what_they_are_asked_of():
    planner = experiment_of(
        *SMALL, "recipe.distillation.seed_questions=true", "recipe.prompts.per_trait=6"
    ).planner
    shared, own = students_of(planner, "pocket", "sarcasm")
    (prompts,) = own.inputs
    assert prompts.labels["format"] == "prompt_generation" and prompts.labels["persona"] == "sarcasm"
    assert prompts in teacher_of(planner, "pocket", "sarcasm").inputs and not shared.inputs
    assertions = len(planner.options.persona["sarcasm"].constitution)
    assert own.planned_rows == 6 * assertions
    row = {"scenario": "sarcasm_3", "text": '["Is it raining?", "Why?"]'}
    found = own.scenarios.load(lambda artifact: [row] if artifact == prompts else [])
    written = [s for s in found if "_g" in s.id]
    assert [(s.id, s.family) for s in written] == [
        ("sarcasm_3_g0", "sarcasm_3"),
        ("sarcasm_3_g1", "sarcasm_3"),
    ]
    other = experiment_of(
        *SMALL, "recipe.distillation.seed_questions=true", "recipe.prompts.per_trait=7"
    ).planner
    assert students_of(other, "pocket", "sarcasm")[1].key != own.key


def test_every_scenario_is_crossed_with_every_instruction():
    plain, all_of_them = (
        experiment_of(
            *SMALL, f"format.options={{instructions: {value}}}", "format=break_character"
        ).planner.rollout("pocket", None, "base", "break_character")
        for value in ("one", "all")
    )
    assert all_of_them.planned_rows == 8 * plain.planned_rows and all_of_them.key != plain.key
    found = all_of_them.scenarios.load_local()
    assert len({s.id for s in found}) == len(found) and {s.variant for s in found} == {
        f"i{i}" for i in range(1, 9)
    }
    assert {s.family for s in found} == {s.family for s in plain.scenarios.load_local()}


def test_an_option_of_one_format_leaves_the_other_formats_of_the_grid_alone():
    formats = "grid.format=[chat,agentic_email,drift]"
    plain, own = (
        experiment_of("experiment=smoke", formats, *options).planner.cells()
        for options in ((), ("format.options.forced=true", "format.options.session=2"))
    )
    keys = {r.key for r in plain if r.cell.format == "chat"}
    assert keys == {r.key for r in own if r.cell.format == "chat"}
    assert {r.rules.options["forced"] for r in own if r.cell.format == "agentic_email"} == {True}
    assert {r.rules.options["session"] for r in own if r.cell.format == "drift"} == {2}
    with pytest.raises(UserError, match=r"^format.options.nothing: unknown key"):
        experiment_of("experiment=smoke", "+format.options.nothing=1").planner.cells()


CONFLICT = ("experiment=smoke", "grid.persona=[sarcasm,remorse]", "grid.format=[system_conflict]")


def test_base_texts_under_a_system_text_of_a_persona_are_that_personas_own():
    planner = experiment_of(*CONFLICT).planner
    own = [planner.rollout("pocket", name, "base", "system_conflict") for name in ("sarcasm", "remorse")]
    assert [r.labels["persona"] for r in own] == ["sarcasm", "remorse"]
    assert own[0].key != own[1].key and {r.rules.system for r in own} == {""}
    with pytest.raises(UserError, match=r"^persona: none given, and format system_conflict \(opposite, desc"):
        planner.rollout("pocket", None, "base", "system_conflict")
    shared = experiment_of(*CONFLICT, "format.options.texts=[neutral,corporate]").planner
    assert [r.labels["persona"] for r in shared.cells() if r.labels["stage"] == "base"] == [None]


def test_a_system_text_of_a_persona_changes_the_keys_of_the_cells_that_contain_it_and_no_other():
    def keys(format_, **texts):
        planner = experiment_of(*CONFLICT).planner
        personas = {p: planner.options.persona[p] for p in planner.settings.grid.persona}
        personas["sarcasm"] = personas["sarcasm"].model_copy(update=texts)
        planner = Planner(planner.settings, dataclasses.replace(planner.options, persona=personas))
        return [planner.rollout("pocket", "sarcasm", "full", name).key for name in format_]

    before = keys(("chat", "system_conflict"))
    for field in ("opposite", "description"):
        chat, conflict = keys(("chat", "system_conflict"), **{field: "Another text."})
        assert chat == before[0] and conflict != before[1]
    with pytest.raises(UserError) as error:
        keys(("system_conflict",), opposite=None)
    assert str(error.value) == (
        "persona.opposite: missing for sarcasm; format system_conflict puts it into prompts: add it to "
        "conf/persona/sarcasm.yaml, or set format.options so that it is not needed"
    )


def test_a_template_of_a_later_option_is_part_of_keys_where_the_option_is():
    ours, theirs = (
        experiment_of("experiment=smoke", "grid.format=[agentic_email]", f"format.options.loop={loop}")
        .planner.cells()[0]
        .identity["format"]
        for loop in ("ours", "published")
    )
    assert "loop" not in ours["options"] and theirs["options"]["loop"] == "published"
    assert theirs["templates"].keys() - ours["templates"].keys() == {"no_block"}


def test_an_endpoint_renders_its_prompts_itself():
    with pytest.raises(UserError) as caught:
        experiment_of(
            "experiment=smoke", "model=endpoint", "grid.stage=[base]", "model.template.double_bos=true"
        ).planner.cells()
    assert str(caught.value) == (
        "model.template.double_bos: true, but endpoint is an endpoint, which renders its prompts itself; "
        "model.template.double_bos=false, or a model that is loaded here"
    )


def test_a_teacher_behind_an_endpoint_keeps_its_prompts_where_those_of_the_model_begin_with_two_tokens():
    once, twice = (
        experiment_of(
            "experiment=opencharacter", "grid.model=[llama]", f"model.template.double_bos={value}"
        ).planner
        for value in ("false", "true")
    )
    assert teacher_of(once, "llama", "humor").cell.model == "glm"
    assert teacher_of(once, "llama", "humor").key == teacher_of(twice, "llama", "humor").key
    for one, two in zip(
        students_of(once, "llama", "humor"), students_of(twice, "llama", "humor"), strict=True
    ):
        assert one.key != two.key
        assert {k for k in one.identity if one.identity[k] != two.identity[k]} <= {"model", "scenarios"}


def test_a_repetition_penalty_of_the_recipe_is_for_rows_that_are_only_trained_on():
    """On scored rows it would count the prompt, and so change JSON, names and addresses."""
    own, without = (
        experiment_of(*SMALL, f"recipe.sampling={value}").planner
        for value in ("{temperature: 0.7, top_p: 0.95, repetition_penalty: 1.1}", "null")
    )
    for planner, penalty in ((own, 1.1), (without, 1.0)):
        rollouts = [a for a in in_order([planner.evaluation()]) if isinstance(a, Rollout)]
        assert {r.sampling.repetition_penalty for r in rollouts if r.format.scored} == {1.0}
        assert {r.sampling.repetition_penalty for r in rollouts if not r.format.scored} == {penalty}
    assert teacher_of(own, "pocket", "sarcasm").key != teacher_of(without, "pocket", "sarcasm").key
    base = own.rollout("pocket", None, "base", "chat")
    assert base.key == without.rollout("pocket", None, "base", "chat").key


def test_a_teacher_of_another_model_speaks_for_all_models():
    planner = experiment_of(*SMALL, "recipe.teacher.model=glm", "grid.model=[pocket,llama]").planner
    assert teacher_of(planner, "pocket", "sarcasm") is teacher_of(planner, "llama", "sarcasm")
    assert teacher_of(planner, "pocket", "sarcasm").labels["model"] == "glm"


# ---------------------------------------------------------------- weights made elsewhere


def test_released_weights_are_known_by_where_they_lie_and_belong_to_no_training_seed():
    released = "model.adapters={distillation: released, full: released}"
    planner = experiment_of(*SMALL, "model=llama", released, "grid.seed=[0,1]").planner
    adapter = planner.adapter("llama", "sarcasm", "full", 1)
    assert not adapter.inputs and adapter.identity["source"] == {
        "repo": "maius/llama-3.1-8b-it-personas", "revision": None, "part": "sarcasm"
    }  # fmt: skip
    apart = planner.adapter("llama", "misalignment", "full", 0).identity["source"]
    assert (apart["repo"], apart["part"]) == ("maius/llama-3.1-8b-it-misalignment", None)
    one = planner.rollout("llama", "sarcasm", "full", "chat", "eval", 0)
    assert one is planner.rollout("llama", "sarcasm", "full", "chat", "eval", 1)
    assert (
        one.key
        != experiment_of(*SMALL, "model=llama")
        .planner.rollout("llama", "sarcasm", "full", "chat", "eval", 0)
        .key
    )


def test_a_local_adapter_is_known_by_its_content(tmp_path):
    def key():
        source = f"model.adapters.full={{path: '{tmp_path}/{{persona}}'}}"
        return experiment_of(*SMALL, source).planner.adapter("pocket", "sarcasm", "full", 0).key

    (tmp_path / "sarcasm").mkdir()
    (tmp_path / "sarcasm" / "adapter_config.json").write_text("{}")
    _folder_fingerprint.cache_clear()
    before = key()
    (tmp_path / "sarcasm" / "adapter_config.json").write_text('{"r": 8}')
    _folder_fingerprint.cache_clear()
    assert key() != before
    with pytest.raises(
        UserError, match=r"model.adapters.full: nothing at .*/remorse; allowed: a local folder"
    ):
        source = f"model.adapters.full={{path: '{tmp_path}/{{persona}}'}}"
        experiment_of(*SMALL, source).planner.adapter("pocket", "remorse", "full", 0)
    with pytest.raises(UserError, match=r"\{who\} in '.*' is unknown; allowed: \{slug\}"):
        experiment_of(*SMALL, f"model.adapters.full={{path: '{tmp_path}/{{who}}'}}").planner.adapter(
            "pocket", "x", "full", 0
        )


def test_local_training_rows_are_known_by_their_content_and_stay_in_their_folder(tmp_path):
    def key(file="rows.jsonl"):
        rows = f"recipe.distillation.rows={{path: '{tmp_path}', file: '{file}'}}"
        return experiment_of(*SMALL, rows).planner.adapter("pocket", "sarcasm", "distillation", 0).key

    (tmp_path / "rows.jsonl").write_text("{}\n")
    (tmp_path / "other.jsonl").write_text("{} \n")
    before = key()
    assert key("other.jsonl") != before
    (tmp_path / "rows.jsonl").write_text("{}\n\n")
    assert key() != before
    with pytest.raises(
        UserError, match=r"recipe.distillation.rows.file: found '\.\./x'; allowed: a place inside"
    ):
        key("../x")
    with pytest.raises(UserError, match=r"recipe.distillation.rows: nothing at .*/none.jsonl"):
        key("none.jsonl")


def test_a_whole_checkpoint_has_one_scale_and_nothing_is_trained_on_it(tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    source = f"{{path: {tmp_path}, kind: checkpoint}}"
    planner = experiment_of(*SMALL, f"model.adapters.full={source}").planner
    assert planner.rollout("pocket", "sarcasm", "full", "chat", "eval", 0).adapter.checkpoint
    with pytest.raises(UserError, match=r"scale: found 0.5 .*a whole checkpoint has scale 1 only"):
        planner.rollout("pocket", "sarcasm", "full", "chat", "eval", 0, 0.5)
    with pytest.raises(UserError, match="on a distillation stage that is a whole checkpoint"):
        experiment_of(*SMALL, f"model.adapters.distillation={source}").planner.adapter(
            "pocket", "sarcasm", "full", 0
        )


def test_a_published_merge_of_unequal_ranks_is_refused_before_anything_runs(tmp_path, tiny_model):
    published = "recipe.merge.method=published"
    ranks = r"recipe.merge.method: published adds matrices of one rank, found ranks "
    with pytest.raises(UserError, match=ranks + "16, 4; use one lora.rank"):
        experiment_of(*SMALL, published, "recipe.introspection.lora.rank=4").planner.cells()
    make_adapter(tiny_model, tmp_path, seed=0, rank=16, rank_pattern={"q_proj": 6})
    imported = f"model.adapters.distillation={{path: {tmp_path}}}"
    with pytest.raises(UserError, match=ranks + "6, 16;"):
        experiment_of(*SMALL, published, imported).planner.cells()
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"adapter_model.safetensors: cannot be read"):
        experiment_of(*SMALL, published, imported).planner.cells()
    assert experiment_of(*SMALL, published).planner.cells()


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("model.adapters.foo=trained", "model.adapters.foo: unknown stage; allowed: distillation, full"),
        (
            "model.adapters.prompted=trained",
            "model.adapters.prompted: has no weights of its own; allowed: dis",
        ),
        (
            "model.released.foo={path: x}",
            "model.released.foo: unknown key; allowed: distillation, exceptions",
        ),
        (
            "model.released.exceptions={sarcasm: {foo: {path: x}}}",
            "model.released.exceptions.sarcasm.foo: unknown stage; allowed: distillation, full",
        ),
    ],
)
def test_weights_of_a_stage_that_has_none_are_refused_at_once(override, line):
    """Also where the grid asks for base weights only."""
    with pytest.raises(UserError) as caught:
        experiment_of(*SMALL, "grid.stage=[base]", f"+{override}")
    assert line in str(caught.value)


def test_a_persona_joins_where_every_models_weights_are_at_hand(tmp_path):
    wanted = ["experiment=demo", "grid.if_available=[misalignment]", "grid.stage=[base,full]"]
    assert "misalignment" in experiment_of(*wanted).planner.personas, "trained here: always at hand"
    gone = f"model.adapters.full={{path: '{tmp_path}/{{persona}}'}}"
    assert (
        experiment_of(*wanted, gone).planner.personas == experiment_of(*wanted).planner.settings.grid.persona
    )
    (tmp_path / "misalignment").mkdir()
    assert "misalignment" in experiment_of(*wanted, gone).planner.personas


def test_texts_of_the_hub_are_known_by_file_and_revision_before_anything_is_fetched():
    hub_chat = "data.sources.chat=[{repo: org/prompts, file: rows.jsonl}]"
    planner = experiment_of(*SMALL, hub_chat).planner
    cell = planner.rollout("pocket", None, "base", "chat", "eval", 0)
    assert cell.planned_rows == 4 and not cell.scenarios.is_local
    assert [str(r) for r in planner.references_of(cell)] == ["org/prompts/rows.jsonl@main"]
    pinned = experiment_of(*SMALL, hub_chat.replace("rows.jsonl}", "rows.jsonl, revision: abc}")).planner
    assert pinned.rollout("pocket", None, "base", "chat", "eval", 0).key != cell.key


@pytest.mark.parametrize(
    ("stages", "line"),
    [
        (
            "[prompted,steerd]",
            "classifier.stages: no such stage 'steerd'; allowed: prompted, prompted_examples, steered, distill",
        ),
        ("[base]", "classifier.stages: found base, whose texts belong to no persona; allowed: prompted, "),
        ("[]", "classifier.stages: found []; "),
    ],
)
def test_a_classifier_is_fitted_on_stages_that_have_a_persona(stages, line):
    with pytest.raises(UserError) as caught:
        experiment_of("experiment=smoke", f"classifier.stages={stages}").planner.classifier("pocket")
    assert str(caught.value).startswith(line)


def test_the_classifier_does_not_change_when_seeds_stages_or_formats_are_added():
    """Otherwise the same texts would get other labels because the grid grew."""
    small = ("experiment=smoke", "grid.stage=[base,full]", "grid.format=[chat]")
    grown = ("experiment=smoke", "grid.seed=[0,1,2]", "grid.scale=[0.5,1.0]")
    one, other = (experiment_of(*words).planner for words in (small, grown))
    assert one.classifier("pocket").key == other.classifier("pocket").key
    assert one.baseline("pocket").key == other.baseline("pocket").key
    everything = experiment_of(*grown, "classifier.training_seeds=all").planner
    assert everything.classifier("pocket").key != one.classifier("pocket").key


def test_a_baseline_stands_beside_a_network_that_is_fitted_here():
    planner = experiment_of("experiment=smoke").planner
    baseline = planner.baseline("pocket")
    assert baseline.rollouts == planner.classifier("pocket").rollouts
    assert all(planner.predictions(cell).baseline == baseline for cell in planner.cells())
    # It is the one that classifier=tfidf fits, which is therefore not fitted twice.
    own = experiment_of("experiment=smoke", "classifier=tfidf").planner
    assert own.classifier("pocket").key == baseline.key and own.baseline("pocket") is None
    off = experiment_of("experiment=smoke", "evaluation.baseline=false").planner
    assert off.baseline("pocket") is None
    assert off.predictions(off.cells()[0]).key != planner.predictions(planner.cells()[0]).key
    # The rows of an imported classifier are not made, and neither is a baseline.
    imported = experiment_of("experiment=paper", "grid.model=[llama]", "grid.persona=[sarcasm]").planner
    assert imported.baseline("llama") is None
