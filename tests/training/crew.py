"""Distributed trainings on this machine. Ranks are started as SLURM starts them, by environment variables alone.

Run as a module, this file is one rank: it reads jobs (JSON), runs one after another, and writes what it recorded of each
to ``<notes>/<rank>.json``. Starting a process takes longer than training a tiny model, so a group runs many jobs.
"""

import contextlib
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


def start(size: int, jobs: dict[str, dict], notes: Path, max_missed: int = 600) -> list[subprocess.Popen]:
    """Starts ``size`` ranks; a single process gets no variables. ``max_missed``: heartbeats of 0.2 s."""
    path = plan(jobs, notes, max_missed)
    shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    started = []
    for rank in range(size):
        own = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} if size > 1 else {}
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", MODULE, str(path)],
                env=environment(**own),
                cwd=REPOSITORY,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return started


def plan(jobs: dict[str, dict], notes: Path, max_missed: int = 600) -> Path:
    notes.mkdir(parents=True, exist_ok=True)
    path = notes / "plan.json"
    path.write_text(json.dumps({"jobs": jobs, "notes": str(notes), "max_missed": max_missed}))
    return path


def finish(started: list[subprocess.Popen], timeout: float = 600) -> list[tuple[int, str]]:
    """Waits for all ranks, and returns (exit code, output) of each. Kills them if one fails."""
    exits = []
    try:
        for process in started:
            out, err = process.communicate(timeout=timeout)
            exits.append((process.returncode, out + err))
    finally:
        for process in started:
            process.kill()
    return exits


def run(size: int, jobs: dict[str, dict], notes: Path) -> list[dict[str, dict]]:
    """Runs the jobs on ``size`` ranks; returns what each rank recorded. Only jobs marked ``fails`` may fail."""
    exits = finish(start(size, jobs, notes))
    errors = [note[name]["error"] for note in notes_of(notes, size) for name in note]
    assert [code for code, _ in exits] == [0] * size, f"{errors}" + "".join(text for _, text in exits)
    assert not any(text for _, text in exits), f"something was printed: {exits}"
    return notes_of(notes, size)


def notes_of(notes: Path, size: int) -> list[dict]:
    return [json.loads((notes / f"{rank}.json").read_text()) for rank in range(size)]


# ---------------------------------------------------------------- one rank


def main(path: str) -> None:
    """Runs the jobs of ``path`` one after another; exits with 1 if one of them failed unexpectedly."""
    from offscript.training import ranks

    plan = json.loads(Path(path).read_text())
    ranks.HEARTBEAT_S, ranks.MAX_MISSED_HEARTBEATS = 0.2, plan["max_missed"]
    rank, note = ranks.rank_info().rank, {}
    for name, job in plan["jobs"].items():
        seen = note[name] = {"messages": [], "losses": [], "terms": [], "error": None}
        try:
            with recording(job, rank, seen):
                seen["numbers"] = train(job, seen)
        except Exception as error:
            seen["error"] = [type(error).__name__, str(error)]
    (Path(plan["notes"]) / f"{rank}.json").write_text(json.dumps(note))
    failed = any(seen["error"] and not plan["jobs"][name].get("fails") for name, seen in note.items())
    ranks.leave()
    sys.exit(int(failed))


@contextlib.contextmanager
def recording(job: dict, rank: int, seen: dict):
    """Records which parameters change, and injects the faults of the job on this rank."""
    import torch

    from offscript.training.methods import dpo, grpo, sft
    from offscript.training.run import Run

    fit, dtype = dpo.fit, Run.dtype

    def recorded_fit(trainer, *rest):
        trainer.add_callback(callback(job, rank))
        before = {k: v.detach().clone() for k, v in trainer.model.named_parameters()}
        seen["trainable"] = sorted(k for k, v in trainer.model.named_parameters() if v.requires_grad)
        numbers = fit(trainer, *rest)
        after = dict(trainer.model.named_parameters())
        # At ZeRO stage 3 a rank holds only parts of the parameters.
        complete = [k for k in before if before[k].shape == after[k].shape]
        seen["changed"] = sorted(k for k in complete if not torch.equal(before[k], after[k]))
        return numbers

    dpo.fit = sft.fit = grpo.fit = recorded_fit
    # As on a GPU.
    if job.get("bfloat16"):
        Run.dtype = property(lambda run: "bfloat16")
    try:
        yield
    finally:
        dpo.fit = sft.fit = grpo.fit = fit
        Run.dtype = dtype


def callback(job: dict, rank: int):
    import torch
    from transformers import TrainerCallback

    class InjectFaults(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if job.get("out_of_memory") == rank:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            if job.get("signal", [])[:2] == [rank, state.global_step]:
                os.kill(os.getpid(), getattr(signal, job["signal"][2]))

    return InjectFaults()


def train(job: dict, seen: dict) -> dict:
    from offscript.settings import DeepSpeedSettings
    from offscript.training.data.introspection import conversations
    from offscript.training.data.preference import pairs
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
        "seed": 3,
        "on_step": on_step,
        "say": seen["messages"].append,
        "deepspeed": DeepSpeedSettings(name="test", stage=stage, offload=offload),
    }
    changes = {"micro_batch_size": 2, **job.get("optimizer", {})}
    if "continues" in job:
        common |= {"parent": Path(job["continues"]), "continues": True}
    if job.get("method") == "lm":
        settings = data.document_settings(packing=True, **changes)
        return data.train_lm(model, settings, data.document_rows(), out, **common)
    if job.get("rows") == "mixed":
        from tests.training.test_mixed import mixed_rows, sft_settings

        return data.train_sft(model, sft_settings(**changes), mixed_rows(), None, out, **common)
    if job.get("rows") == "images":
        from tests.training.test_images import rows as pictured_rows

        return data.train_sft(model, data.introspection(**changes), pictured_rows(22), None, out, **common)
    if job.get("method") == "context":
        return data.train_context(model, data.context(**changes), data.episodes(), out, **common)
    if job.get("method") == "grpo":
        changes.pop("micro_batch_size")
        settings = data.rl(steps=3, optimizer_changes={"micro_batch_size": 2, **changes})
        return data.train_grpo(model, settings, common.pop("parent"), out, **common)
    if "first" not in job:
        rows, _ = pairs(data.teacher_rows(), data.student_rows())
        settings = data.distillation(**changes).model_copy(update={"kl_weight": 0.05})
        return data.train_dpo(model, settings, rows, out, **common)
    rows, _ = conversations(data.teacher_rows(12), [data.conversation(i) for i in range(8)], "")
    return data.train_sft(model, data.introspection(**changes), rows, Path(job["first"]), out, **common)


if __name__ == "__main__":
    main(sys.argv[1])
