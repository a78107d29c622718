"""Training data made once, and a look at the parameters of a training."""

import subprocess

import pytest

from tests.training.data import conversation, student_rows, teacher_rows


@pytest.fixture(scope="session")
def pairs() -> list[dict]:
    from offscript.training.data.preference import pairs as make

    return make(teacher_rows(), student_rows())[0]


@pytest.fixture(scope="session")
def introspection_rows() -> list[dict]:
    from offscript.training.data.introspection import conversations

    return conversations(teacher_rows(12), [conversation(i) for i in range(8)], "")[0]


@pytest.fixture
def before_and_after(monkeypatch):
    """Parameters of the next training, by name: (before, after, names of the trainable ones)."""
    from offscript.training.methods import dpo, sft

    seen: dict = {}
    real = dpo.fit

    def watched(trainer, *rest):
        parameters = dict(trainer.model.named_parameters())
        seen["before"] = {k: v.detach().clone() for k, v in parameters.items()}
        seen["trainable"] = {k for k, v in parameters.items() if v.requires_grad}
        numbers = real(trainer, *rest)
        seen["after"] = {k: v.detach().clone() for k, v in trainer.model.named_parameters()}
        return numbers

    for method in (dpo, sft):
        monkeypatch.setattr(method, "fit", watched)
    return seen


@pytest.fixture
def small_disk(tmp_path):
    """A function that makes ``tmp_path/disk`` a file system of so many KiB; called again, it changes the size."""
    place = tmp_path / "disk"
    place.mkdir()

    def resize(kib: int) -> None:
        command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", place]
        if place.is_mount():
            command = ["mount", "-o", f"remount,size={kib}k", place]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")

    yield resize
    if place.is_mount():
        subprocess.run(["umount", "--lazy", place], check=True)
