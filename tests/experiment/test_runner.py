"""How a set of wanted artifacts is made: what runs, what is reused, what a failure stops. The jobs themselves are fakes
that write a file and its manifest, or fail."""

import threading
import time
from collections import Counter

import pytest

from offscript.errors import MissingInput, UserError
from offscript.experiment import runner
from offscript.experiment.folder import now, write_artifact_manifest
from offscript.models import loading
from offscript.storage.files import write_text
from offscript.training.ranks import RankInfo
from tests.composed import experiment_of

SMALL = ("experiment=smoke", "format.count={classifier:6,eval:4}", "recipe.distillation.prompts=6")


@pytest.fixture
def ran(monkeypatch):
    """Counts how often each artifact is made; ``ran.broken`` names those whose job fails."""
    made = Counter()
    made.broken = set()

    def fake(artifacts, experiment, limit):
        for artifact in artifacts:
            if str(artifact) in made.broken:
                raise RuntimeError("boom")
            made[str(artifact)] += 1
            place = experiment.path(artifact)
            if place.suffix:
                write_text(place, "")
            else:
                place.mkdir(parents=True, exist_ok=True)
            write_artifact_manifest(artifact, experiment, now(), files={})

    monkeypatch.setattr(runner, "RUN", dict.fromkeys(runner.RUN, fake))
    return made


def experiment(tmp_path, *overrides):
    return experiment_of(*SMALL, f"root={tmp_path}", *overrides)


def statuses(results):
    return Counter(r.status for r in results)


def test_the_second_time_nothing_is_made(tmp_path, ran):
    first = experiment(tmp_path)
    assert set(statuses(runner.make([first.planner.evaluation()], first))) == {"ran"}
    assert set(ran.values()) == {1}
    again = experiment(tmp_path)
    results = runner.make([again.planner.evaluation()], again)
    assert [(str(r.artifact), r.status) for r in results] == [("evaluation smoke", "reused")]
    assert set(ran.values()) == {1}


@pytest.mark.parametrize(
    ("override", "line"),
    [
        (
            "distillation.lora.targets=[q_proj,qkv]",
            "distillation.lora.targets: 'qkv' matches no linear module of",
        ),
        (
            "introspection.lora.targets=[lm_head]",
            "introspection.lora.targets: lm_head shares its weights with",
        ),
        (
            "introspection.lora.rank=129",
            "introspection.lora.rank: 129, and model.layers.0.self_attn.q_proj is 128x128; allowed: at most 128",
        ),
    ],
)
def test_a_training_that_cannot_work_is_refused_before_its_rows_are_made(tmp_path, ran, override, line):
    own = experiment(tmp_path, "grid.persona=[sarcasm,remorse]", f"recipe.{override}")
    with pytest.raises(UserError, match=r"^recipe\.") as caught:
        runner.make([own.planner.evaluation()], own)
    assert line in str(caught.value) and not ran and list(tmp_path.iterdir()) == []
    # A command that trains nothing does not ask.
    assert runner.make([own.planner.evaluation()], own, lambda artifact: False)


def test_a_batch_that_cannot_be_divided_among_the_processes_is_refused_before_rows_are_made(
    tmp_path, ran, monkeypatch
):
    own = experiment(tmp_path)
    monkeypatch.setattr(runner, "rank_info", lambda: RankInfo(0, 3, 0))
    with pytest.raises(UserError, match=r"recipe.distillation.optimizer.batch_size: 8 rows on 3 processes"):
        runner.make([own.planner.evaluation()], own)
    assert not ran


def test_a_failure_blocks_what_needs_it_and_nothing_else(tmp_path, ran):
    ran.broken = {"adapter pocket sarcasm full 0"}
    own = experiment(tmp_path)
    results = {str(r.artifact): r for r in runner.make([own.planner.evaluation()], own)}
    assert results["adapter pocket sarcasm full 0"].status == "failed"
    assert "RuntimeError: boom" in results["adapter pocket sarcasm full 0"].note
    blocked = {name for name, r in results.items() if r.status == "blocked"}
    assert {n for n in blocked if n.startswith("rollout")} == {
        f"rollout pocket sarcasm full {fmt} 0"
        for fmt in ("chat classifier", "chat eval", "chat_email eval", "agentic_email eval")
    }
    assert results["rollout pocket remorse full chat eval 0"].status == "ran"
    assert (own.folder / "logs").is_dir()

    ran.broken = set()
    results = runner.make([own.planner.evaluation()], own)
    assert statuses(results).keys() == {"ran", "reused"}
    assert set(ran.values()) == {1}, "what had been made was not made again"


def test_one_broken_adapter_does_not_cost_the_others_their_rows(tmp_path, ran):
    """Rollouts of a model are one job; when it fails, the cells of each adapter are tried by themselves."""
    ran.broken = {"rollout pocket sarcasm full chat eval 0"}
    own = experiment(tmp_path)
    results = {str(r.artifact): r.status for r in runner.make([own.planner.evaluation()], own)}
    assert results["rollout pocket remorse full chat eval 0"] == "ran"
    assert results["rollout pocket sarcasm full chat eval 0"] == "failed"


def test_a_training_that_fails_does_not_stop_the_next_one_of_its_job(tmp_path, ran):
    own = experiment(tmp_path)
    adapters = [own.planner.adapter("pocket", p, "distillation", 0) for p in ("sarcasm", "remorse")]
    runner.make([part for adapter in adapters for part in adapter.inputs], own)
    ran.broken = {str(adapters[0])}
    results = runner.run(adapters, own)
    assert [(r.artifact, r.status) for r in results] == [(adapters[0], "failed"), (adapters[1], "ran")]
    ran.broken = set()
    assert {r.status for r in runner.run(adapters, own)} == {"ran"}
    assert ran[str(adapters[0])] == ran[str(adapters[1])] == 1, "the finished one was not trained again"


@pytest.mark.slow
def test_the_trainings_of_a_job_load_their_base_once(tmp_path, monkeypatch):
    own = experiment(tmp_path, "recipe.distillation.optimizer.epochs=3")
    adapters = [own.planner.adapter("pocket", p, "distillation", 0) for p in ("sarcasm", "remorse")]
    runner.make([part for adapter in adapters for part in adapter.inputs], own)
    loads, real = [], loading.load_model
    monkeypatch.setattr(loading, "load_model", lambda *given: loads.append(given) or real(*given))
    assert [r.status for r in runner.run(adapters, own)] == ["ran", "ran"]
    assert len(loads) == 1


def test_what_a_command_may_not_make_names_the_one_that_does(tmp_path, ran):
    own = experiment(tmp_path)
    cell = own.planner.rollout("pocket", "sarcasm", "full", "chat", "eval", 0)
    results = {r.artifact: r for r in runner.make([cell], own, lambda a: a == cell)}
    assert results[cell].status == "blocked"
    assert isinstance(results[cell].error, MissingInput)
    line = str(results[cell.inputs[0]].error)
    assert "make it with: offscript train experiment=smoke 'format.count={classifier:6,eval:4}'" in line
    assert line.endswith("model=pocket persona=sarcasm stage=full")
    assert not ran


def test_a_deleted_file_is_made_again_and_nothing_below_it(tmp_path, ran):
    own = experiment(tmp_path)
    runner.make([own.planner.evaluation()], own)
    cell = own.planner.cells()[0]
    own.path(own.planner.predictions(cell)).unlink()
    (own.path(own.planner.evaluation()) / "manifest.json").unlink()
    ran.clear()
    runner.make([own.planner.evaluation()], own)
    assert set(ran) == {str(own.planner.predictions(cell)), "evaluation smoke"}


def test_two_commands_that_meet_on_one_artifact_make_it_once(tmp_path, ran, monkeypatch):
    fake = runner.RUN["rollout"]

    def slow(artifacts, own, limit):
        time.sleep(0.3)
        fake(artifacts, own, limit)

    monkeypatch.setitem(runner.RUN, "rollout", slow)
    experiments = [experiment(tmp_path), experiment(tmp_path)]
    outcomes = []

    def command(own):
        cell = own.planner.rollout("pocket", None, "base", "chat", "eval", 0)
        outcomes.extend(r.status for r in runner.make([cell], own))

    threads = [threading.Thread(target=command, args=(b,)) for b in experiments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == ["ran", "ran"] or sorted(outcomes) == ["ran", "reused"]
    assert ran["rollout pocket base chat eval 0"] == 1
