"""What both trainers add to TRL's: one adapter in a checkpoint, sums over rows and ranks, one order of the rows."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offscript.models import adapters
from offscript.training import deepspeed


class RowOrder:
    """A sampler: the rows of each epoch in an order that depends on the seed and the epoch alone, not on the number
    of ranks; then those that fill up the ranks' last batches (see ``loop.dataset``).

    The epoch is the trainer's own, so that a training that goes on in its middle has the order it had before; the
    sampler of the libraries starts again at epoch 0 where there are several ranks.
    """

    def __init__(self, trainer: Any, rows: int, total: int) -> None:
        self.trainer, self.rows, self.total = trainer, rows, total

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[int]:
        import torch

        epoch = int(self.trainer.state.epoch or 0)
        generator = torch.Generator().manual_seed(self.trainer.args.seed + epoch)
        yield from torch.randperm(self.rows, generator=generator).tolist()
        yield from range(self.rows, self.total)


if TYPE_CHECKING:
    from transformers import Trainer

    from offscript.training.run import Run
else:
    Trainer = object


class AdapterTrainer(Trainer):
    """Mixed into a trainer, before TRL's class.

    A checkpoint holds the adapter being trained, the optimizer (with DeepSpeed its shards, and never base weights),
    the schedule and each rank's random state. The trainers' own would also write the tokenizer, a model card and, in
    the second stage, the frozen adapter, and would on resume leave only one of two stacked adapters active.
    """

    adapter = "default"
    run: "Run"
    rows = 0
    """Rows to train on; the data set may hold more, which only fill up batches."""

    # ------------------------------------------------ rows and what is summed over them

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return RowOrder(self, self.rows, len(train_dataset or self.train_dataset))  # type: ignore[attr-defined]

    def tally(self, mode: str, count: Any, totals: dict[str, Any]) -> None:
        """Adds totals over ``count`` rows (or tokens), to be logged as their mean over all microbatches and ranks."""
        sums = self.__dict__.setdefault("_sums", {}).setdefault(mode, {})
        for name, total in {"": count, **totals}.items():
            sums[name] = sums.get(name, 0.0) + total.double()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        import torch

        mode = "train" if self.model.training else "eval"  # type: ignore[attr-defined]
        own = {}
        if sums := self.__dict__.get("_sums", {}).pop(mode, None):
            total = self.accelerator.reduce(torch.stack(list(sums.values())), "sum").tolist()  # type: ignore[attr-defined]
            prefix = "" if mode == "train" else "eval_"
            own = {prefix + k: v / max(total[0], 1) for k, v in zip(list(sums)[1:], total[1:], strict=True)}
            for name in own:  # TRL's own values are means over this rank's microbatches
                self._metrics[mode].pop(name.removeprefix("eval_"), None)  # type: ignore[attr-defined]
        logs.update(own)
        super().log(logs, start_time)  # type: ignore[misc]

    # ------------------------------------------------ checkpoints

    def trained(self) -> dict[str, Any]:
        """The parameters of the adapter being trained, by name."""
        return {k: p for k, p in self.model.named_parameters() if f".{self.adapter}." in k}  # type: ignore[attr-defined]

    def write_adapter(self, folder: Path) -> None:
        """Writes the adapter's float32 weights, on rank 0; every rank has to call it."""
        with deepspeed.gathered_float32(list(self.trained().values()), self.run.stage):
            if self.run.is_main:
                wrapped = self.accelerator.unwrap_model(self.model)  # type: ignore[attr-defined]
                adapters.save(wrapped, self.adapter, folder, self.run.model.path, self.run.model.revision)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        self.write_adapter(Path(str(output_dir)))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)  # type: ignore[misc]
        self.accelerator.wait_for_everyone()  # type: ignore[attr-defined]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        adapters.load_tensors(self.model, self.adapter, Path(resume_from_checkpoint))  # type: ignore[attr-defined]

    def create_model_card(self, *_: Any, **__: Any) -> None:
        pass
