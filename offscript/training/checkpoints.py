"""Finds the checkpoint that a restarted training resumes from: complete, and of the same training."""

import contextlib
import dataclasses
import shutil
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from offscript.errors import UserError
from offscript.storage.files import ensure_folder, read_json_object, write_json

KEPT = 2
FINGERPRINT = "fingerprint.json"


def work_folder(out: Path) -> Path:
    """Returns the folder of the checkpoints of the adapter ``out``, which is removed once the adapter is written."""
    return out.parent / f".{out.name}.work"


@dataclass(frozen=True)
class Layout:
    """Number of processes and ZeRO stage of a training. They determine the files of its checkpoints."""

    world_size: int = 1
    zero_stage: int = 0

    def __str__(self) -> str:
        processes = "1 process" if self.world_size == 1 else f"{self.world_size} processes"
        return f"{processes}, " + (f"ZeRO stage {self.zero_stage}" if self.zero_stage else "no DeepSpeed")


def find_resumable(
    work: Path, fingerprint: str, say: Callable[[str], None], layout: Layout = Layout()
) -> Path | None:
    """Returns the newest complete checkpoint in ``work``, or None to start at the first step. Reports what it does.

    Removes the checkpoints that cannot be resumed:

    - those with another ``fingerprint``, a hash of all that the weights depend on: data or a setting has changed;
    - those of another layout, because their optimizer state is sharded differently. Loading only the weights would
      reset the optimizer, and give weights that no uninterrupted training gives;
    - damaged ones.
    """
    fingerprint_file = work / FINGERPRINT
    if (difference := _difference(fingerprint_file, fingerprint, layout)) and work.is_dir():
        if _checkpoints(work):
            say(f"{work.name}: its checkpoints have {difference}; starting again")
        shutil.rmtree(work)
    ensure_folder(work)
    write_json(
        fingerprint_file,
        {"fingerprint": fingerprint, "world_size": layout.world_size, "stage": layout.zero_stage},
    )
    for checkpoint in _checkpoints(work):
        if (problem := damage(checkpoint, layout)) is None:
            say(f"resuming from step {checkpoint_step(checkpoint)} ({checkpoint.name})")
            return checkpoint
        say(f"{checkpoint.name} is damaged ({problem}); skipped")
        shutil.rmtree(checkpoint)
    return None


@contextlib.contextmanager
def loading(checkpoint: Path) -> Iterator[None]:
    """Context for code that loads a part of ``checkpoint``: whatever it raises becomes a UserError.

    Files can be intact and still not hold what a checkpoint holds: those of another version of a library, or edited.
    """
    try:
        yield
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        found = f"cannot be resumed ({type(error).__name__}: {reason})"
        raise UserError(
            str(checkpoint), found, "delete it to continue from the checkpoint before it"
        ) from error


def _difference(fingerprint_file: Path, fingerprint: str, layout: Layout) -> str:
    """Describes how the checkpoints beside ``fingerprint_file`` differ from this training; empty if they belong to it."""
    try:
        found = read_json_object(fingerprint_file)
        other = Layout(found.get("world_size", 1), found.get("stage", 0))
    except UserError:
        return "no readable fingerprint"
    if found.get("fingerprint") != fingerprint:
        return "other data or settings"
    return "" if other == layout else f"another layout ({other}; now {layout})"


def damage(checkpoint: Path, layout: Layout = Layout()) -> str | None:
    """Describes what is missing or broken in a checkpoint; None if it is complete.

    A complete checkpoint has a whole trainer_state.json (written last) of the folder's step, a readable adapter, and files with
    intact checksums: the schedule, the optimizer (with DeepSpeed the shard of every rank, in the folder named by
    ``latest``) and the random state of every rank.
    """
    from transformers import TrainerState

    fields = [field.name for field in dataclasses.fields(TrainerState)]
    try:
        state = read_json_object(checkpoint / "trainer_state.json", *fields)
    except UserError:
        return "trainer_state.json is missing or broken"
    if state["global_step"] != checkpoint_step(checkpoint):
        return "trainer_state.json is of another step"
    if not isinstance(state["log_history"], list) or state.keys() - set(fields):
        return "trainer_state.json is missing or broken"
    if not _readable_tensors(checkpoint / "adapter_model.safetensors"):
        return "adapter_model.safetensors is missing or broken"
    if layout.zero_stage and _text(checkpoint / "latest") != f"global_step{checkpoint_step(checkpoint)}":
        return "latest is missing or names another step"
    broken = [name for name in _state_files(checkpoint, layout) if not _is_intact_zip(checkpoint / name)]
    return f"{broken[0]} is missing or broken" if broken else None


def _state_files(checkpoint: Path, layout: Layout) -> list[str]:
    """Returns the names of the files of torch.save in a complete checkpoint."""
    ranks = range(layout.world_size)
    random = ["rng_state.pth"] if layout.world_size == 1 else [f"rng_state_{rank}.pth" for rank in ranks]
    if not layout.zero_stage:
        return ["optimizer.pt", "scheduler.pt", *random]
    shards = f"global_step{checkpoint_step(checkpoint)}"
    precision = "bf16_" if any((checkpoint / shards).glob("bf16_*")) else ""
    parts = [f"{shards}/{precision}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in ranks]
    if layout.zero_stage == 3:
        weights = [f"{shards}/zero_pp_rank_{rank}_mp_rank_00_model_states.pt" for rank in ranks]
    else:
        weights = [f"{shards}/mp_rank_00_model_states.pt"]
    return [*parts, *weights, "scheduler.pt", *random]


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None


def _checkpoints(work: Path) -> list[Path]:
    """Returns the checkpoint folders, newest first."""
    found = [p for p in work.glob("checkpoint-*") if p.is_dir() and p.name.rpartition("-")[2].isdigit()]
    return sorted(found, key=checkpoint_step, reverse=True)


def checkpoint_step(checkpoint: Path) -> int:
    """Returns the step in the name of a checkpoint folder."""
    return int(checkpoint.name.rpartition("-")[2])


def _readable_tensors(path: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        # Opening the file compares its header with its length.
        with safe_open(path, framework="numpy") as file:
            return len(list(file.keys())) > 0
    except (OSError, SafetensorError):
        return False


def _is_intact_zip(path: Path) -> bool:
    """Checks a file of torch.save (a zip) by its own checksums, without unpickling it."""
    try:
        with zipfile.ZipFile(path) as file:
            return bool(file.namelist()) and file.testzip() is None
    except Exception:
        # A damaged directory of the zip makes zipfile raise errors of ten types.
        return False
