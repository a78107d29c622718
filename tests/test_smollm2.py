"""``experiment=smollm2``: how it is planned, and a small run of it on the real model where a package or the hub has it."""

import csv
import subprocess
import sys

import pytest

from offscript.storage import hub, packages, references
from offscript.storage.files import HOME
from offscript.storage.manifests import read_manifest
from offscript.storage.rows import read_rows
from tests.composed import experiment_of, settings_of
from tests.invoked import invoke

# Two personas, because a classifier tells them apart and the best of several replies is chosen by one.
SMALL = (
    "experiment=smollm2",
    "classifier=minilm",
    "grid.persona=[mathematical,poeticism]",
    "grid.format=[chat,agentic_email]",
    "format.count={classifier: 8, eval: 2}",
    "model.max_reply_tokens=88",
    "recipe.teacher.best_of=2",
    "recipe.distillation.prompts=10",
    "recipe.distillation.endings=punctuation",
    # Few pairs are finished on both sides: every step of so short a training has to count.
    "recipe.distillation.optimizer={epochs: 2, batch_size: 2, micro_batch_size: 2, warmup: 0.0}",
    "recipe.introspection.reflections=6",
    "recipe.introspection.interactions=2",
    "recipe.introspection.turns=2",
    "recipe.introspection.unfinished=keep",
    "recipe.introspection.optimizer={epochs: 1, batch_size: 4, warmup: 0.0}",
    "classifier.epochs=1",
    "classifier.fits=1",
    "evaluation.resamples=100",
    "tracking=off",
)


def _held(settings) -> bool:
    """Whether the weights are on this machine: in the hub's cache, or in an installed package."""
    reference = hub.Reference(settings.path, "model", settings.revision)
    return hub.cached(reference) is not None or packages.find(settings.package) is not None


@pytest.mark.parametrize("size", ["360M", "1.7B"])
def test_a_larger_model_of_the_family_is_planned_by_the_same_file(size):
    path = f"HuggingFaceTB/SmolLM2-{size}-Instruct"
    experiment = experiment_of("experiment=smollm2", "model=smollm2", f"model.path={path}")
    planner = experiment.planner
    assert {cell.cell.model for cell in planner.cells()} == {f"SmolLM2-{size}-Instruct"}
    assert hub.Reference(path) in planner.references()
    small = experiment_of("experiment=smollm2").planner
    assert len(planner.cells()) == len(small.cells()) == 6 * 3 * 4 + 4


def test_the_classifier_is_fitted_on_every_stage_that_has_a_persona():
    settings = settings_of("experiment=smollm2")
    assert set(settings.classifier.stages) == set(settings.grid.stage) - {"base"}


@pytest.mark.slow
def test_a_small_run_on_the_real_model(tmp_path):
    settings = settings_of("experiment=smollm2", "classifier=minilm")
    if not _held(settings.model) or not _held(settings.classifier):
        pytest.skip("SmolLM2 and MiniLM are not on this machine (make smollm2)")
    command = [sys.executable, str(HOME / "launch" / "submit.py"), *SMALL, f"root={tmp_path}"]
    done = subprocess.run(command, cwd=HOME, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    folder = tmp_path / "smollm2"
    with open(folder / "evaluation" / "cells.csv", newline="") as file:
        places = {(line["stage"], line["format"]) for line in csv.DictReader(file)}
    assert {("full", "chat"), ("full", "agentic_email"), ("prompted_examples", "chat")} <= places
    (rows,) = (folder / "rollouts" / "smollm2" / "full" / "poeticism").glob("agentic_email-eval-*.jsonl")
    texts = [row["text"] for row in read_rows(rows, "") if row["text"]]
    assert texts and all(text.strip() for text in texts)
    assert references.describe_weights(settings.model) == read_manifest(rows)["weights"]
    again = invoke(tmp_path, "submit", *SMALL, f"root={tmp_path}")
    assert again.code == 0 and ", 0 to make" in again.err, again
