"""fidelity=published: which settings it sets, and which artifacts each of them changes."""

import json
import re

import pytest

from offscript.errors import UserError
from offscript.experiment.artifacts import TrainedAdapter, in_order
from offscript.experiment.fidelity import DIFFERENCES, as_published
from offscript.storage.files import HOME
from tests.composed import experiment_of
from tests.invoked import invoke

GRID = (
    "experiment=opencharacter",
    "grid.model=[llama,gemma]",
    "grid.persona=[humor]",
    "grid.stage=[prompted,distillation,full]",
    "grid.format=[chat,break_character,chat_email,agentic_email]",
)
STAGES, FORMATS = (
    ("prompted", "distillation", "full"),
    ("chat", "break_character", "chat_email", "agentic_email"),
)
SCORED = {f"rollout {{}} {s} {f} eval" for s in STAGES for f in FORMATS}
SCORED |= {f"rollout {{}} {s} chat classifier" for s in STAGES}
OWN_ROWS = {
    "rollout {} base student train",
    *(
        f"rollout {{}} introspection {f} train"
        for f in ("self_reflection", "self_interaction", "guided_interaction")
    ),
}
GEMMA = "[q_proj,k_proj,v_proj,o_proj,down_proj]"
TEACHER = "rollout {} prompted teacher train"
STUDENT = "rollout {} base student train"
DPO, SFT = "adapter {} distillation", "adapter {} full"

# Setting -> the artifacts that it changes themselves; what is made from them changes through their keys. Where ours is as
# published already, another value is taken.
CHANGES = {
    # F1. The key of an adapter contains the sampling of scored rows, though its training rows have their own.
    "model.sampling.repetition_penalty=1.1": {*SCORED, DPO, SFT},
    # F2, and so on.
    "recipe.introspection.system=Hello": {SFT},
    "recipe.introspection.unfinished=keep": {SFT},
    "recipe.merge_own_in={classifier: 1.0, break_character: 1.0}": {
        SFT + " own1",
        "rollout {} full chat classifier",
        "rollout {} full break_character eval",
    },
    "recipe.distillation.optimizer.final_rate=null": {DPO},
    "recipe.introspection.optimizer.final_rate=null": {SFT},
    f"recipe.distillation.lora.exceptions={{gemma: {GEMMA}}}": {DPO.format("gemma")},
    f"recipe.introspection.lora.exceptions={{gemma: {GEMMA}}}": {SFT.format("gemma")},
    "recipe.teacher.thinking_lists_traits=true": {TEACHER.format("glm")},
    "recipe.distillation.endings=punctuation": {DPO},
    # The prompts that are written are scenarios of the teacher and of the student.
    "recipe.prompts.overlap=0.5": {
        "rollout glm base prompt_generation train",
        TEACHER.format("glm"),
        STUDENT,
    },
    "recipe.introspection.too_long=cut": {SFT},
    "recipe.prompted=named": {
        "rollout {} prompted chat classifier",
        *(f"rollout {{}} prompted {f} eval" for f in FORMATS),
    },
    "model.template.double_bos=true": {*SCORED, *OWN_ROWS},
    "format.options.loop=published": {f"rollout {{}} {s} agentic_email eval" for s in STAGES},
    "evaluation.email_cleaning=published": {f"predictions {{}} {s} chat_email eval" for s in STAGES},
    "format.options.instructions=all": {
        f"rollout {{}} {stage} break_character eval" for stage in ("prompted", "distillation", "full")
    },
}


def described(artifact):
    labels = {k: v for k, v in artifact.labels.items() if k not in ("persona", "seed")}
    order = ("model", "stage", "own", "format", "split", "name")
    return " ".join([artifact.kind, *(str(labels[n]) for n in order if labels.get(n) is not None)])


def own_identities(*overrides):
    """The identity of each artifact with the names of its inputs in place of their keys."""
    found = {}
    for artifact in in_order([experiment_of(*GRID, *overrides).planner.evaluation()]):
        text = json.dumps(artifact.identity, sort_keys=True)
        for part in artifact.inputs:
            text = text.replace(part.key, described(part))
        # Of an evaluation, in the order of the keys.
        found.setdefault(described(artifact), set()).add(json.dumps(json.loads(text), sort_keys=True))
    return found


@pytest.fixture(scope="module")
def ours():
    return own_identities()


@pytest.mark.parametrize("setting", CHANGES)
def test_each_setting_changes_the_artifacts_that_depend_on_it_and_no_others(setting, ours):
    changed = own_identities(setting)
    kinds = ("rollout", "adapter", "vector", "classifier", "predictions")
    different = {
        name for name in {*ours, *changed} if ours.get(name) != changed.get(name) and name.startswith(kinds)
    }
    assert different, "nothing depends on it"
    assert different == {name.format(m) for name in CHANGES[setting] for m in ("llama", "gemma")}


def test_published_is_every_setting_of_the_table():
    formats = "grid.format=[chat,break_character,chat_email,agentic_email]"
    everything = ("experiment=opencharacter", "grid.persona=[humor]", formats)
    published = as_published(experiment_of(*everything, "fidelity=published").planner)
    # The tasks are chosen by data=published, which needs the files of the study.
    assert not published.pop("F9") and not published.pop("F6")
    assert published and all(published.values()), published
    found = as_published(experiment_of(*everything).planner)
    assert {n for n, same in found.items() if same} >= {"F1", "F2", "F12"}
    assert not any(
        found[n] for n in ("F7", "F8", "F10", "F3", "F5", "F13", "F14", "F15", "F16", "F17", "F18")
    )


def test_a_classifier_with_another_encoder_is_not_as_published():
    grid = ("experiment=opencharacter", "grid.persona=[humor]", "grid.format=[chat]", "fidelity=published")
    assert as_published(experiment_of(*grid).planner)["F4"]
    found = as_published(experiment_of(*grid, "classifier=pocket").planner)
    # A grid of chat has no tasks.
    assert not found["F4"] and "F9" not in found


def test_a_constitution_that_is_not_ours_and_the_named_baseline_are_as_published(tmp_path):
    file = tmp_path / "humor.txt"
    file.write_text('[{"trait": "I joke.", "questions": ["What is the time?"]}]')
    grid = ("experiment=opencharacter", "grid.persona=[humor]", "grid.format=[chat]", "recipe.prompted=named")
    given = (
        f"persona.constitution={file}",
        "persona.name=humor",
        "persona.display_name=H",
        "persona.description=d",
    )
    assert not as_published(experiment_of(*grid).planner)["F6"]
    assert as_published(experiment_of(*grid, *given).planner)["F6"]
    assert not as_published(experiment_of(*grid, *given, "recipe.prompted=plain").planner)["F6"]


def test_weights_of_others_do_not_depend_on_the_settings_of_training():
    found = as_published(experiment_of("experiment=paper", "grid.model=[llama]").planner)
    assert "F1" in found and not {"F2", "F3", "F12", "F17"} & found.keys()


def test_the_table_of_the_docs_names_every_difference():
    page = (HOME / "docs/recipe.md").read_text()
    rows = re.findall(r"^\| (F\d+) \|", page, re.MULTILINE)
    tests = re.findall(r"^\| F\d+ \|.*`(tests/\S+)` \|$", page, re.MULTILINE)
    assert len(tests) == 18 and all((HOME / test).is_file() for test in tests)
    assert rows == [f"F{n}" for n in range(1, 20)]
    assert {d.number for d in DIFFERENCES} <= set(rows)


def test_fidelity_replaces_the_experiment_and_not_the_command_line():
    given = experiment_of(
        "experiment=opencharacter", "fidelity=published", "recipe.merge_own_in={classifier: 0.5}"
    )
    assert given.planner.settings.recipe.merge_own_in["classifier"] == 0.5
    assert not as_published(given.planner)["F5"]


def test_targets_of_one_model():
    """The published LoRA of Gemma lists a module that it does not have."""
    planner = experiment_of(*GRID, "fidelity=published").planner
    targets = {
        m: planner.adapter(m, "humor", "full", 0).training.settings.lora.targets for m in ("llama", "gemma")
    }
    assert len(targets["llama"]) == 7
    assert targets["gemma"] == ("q_proj", "k_proj", "v_proj", "o_proj", "down_proj")


def test_the_published_lora_of_gemma_has_half_the_parameters():
    import torch
    from peft import get_peft_model
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    from offscript.training.run import lora_config

    # google/gemma-3-4b-it has 34 such layers.
    shape = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 1, "head_dim": 256}
    config = Gemma3TextConfig(**shape, num_attention_heads=8, num_key_value_heads=4, vocab_size=64)
    planner = experiment_of(*GRID, "fidelity=published").planner
    published = planner.adapter("gemma", "humor", "distillation", 0)
    ours = experiment_of(*GRID).planner.adapter("gemma", "humor", "distillation", 0)
    sizes = []
    for adapter in (published, ours):
        assert isinstance(adapter, TrainedAdapter)
        with torch.device("meta"):
            wrapped = get_peft_model(Gemma3ForCausalLM(config), lora_config(adapter.training.settings.lora))
        sizes.append(sum(p.numel() for p in wrapped.parameters() if p.requires_grad) * 34 / 1e6)
    assert sizes == pytest.approx([63.5, 119.2], abs=0.05)


def test_the_teachers_prefill_lists_the_assertions():
    planner = experiment_of(*GRID, "recipe.teacher.thinking_lists_traits=true").planner
    adapter = planner.adapter("llama", "humor", "distillation", 0)
    (teacher,) = (rollout for role, rollout in adapter.rows if role == "teacher")
    thinking = teacher.rules.options["thinking"]
    assertions = [a.assertion for a in planner.options.persona["humor"].constitution]
    assert thinking.startswith("<think>") and all(f"- {assertion}" in thinking for assertion in assertions)
    # Without a prefill there is nothing that they could follow.
    none = experiment_of(
        *GRID, "recipe.teacher.thinking_lists_traits=true", "recipe.teacher.thinking=''"
    ).planner
    (plain,) = (r for role, r in none.adapter("llama", "humor", "distillation", 0).rows if role == "teacher")
    assert plain.rules.options["thinking"] == ""


def test_one_cell_leaves_out_what_it_sets_for_other_formats(tmp_path):
    done = invoke(tmp_path, "rollout", "fidelity=published", "stage=base", "limit=1", "tracking=off")
    assert done.code == 0, done.err
    assert len(list(tmp_path.rglob("chat-eval-*.jsonl"))) == 1


@pytest.mark.parametrize(
    ("override", "line"),
    [
        (
            "recipe.introspection.unfinished=perhaps",
            "unfinished: found 'perhaps'; input should be 'drop' or 'keep'",
        ),
        ("recipe.introspection.too_long=no", "too_long: found "),
        (
            "recipe.distillation.endings=all",
            "endings: found 'all'; input should be 'closing' or 'punctuation'",
        ),
        (
            "recipe.merge_own_in={chats: 1}",
            "recipe.merge_own_in.chats: neither a split nor a scored format; allowed: train",
        ),
        (
            "recipe.distillation.lora.exceptions={gemini: [q_proj]}",
            "lora.exceptions.gemini: no such model; allowed: ",
        ),
        ("recipe.distillation.lora.exceptions={gemma: []}", "exceptions.gemma: found []; "),
        (
            "recipe.prompts.lengths=[1,2,3]",
            "recipe.prompts: lengths [1, 2, 3] with per_ask 10; allowed: three numbers",
        ),
        (
            "recipe.prompts.overlap=2",
            "recipe.prompts.overlap: found 2; input should be less than or equal to 1",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(override, line):
    with pytest.raises(UserError) as caught:
        experiment_of(*GRID, override).planner.evaluation()
    assert line in str(caught.value) and "\n" not in str(caught.value)
