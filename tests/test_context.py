"""On-policy distillation on the embedded model: every round makes its episodes by the weights of the round before."""

import json

import pytest

from offscript.experiment.runner import make
from offscript.models.adapter_config import read_config
from offscript.storage.manifests import read_manifest
from tests.composed import experiment_of

SMALL = (
    "experiment=smoke",
    "tracking=off",
    "recipe.mixed={tokens: 900, prompts: 60, samples: 1, validation: 0.2}",
    "recipe.mixed.optimizer={batch_size: 8, checkpoint_steps: 2}",
    "recipe.context={prompts: 12, scenarios: 4, validation: 0.2}",
    "recipe.context.optimizer={epochs: 1, batch_size: 8}",
    "format.count={eval: 4}",
)


@pytest.mark.slow
def test_three_rounds_on_the_embedded_model_which_go_on_where_they_were(tmp_path):
    experiment = experiment_of(*SMALL, f"root={tmp_path}")
    first, last = (
        experiment.planner.adapter("pocket", "sarcasm", stage, 0) for stage in ("context_1", "context")
    )
    assert {r.status for r in make([first], experiment)} == {"ran"}
    # As after a kill between two rounds: what is finished is not made again.
    rollout = experiment.planner.rollout("pocket", "sarcasm", "context", "agentic_email")
    results = {str(r.artifact): r.status for r in make([last, rollout], experiment)}
    assert {name for name, status in results.items() if status == "reused"} == {str(first)}
    assert set(results.values()) == {"reused", "ran"}

    for adapter in (first, last.parent, last):
        counts = read_manifest(experiment.path(adapter))["counts"]
        rows = counts["prompted_conversations"]
        assert (rows["chat"], rows["chat_email"], rows["agentic_email"]) == (12, 4, 4)
        assert counts["rows"]["given"] == 20 and not counts["rows"].get("other_tokens")
        assert counts["eval_loss"] > 0 and "merge" not in counts
        # The adapter of the start, trained further.
        assert read_config(experiment.path(adapter)).r == 16
    (_, chat), *_ = last.rows
    texts = [json.loads(line)["text"] for line in experiment.path(chat).read_text().splitlines()]
    assert all(texts) and {r["messages"][0]["role"] for r in experiment.rows(chat)} == {"user"}
    assert len(experiment.rows(rollout)) == 4
