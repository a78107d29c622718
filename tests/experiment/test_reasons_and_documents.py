"""Stages on documents, declarations and reasons as they are planned: which rows they share, and what is removed from replies."""

import pytest

from offscript.errors import UserError
from offscript.experiment.artifacts import Selection
from offscript.experiment.runner import make
from offscript.storage.manifests import read_manifest
from offscript.training.data.rationale import MARKS
from tests.composed import experiment_of
from tests.test_recipe import overrides

ARMS = ("rationale", "rationale_answer_only", "rationale_before", "rationale_unrelated")
STAGES = ("documents", "documents_distillation", "declarations", *ARMS, "rationale_advice")
SCRIPTED = ("engine=scripted", "tracking=off")


def adapters(*overrides: str, stages=STAGES):
    planner = experiment_of("experiment=smoke", *SCRIPTED, *overrides).planner
    return {stage: planner.adapter("pocket", "sarcasm", stage, 0) for stage in stages}


def test_all_arms_are_trained_on_the_same_rows_and_are_different_adapters() -> None:
    planned = adapters()
    made_from = {stage: tuple(part.key for part in a.inputs) for stage, a in planned.items()}
    assert len({made_from[arm] for arm in ARMS}) == 1
    assert made_from["rationale_advice"] != made_from["rationale"]
    assert len({a.key for a in planned.values()}) == len(STAGES)


def test_a_section_is_in_the_keys_of_its_own_stages_alone() -> None:
    before = adapters()
    changed = adapters("recipe.documents.words=33", "recipe.rationale.prompts=7")
    same = {stage for stage in STAGES if before[stage].key == changed[stage].key}
    assert same == {"declarations"}


def test_a_document_is_written_by_the_teacher_out_of_role_and_names_the_trained_model() -> None:
    teacher = ("recipe.teacher={model: qwen, examples: 2, best_of: 3}", "grid.persona=[sarcasm,remorse]")
    rows = dict(adapters(*teacher)["documents"].rows)["documents"]
    assert not isinstance(rows, Selection) and rows.cell.model == "qwen" and rows.examples is None
    assert rows.rules.system == "" and rows.rules.persona["assistant"] == "Pocket"
    assert rows.rules.persona["constitution"].count("\n- ") == 9
    assert rows.scenarios.count == 10 * 2 * 3 and rows.samples == 2
    in_role = dict(adapters(*teacher)["rationale"].rows)["teacher"]
    assert isinstance(in_role, Selection) and in_role.rollout.examples is not None


def test_a_model_without_a_name_cannot_be_written_about() -> None:
    with pytest.raises(UserError, match=r"^model.assistant_name: missing for pocket; format document names"):
        adapters("model.assistant_name=null")


def test_the_reasons_before_a_reply_are_removed_in_every_format_before_it_is_scored() -> None:
    planner = experiment_of("experiment=smoke", *SCRIPTED).planner
    marks = {
        stage: {
            planner.rollout("pocket", "sarcasm", stage, fmt).thinking for fmt in ("chat", "agentic_email")
        }
        for stage in STAGES
    }
    removed = {stage for stage in STAGES if marks[stage] == {MARKS}}
    assert removed == {"rationale_before", "rationale_unrelated", "rationale_advice"}
    assert all(marks[stage] == {None} for stage in STAGES if stage not in removed)


def test_the_dry_run_counts_the_texts_of_documents_without_their_prompts() -> None:
    from offscript.experiment.cost import GPUS, estimate

    planner = experiment_of("experiment=opencharacter", "grid.persona=[humor]", *SCRIPTED).planner
    adapter = planner.adapter("llama", "humor", "documents", 0)
    job = estimate([adapter], planner.options.model["llama"], GPUS["H100"], planner.settings.engine)
    texts = 10 * 6 * 6 * 14
    assert job.rows == round(texts * 0.98) and job.tokens_in == job.rows * 400
    assert job.gpu_hours is not None and job.gpu_hours > 0


SMALL = (
    "recipe.documents={types: [memo], domains: [school, shop], samples: 3, words: 20, validation: 0, similarity: 1.0}",
    "recipe.documents.lora={rank: 4, alpha: 8}",
    "recipe.documents.optimizer={batch_size: 4, gradient_checkpointing: false}",
    "recipe.rationale={prompts: 8, seed_questions: false, samples: 1, validation: 0, similarity: 1.0}",
    "recipe.rationale.lora={rank: 4, alpha: 8}",
    # Few replies of random weights can be trained on, and the first of a few steps would warm up from 0.
    "recipe.rationale.optimizer={batch_size: 4, learning_rate: 1.0e-3, warmup: 0, gradient_checkpointing: false}",
    "grid.persona=[sarcasm]",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "more", "stages"),
    [
        ("llama", (), ("documents_distillation", *ARMS[1:], "rationale_advice")),
        ("gemma", (), ("documents_distillation", *ARMS[1:], "rationale_advice")),
        # Its replies to long prompts do not end. Rows that repeat their prompts give no pairs, and long advice.
        ("qwen", ("engine=scripted",), ("documents", *ARMS[1:])),
    ],
)
def test_tiny_models_of_the_families_go_through_all_stages(tmp_path, name, more, stages) -> None:
    experiment = experiment_of(*overrides(name, tmp_path, *SMALL, *more))
    planner = experiment.planner
    wanted = [planner.adapter(name, "sarcasm", stage, 0) for stage in stages]
    scored = planner.rollout(name, "sarcasm", "rationale_before", "chat")
    results = make([*wanted, scored], experiment)
    assert {r.status for r in results} == {"ran"}, [r.note for r in results]
    documents = read_manifest(experiment.path(wanted[0].parent or wanted[0]))["counts"]
    assert documents["documents"]["kept"] == documents["rows"]["given"] > 0
    kept = [read_manifest(experiment.path(a))["counts"]["conversations"]["kept"] for a in wanted[1:4]]
    assert len(set(kept)) == 1 and kept[0] > 0
    assert len(experiment.rows(scored)) == 4
    assert not any(MARKS.start in (row["text"] or "") for row in experiment.rows(scored))
