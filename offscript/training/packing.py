"""Packed micro-batches: rows that follow one another in one sequence, told apart by their position ids."""

from typing import TYPE_CHECKING

from offscript.errors import UserError
from offscript.training.data.base import TrainingRow
from offscript.training.trainers import AdapterTrainer

if TYPE_CHECKING:
    from transformers import TrainerCallback

LARGEST_LEAK = 1e-3
"""Largest difference of a log-probability that a model may make to a row by what is packed before it. Where no row sees
another one, the difference is 0; the rest is for kernels that do not add in a fixed order."""


def pack(trainer: AdapterTrainer, pad_token: int) -> None:
    """Lets ``trainer`` pack its micro-batches, and check before the first step that the model keeps packed rows apart."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    trainer.packed = True
    # Position ids begin again with every row, and there is no attention mask: transformers then builds the mask of packed
    # sequences from the position ids.
    trainer.data_collator = DataCollatorForLanguageModeling(pad_token_id=pad_token, padding_free=True)
    trainer.add_callback(_check_before_training(trainer))


def leak(trainer: AdapterTrainer) -> float:
    """The largest difference that the row before it makes to the log-probabilities of a row of the training. Every rank has
    to call it, once the trainer has prepared the model."""
    import torch

    assert trainer.model is not None
    row = min(trainer.train_rows, key=trainer.length)
    ids = row["input_ids"]
    scored: TrainingRow = {"input_ids": ids, "labels": ids}
    before = [{"input_ids": other, "labels": other} for other in (ids, [ids[-1]] * len(ids))]
    with torch.no_grad():
        found = [
            trainer.log_probs(trainer.model, trainer._prepare_inputs(trainer.collate([other, scored])))
            for other in before
        ]
    first, second = (log_probs[0, len(ids) :] for log_probs in found)
    return float((first - second).abs().max())


def _check_before_training(trainer: AdapterTrainer) -> "TrainerCallback":
    from transformers import TrainerCallback

    class ChecksPacking(TrainerCallback):
        def on_train_begin(self, *_: object, **__: object) -> None:
            if leak(trainer) > LARGEST_LEAK:
                name = trainer.run.model.name
                raise UserError(
                    "packing", f"the attention of {name} does not keep packed rows apart", "false"
                )

    return ChecksPacking()
