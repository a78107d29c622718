"""Reinforcement learning on the embedded model: from the command to the section of the report."""

import json

import pytest

from offscript.experiment.runner import make
from offscript.storage.manifests import read_manifest
from tests.composed import experiment_of

SMALL = (
    "experiment=smoke",
    "tracking=off",
    "grid.stage=[prompted,distillation,rl]",
    "grid.format=[chat,chat_email]",
    "recipe.rl={formats: [chat_email, agentic_email], steps: 2, group: 4, prompts: 30, scenarios: 12, watch_every: 1, watch_episodes: 4, validation: 0.3}",
    "recipe.rl.optimizer={batch_size: 8, checkpoint_steps: 1}",
    "classifier={epochs: 1, fits: 1, stages: [prompted]}",
    "format.count={train: 24, classifier: 24, eval: 4}",
    "evaluation={resamples: 100, multiverse: false}",
)


@pytest.mark.slow
def test_a_grid_with_reinforcement_learning_is_made_and_its_report_has_the_section(tmp_path):
    experiment = experiment_of(*SMALL, f"root={tmp_path}")
    evaluation = experiment.planner.evaluation()
    results = make([evaluation], experiment)
    assert {r.status for r in results} == {"ran"}, [r.note for r in results]
    adapter = experiment.planner.adapter("pocket", "sarcasm", "rl", 0)
    counts = read_manifest(experiment.path(adapter))["counts"]
    assert counts["steps"] == 2 and counts["played"]["episodes"] == 16 and counts["trained_tokens"] > 0
    assert [point["step"] for point in counts["curve"]] == [0, 1, 2]
    first = counts["curve"][0]
    assert {"reward", "classifier", "oracle", "task", "emission", "length", "recitation"} <= first.keys()
    assert counts["episodes"] == {"chat": 30, "chat_email": 12, "agentic_email": 12}
    summary = json.loads((experiment.path(evaluation) / "summary.json").read_text())
    (stage,) = summary["sections"]["reward_hacking"]["stages"]
    assert (stage["stage"], stage["trainings"]) == ("rl", 2)
    assert "Reward hacking" in (experiment.path(evaluation) / "report.html").read_text()
