"""DPO with a likelihood term and the published squared log-ratio."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from offscript.models import adapters
from offscript.settings import TrainerSettings, identity
from offscript.tasks.messages import Message
from offscript.training.data.base import Counts, TrainingRow, require_rows
from offscript.training.fit import fit
from offscript.training.methods.base import Method
from offscript.training.reference import add_reference, padded
from offscript.training.run import (
    Metrics,
    Run,
    base_model,
    dataset,
    fingerprint,
    longest,
    lora_config,
    say_dropped,
    session,
    split_families,
    trainer_arguments,
)
from offscript.training.spans import IGNORED, Unstable, assistant_turns, special_token
from offscript.training.start import check_parent, continue_parent, keep_start, parent_digest
from offscript.training.trainers import AdapterTrainer

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase, TrainerCallback


class DPOSettings(TrainerSettings):
    """Loss: DPO with ``beta`` + ``nll_weight`` x NLL of the chosen reply + ``kl_weight`` x squared log-ratio to the
    reference."""

    beta: float = identity(0.1, gt=0)
    nll_weight: float = identity(0.1, ge=0)
    kl_weight: float = identity(0.0, ge=0)


def train(run: Run, pairs: Sequence[TrainingRow]) -> Metrics:
    """Trains a LoRA adapter on ``pairs`` and writes it to ``run.out`` in PEFT layout; a rerun after a kill goes on.

    With ``run.continues`` the adapter starts as a copy of the one in ``run.parent``, and that one is the reference.
    Otherwise it starts without effect, and the reference is the base.

    Loss, a mean over the pairs of the global batch, whatever the microbatches and the number of ranks: DPO +
    ``nll_weight`` x NLL + ``kl_weight`` x KL, as in ``loss_terms``; each term is logged per step (``loss/dpo``,
    ``loss/nll``, ``loss/kl``).

    Every rank calls it with the same arguments; rank 0 alone writes and reports. A bfloat16 base is
    trained in bfloat16 with float32 master weights of the adapter, if the machine is fast in it (``Run.dtype``); any other
    in float32.

    Args:
        run: ``run.settings`` are DPOSettings.
        pairs: rows ``{"family", "prompt": [message], "chosen": [message], "rejected": [message]}``.

    Returns: rows used and dropped, trained tokens (of both sides, in all epochs), losses, ``eval_rewards/accuracies`` on the validation families, steps, seconds,
    trainable parameters, ``max_logit_difference``, versions. The same seed, pairs and ranks give the same bytes on CPU.

    Raises:
        MissingInput: the parent's adapter does not exist.
        UserError: a LoRA target matches nothing, the parent's adapter has other LoRA settings, no pair is left, the adapter
            changes nothing, a GPU is too small.
        TrainingFailed: a loss or gradient is not a finite number (on every rank).
        Interrupted: SIGTERM or SIGUSR2 came (to any rank); a checkpoint is written, and the same call goes on from it.
        BaseModelChanged: training changed the base weights.
    """
    settings = run.settings
    assert isinstance(settings, DPOSettings)
    check_parent(run)
    with session(run):
        from trl import DPOConfig

        from offscript.models.loading import load_tokenizer

        arguments = DPOConfig(
            **trainer_arguments(run),
            beta=settings.beta,
            loss_type=["sigmoid"],
            disable_dropout=settings.lora.dropout == 0,
        )
        tokenizer, base = load_tokenizer(run.model), base_model(run)
        adapters.check_lora(base, settings.lora)
        train_rows, held_out, counts = _token_rows(run, tokenizer, pairs)
        trainer = _trainer_class()(
            model=base,
            args=arguments,
            train_dataset=dataset(train_rows),
            eval_dataset=dataset(held_out),
            processing_class=tokenizer,
            peft_config=lora_config(settings.lora),
        )
        trainer.run, trainer.train_rows, trainer.eval_rows = run, train_rows, held_out
        trainer.padding_row = {**train_rows[0], "chosen_ids": [], "rejected_ids": []}
        if run.continues:
            continue_parent(run, trainer.peft_model, trainer.adapter)
            keep_start(run, trainer.peft_model, trainer.adapter)
        trainer.add_callback(_adds_reference(trainer))
        probe = train_rows[0]["prompt_ids"] + train_rows[0]["chosen_ids"]
        return {"rows": counts, **fit(trainer, run, fingerprint(run, train_rows, *parent_digest(run)), probe)}


def loss_terms(policy: "Tensor", reference: "Tensor", mask: "Tensor", beta: float) -> "dict[str, Tensor]":
    """The terms of the loss, and the rewards, of each pair.

    ``policy`` and ``reference`` are log-probabilities (2 x pairs, tokens), chosen rows first; ``mask`` (same shape) is 1
    on the reply's tokens. With r = policy - reference, n = a row's number of reply tokens, all per pair:

    - ``loss/dpo``: -log sigmoid(beta x (sum r of the chosen - sum r of the rejected)), the reference being the weights that
      the training starts from (DPO, https://huggingface.co/papers/2305.18290)
    - ``loss/nll``: mean over the chosen reply's tokens of -policy. (TRL's "sft" term is one mean over all tokens of a
      microbatch, so that it changes with ``micro_batch_size``.)
    - ``loss/kl``: mean over the tokens of r squared, averaged over chosen and rejected. This is what
      OpenCharacterTraining calls its KL penalty; it is not an unbiased estimate of a KL divergence.

    Returns: tensors of shape (pairs,), by name.
    """
    from torch.nn.functional import logsigmoid

    policy, mask = policy.float(), mask.to(policy.dtype).float()
    ratio, tokens = (policy - reference.float()) * mask, mask.sum(-1).clamp(min=1)
    chosen, rejected = (beta * ratio.sum(-1)).chunk(2)
    nll, _ = (-(policy * mask).sum(-1) / tokens).chunk(2)
    kl_chosen, kl_rejected = (ratio.square().sum(-1) / tokens).chunk(2)
    return {
        "loss/dpo": -logsigmoid(chosen - rejected),
        "loss/nll": nll,
        "loss/kl": (kl_chosen + kl_rejected) / 2,
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": (chosen > rejected).float(),
    }


def _token_rows(
    run: Run, tokenizer: "PreTrainedTokenizerBase", pairs: Sequence[TrainingRow]
) -> tuple[list[TrainingRow], list[TrainingRow], Counts]:
    """(train, validation) rows of token ids, and counts; pairs that are too long for the model are left out."""
    counts = Counter(given=len(pairs), train=0, validation=0)
    kept = []
    for pair in pairs:
        if special_token(tokenizer, [*pair["prompt"], *pair["chosen"], *pair["rejected"]]):
            counts["special_token"] += 1
            continue
        try:
            row = _token_row(run, tokenizer, pair)
        except Unstable:
            counts["template_unstable"] += 1
            continue
        if len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"])) > longest(run):
            counts["too_long"] += 1
            continue
        kept.append(row)
    train_rows, held_out = split_families(kept, run.settings.validation)
    counts.update(train=len(train_rows), validation=len(held_out))
    say_dropped(run, counts)
    require_rows(train_rows, "preference pairs", dict(counts))
    columns = ("prompt_ids", "chosen_ids", "rejected_ids")
    strip = [[{c: row[c] for c in columns} for row in rows] for rows in (train_rows, held_out)]
    return strip[0], strip[1], dict(counts)


def _token_row(run: Run, tokenizer: "PreTrainedTokenizerBase", pair: TrainingRow) -> TrainingRow:
    row: TrainingRow = {"family": pair["family"]}
    for side in ("chosen", "rejected"):
        messages: list[Message] = [*pair["prompt"], *pair[side]]
        ids, spans = assistant_turns(tokenizer, messages, run.model.template)[-1]
        start, end = spans[-1]
        row["prompt_ids"], row[f"{side}_ids"] = ids[:start], ids[start:end]
    return row


def _trainer_class() -> "Callable[..., AdapterTrainer]":
    from torch import Tensor
    from torch.nn import Module
    from trl import DPOTrainer

    class PreferenceTrainer(AdapterTrainer, DPOTrainer):
        """DPO on tokenized rows, with the published likelihood and squared-log-ratio terms."""

        def length(self, row: TrainingRow) -> int:
            return len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))

        def amount(self, row: TrainingRow) -> int:
            return 1

        def tokens(self, row: TrainingRow) -> int:
            return len(row["chosen_ids"]) + len(row["rejected_ids"])

        def collate(self, rows: Sequence[TrainingRow]) -> dict[str, Tensor]:
            tensors = super().collate(rows)
            is_reply = tensors["completion_mask"] == 1
            tensors["labels"] = tensors["input_ids"].masked_fill(~is_reply, IGNORED)
            tensors["reference"] = padded(rows, is_reply.size(1) - 1)
            return tensors

        def _prepare_dataset(self, dataset: "Dataset", *_: object, **__: object) -> "Dataset":
            return dataset

        def loss(self, model: Module, inputs: dict[str, Tensor]) -> Tensor:
            mask = inputs["completion_mask"][:, 1:]
            # Padding rows have no reply.
            is_pair = mask.any(-1).chunk(2)[0]
            found = loss_terms(self.log_probs(model, inputs), inputs["reference"], mask, self.beta)
            terms = {name: of_pairs[is_pair].sum() for name, of_pairs in found.items()}
            settings = self.run.settings
            assert isinstance(settings, DPOSettings)
            loss = (
                terms["loss/dpo"]
                + settings.nll_weight * terms["loss/nll"]
                + settings.kl_weight * terms["loss/kl"]
            )
            totals = {name: total.detach() for name, total in {**terms, "loss": loss}.items()}
            self.tally("train" if model.training else "eval", is_pair.sum(), totals)
            return self.step_loss(loss) if model.training else loss / is_pair.sum().clamp(min=1)

    return PreferenceTrainer


def _adds_reference(trainer: AdapterTrainer) -> "TrainerCallback":
    """A callback that computes the log-probabilities of the reference before the first step."""
    from transformers import TrainerCallback

    class AddsReference(TrainerCallback):
        def on_train_begin(self, *_: object, **__: object) -> None:
            add_reference(trainer)

    return AddsReference()


METHOD = Method(
    name="dpo",
    settings=DPOSettings,
    takes="pairs",
    train=train,
    continues=True,
    texts_per_row=2,
    # The reference's log-probabilities.
    extra_forward=1,
)
