"""Going on after a kill: which checkpoint is whole, and whether it belongs to this very training."""

import shutil
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from offscript.errors import UserError
from offscript.storage.files import ensure_folder, read_json, write_json

KEPT = 2
FINGERPRINT = "fingerprint.json"


def work_folder(out: Path) -> Path:
    """Where the checkpoints of the adapter ``out`` lie until it is finished."""
    return out.parent / f".{out.name}.work"


@dataclass(frozen=True)
class Layout:
    """How a training is laid out over processes, which its checkpoints depend on."""

    world_size: int = 1
    stage: int = 0

    def __str__(self) -> str:
        processes = "1 process" if self.world_size == 1 else f"{self.world_size} processes"
        return f"{processes}, " + (f"ZeRO stage {self.stage}" if self.stage else "no DeepSpeed")


def find_resumable(work: Path, fingerprint: str, say: Callable[[str], None], shape: Layout = Layout()) -> Path | None:
    """The checkpoint to go on from, or None to start at the first step; ``say`` is told which of the two.

    ``fingerprint`` stands for everything that the weights depend on. Checkpoints of another one are removed (the data
    or a setting changed between the runs), and so are those of another number of processes or ZeRO stage (their
    optimizer is cut into other parts; loading only the weights would restart it half-way and give weights that no
    uninterrupted training gives), and torn ones: their numbers are written again.
    """
    mark = work / FINGERPRINT
    if (why := _not_ours(mark, fingerprint, shape)) and work.is_dir():
        if _checkpoints(work):
            say(f"{work.name}: its checkpoints were made {why}; starting over")
        shutil.rmtree(work)
    ensure_folder(work)
    write_json(mark, {"fingerprint": fingerprint, **asdict(shape)})
    for checkpoint in _checkpoints(work):
        if (what := torn(checkpoint, shape)) is None:
            say(f"resuming from step {step_of(checkpoint)} ({checkpoint.name})")
            return checkpoint
        say(f"{checkpoint.name} is torn ({what}); passed over")
        shutil.rmtree(checkpoint)
    return None


def _not_ours(mark: Path, fingerprint: str, shape: Layout) -> str:
    """In what the checkpoints beside ``mark`` differ from what is trained now."""
    try:
        found = read_json(mark)
        made = Layout(found.get("world_size", 1), found.get("stage", 0))
    except (OSError, UserError, AttributeError):
        return "by nobody knows what"
    if found.get("fingerprint") != fingerprint:
        return "from other data or settings"
    return "" if made == shape else f"by another layout ({made}; now {shape})"


def torn(checkpoint: Path, shape: Layout = Layout()) -> str | None:
    """What is wrong with a checkpoint, or None if it can be resumed.

    Whole means: a trainer_state.json of the folder's own step (written last), adapter tensors that can be read, and
    schedule, optimizer (with DeepSpeed every rank's part, in the folder that ``latest`` names) and every rank's random
    state with intact checksums.
    """
    try:
        if read_json(checkpoint / "trainer_state.json")["global_step"] != step_of(checkpoint):
            return "trainer_state.json is of another step"
    except (OSError, UserError, KeyError, TypeError):
        return "trainer_state.json is missing or broken"
    if not _readable_tensors(checkpoint / "adapter_model.safetensors"):
        return "adapter_model.safetensors is missing or broken"
    if shape.stage and _text(checkpoint / "latest") != f"global_step{step_of(checkpoint)}":
        return "latest is missing or names another step"
    broken = [name for name in _states(checkpoint, shape) if not _whole_zip(checkpoint / name)]
    return f"{broken[0]} is missing or broken" if broken else None


def _states(checkpoint: Path, shape: Layout) -> list[str]:
    """Files of torch.save that a whole checkpoint has."""
    every = range(shape.world_size)
    random = ["rng_state.pth"] if shape.world_size == 1 else [f"rng_state_{rank}.pth" for rank in every]
    if not shape.stage:
        return ["optimizer.pt", "scheduler.pt", *random]
    shards = f"global_step{step_of(checkpoint)}"
    precision = "bf16_" if any((checkpoint / shards).glob("bf16_*")) else ""
    parts = [f"{shards}/{precision}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in every]
    if shape.stage == 3:
        weights = [f"{shards}/zero_pp_rank_{rank}_mp_rank_00_model_states.pt" for rank in every]
    else:
        weights = [f"{shards}/mp_rank_00_model_states.pt"]
    return [*parts, *weights, "scheduler.pt", *random]


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
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
