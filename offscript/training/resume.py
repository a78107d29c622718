"""Going on after a kill: which checkpoint is whole, and whether it belongs to this very training."""

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

from offscript.errors import UserError
from offscript.store import ensure_folder, read_json, write_json

KEPT = 2
FINGERPRINT = "fingerprint.json"
WHOLE_ZIPS = ("optimizer.pt", "scheduler.pt")


def work_folder(out: Path) -> Path:
    """Where the checkpoints of the adapter ``out`` lie until it is finished."""
    return out.parent / f".{out.name}.work"


def reopen(work: Path, fingerprint: str, say: Callable[[str], None]) -> Path | None:
    """The checkpoint to go on from, or None to start at the first step; ``say`` is told which of the two.

    ``fingerprint`` stands for everything that the weights depend on. Checkpoints of another fingerprint are removed
    (the data or a setting changed between the runs), and so are torn ones: their numbers are written again.
    """
    mark = work / FINGERPRINT
    if work.is_dir() and _fingerprint(mark) != fingerprint:
        if _checkpoints(work):
            say(f"{work.name}: its checkpoints were made from other data or settings; starting over")
        shutil.rmtree(work)
    ensure_folder(work)
    write_json(mark, {"fingerprint": fingerprint})
    for checkpoint in _checkpoints(work):
        if (what := torn(checkpoint)) is None:
            say(f"going on from step {step_of(checkpoint)} ({checkpoint.name})")
            return checkpoint
        say(f"{checkpoint.name} is torn ({what}); passed over")
        shutil.rmtree(checkpoint)
    return None


def torn(checkpoint: Path, world_size: int = 1) -> str | None:
    """What is wrong with a checkpoint, or None if it can be resumed.

    Whole means: a trainer_state.json of the folder's own step (written last), adapter tensors that can be read, and
    optimizer, scheduler and every rank's random state with intact checksums.
    """
    try:
        if read_json(checkpoint / "trainer_state.json")["global_step"] != step_of(checkpoint):
            return "trainer_state.json is of another step"
    except (OSError, UserError, KeyError, TypeError):
        return "trainer_state.json is missing or broken"
    if not _readable_tensors(checkpoint / "adapter_model.safetensors"):
        return "adapter_model.safetensors is missing or broken"
    states = ["rng_state.pth"] if world_size == 1 else [f"rng_state_{rank}.pth" for rank in range(world_size)]
    broken = [name for name in (*WHOLE_ZIPS, *states) if not _whole_zip(checkpoint / name)]
    return f"{broken[0]} is missing or broken" if broken else None


def _fingerprint(mark: Path) -> str | None:
    try:
        return read_json(mark)["fingerprint"]
    except (OSError, UserError, KeyError, TypeError):
        return None


def _checkpoints(work: Path) -> list[Path]:
    """Checkpoint folders, the newest step first."""
    found = [p for p in work.glob("checkpoint-*") if p.is_dir() and p.name.rpartition("-")[2].isdigit()]
    return sorted(found, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """The number in a checkpoint folder's name."""
    return int(checkpoint.name.rpartition("-")[2])


def _readable_tensors(path: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(
            path, framework="numpy"
        ) as file:  # opening checks the header against the file's length
            return len(list(file.keys())) > 0
    except (OSError, SafetensorError):
        return False


def _whole_zip(path: Path) -> bool:
    """Whether a file of torch.save (a zip) is whole, by the checksums it carries, without unpickling it."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False
