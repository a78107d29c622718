"""A killed training resumes from its newest complete checkpoint, and ends with the bytes of an undisturbed one."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from offscript.errors import UserError
from offscript.storage.files import new_folder
from offscript.training import checkpoints
from offscript.training.fit import _finished
from offscript.training.run import Run
from tests.training.data import distillation, introspection, train_dpo, train_sft

WEIGHTS = "adapter_model.safetensors"
REPOSITORY = Path(__file__).resolve().parents[2]

KILLED = """
import os, signal, sys
from pathlib import Path
from tests.conftest import tiny_model_settings
from tests.training.data import *
from offscript.training.data.introspection import conversations
from offscript.training.data.preference import pairs

stage, model, first, out, at = sys.argv[1:]
def on_step(step, total, logs):
    if step == int(at):
        os.kill(os.getpid(), signal.SIGKILL)
if stage == "distillation":
    data, _ = pairs(teacher_rows(), student_rows())
    train_dpo(tiny_model_settings(model), distillation(), data, Path(out), 3, on_step=on_step)
else:
    data, _ = conversations(teacher_rows(12), [conversation(i) for i in range(8)], "")
    train_sft(
        tiny_model_settings(model), introspection(), data, Path(first), Path(out), 3, on_step=on_step
    )
"""


def kill_at(step: int, stage: str, model: Path, first: Path, out: Path) -> None:
    """Runs a training in a process of its own that kills itself (SIGKILL) after ``step`` steps."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED, stage, str(model), str(first), str(out), str(step)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == -9, done.stderr


def test_a_killed_distillation_skips_a_damaged_checkpoint_when_rerun(
    tiny_model, tiny_settings, tiny_adapter, pairs, tmp_path
):
    train_dpo(tiny_settings, distillation(), pairs, tmp_path / "whole", 3)
    out, messages = tmp_path / "killed", []
    kill_at(6, "distillation", tiny_model, tiny_adapter, out)
    work = checkpoints.work_folder(out)
    assert sorted(p.name for p in work.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    optimizer = work / "checkpoint-4" / "optimizer.pt"
    optimizer.write_bytes(optimizer.read_bytes()[:-200])
    numbers = train_dpo(tiny_settings, distillation(), pairs, out, 3, say=messages.append)
    assert messages == [
        "checkpoint-4 is damaged (optimizer.pt is missing or broken); skipped",
        "resuming from step 2 (checkpoint-2)",
    ]
    assert numbers["resumed_from"] == 2
    assert (out / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()
    assert not work.exists()


def test_a_full_disk_during_a_checkpoint_is_one_line_and_the_checkpoint_before_it_is_resumed(
    tiny_settings, pairs, tmp_path, small_disk
):
    """Neither torch nor safetensors raises an OSError then."""
    small_disk(300)
    with pytest.raises(
        UserError, match=r"\.a\.work: cannot be written \(No space left on device\); free some"
    ):
        train_dpo(tiny_settings, distillation(), pairs, tmp_path / "disk" / "a", 3)
    small_disk(2000)
    messages = []
    numbers = train_dpo(tiny_settings, distillation(), pairs, tmp_path / "disk" / "a", 3, say=messages.append)
    assert numbers["resumed_from"] == 4 and messages[0].startswith("checkpoint-6 is damaged (")
    train_dpo(tiny_settings, distillation(), pairs, tmp_path / "whole", 3)
    assert (tmp_path / "disk" / "a" / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()


def test_a_full_disk_while_the_adapter_is_written_is_one_line(tmp_path, small_disk):
    import torch
    from safetensors.torch import save_file

    small_disk(64)
    for write in (save_file, torch.save):
        with (
            pytest.raises(
                UserError, match=r"disk/a: cannot be written \(No space left on device\); free some"
            ),
            new_folder(tmp_path / "disk" / "a") as scratch,
        ):
            write({"x": torch.zeros(50_000)}, scratch / WEIGHTS)
        assert list((tmp_path / "disk").iterdir()) == []


def test_a_killed_introspection_resumes_with_the_same_numbers(
    tiny_model, tiny_settings, tiny_adapter, introspection_rows, tmp_path
):
    arguments = (tiny_settings, introspection(), introspection_rows, tiny_adapter)
    whole = train_sft(*arguments, tmp_path / "whole", 3)
    kill_at(4, "introspection", tiny_model, tiny_adapter, tmp_path / "killed")
    messages = []
    killed = train_sft(*arguments, tmp_path / "killed", 3, say=messages.append)
    assert messages == ["resuming from step 2 (checkpoint-2)"]
    assert (tmp_path / "killed" / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()
    # The losses of the steps before the kill are part of the checkpoint.
    assert {k for k in whole if whole[k] != killed[k]} <= {"seconds", "resumed_from"}


# ---------------------------------------------------------------- complete and damaged checkpoints


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """A folder with the files of a complete checkpoint of step 4."""
    import torch
    from safetensors.torch import save_file
    from transformers import TrainerState

    folder = tmp_path / "work" / "checkpoint-4"
    folder.mkdir(parents=True)
    save_file({"a": torch.ones(100)}, folder / WEIGHTS)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"a": torch.ones(100)}, folder / name)
    TrainerState(global_step=4).save_to_json(folder / "trainer_state.json")
    return folder


def test_a_complete_checkpoint(checkpoint):
    assert checkpoints.damage(checkpoint) is None
    assert checkpoints.damage(checkpoint, checkpoints.Layout(2)) == "rng_state_0.pth is missing or broken"


@pytest.mark.parametrize(
    "name", [WEIGHTS, "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]
)
@pytest.mark.parametrize("damage", ["missing", "empty", "cut"])
def test_a_missing_empty_or_truncated_file_is_damage(checkpoint, name, damage):
    path = checkpoint / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: 0 if damage == "empty" else -7])
    assert name in checkpoints.damage(checkpoint)


LAYOUTS = {
    checkpoints.Layout(2): ["optimizer.pt", "scheduler.pt", "rng_state_0.pth", "rng_state_1.pth"],
    checkpoints.Layout(1, 2): [
        "global_step4/zero_pp_rank_0_mp_rank_00_optim_states.pt",
        "global_step4/mp_rank_00_model_states.pt",
        "scheduler.pt",
        "rng_state.pth",
        "latest",
    ],
    checkpoints.Layout(2, 2): [
        "global_step4/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt",
        "global_step4/bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt",
        "global_step4/mp_rank_00_model_states.pt",
        "scheduler.pt",
        "rng_state_0.pth",
        "rng_state_1.pth",
        "latest",
    ],
    checkpoints.Layout(2, 3): [
        "global_step4/zero_pp_rank_0_mp_rank_00_optim_states.pt",
        "global_step4/zero_pp_rank_1_mp_rank_00_optim_states.pt",
        "global_step4/zero_pp_rank_0_mp_rank_00_model_states.pt",
        "global_step4/zero_pp_rank_1_mp_rank_00_model_states.pt",
        "scheduler.pt",
        "rng_state_0.pth",
        "rng_state_1.pth",
        "latest",
    ],
}


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_file_of_every_rank_is_required(checkpoint, layout):
    import torch

    for name in ("optimizer.pt", "rng_state.pth"):
        (checkpoint / name).unlink()
    for name in LAYOUTS[layout]:
        (checkpoint / name).parent.mkdir(exist_ok=True)
        torch.save({"a": torch.ones(9)}, checkpoint / name)
    if layout.zero_stage:
        (checkpoint / "latest").write_text("global_step4")
    assert checkpoints.damage(checkpoint, layout) is None
    for name in LAYOUTS[layout]:
        whole = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(whole[:-5])
        assert checkpoints.damage(checkpoint, layout).startswith(name + " is missing")
        (checkpoint / name).unlink()
        assert checkpoints.damage(checkpoint, layout).startswith(name + " is missing")
        (checkpoint / name).write_bytes(whole)


@pytest.mark.parametrize(
    ("layout", "difference"),
    [
        (checkpoints.Layout(2), r"another layout (1 process, no DeepSpeed; now 2 processes, no DeepSpeed)"),
        (checkpoints.Layout(1, 3), r"another layout (1 process, no DeepSpeed; now 1 process, ZeRO stage 3)"),
    ],
)
def test_checkpoints_of_another_layout_are_not_resumed(checkpoint, layout, difference):
    work, lines = checkpoint.parent, []
    (work / "fingerprint.json").write_text(json.dumps({"fingerprint": "f"}))
    assert checkpoints.find_resumable(work, "f", lines.append, layout) is None
    assert lines == [f"work: its checkpoints have {difference}; starting again"] and not checkpoint.exists()
    assert checkpoints.find_resumable(work, "f", lines.append, layout) is None and len(lines) == 1


def test_a_flipped_byte_is_damage(checkpoint):
    data = bytearray((checkpoint / "optimizer.pt").read_bytes())
    data[data.index(b"\x00\x00\x80?" * 8) + 2] ^= 1
    (checkpoint / "optimizer.pt").write_bytes(bytes(data))
    assert checkpoints.damage(checkpoint) == "optimizer.pt is missing or broken"


def test_a_state_of_another_step_is_damage(checkpoint):
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    (checkpoint / "trainer_state.json").write_text(json.dumps({**state, "global_step": 2}))
    assert "another step" in checkpoints.damage(checkpoint)


@pytest.mark.parametrize("text", ["[]", "{}", "null", '{"global_step": 4}'])
def test_a_state_without_its_fields_is_damage(checkpoint, text):
    (checkpoint / "trainer_state.json").write_text(text)
    assert checkpoints.damage(checkpoint) == "trainer_state.json is missing or broken"


def test_whatever_zipfile_raises_is_damage(checkpoint):
    """A damaged directory of a zip raises errors of many types, among them UnicodeDecodeError."""
    path, generator = checkpoint / "optimizer.pt", random.Random(0)
    whole = path.read_bytes()
    found = set()
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(30):
            damaged[generator.randrange(len(whole))] = generator.randrange(256)
        path.write_bytes(damaged)
        found.add(checkpoints.damage(checkpoint))
    assert found == {"optimizer.pt is missing or broken"}


@pytest.mark.parametrize("name", [WEIGHTS, "optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_an_intact_file_of_something_else_is_one_line(tiny_settings, pairs, tmp_path, name):
    """With the checkpoint to delete; the training then continues from the one before it."""
    import torch
    from safetensors.torch import save_file

    def stop(step, total, logs):
        if step == 5:
            raise KeyboardInterrupt

    out, messages = tmp_path / "a", []
    with pytest.raises(KeyboardInterrupt):
        train_dpo(tiny_settings, distillation(), pairs, out, 3, on_step=stop)
    last = checkpoints.work_folder(out) / "checkpoint-4"
    {WEIGHTS: save_file}.get(name, torch.save)({"a": torch.ones(3)}, last / name)
    with pytest.raises(
        UserError, match=r"checkpoint-4: cannot be resumed .*; delete it to continue from the"
    ):
        train_dpo(tiny_settings, distillation(), pairs, out, 3)
    shutil.rmtree(last)
    assert train_dpo(tiny_settings, distillation(), pairs, out, 3, say=messages.append)["resumed_from"] == 2


@pytest.mark.parametrize("record", ["[]", "{}", '{"fingerprint": 3}', "{"])
def test_a_damaged_record_of_a_training_is_no_finished_adapter(tmp_path, record):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "training.json").write_text(record)
    assert _finished(Run(None, None, tmp_path / "a", 0), "f") is None


def test_checkpoints_of_other_data_are_not_resumed(checkpoint):
    work, messages = checkpoint.parent, []
    (work / "fingerprint.json").write_text(json.dumps({"fingerprint": "old"}))
    assert checkpoints.find_resumable(work, "old", messages.append) == checkpoint
    assert checkpoints.find_resumable(work, "new", messages.append) is None
    assert "other data or settings; starting again" in messages[-1]
    assert not checkpoint.exists()
    assert json.loads((work / "fingerprint.json").read_text())["fingerprint"] == "new"


def test_the_first_run_reports_nothing(tmp_path):
    messages = []
    assert checkpoints.find_resumable(tmp_path / "work", "new", messages.append) is None and messages == []
