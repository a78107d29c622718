"""Projections of activations: their keys and jobs, what a forward pass gives, and what is made again."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from offscript.errors import UserError
from offscript.experiment.artifacts import Projections, Vector, in_order
from offscript.experiment.cost import GPUS, estimate
from offscript.experiment.folder import now, write_artifact_manifest
from offscript.experiment.graph import jobs_of
from offscript.experiment.jobs import projections as job
from offscript.experiment.jobs.projections import direction, project
from offscript.experiment.planner import Planner
from offscript.experiment.runner import make
from offscript.models.loading import load_model
from offscript.models.steering import load_vector, save_vectors
from offscript.rollouts.engines.transformers import TransformersEngine
from offscript.settings import Exchange
from offscript.storage.manifests import read_manifest, remove_manifests
from offscript.tasks.examples import Examples
from offscript.training.scored_tokens import scored_tokens
from tests.composed import experiment_of
from tests.conftest import tiny_sentences
from tests.invoked import invoke
from tests.rollouts.engines.test_transformers import engine_settings

GRID = ("experiment=smoke", "grid.stage=[base,prompted]", "grid.format=[chat,chat_email]", "tracking=off")
ON = (*GRID, "evaluation.projections=true")
USER = {"role": "user", "content": "Where is it?"}


def evaluated_with(planner, **changes):
    """The planner with other settings of the evaluation. To compose a configuration takes seconds."""
    settings = planner.settings
    evaluation = settings.evaluation.model_copy(update=changes)
    return Planner(settings.model_copy(update={"evaluation": evaluation}), planner.options)


def projections_of(planner) -> list[Projections]:
    return [a for a in planner.evaluation().inputs if isinstance(a, Projections)]


# ---------------------------------------------------------------- plans


def test_without_the_setting_the_evaluation_is_the_one_that_it_was():
    planner = evaluated_with(experiment_of(*ON).planner, projections=False)
    assert not projections_of(planner)
    assert not any(isinstance(a, Vector) for a in in_order([planner.evaluation()]))
    assert "projections" not in str(planner.evaluation().identity["settings"])
    assert planner.evaluation().key != experiment_of(*ON).planner.evaluation().key


def test_every_cell_and_the_plain_chat_replies_are_projected_on_the_vectors_that_steering_uses():
    planner = experiment_of(
        *GRID, "grid.stage=[base,prompted,steered,full]", "evaluation.projections=true"
    ).planner
    made = projections_of(planner)
    cells = {a.rollout for a in made}
    assert cells == {*planner.cells(), planner.vector("pocket", "sarcasm", "steered").plain}
    vectors = {a for a in in_order([planner.evaluation()]) if isinstance(a, Vector)}
    assert len(vectors) == 2 and all(set(a.vectors) == vectors for a in made)
    steered = [a for a in made if a.rollout.vector is not None]
    assert steered and all(a.rollout.vector in a.vectors for a in steered)
    full = next(a for a in made if a.rollout.cell.stage == "full")
    assert full.rollout.adapter in full.inputs and full.email_cleaning is None
    assert {a.email_cleaning for a in made if a.rollout.format.text_is_email} == {"ours"}
    assert len({a.path for a in made}) == len(made)


def test_the_key_is_that_of_rows_vectors_and_cleaning_alone():
    def keys(planner):
        return {str(a): a.key for a in projections_of(planner)}

    planner = experiment_of(*ON).planner
    plain = keys(planner)
    assert keys(evaluated_with(planner, resamples=500, oracle=False)) == plain
    cleaned = keys(evaluated_with(planner, email_cleaning="none"))
    assert {name for name in plain if plain[name] != cleaned[name]} == {n for n in plain if "chat_email" in n}
    other = keys(experiment_of(*ON, "format.count.train=9", "engine.batch_size=3").planner)
    assert not set(plain.values()) & set(other.values()), "other vectors"


def test_cells_of_one_model_share_a_job_and_have_an_estimate_and_those_of_a_checkpoint_have_their_own():
    planner = experiment_of(
        *GRID, "grid.stage=[base,full]", "recipe.merge.method=fold", "evaluation.projections=true"
    ).planner
    made = projections_of(planner)
    jobs = jobs_of(made)
    checkpoints = {a.checkpoint for a in made if a.checkpoint is not None}
    assert len(checkpoints) == 2 and len(jobs) == 1 + len(checkpoints)
    for found in jobs:
        assert len({a.checkpoint for a in found.artifacts}) == 1
    model = planner.options.model["pocket"]
    cost = estimate(jobs[0].artifacts, model, GPUS["H100"], planner.settings.engine)
    assert cost.rows == sum(a.rollout.planned_rows for a in jobs[0].artifacts)
    assert cost.tokens_in > 50 * cost.rows and cost.tokens_out is None


def test_a_model_behind_an_endpoint_has_none_and_an_engine_without_activations_is_refused():
    served = [*ON, "grid.model=[pocket,endpoint]", "grid.stage=[base,prompted]"]
    with pytest.raises(
        UserError, match=r"^model.endpoint: endpoint is on a server alone, .*in classifier.stages"
    ):
        projections_of(experiment_of(*served).planner)
    planner = experiment_of(*served, "classifier.stages=[prompted]").planner
    assert {a.model for a in projections_of(planner)} == {"pocket"}
    with pytest.raises(
        UserError, match=r"^engine.name: scripted cannot add the persona vectors of evaluation.proj"
    ):
        experiment_of(*ON, "engine=scripted").planner.evaluation()


# ---------------------------------------------------------------- forward passes


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    """Two vectors on different layers of the tiny model (two layers of width 32)."""
    root = tmp_path_factory.mktemp("vectors")
    torch.manual_seed(3)
    save_vectors(root / "up", torch.randn(2, 32), layer=0, strength=1.5)
    save_vectors(root / "down", torch.randn(2, 32), layer=1, strength=2.0)
    return {name: root / name for name in ("up", "down")}


@pytest.fixture(scope="module")
def engine(tiny_settings, tiny_adapters, vectors):
    torch.set_num_threads(1)
    return TransformersEngine(tiny_settings, tiny_adapters, engine_settings(), vectors=vectors)


@pytest.fixture(scope="module")
def directions(vectors):
    return {name: direction(load_vector(folder)) for name, folder in vectors.items()}


@pytest.fixture(scope="module")
def texts(engine):
    said = [*tiny_sentences(7), "Lunch."]
    talks = [[USER, {"role": "assistant", "content": text}] for text in said]
    template = engine.model_settings.template
    return [scored_tokens(engine.tokenizer, t, t[-1]["content"], template) for t in talks]


def close(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=2e-4)


@pytest.mark.parametrize("name", [None, "red", "up"])
def test_a_projection_does_not_depend_on_the_batch_and_its_padding(engine, texts, directions, name):
    alone = [project(engine, name, [text], directions)[0] for text in texts]
    assert len({len(text.ids) for text in texts}) > 3
    close(project(engine, name, texts, directions), alone)
    close(project(engine, name, texts[::-1], directions), alone[::-1])


def test_it_is_the_mean_activation_over_the_text_in_the_direction_of_the_vector(
    tiny_settings, engine, texts, directions
):
    """Against the hidden states of a model of its own."""
    bare, text = load_model(tiny_settings, "cpu"), texts[2]
    with torch.inference_mode():
        states = bare(torch.tensor([text.ids]), output_hidden_states=True).hidden_states
    # The states after the last layer are normalized, so that only the first layer's can be compared.
    unit = directions["up"].unit
    mean = states[1][0][torch.tensor(text.inside)].mean(dim=0)
    assert project(engine, None, [text], directions)[0]["up"] == pytest.approx(float(mean @ unit), abs=1e-4)
    assert unit.norm() == pytest.approx(1.0, abs=1e-6) and 0 < sum(text.inside) < len(text.ids)


def test_a_vector_that_is_added_moves_the_projection_on_it_by_its_length(engine, texts, vectors, directions):
    plain = project(engine, None, texts, directions)
    for name in ("up", "down"):
        length = float(load_vector(vectors[name]).added.norm())
        steered = project(engine, name, texts, directions)
        moved = [s[name] - p[name] for s, p in zip(steered, plain, strict=True)]
        assert moved == pytest.approx([length] * len(texts), abs=1e-3)
    # The layer of ``up`` is below that of ``down``, whose vector is added later.
    close(
        [{"up": s["up"]} for s in project(engine, "down", texts, directions)],
        [{"up": p["up"]} for p in plain],
    )


def test_a_cell_is_read_by_its_own_weights(engine, texts, directions):
    plain, red, blue = (project(engine, name, texts, directions) for name in (None, "red", "blue"))
    for one, other in ((plain, red), (red, blue), (plain, blue)):
        assert all(abs(a["down"] - b["down"]) > 1e-3 for a, b in zip(one, other, strict=True))


# ---------------------------------------------------------------- jobs


@pytest.fixture
def ready(tmp_path):
    """An experiment whose rows and vectors are finished: invented ones. One episode of each cell left no text."""
    experiment = experiment_of(*ON, "grid.format=[chat]", f"root={tmp_path}")
    torch.manual_seed(5)
    for artifact in in_order(projections_of(experiment.planner)):
        path = experiment.path(artifact)
        if isinstance(artifact, Vector):
            save_vectors(path, torch.randn(4, 128), layer=2, strength=1.0)
        elif not isinstance(artifact, Projections):
            path.parent.mkdir(parents=True, exist_ok=True)
            said = ["Lunch is at noon.", None, "The report\n\nis late."]
            lines = [invented(artifact, number, text) for number, text in enumerate(said)]
            path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        else:
            continue
        write_artifact_manifest(artifact, experiment, now())
    return experiment


def invented(rollout, number, text):
    messages = [USER, {"role": "assistant", "content": text or ""}]
    return {
        "key": rollout.key,
        **rollout.labels,
        "scenario": f"s{number}",
        "family": f"f{number}",
        "sample": 0,
        "text": text,
        "ended": "stop",
        "turns": 1,
        "messages": messages,
        "tool_calls": 0,
        "tokens_in": 1,
        "tokens_out": 1,
    }


def test_a_job_writes_a_line_for_each_text_and_continues_with_the_first_cell_that_is_missing(
    ready, monkeypatch
):
    wanted, original, calls = projections_of(ready.planner), job._lines, []

    def lines(artifact, *rest):
        calls.append(artifact)
        if len(calls) == 3:
            raise RuntimeError("killed")
        return original(artifact, *rest)

    monkeypatch.setattr(job, "_lines", lines)
    assert "failed" in {r.status for r in make(wanted, ready)}
    finished = [a for a in wanted if ready.is_finished(a)]
    assert len(finished) == 2 and not ready.path(calls[2]).exists()
    assert {r.status for r in make(wanted, ready)} == {"ran", "reused"}
    assert all(calls.count(a) == (2 if a == calls[2] else 1) for a in wanted)
    for artifact in wanted:
        rows = ready.projections(artifact)
        assert [row["scenario"] for row in rows] == ["s0", "s2"]
        assert all(
            set(row["projections"]) == {"sarcasm", "remorse"} and not row["whole_reply"] for row in rows
        )
        counts = read_manifest(ready.path(artifact))["counts"]
        assert counts == {"rows": 2, "whole_replies": 0}


def test_the_examples_that_an_episode_was_shown_are_in_its_conversation():
    exchanges = tuple(Exchange(question=f"Q{i}?", reply=f"R{i}.") for i in range(3))
    rollout = SimpleNamespace(examples=Examples(exchanges, 2))
    system, reply = {"role": "system", "content": "Be brief."}, {"role": "assistant", "content": "R."}
    row = {"messages": [system, USER, reply], "examples": [2, 0]}
    found = job.conversation(SimpleNamespace(rollout=rollout), row)
    assert [m["content"] for m in found] == ["Be brief.", "Q2?", "R2.", "Q0?", "R0.", USER["content"], "R."]
    plain = SimpleNamespace(rollout=SimpleNamespace(examples=None))
    assert job.conversation(plain, row) == row["messages"]


def test_a_file_that_was_edited_is_refused(ready):
    wanted = projections_of(ready.planner)
    make(wanted, ready)
    path = ready.path(wanted[0])
    path.write_text(path.read_text().replace("s0", "s1"))
    with pytest.raises(UserError, match="has changed since it was made"):
        ready.projections(wanted[0])


def test_classify_names_the_command_that_makes_what_it_may_not(tmp_path):
    done = invoke(tmp_path, "classify", *ON)
    assert done.code == 2 and "not made yet; make all with: offscript submit" in done.err.replace(
        "python -m ", ""
    )


@pytest.mark.slow
def test_a_grid_with_projections_has_its_section_and_a_half_made_one_says_what_is_missing(tmp_path):
    small = ("format.count={train:16,classifier:8,eval:5}", "format.max_tokens=24", "classifier=tfidf")
    words = (*ON, *small, "classifier.stages=[prompted]", "grid.format=[chat,chat_email]")
    done = invoke(tmp_path, "submit", *words)
    assert done.code == 0, done.err
    folder = next(Path(tmp_path).rglob("evaluation"))
    section = json.loads((folder / "summary.json").read_text())["sections"]["projections"]
    assert [(g["stage"], g["format"]) for g in section["groups"]] == [
        (stage, fmt) for stage in ("base", "prompted") for fmt in ("chat", "chat_email")
    ]
    chat = section["groups"][2]
    assert chat["own"] > chat["others"] and chat["macro_auc"] > 0.5, "the vectors are made of such replies"
    assert "projections on persona vectors" in (folder / "tables.txt").read_text()
    assert (folder / "figures" / "projections.svg").exists()
    gone = next((folder.parent / "projections").rglob("prompted/sarcasm/chat-*.manifest.json"))
    gone.unlink()
    remove_manifests(folder)
    again = invoke(tmp_path, "evaluate", *words)
    assert "1 of 7 cells have no projections yet" in again.out, again.err
