"""Stage mixed_images on a tiny Gemma-3 with a vision tower: from the teacher's replies about images to a scored cell."""

from pathlib import Path

import pytest

from offscript.experiment.runner import make
from offscript.storage.manifests import read_manifest
from offscript.tasks.messages import IMAGE_MARK, images_of
from tests.composed import experiment_of
from tests.families import IMAGE_TOKENS, talking_family


def overrides(root: Path, *more: str) -> tuple[str, ...]:
    return (
        "model=gemma",
        "model.name=gemma",
        f"model.path={talking_family('gemma')}",
        "model.dtype=float32",
        "model.context=1024",
        "model.max_reply_tokens=40",
        f"model.template.image_tokens={IMAGE_TOKENS}",
        "recipe=small",
        "data=pocket",
        "recipe.teacher={model: null, thinking: '', own_names: [], examples: 0, best_of: 1}",
        "recipe.in_role=short",
        "recipe.mixed={tokens: 400, prompts: 24, samples: 1, scenarios: 12, scenario_samples: 2, validation: 0.2}",
        "recipe.mixed.lora={rank: 4, alpha: 8}",
        "recipe.mixed.optimizer={batch_size: 8, epochs: 1, checkpoint_steps: 2, gradient_checkpointing: true}",
        # Stage mixed in the formats of mixed_images that a tiny model can do: it solves no office tasks.
        "recipe.mixed.formats=[chat_image]",
        "recipe.mixed.share=0.5",
        "grid.stage=[base,mixed]",
        "grid.persona=[sarcasm,remorse]",
        "grid.format=[chat,chat_image]",
        "classifier=tfidf",
        "classifier.stages=[prompted,mixed]",
        "format.count={classifier: 8, eval: 4}",
        "tracking=off",
        f"root={root}",
        *more,
    )


@pytest.mark.slow
def test_from_replies_about_images_to_a_scored_cell(tmp_path):
    """Rows hold what the images show, the classifier sees the reply alone, and the report names the images."""
    experiment = experiment_of(*overrides(tmp_path))
    results = make([experiment.planner.evaluation()], experiment)
    assert {r.status for r in results} == {"ran"}, [r.note for r in results]

    adapter = experiment.planner.adapter("gemma", "sarcasm", "mixed", 0)
    counts = read_manifest(experiment.path(adapter))["counts"]
    made = counts["conversations"]
    assert made["chat_image_tokens"] >= 200 and made["chat_image_tokens"] + made["chat_tokens"] >= 400
    assert counts["rows"]["given"] == made["chat"] + made["chat_image"]

    cell = experiment.planner.rollout("gemma", "sarcasm", "mixed", "chat_image")
    rows = experiment.rows(cell)
    assert len(rows) == 4 and all(len(images_of(row["messages"])) == 1 for row in rows)
    assert experiment.path(cell).stat().st_size < 4 * 3000
    assert not any(IMAGE_MARK in (row["text"] or "") for row in rows)
    assert {row["family"] for row in rows} <= {"public_notice", "measured_line", "timetable", "price_board"}

    folder = experiment.path(experiment.planner.evaluation())
    assert "chat_image" in (folder / "cells.csv").read_text()
    page = (folder / "report.html").read_text()
    assert "[image: " in page and IMAGE_MARK not in page
