"""Persona vectors as artifacts: their keys, their job, and the cells of stage steered."""

import json
import shutil

import pytest

from offscript.experiment.artifacts import Vector, in_order
from offscript.experiment.jobs import vectors as job
from offscript.experiment.runner import make
from offscript.storage.files import HOME
from offscript.storage.manifests import read_manifest
from tests.composed import experiment_of
from tests.invoked import invoke
from tests.slurm import grid

GRID = ("experiment=smoke", "grid.stage=[prompted,steered]", "classifier.stages=[prompted]", "tracking=off")
SMALL = ("format.count={train:16,classifier:4,eval:2}", "format.max_tokens=24")


def vector_of(*overrides, persona="sarcasm"):
    return experiment_of(*GRID, *overrides).planner.vector("pocket", persona, "steered")


def test_steered_cells_have_a_persona_and_neither_seed_nor_scale():
    planner = experiment_of(*GRID, "grid.seed=[0,1]", "grid.scale=[0.5,1.0]").planner
    cells = [rollout for rollout in planner.cells() if rollout.cell.stage == "steered"]
    assert {(r.cell.persona, r.cell.seed, r.cell.scale) for r in cells} == {
        ("sarcasm", 0, 1.0),
        ("remorse", 0, 1.0),
    }
    assert len(cells) == 2 * 3 and all(r.vector in r.inputs and r.rules.system == "" for r in cells)
    vectors = [a for a in in_order([planner.evaluation()]) if isinstance(a, Vector)]
    assert [v.persona for v in vectors] == ["sarcasm", "remorse"]
    assert {r.cell.split for v in vectors for r in (v.prompted, v.plain)} == {"train"}
    assert vectors[0].plain == vectors[1].plain


def test_the_key_of_a_vector_is_what_it_is_made_from():
    vector = vector_of()
    assert vector_of("format.count.eval=3", "engine.batch_size=3", "grid.seed=[4]").key == vector.key
    assert vector_of("format.count.train=9").key != vector.key
    assert vector_of(persona="remorse").key != vector.key


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A vector that was interrupted after five of its steered replies and then made, and one that was not."""
    found, counts, original = [], [], job.run_episodes
    for interrupted in (True, False):
        root = tmp_path_factory.mktemp("runs")
        written = []

        def counted(runs, engine, max_live, on_row, interrupted=interrupted, written=written):
            def on(run, row):
                written.append(row["scenario"])
                if interrupted and len(written) == 5:
                    raise RuntimeError("killed")
                on_row(run, row)

            return original(runs, engine, max_live, on)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(job, "run_episodes", counted)
            experiment = experiment_of(*GRID, *SMALL, f"root={root}")
            vector = experiment.planner.vector("pocket", "sarcasm", "steered")
            results = make([vector], experiment)
            if interrupted:
                assert {r.status for r in results if r.artifact == vector} == {"failed"}
                assert not experiment.is_finished(vector) and not experiment.path(vector).exists()
                make([vector], experiment)
        assert experiment.is_finished(vector)
        found.append((experiment, vector))
        counts.append(len(written))
    return found, counts


def test_an_interrupted_vector_continues_and_is_the_one_that_it_would_have_been(made):
    ((first, vector), (second, _)), counts = made
    assert counts[0] == counts[1], "no steered reply is generated twice"
    files = [e.path(vector) / "vector.safetensors" for e in (first, second)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert not job.work_folder(vector, first).exists()


def test_the_manifest_says_how_layer_and_strength_were_chosen(made):
    (_, (experiment, vector)), _ = made
    counts = read_manifest(experiment.path(vector))["counts"]
    assert len(counts["auc"]) == 4 and 0 <= counts["layer"] < 4
    assert [entry["strength"] for entry in counts["strengths"]] == list(vector.settings.strengths)
    assert counts["strength"] in vector.settings.strengths
    assert counts["plain_perplexity"] > 1 and counts["prompted_perplexity"] > 1
    assert sum(counts["replies"]["fit"]) + sum(counts["replies"]["held_out"]) == 32


def test_rows_are_generated_with_the_vector(made):
    (_, (experiment, vector)), _ = made
    steered = experiment.planner.rollout("pocket", "sarcasm", "steered", "chat")
    plain = experiment.planner.rollout("pocket", None, "base", "chat")
    make([steered, plain], experiment)
    texts = [[row["text"] for row in experiment.rows(rollout)] for rollout in (steered, plain)]
    assert len(texts[0]) == 2 and texts[0] != texts[1]
    assert str(vector.path) in json.dumps(read_manifest(experiment.path(steered))["inputs"])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("engine=scripted",), "engine.name: scripted cannot add the persona vectors of stage steered"),
        (("model=endpoint",), "model.endpoint: endpoint is behind it, so the persona vectors of stage"),
        (("stage.steering.strengths=[2,1]",), "stage.steering.strengths: found [2.0, 1.0]; allowed: each"),
        (("stage.steering.max_perplexity=1",), "stage.steering.max_perplexity: found 1"),
        (("stage.system=constitution",), "steered has steering, but weights=base and system=constitution"),
        (("format.count.train=0",), "split train: format chat has no count for it"),
        (("format.count.train=1",), "vector pocket sarcasm steered: "),
    ],
)
def test_what_cannot_be_steered_is_one_line_before_anything_is_written(tmp_path, words, line):
    done = invoke(tmp_path, "train", "stage=steered", "persona=sarcasm", "tracking=off", *words)
    assert done.code == 2, done.err
    lines = [text for text in done.err.splitlines() if "error" in text or "failed" in text]
    assert len(lines) == 1 and line in lines[0], done.err
    assert not list(tmp_path.rglob("vector.safetensors"))


@pytest.mark.slow
def test_the_whole_grid_with_steered(tmp_path):
    """The classifier is fitted as the published one, on replies of four stages."""
    shutil.copytree(HOME / "data", tmp_path / "data")
    stages = "grid.stage=[base,prompted,steered,distillation,full]"
    fitted = "classifier.stages=[prompted,steered,distillation,full]"
    published = ("classifier.validation=0", "classifier.class_weights=false", "classifier.schedule=cosine")
    words = (
        *grid.SMALL,
        "format.count.train=16",
        stages,
        fitted,
        *published,
        "grid.format=[chat,chat_email]",
    )
    done = invoke(tmp_path, "submit", *words)
    assert done.code == 0, done.err
    assert "steered" in done.out
    again = invoke(tmp_path, "submit", *words)
    assert again.code == 0 and "nothing to do" in again.err
    assert invoke(tmp_path, "status", *words).code == 0
