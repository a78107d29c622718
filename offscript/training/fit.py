"""From the first optimizer step to the finished adapter: training or resuming, evaluation, self-test, writing."""

import contextlib
import importlib.metadata
import math
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offscript import allocator
from offscript.errors import UserError
from offscript.models import adapters
from offscript.storage.files import new_folder, read_json_object, write_json
from offscript.training import checkpoints, ranks
from offscript.training.interrupt import Interrupted, SignalStopper
from offscript.training.run import Metrics, Run
from offscript.training.trainers import AdapterCheckpoints

if TYPE_CHECKING:
    from transformers import TrainerCallback

TRAINING_RECORD = "training.json"
"""Beside a finished adapter: its fingerprint and numbers."""
LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")


class TrainingFailed(RuntimeError):
    """Training failed, for example with a loss that is not a number."""


def fit(trainer: AdapterCheckpoints, run: Run, fingerprint: str, probe: Sequence[int]) -> Metrics:
    """Trains (or resumes), evaluates, tests that the adapter changes the model, and writes it to ``run.out``.

    Args:
        trainer: the trainer of a method.
        run: the training.
        fingerprint: of the training, from ``run.fingerprint``.
        probe: token ids of one row, for the self-test.

    Returns: the numbers for the manifest. They are also written beside the adapter, so that a job that is killed after
    its training does not train again.

    Raises:
        Interrupted: a signal stopped it; its checkpoint is whole.
    """
    if (done := ranks.run_on_main(lambda: _finished(run, fingerprint))) is not None:
        _release_base(trainer, run)
        return done
    started, stopper = time.monotonic(), SignalStopper()
    _add_callbacks(trainer, [_watcher(run), stopper.callback(), *run.callbacks])
    layout = checkpoints.Layout(run.ranks.world_size, run.zero_stage)
    checkpoint = ranks.run_on_main(lambda: checkpoints.find_resumable(run.work, fingerprint, run.say, layout))
    with ranks.fail_together(expected=(TrainingFailed, Interrupted)), stopper.handle_signals():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if stopper.stopped:
            raise Interrupted(trainer.state.global_step, trainer.state.max_steps, stopper.number)
    with ranks.fail_together(expected=(TrainingFailed, UserError)):
        trainer.choose_weights()
        numbers = _numbers(trainer, run, started, checkpoint)
        numbers["max_logit_difference"] = _self_test(trainer, probe)
        if run.bases is not None and run.zero_stage < 3:
            run.bases.check()
    with ranks.fail_together():
        _write(trainer, run, {"fingerprint": fingerprint, "numbers": numbers})
    _release_base(trainer, run)
    return numbers


def _add_callbacks(trainer: AdapterCheckpoints, callbacks: Sequence["TrainerCallback"]) -> None:
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    for callback in callbacks:
        trainer.add_callback(callback)


def _write(trainer: AdapterCheckpoints, run: Run, record: Metrics) -> None:
    """Writes the finished adapter, whole or not at all, and then removes the checkpoints."""
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(new_folder(run.out)) if run.is_main else run.out
        trainer.write_adapter(scratch)
        if run.is_main:
            write_json(scratch / TRAINING_RECORD, record)
    if run.is_main:
        shutil.rmtree(run.work)
    trainer.accelerator.wait_for_everyone()


def _release_base(trainer: AdapterCheckpoints, run: Run) -> None:
    """Returns a shared base model without the adapters."""
    if run.bases is not None and run.zero_stage < 3:
        run.bases.release(trainer.peft_model)


def _finished(run: Run, fingerprint: str) -> Metrics | None:
    """The numbers of an adapter that this very training has already written to ``run.out``."""
    try:
        record = read_json_object(run.out / TRAINING_RECORD, "fingerprint", "numbers")
    except UserError:
        return None
    if record["fingerprint"] != fingerprint:
        return None
    # A kill may have come between writing the adapter and removing its checkpoints.
    shutil.rmtree(run.work, ignore_errors=True)
    numbers: Metrics = record["numbers"]
    return numbers


def _numbers(trainer: AdapterCheckpoints, run: Run, started: float, checkpoint: Path | None) -> Metrics:
    evaluation = trainer.evaluate() if trainer.eval_dataset is not None else {}
    clock = ("_runtime", "_per_second", "_num_tokens")
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    tenth = max(1, len(losses) // 10)
    return {
        "steps": trainer.state.global_step,
        "trained_tokens": trainer.trained_tokens(),
        "resumed_from": checkpoints.checkpoint_step(checkpoint) if checkpoint else None,
        "seconds": round(time.monotonic() - started, 2),
        "train_loss_first": sum(losses[:tenth]) / tenth,
        "train_loss_last": sum(losses[-tenth:]) / tenth,
        **{k: v for k, v in evaluation.items() if k.startswith("eval_") and not k.endswith(clock)},
        "trainable_parameters": sum(getattr(p, "ds_numel", p.numel()) for p in trainer.trained().values()),
        **trainer.own_numbers(),
        "ranks": run.ranks.world_size,
        "zero_stage": run.zero_stage,
        "versions": {
            name: importlib.metadata.version(name)
            for name in (*LIBRARIES, *["deepspeed"] * bool(run.zero_stage))
        },
    }


def _self_test(trainer: AdapterCheckpoints, probe: Sequence[int]) -> float:
    """The largest difference that the adapter makes to the logits of ``probe``."""
    import torch

    try:
        return adapters.self_test(trainer.peft_model, trainer.adapter, torch.tensor([list(probe)]))
    except adapters.NotFinite:
        raise TrainingFailed(
            "outputs of the trained adapter are not finite numbers; lower optimizer.learning_rate or look at the rows"
        ) from None
    except UserError:
        raise UserError(
            "training",
            "the adapter changes nothing: its outputs equal the base's",
            "raise optimizer.learning_rate or optimizer.epochs, or choose other lora.targets",
        ) from None


def _watcher(run: Run) -> "TrainerCallback":
    """A callback that reports progress, returns freed memory, and stops at the first loss or gradient that is not a finite
    number."""
    from transformers import TrainerCallback

    class Watcher(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: object) -> None:
            allocator.return_freed_memory()

        def on_log(
            self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: object
        ) -> None:
            logs = logs or {}
            for name in ("loss", "grad_norm", "eval_loss"):
                if not math.isfinite(logs.get(name, 0.0)):
                    raise TrainingFailed(
                        f"step {state.global_step}: {name} is {logs[name]}; lower optimizer.learning_rate or look at the rows"
                    )
            if "loss" in logs and run.on_step:
                run.on_step(state.global_step, state.max_steps, logs)

    return Watcher()
