"""A training by several processes on this machine, started as a SLURM step starts them: with variables, no launcher.

Run as a module it is one rank: it reads its job (JSON) and writes what it saw to ``<notes>/<rank>.json``.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
MODULE = "tests.training.crew"


def environment(**changes: str) -> dict[str, str]:
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith(("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_"))
    }
    return {**kept, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", **changes}


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def start(size: int, job: dict, notes: Path) -> list[subprocess.Popen]:
    """Starts ``size`` ranks; a process alone gets no variables."""
    notes.mkdir(parents=True, exist_ok=True)
    path = notes / "job.json"
    path.write_text(json.dumps({**job, "notes": str(notes)}))
    shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    started = []
    for rank in range(size):
        own = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} if size > 1 else {}
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", MODULE, str(path)],
                env=environment(**own), cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
    return started


def finish(started: list[subprocess.Popen], timeout: float = 240) -> list[tuple[int, str]]:
    """(exit code, output) of each rank. None is left running."""
    ends = []
    try:
        for process in started:
            out, err = process.communicate(timeout=timeout)
            ends.append((process.returncode, out + err))
    finally:
        for process in started:
            process.kill()
    return ends


def run(size: int, job: dict, notes: Path) -> list[dict]:
    """What every rank of a training that ends well saw."""
    ends = finish(start(size, job, notes))
    assert [code for code, _ in ends] == [0] * size, "\n".join(text for _, text in ends)
    return notes_of(notes, size)


def notes_of(notes: Path, size: int) -> list[dict]:
    return [json.loads((notes / f"{rank}.json").read_text()) for rank in range(size)]


# ---------------------------------------------------------------- one rank


def main(path: str) -> None:
    from offscript.training import loop, ranks

    job = json.loads(Path(path).read_text())
    if "lost_after" in job:
        ranks.BEAT_S, ranks.LOST_AFTER = 0.2, job["lost_after"]
    if job.get("bfloat16"):  # what a GPU would do
        loop.Run.dtype = property(lambda run: "bfloat16")
    me = ranks.world()
    (Path(job["notes"]) / f"{me.rank}.pid").write_text(str(os.getpid()))
    seen: dict = {"said": [], "losses": [], "terms": []}
    watch(loop, seen, job, me.rank)
    try:
        seen["numbers"] = train(job, seen)
    except (Exception, KeyboardInterrupt) as error:
        seen["error"] = [type(error).__name__, str(error)]
    (Path(job["notes"]) / f"{me.rank}.json").write_text(json.dumps(seen))
    ranks.stop()
    sys.exit(1 if "error" in seen else 0)


def watch(loop, seen: dict, job: dict, rank: int) -> None:
    """Notes which parameters change, and does to this rank what the job says."""
    real = loop.fit
    plan = {tuple(k): v for k, *v in job.get("signals", [])}  # (rank, step) -> signal

    def fit(trainer, *rest):
        import torch
        from transformers import TrainerCallback

        before = {k: v.detach().clone() for k, v in trainer.model.named_parameters()}

        class Act(TrainerCallback):
            def on_step_end(self, args, state, control, **_):
                if job.get("out_of_memory") == rank:
                    raise torch.OutOfMemoryError("CUDA out of memory.")
                if (rank, state.global_step) in plan:
                    os.kill(os.getpid(), getattr(signal, plan[rank, state.global_step][0]))

        trainer.add_callback(Act())
        seen["trainable"] = sorted(k for k, v in trainer.model.named_parameters() if v.requires_grad)
        numbers = real(trainer, *rest)
        after = dict(trainer.model.named_parameters())
        seen["changed"] = sorted(
            k for k in before if before[k].shape == after[k].shape and not before[k].equal(after[k])
        )
        return numbers

    loop.fit = fit


def train(job: dict, seen: dict) -> dict:
    from offscript.settings import DeepSpeedSettings
    from offscript.training import introspection as second_stage
    from offscript.training import preference
    from tests.conftest import tiny_model_settings
    from tests.families import family_settings
    from tests.training import data

    def on_step(step: int, total: int, logs: dict) -> None:
        seen["losses"].append(logs["loss"])
        seen["terms"].append({k: v for k, v in logs.items() if k.startswith("loss/")})

    folder, out = Path(job["model"]), Path(job["out"])
    model = family_settings(job["family"], folder) if "family" in job else tiny_model_settings(folder)
    stage, offload = job.get("zero", [0, False])
    common = {
        "seed": 3, "on_step": on_step, "say": seen["said"].append,
        "deepspeed": DeepSpeedSettings(name="test", stage=stage, offload=offload),
    }  # fmt: skip
    changes = {"micro_batch_size": 2, **job.get("optimizer", {})}
    if "first" not in job:
        rows, _ = preference.pairs(data.teacher_rows(), data.student_rows())
        settings = data.distillation(**changes).model_copy(update={"kl_weight": 0.05})
        return preference.train(model, settings, rows, out, **common)
    rows, _ = second_stage.rows(data.teacher_rows(12), [data.conversation(i) for i in range(8)], "")
    return second_stage.train(model, data.introspection(**changes), rows, Path(job["first"]), out, **common)


if __name__ == "__main__":
    main(sys.argv[1])
