"""What preference and introspection training share: trainer arguments, watching, checkpoints, finishing."""

import contextlib
import importlib.metadata
import json
import logging
import math
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offscript.errors import UserError
from offscript.models import adapters
from offscript.seeds import stable_hash, unit_hash
from offscript.settings import LoraSettings, ModelSettings, Node, OptimizerSettings, identity_of
from offscript.store import new_folder, read_json, write_json
from offscript.training import resume

OnStep = Callable[[int, int, dict[str, float]], None]
NUMBERS = "training.json"
LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")


class TrainingFailed(RuntimeError):
    """The work itself failed (a loss that is not a number): no input of the user's is at fault for certain."""


@dataclass(frozen=True)
class Run:
    """One training: where it writes, its seed, and who is told of its progress."""

    model: ModelSettings
    optimizer: OptimizerSettings
    out: Path
    seed: int
    report_to: str = "none"
    on_step: OnStep | None = None
    say: Callable[[str], None] = print

    @property
    def work(self) -> Path:
        return resume.work_folder(self.out)


# ---------------------------------------------------------------- data


def split_families(rows: Sequence[dict[str, Any]], fraction: float) -> tuple[list[dict], list[dict]]:
    """(train, validation): whole families, chosen by their name alone, so that every seed validates on the same."""
    held_out = [unit_hash("validation", row["family"]) < fraction for row in rows]
    train = [row for row, out in zip(rows, held_out, strict=True) if not out]
    return train, [row for row, out in zip(rows, held_out, strict=True) if out]


def require_rows(train: Sequence[Any], where: str, counts: dict[str, int]) -> None:
    """Raises UserError when nothing is left to train on; it says what was dropped and why."""
    if not train:
        raise UserError(
            where, f"nothing to train on ({describe(counts)})", "generate more rows or loosen the limits"
        )


def describe(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in counts.items()) or "no rows"


def longest(run: Run) -> int:
    """Tokens that a training row may have: ``max_length``, or the model's context where that is shorter."""
    return min(run.optimizer.max_length, run.model.context)


# ---------------------------------------------------------------- trainers


def lora_config(settings: LoraSettings) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets),
        task_type="CAUSAL_LM",
    )


def batches(optimizer: OptimizerSettings, world_size: int) -> tuple[int, int]:
    """(rows per step and process, accumulation steps) whose product with ``world_size`` is exactly ``batch_size``.

    ``micro_batch_size`` is an upper bound: the global batch decides the outcome, how it is cut up does not.

    Raises:
        UserError: the global batch cannot be divided among the processes.
    """
    per_process, rest = divmod(optimizer.batch_size, world_size)
    if rest:
        raise UserError(
            "optimizer.batch_size",
            f"{optimizer.batch_size} rows on {world_size} processes",
            "a multiple of them is needed",
        )
    micro = next(
        m for m in range(min(optimizer.micro_batch_size, per_process), 0, -1) if per_process % m == 0
    )
    return micro, per_process // micro


def trainer_arguments(run: Run) -> dict[str, Any]:
    """Arguments common to DPOConfig and SFTConfig. DeepSpeed joins here: its config is one more entry."""
    import torch

    gpu, optimizer = torch.cuda.is_available(), run.optimizer
    micro, accumulation = batches(optimizer, int(os.environ.get("WORLD_SIZE", "1")))
    return {
        "output_dir": str(run.work),
        "per_device_train_batch_size": micro,
        "per_device_eval_batch_size": micro,
        "gradient_accumulation_steps": accumulation,
        "num_train_epochs": optimizer.epochs,
        "learning_rate": optimizer.learning_rate,
        "lr_scheduler_type": optimizer.schedule,
        "warmup_steps": optimizer.warmup,  # below 1: a fraction of all steps
        "optim": "adamw_torch",
        "adam_beta1": optimizer.betas[0],
        "adam_beta2": optimizer.betas[1],
        "weight_decay": 0.0,
        "max_grad_norm": optimizer.max_grad_norm,
        "max_length": None,  # rows that are too long were dropped or cut by whole turns before
        "gradient_checkpointing": optimizer.gradient_checkpointing,
        "bf16": gpu and run.model.dtype == "bfloat16",
        "fp16": False,
        "use_cpu": not gpu,
        "dataloader_pin_memory": gpu,
        "seed": run.seed,
        "data_seed": run.seed,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # it would hide a NaN loss from the log, and so from us
        "save_strategy": "steps",
        "save_steps": optimizer.checkpoint_steps,
        "save_total_limit": resume.KEPT,
        "eval_strategy": "no",  # evaluated once, at the end
        "report_to": [] if run.report_to == "none" else [run.report_to],
        "disable_tqdm": True,
    }


class AdapterCheckpoints:
    """Mixed into a trainer: a checkpoint holds the one adapter being trained, the optimizer and the random states.

    The trainers' own would also write the tokenizer, a model card and, in the second stage, the frozen adapter, and
    would on resume leave only one of two stacked adapters active.
    """

    adapter = "default"
    run: Run

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if self.args.should_save:  # type: ignore[attr-defined]
            wrapped = self.accelerator.unwrap_model(self.model)  # type: ignore[attr-defined]
            adapters.save(
                wrapped, self.adapter, Path(str(output_dir)), self.run.model.path, self.run.model.revision
            )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        adapters.load_tensors(self.model, self.adapter, Path(resume_from_checkpoint))  # type: ignore[attr-defined]

    def create_model_card(self, *_: Any, **__: Any) -> None:
        pass


def watcher(run: Run) -> Any:
    """A callback that passes on progress and stops at the first loss or gradient that is not a finite number."""
    from transformers import TrainerCallback

    class Watcher(TrainerCallback):
        def on_log(
            self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
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


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps library chatter (warnings that a reader cannot act on, progress bars) off the console."""
    import datasets

    level, bars = logging.root.manager.disable, datasets.are_progress_bars_disabled()
    logging.disable(logging.WARNING)
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        if not bars:
            datasets.enable_progress_bars()


# ---------------------------------------------------------------- a training from its first step to its adapter


def fingerprint(run: Run, *parts: Any) -> str:
    """Hash of what the weights depend on: model, recipe, rows, seed. Checkpoints of another one are not resumed."""
    plain = [identity_of(part) if isinstance(part, Node) else part for part in (run.model, *parts)]
    return f"{stable_hash(run.seed, json.dumps(plain, sort_keys=True), size=16):032x}"


def fit(trainer: Any, run: Run, mark: str, probe: Sequence[int]) -> dict[str, Any]:
    """Trains (or goes on), evaluates, proves that the adapter does something, writes it to ``run.out``.

    ``probe`` is one row of token ids for the self-test. Returns the numbers for the manifest; they are also written
    beside the adapter, so that a job killed after its training does not train again.
    """
    from transformers import PrinterCallback

    if (done := finished(run, mark)) is not None:
        return done
    started = time.monotonic()
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(watcher(run))
    checkpoint = resume.reopen(run.work, mark, run.say)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    numbers = _numbers(trainer, started, checkpoint)
    wrapped = trainer.accelerator.unwrap_model(trainer.model)
    numbers["max_logit_difference"] = _must_differ(wrapped, trainer.adapter, probe)
    with new_folder(run.out) as scratch:
        adapters.save(wrapped, trainer.adapter, scratch, run.model.path, run.model.revision)
        write_json(scratch / NUMBERS, {"fingerprint": mark, "numbers": numbers})
    shutil.rmtree(run.work)
    return numbers


def finished(run: Run, mark: str) -> dict[str, Any] | None:
    """The numbers of an adapter that this very training has already written to ``run.out``."""
    try:
        done = read_json(run.out / NUMBERS)
    except (OSError, UserError):
        return None
    if done["fingerprint"] != mark:
        return None
    shutil.rmtree(run.work, ignore_errors=True)  # a kill may have come between the adapter and this
    return done["numbers"]


def _numbers(trainer: Any, started: float, checkpoint: Path | None) -> dict[str, Any]:
    evaluation = trainer.evaluate() if trainer.eval_dataset is not None else {}
    clock = ("_runtime", "_per_second", "_num_tokens")
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    tenth = max(1, len(losses) // 10)
    return {
        "steps": trainer.state.global_step,
        "resumed_from": resume.step_of(checkpoint) if checkpoint else None,
        "seconds": round(time.monotonic() - started, 2),
        "train_loss_first": sum(losses[:tenth]) / tenth,
        "train_loss_last": sum(losses[-tenth:]) / tenth,
        **{k: v for k, v in evaluation.items() if k.startswith("eval_") and not k.endswith(clock)},
        "trainable_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
    }


def _must_differ(wrapped: Any, name: str, probe: Sequence[int]) -> float:
    import torch

    try:
        return adapters.self_test(wrapped, name, torch.tensor([list(probe)]))
    except UserError:
        raise UserError(
            "training",
            "the adapter changes nothing: its outputs equal the base's",
            "raise optimizer.learning_rate or optimizer.epochs, or choose other lora.targets",
        ) from None
