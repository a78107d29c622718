"""Distributed training gives the numbers of one process at the same global batch, and exact weights after a kill."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from offscript.training import checkpoints
from tests.families import family
from tests.training import crew

WEIGHTS = "adapter_model.safetensors"
TIGHT = 1e-6
PLAIN, ZERO_2, ZERO_2_OFFLOAD, ZERO_3, ZERO_3_OFFLOAD = (
    [0, False],
    [2, False],
    [2, True],
    [3, False],
    [3, True],
)
pytestmark = pytest.mark.slow

STOPPED = {"zero": ZERO_2, "signal": [1, 3, "SIGUSR2"], "fails": True}


@pytest.fixture(scope="module")
def jobs(tiny_model, tiny_adapter, tmp_path_factory):
    """Jobs by name, for one process and for two ranks. Several jobs of two ranks are compared with one of one process."""
    root, tiny = tmp_path_factory.mktemp("adapters"), {"model": str(tiny_model)}
    second = {**tiny, "first": str(tiny_adapter)}
    continued = {**tiny, "continues": str(tiny_adapter)}
    documents = {**tiny, "method": "lm"}
    gemma = {"model": str(family("gemma")), "family": "gemma", "optimizer": {"max_length": 256, "epochs": 1}}
    qwen = {"model": str(family("qwen")), "family": "qwen", "optimizer": {"max_length": 256, "epochs": 1}}
    never = {**tiny, "optimizer": {"learning_rate": 1e30, "warmup": 0.0}, "fails": True}
    two = {
        "dpo plain": tiny,
        "dpo zero2": {**tiny, "zero": ZERO_2},
        "dpo zero2 offload": {**tiny, "zero": ZERO_2_OFFLOAD},
        "dpo zero3": {**tiny, "zero": ZERO_3},
        "dpo zero3 offload": {**tiny, "zero": ZERO_3_OFFLOAD},
        "dpo zero3 checkpointing": {**tiny, "zero": ZERO_3, "optimizer": {"gradient_checkpointing": True}},
        "dpo plain again": tiny,
        "continued zero2": {**continued, "zero": ZERO_2},
        "continued zero3": {**continued, "zero": ZERO_3},
        "documents zero2": {**documents, "zero": ZERO_2},
        "documents stopped": {**documents, **STOPPED},
        "documents stopped, rerun": {
            **documents,
            "zero": ZERO_2,
            "out": str(root / "two" / "documents stopped"),
        },
        "context zero2": {**continued, "method": "context", "zero": ZERO_2},
        "context zero3": {**continued, "method": "context", "zero": ZERO_3},
        "rl plain": {**continued, "method": "grpo"},
        "rl zero2": {**continued, "method": "grpo", "zero": ZERO_2},
        "rl zero3": {**continued, "method": "grpo", "zero": ZERO_3, "fails": True},
        "sft plain": second,
        "sft zero3": {**second, "zero": ZERO_3},
        "mixed zero2": {**tiny, "rows": "mixed", "zero": ZERO_2},
        "gemma zero2": {**gemma, "zero": ZERO_2},
        "images plain": {**gemma, "rows": "images"},
        "images zero2": {**gemma, "rows": "images", "zero": ZERO_2},
        "qwen zero3": {**qwen, "zero": ZERO_3},
        "bfloat16 zero2": {**tiny, "zero": ZERO_2, "bfloat16": True},
        "bfloat16 zero3": {**tiny, "zero": ZERO_3, "bfloat16": True},
        "never plain": never,
        "never zero2": {**never, "zero": ZERO_2},
        "stopped": {**tiny, **STOPPED},
        "stopped, rerun": {**tiny, "zero": ZERO_2, "out": str(root / "two" / "stopped")},
        "other ranks": {**tiny, **STOPPED, "out": str(root / "other ranks")},
        "left plain": {**tiny, **STOPPED, "zero": PLAIN},
        "left zero2": {**tiny, **STOPPED},
        "left zero3": {**tiny, **STOPPED, "zero": ZERO_3},
    }
    one = {
        "dpo": tiny,
        "dpo zero2": {**tiny, "zero": ZERO_2},
        "sft": second,
        "mixed": {**tiny, "rows": "mixed"},
        "continued": continued,
        "documents": documents,
        "context": {**continued, "method": "context"},
        "rl": {**continued, "method": "grpo"},
        "gemma": gemma,
        "images": {**gemma, "rows": "images"},
        "qwen": qwen,
        "other ranks": {**tiny, "out": str(root / "other ranks")},
    }
    for size, named in (("two", two), ("one", one)):
        for name, job in named.items():
            job = named[name] = {"out": str(root / size / name), **job}
    return {"one": one, "two": two}


@pytest.fixture(scope="module")
def two(jobs, tmp_path_factory):
    """What both ranks recorded of each job."""
    ranks = crew.run(2, jobs["two"], tmp_path_factory.mktemp("two"))
    return {name: [rank[name] for rank in ranks] for name in jobs["two"]}


@pytest.fixture(scope="module")
def one(jobs, two, tmp_path_factory):
    """What one process recorded of each job. It runs after ``two``, and finds its unfinished trainings."""
    return crew.run(1, jobs["one"], tmp_path_factory.mktemp("one"))[0]


def max_difference(out: str | Path, other: str | Path) -> float:
    a, b = load_file(Path(out) / WEIGHTS), load_file(Path(other) / WEIGHTS)
    assert a.keys() == b.keys()
    return max((a[k] - b[k]).abs().max().item() for k in a)


def written(out: str | Path) -> bytes:
    return (Path(out) / WEIGHTS).read_bytes()


@pytest.mark.parametrize(
    ("single", "distributed"),
    [
        ("dpo", "dpo plain"),
        ("dpo", "dpo zero2"),
        ("dpo", "dpo zero2 offload"),
        ("dpo", "dpo zero3"),
        ("dpo", "dpo zero3 offload"),
        ("dpo", "dpo zero3 checkpointing"),
        ("continued", "continued zero2"),
        ("continued", "continued zero3"),
        ("documents", "documents zero2"),
        ("context", "context zero2"),
        ("context", "context zero3"),
        ("sft", "sft plain"),
        ("sft", "sft zero3"),
        ("mixed", "mixed zero2"),
        ("gemma", "gemma zero2"),
        ("images", "images plain"),
        ("images", "images zero2"),
        ("qwen", "qwen zero3"),
    ],
)
def test_two_ranks_give_the_numbers_of_one_process(jobs, one, two, single, distributed):
    """22 rows in batches of 8: the last step of an epoch has 6, which two ranks with microbatches of 2 cannot split."""
    main, other = two[distributed]
    assert main["losses"] == pytest.approx(one[single]["losses"], rel=TIGHT)
    for ours, theirs in zip(main["terms"], one[single]["terms"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-7)
    assert main["numbers"]["eval_loss"] == pytest.approx(one[single]["numbers"]["eval_loss"], rel=TIGHT)
    assert main["numbers"]["ranks"] == other["numbers"]["ranks"] == 2
    assert max_difference(jobs["one"][single]["out"], jobs["two"][distributed]["out"]) < TIGHT
    assert other["losses"] == other["messages"] == []
    # At ZeRO stage 3 each rank holds a part of each parameter.
    if "zero3" not in distributed:
        for rank in (main, other):
            assert rank["changed"] == rank["trainable"] and len(rank["changed"]) == 2 * 7 * 2


@pytest.mark.parametrize("name", ["rl plain", "rl zero2"])
def test_two_ranks_play_the_episodes_of_one_process(jobs, one, two, name):
    """Each rank plays the groups of one of the two scenarios of a step."""
    for rank in two[name]:
        for number in ("played", "trained_tokens", "stopped"):
            assert rank["numbers"][number] == one["rl"]["numbers"][number]
        assert rank["changed"] == rank["trainable"] and len(rank["changed"]) == 2 * 7 * 2
    for ours, theirs in zip(two[name][0]["numbers"]["curve"], one["rl"]["numbers"]["curve"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert max_difference(jobs["one"]["rl"]["out"], jobs["two"][name]["out"]) < 1e-4


def test_weights_that_generate_are_not_sharded(two):
    for rank in two["rl zero3"]:
        kind, message = rank["error"]
        assert kind == "UserError" and "deepspeed.stage: 3" in message


def test_deepspeed_in_one_process_gives_the_same_numbers(jobs, one):
    assert one["dpo zero2"]["losses"] == pytest.approx(one["dpo"]["losses"], rel=TIGHT)
    assert max_difference(jobs["one"]["dpo"]["out"], jobs["one"]["dpo zero2"]["out"]) < TIGHT


def test_deepspeed_does_not_affect_later_trainings_of_the_process(jobs, two):
    """A training without DeepSpeed gives the same bytes before and after trainings with it."""
    assert written(jobs["two"]["dpo plain"]["out"]) == written(jobs["two"]["dpo plain again"]["out"])


@pytest.mark.parametrize("name", ["bfloat16 zero2", "bfloat16 zero3"])
def test_float32_master_weights_are_written(jobs, one, two, name):
    """The weights are not rounded to bfloat16, and close to those of a training in float32."""
    tensors = load_file(Path(jobs["two"][name]["out"]) / WEIGHTS)
    assert all(str(t.dtype) == "torch.float32" for t in tensors.values())
    assert all((t != t.bfloat16().float()).any() for t in tensors.values())
    assert 1e-4 < max_difference(jobs["one"]["dpo"]["out"], jobs["two"][name]["out"]) < 0.02


@pytest.mark.parametrize("name", ["never plain", "never zero2"])
def test_a_loss_that_is_not_finite_raises_on_every_rank(jobs, two, name):
    for rank in two[name]:
        kind, message = rank["error"]
        assert kind == "TrainingFailed" and message.startswith("step 2: ") and "learning_rate" in message
    assert not Path(jobs["two"][name]["out"]).exists()


@pytest.mark.parametrize(
    ("name", "whole"), [("stopped", "dpo zero2"), ("documents stopped", "documents zero2")]
)
def test_a_signal_to_one_rank_stops_all_and_the_rerun_is_exact(jobs, two, name, whole):
    for rank in two[name]:
        assert rank["error"] == [
            "Interrupted",
            "stopped by a signal after step 3 of 6; run it again to continue",
        ]
    main = two[f"{name}, rerun"][0]
    assert main["messages"] == ["resuming from step 3 (checkpoint-3)"] and len(main["losses"]) == 3
    assert written(jobs["two"][f"{name}, rerun"]["out"]) == written(jobs["two"][whole]["out"])


def test_another_number_of_processes_starts_again(jobs, one, two):
    assert two["other ranks"][0]["error"][0] == "Interrupted"
    assert one["other ranks"]["messages"] == [
        ".other ranks.work: its checkpoints have another layout (2 processes, ZeRO stage 2; now 1 process,"
        " no DeepSpeed); starting again"
    ]
    assert one["other ranks"]["numbers"]["resumed_from"] is None
    assert written(jobs["one"]["other ranks"]["out"]) == written(jobs["one"]["dpo"]["out"])


# ---------------------------------------------------------------- ranks that die


@pytest.mark.parametrize(
    ("name", "victim"),
    [("dpo plain", 0), ("dpo zero2", 1), ("dpo zero3", 1)],
    ids=["plain", "zero2", "zero3"],
)
def test_a_killed_training_skips_a_damaged_checkpoint_when_rerun(jobs, two, tmp_path, name, victim):
    """Killed in the second epoch; the file of rank 1 in the newest checkpoint has lost its last bytes."""
    job = {**jobs["two"][name], "out": str(tmp_path / "out")}
    work = checkpoints.work_folder(tmp_path / "out")
    exits = crew.finish(
        crew.start(2, {name: {**job, "signal": [victim, 5, "SIGKILL"]}}, tmp_path, max_missed=20)
    )
    assert exits[victim][0] == -9 and exits[1 - victim][0] == 1
    assert sorted(p.name for p in work.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    damaged = next((work / "checkpoint-4").rglob("*rank_1_*optim_states.pt" if "zero" in name else "*_1.pth"))
    damaged.write_bytes(damaged.read_bytes()[:-9])
    main = crew.run(2, {name: job}, tmp_path)[0][name]
    assert main["messages"] == [
        f"checkpoint-4 is damaged ({damaged.relative_to(work / 'checkpoint-4')} is missing or broken); skipped",
        "resuming from step 2 (checkpoint-2)",
    ]
    assert written(job["out"]) == written(jobs["two"][name]["out"]) and not work.exists()


@pytest.mark.parametrize("name", ["left plain", "left zero2", "left zero3"])
def test_a_checkpoint_holds_no_base_weights(jobs, two, name):
    """Adam's states have twice the size of the adapter; DeepSpeed also keeps a copy and a master copy of the adapter."""
    import torch

    folder = checkpoints.work_folder(Path(jobs["two"][name]["out"])) / "checkpoint-3"
    loaded = [torch.load(file, weights_only=False, map_location="cpu") for file in folder.rglob("*.pt")]
    trained = sum(t.numel() for t in load_file(folder / WEIGHTS).values())
    assert 2 * trained <= sum(t.numel() for part in loaded for t in _tensors(part)) <= 4.5 * trained
    assert sorted(p.name for p in folder.parent.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]


def _tensors(value) -> list:
    import torch

    if torch.is_tensor(value):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else []
    return [tensor for part in inner for tensor in _tensors(part)]


def test_running_out_of_memory_on_one_rank_is_a_user_error_and_ends_the_other(tiny_model, tmp_path):
    job = {"model": str(tiny_model), "out": str(tmp_path / "out"), "out_of_memory": 1}
    exits = crew.finish(crew.start(2, {"dpo": job}, tmp_path, max_missed=20))
    assert [code for code, _ in exits] == [1, 1]
    kind, message = json.loads((tmp_path / "1.json").read_text())["dpo"]["error"]
    assert kind == "UserError" and "does not fit the GPU" in message


def test_torchrun_gives_the_numbers_of_one_process(jobs, one, tmp_path):
    path = crew.plan({"dpo": {**jobs["two"]["dpo plain"], "out": str(tmp_path / "out")}}, tmp_path)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        crew.MODULE,
    ]
    done = subprocess.run(
        [*command, str(path)], env=crew.environment(), cwd=crew.REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert crew.notes_of(tmp_path, 2)[0]["dpo"]["losses"] == pytest.approx(one["dpo"]["losses"], rel=TIGHT)
    assert max_difference(tmp_path / "out", jobs["one"]["dpo"]["out"]) < TIGHT
