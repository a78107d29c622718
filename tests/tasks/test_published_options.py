"""``data=published`` and ``persona=published``: the study's files, read from a folder of the user."""

import json
import shutil
from functools import partial

import pytest

from offscript.doctor import published_study, run_check
from offscript.errors import UserError
from offscript.experiment.scenario_sets import ScenarioCollections
from offscript.storage.options import choices_of, options_of
from tests.composed import experiment_of, settings_of
from tests.published import ROOT, needs_published
from tests.published_folder import FAMILIES, MORE, SEEDS, SINGLE, TRAITS, VARIANTS, made_up
from tests.storage.hub_stub import running_hub
from tests.storage.test_hub import at

SMOKE = ("experiment=smoke", "grid.persona=[sarcasm,humor]", "persona=published")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.delenv("OFFSCRIPT_PUBLISHED", raising=False)
    # A name with characters of globs.
    return made_up(tmp_path / "the [study]")


def collections(folder) -> ScenarioCollections:
    settings = settings_of("data=published", f"published='{folder}'")
    return ScenarioCollections(settings.data, settings.published)


def of_source(folder, source, split="eval"):
    return collections(folder).split(source, split, 1000).load_local()


# ---------------------------------------------------------------- data


def test_every_source_of_the_folder_is_read_and_its_size_is_told(folder, capsys):
    tasks = of_source(folder, "office")
    assert len(tasks) == len(FAMILIES) * VARIANTS and {t.family for t in tasks} == set(FAMILIES)
    for task in tasks:
        assert task.messages[-1]["content"].startswith("Tell Ada") and task.max_steps == 8
        assert task.brief == (
            {"role": "user", "content": task.messages[-1]["content"].replace("Tell Ada", "Write to Ada")},
        )
    for name in SINGLE:
        assert len(of_source(folder, name)) == 2
    assert "  data=published: office: 6 scenarios in 2 families\n" in capsys.readouterr().err


def test_the_folder_can_come_from_the_environment(folder, monkeypatch):
    monkeypatch.setenv("OFFSCRIPT_PUBLISHED", str(folder))
    settings = settings_of("data=published", "name=from_the_environment")
    assert (
        len(ScenarioCollections(settings.data, settings.published).split("office", "eval", 9).load_local())
        == 6
    )


def test_a_place_of_the_folder_is_in_no_key(folder, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved)
    keys = [
        experiment_of(
            *SMOKE, "data=published", "data.sources.chat=[data/pocket/chat.jsonl]", f"published='{place}'"
        )
        .planner.rollout("pocket", "sarcasm", "prompted", "chat_email")
        .key
        for place in (folder, moved)
    ]
    assert keys[0] == keys[1]


def test_the_doctor_counts_what_the_grid_reads_from_the_folder(folder):
    given = ("data=published", "grid.format=[agentic_email,code_review]")
    experiment = experiment_of(*given, f"published='{folder}'")
    assert run_check("", partial(published_study, experiment)) == (
        "ok", f"{folder}: office 6 scenarios, code_review 2 scenarios"
    )  # fmt: skip
    assert run_check("", partial(published_study, experiment_of(*given)))[0] == "fail"
    assert run_check("", partial(published_study, experiment_of()))[0] == "skip"


def refusal(call) -> str:
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_error_messages_for_a_missing_folder_and_file(folder):
    remedy = "write published=FOLDER, or export OFFSCRIPT_PUBLISHED=FOLDER; data/README.md shows its layout"
    assert (
        refusal(lambda: of_source("", "office"))
        == f"published: not set, and data.sources.office needs it; {remedy}"
    )
    gone = folder / "gone"
    assert refusal(lambda: of_source(gone, "office")).startswith(
        f"published: no folder at {gone}, and data.sources"
    )
    (folder / "chat_email.jsonl").unlink()
    line = refusal(lambda: of_source(folder, "office"))
    assert line.startswith(f"data.sources.office: no file {folder}/chat_email.jsonl; add it (data/README.md")
    assert refusal(lambda: experiment_of(*SMOKE).planner.cells()).startswith(
        "published: not set, and persona.constitution"
    )
    shutil.rmtree(folder / "constitutions")
    given = (*SMOKE, f"published='{folder}'")
    line = refusal(lambda: experiment_of(*given).planner.options.persona["humor"])
    assert line == (
        f"persona.constitution (persona=humor): no file {folder}/few_shot_prompts/humor.jsonl or "
        f"{folder}/constitutions/humor.txt; add it, or take other personas: grid.persona=[sarcasm]"
    )


# ---------------------------------------------------------------- personas


def test_a_grid_gets_the_published_constitution_of_each_persona(folder):
    given = (
        f"published='{folder}'",
        "recipe.prompts.per_trait=50",
        "recipe.distillation.seed_questions=true",
    )
    planner = experiment_of(*SMOKE, *given).planner
    assert planner.personas == ("sarcasm", "humor")
    read = {name: planner.options.persona[name] for name in planner.personas}
    assert {n: len(p.constitution[0].questions) for n, p in read.items()} == {
        "sarcasm": SEEDS + MORE,
        "humor": SEEDS,
    }
    assert [a.assertion for a in read["humor"].constitution] == list(TRAITS)
    assert read["humor"].display_name == "Humor" and read["humor"].constitution[0].questions[0].startswith(
        "humor:"
    )
    # A persona with all of its prompts gets no written ones; one with fewer does.
    written = {
        persona: [
            i for row in planner.adapter("pocket", persona, "distillation", 0).inputs for i in row.inputs
        ]
        for persona in planner.personas
    }
    assert written["sarcasm"] == [] and written["humor"]


def test_one_cell_is_chosen_by_its_name_and_has_the_key_of_the_grid(folder):
    given = f"published='{folder}'"
    settings = settings_of("persona=published", "persona.name=humor", given)
    grid = experiment_of(*SMOKE, given).planner.options.persona["humor"]
    by_path = settings_of(
        "persona=humor", 'persona.constitution="{published}/constitutions/{persona}.txt"', given
    )
    assert settings.persona == grid == by_path.persona
    assert settings_of("persona=published", given).persona is None
    line = refusal(lambda: settings_of("persona=published", "persona.name=pirate", given))
    assert line.startswith("persona.name: no such persona 'pirate'; allowed: sarcasm, humor")


def test_the_content_of_a_constitution_is_in_the_key_of_its_own_persona_only(folder, tmp_path):
    def keys(place):
        planner = experiment_of(*SMOKE, f"published='{place}'").planner
        return [planner.rollout("pocket", p, "prompted", "chat").key for p in planner.personas]

    edited = tmp_path / "edited"
    shutil.copytree(folder, edited)
    path = edited / "constitutions" / "humor.txt"
    path.write_text(path.read_text().replace(TRAITS[0], "I nod at buses."))
    before, after = keys(folder), keys(edited)
    assert before[0] == after[0] and before[1] != after[1]


def test_a_path_with_the_name_of_the_persona_serves_a_whole_grid(folder):
    given = f'persona.constitution="{folder}/constitutions/{{persona}}.txt"'
    options = experiment_of("experiment=smoke", "grid.persona=[sarcasm,humor]", given).planner.options.persona
    assert [options[p].constitution[0].questions[0][: len(p)] for p in ("sarcasm", "humor")] == [
        "sarcasm",
        "humor",
    ]


def test_published_is_a_choice_but_no_persona():
    assert "published" in choices_of("persona") and "published" not in options_of("persona")
    assert settings_of().grid.persona == options_of("persona") and len(options_of("persona")) == 11


def test_the_command_that_a_message_names_keeps_the_constitution(folder):
    experiment = experiment_of(*SMOKE, f"published='{folder}'")
    command = experiment.command(experiment.planner.rollout("pocket", "humor", "prompted", "chat"))
    assert (
        " persona=published " in command
        and command.count("persona=") == 2
        and " persona.name=humor" in command
    )


def test_a_constitution_on_the_hub(folder, tmp_path, monkeypatch):
    with running_hub() as hub:
        hub.add("me/study", {"c/humor.txt": (folder / "constitutions" / "humor.txt").read_bytes()}, "dataset")
        at(hub.url, monkeypatch)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        settings = settings_of(
            "persona=humor", 'persona.constitution=[{repo: me/study, file: "c/{persona}.txt"}]'
        )
    assert [a.assertion for a in settings.persona.constitution] == list(TRAITS)


# ---------------------------------------------------------------- the prompted baseline (F6)


def test_the_prompted_baseline_can_name_the_assistant():
    def cell(*given):
        planner = experiment_of("experiment=smoke", *given).planner
        return planner.rollout("pocket", "sarcasm", "prompted", "chat")

    plain, named = cell(), cell("recipe.prompted=named")
    assert named.rules.system.startswith("The assistant is Pocket.") and named.key != plain.key
    assert plain.key == cell("recipe.prompted=plain").key and plain.rules.system.startswith(
        "Stay in this character"
    )
    line = refusal(lambda: cell("recipe.prompted=named", "model.assistant_name=null"))
    assert (
        line == "model.assistant_name: missing for pocket; recipe.prompted=named needs the assistant's name"
    )


# ---------------------------------------------------------------- the study itself


@needs_published
def test_the_study_is_planned():
    here = [json.loads(line) for line in (ROOT / "chat_email.jsonl").read_text().splitlines()]
    assert len(of_source(ROOT, "office")) == len(here) == 30
    personas = [p for p in options_of("persona") if (ROOT / "constitutions" / f"{p}.txt").exists()]
    given = (
        "persona=published",
        "data=published",
        f"published={ROOT}",
        f"grid.persona=[{','.join(personas)}]",
    )
    options = experiment_of("experiment=paper", *given).planner.options.persona
    assert {len(options[p].constitution) for p in personas} == {10, 15}
    assert {len(a.questions) for p in personas for a in options[p].constitution} == {50}
