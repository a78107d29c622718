"""What an evaluation knows of recipes: formats from the plan, costs from the manifests."""

import json

import pytest

from offscript import commands
from offscript.evaluation.report import recipes as report
from offscript.experiment import recipes
from offscript.experiment.artifacts import Rollout, TrainedAdapter, in_order
from offscript.storage.manifests import manifest_path, write_manifest
from tests.composed import experiment_of
from tests.evaluation.metrics.test_recipes import rows_of, scores_of
from tests.experiment.test_evaluation_files import write_predictions

GRID = (
    "experiment=smoke",
    "grid.stage=[prompted,distillation,full,mixed,mixed_000,mixed_without_chat_email,documents_distillation]",
    "grid.format=[chat,chat_email]",
)
TRAINED = ("distillation", "full", "mixed", "mixed_000", "mixed_without_chat_email", "documents_distillation")


def scores(*stages):
    return scores_of(rows_of(dict.fromkeys(stages, 0.0), formats=("chat", "chat_email")))


def made(root, *overrides):
    """An experiment whose adapters and rollouts have manifests: 1,000 tokens and 10 s an adapter, 4 s a rollout."""
    own = experiment_of(*GRID, f"root={root}", *overrides)
    for artifact in in_order([own.planner.evaluation()]):
        path = own.path(artifact)
        if isinstance(artifact, TrainedAdapter):
            path.mkdir(parents=True)
            counts = {"trained_tokens": 1000, "seconds": 10.0, "steps": 20, "resumed_from": None, "ranks": 1}
        elif isinstance(artifact, Rollout):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            counts = {"seconds": 4.0}
        else:
            continue
        write_manifest(path, {"key": artifact.key, "counts": counts})
    return own


def known(own, *stages):
    section = recipes.section_of(own.planner.evaluation(), own, scores(*(stages or TRAINED)))
    return {stage["stage"]: stage for stage in section.data["stages"]}, section


def adapters(own, stage):
    parts = in_order([own.planner.evaluation()])
    return [part for part in parts if isinstance(part, TrainedAdapter) and part.stage == stage]


def test_the_formats_of_a_stage_are_those_of_its_training_data_and_of_its_parents(tmp_path):
    found, section = known(made(tmp_path))
    assert {stage: set(one["formats"]) for stage, one in found.items()} == {
        "distillation": {"chat"},
        "full": {"chat", "self_reflection", "self_interaction"},
        "mixed": {"chat", "chat_email", "agentic_email"},
        "mixed_000": {"chat"},
        "mixed_without_chat_email": {"chat", "agentic_email"},
        "documents_distillation": {"document", "chat"},
    }
    assert section.data["doses"] == [{"model": "pocket", "stages": ["mixed", "mixed_000"]}]
    left_out = [{"model": "pocket", "stages": ["mixed", "mixed_without_chat_email"]}]
    assert section.data["left_out"] == left_out
    assert not any("n/a" in line for line in section.explanation)


@pytest.mark.parametrize(
    ("stage", "formats"),
    [
        ("mixed_100", {"chat_email", "agentic_email"}),
        ("mixed_framed", {"chat"}),
        ("mixed_pairs", {"chat", "chat_email", "agentic_email"}),
        ("declarations", {"declaration", "self_reflection"}),
        ("rationale_before", {"chat"}),
        ("full_from_base", {"self_reflection", "self_interaction"}),
    ],
)
def test_formats_of_other_stages(stage, formats):
    assert set(experiment_of().planner.context.training(stage).formats) == formats


def test_costs_are_means_over_adapters_and_contain_those_of_the_parents(tmp_path):
    own = made(tmp_path)
    found, _ = known(own)
    assert found["distillation"]["tokens"] == found["mixed"]["tokens"] == 1000
    assert found["full"]["tokens"] == 2000 and found["documents_distillation"]["tokens"] == 2000
    assert found["full"]["training_s"] == 20
    # Two personas: each has its teacher's rows, and both share those of the student.
    assert found["distillation"]["rows_s"] == (2 * 4 + 4) / 2


def test_a_training_on_several_processes_that_was_resumed_counts_in_full(tmp_path):
    own = made(tmp_path)
    for adapter in adapters(own, "mixed"):
        counts = {"trained_tokens": 1000, "seconds": 10.0, "steps": 20, "resumed_from": 15, "ranks": 2}
        write_manifest(own.path(adapter), {"key": adapter.key, "counts": counts})
    assert known(own)[0]["mixed"]["training_s"] == 10 * 2 * 4


def test_what_a_manifest_does_not_have_is_not_available_and_said(tmp_path):
    own = made(tmp_path)
    first, second = adapters(own, "mixed")
    write_manifest(own.path(first), {"key": first.key, "counts": {"seconds": 10.0}})
    found, section = known(own)
    assert found["mixed"]["tokens"] is None and found["mixed"]["training_s"] == 10
    assert found["mixed_000"]["tokens"] == 1000
    assert "n/a in the cost of 1 stage: a manifest is gone" in section.explanation[-1]
    manifest_path(own.path(second)).write_text("{")
    assert known(own)[0]["mixed"]["training_s"] is None


def test_weights_that_were_trained_elsewhere_have_no_recipe(tmp_path):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    source = f"model.adapters.distillation={{path: {folder}, kind: adapter}}"
    own = made(tmp_path / "runs", source)
    found, section = known(own)
    assert "formats" not in found["distillation"] and "formats" not in found["full"]
    assert found["mixed"]["formats"]
    assert "distillation, full were trained elsewhere" in section.explanation[-1]


def test_fewer_than_two_trained_stages_have_no_section(tmp_path):
    own = made(tmp_path)
    assert recipes.section_of(own.planner.evaluation(), own, scores("full", "prompted")) is None
    assert report.section(scores("full"), {}) is None


def test_the_evaluation_of_a_grid_has_the_section(tmp_path):
    own = made(tmp_path, "grid.persona=[sarcasm,remorse]", "evaluation.resamples=100", "tracking=off")
    write_predictions(own)
    assert commands.evaluate(own.planner.settings, own) == 0
    summary = json.loads((own.folder / "evaluation/summary.json").read_text())
    stages = {stage["stage"]: stage for stage in summary["sections"]["recipes"]["stages"]}
    assert set(stages) == set(TRAINED) and stages["mixed"]["tokens"] == 1000
    assert stages["mixed"]["formats"] == ["chat", "chat_email", "agentic_email"]
    assert (own.folder / "evaluation/figures/recipes.svg").exists()
    assert {r["reference"] for r in summary["recipes"]} == {"full"}
