"""DPO with a likelihood term and the published squared log-ratio."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from offscript.models import adapters
from offscript.settings import TrainerSettings, identity
from offscript.tasks.messages import Message
from offscript.training.data.base import Counts, TrainingRow, require_rows
from offscript.training.fit import fit
from offscript.training.methods.base import Method
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
from offscript.training.spans import Unstable, assistant_turns, special_token
from offscript.training.trainers import AdapterTrainer

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


class DPOSettings(TrainerSettings):
    """Loss: DPO with ``beta`` + ``nll_weight`` x NLL of the chosen reply + ``kl_weight`` x squared log-ratio to the
    reference."""

    beta: float = identity(0.1, gt=0)
    nll_weight: float = identity(0.1, ge=0)
    kl_weight: float = identity(0.0, ge=0)


def train(run: Run, pairs: Sequence[TrainingRow]) -> Metrics:
    """Trains a LoRA adapter on ``pairs`` and writes it to ``run.out`` in PEFT layout; a rerun after a kill goes on.

    Loss, a mean over the pairs of the global batch, whatever the microbatches and the number of ranks: DPO +
    ``nll_weight`` x NLL + ``kl_weight`` x KL, as in ``loss_terms``; each term is logged per step (``loss/dpo``,
    ``loss/nll``, ``loss/kl``).

    Every rank calls it with the same arguments; rank 0 alone writes and reports. A bfloat16 base is
    trained in bfloat16 with float32 master weights of the adapter, if the machine is fast in it (``Run.dtype``); any other
    in float32.

    Args:
        run: ``run.settings`` are DPOSettings.
        pairs: rows ``{"family", "prompt": [message], "chosen": [message], "rejected": [message]}``.

    Returns: rows used and dropped, losses, ``eval_rewards/accuracies`` on the validation families, steps, seconds,
    trainable parameters, ``max_logit_difference``, versions. The same seed, pairs and ranks give the same bytes on CPU.

    Raises:
        UserError: a LoRA target matches nothing, no pair is left, the adapter changes nothing, a GPU is too small.
        TrainingFailed: a loss or gradient is not a finite number (on every rank).
        Interrupted: SIGTERM or SIGUSR2 came (to any rank); a checkpoint is written, and the same call goes on from it.
        BaseModelChanged: training changed the base weights.
    """
    settings = run.settings
    assert isinstance(settings, DPOSettings)
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
        padding_row = {"prompt_ids": train_rows[0]["prompt_ids"][:2], "chosen_ids": [], "rejected_ids": []}
        trainer = _trainer_class()(
            model=base,
            args=arguments,
            train_dataset=dataset(run, train_rows, padding_row),
            eval_dataset=dataset(run, held_out, padding_row),
            processing_class=tokenizer,
            peft_config=lora_config(settings.lora),
        )
        trainer.run, trainer.rows = run, len(train_rows)
        probe = train_rows[0]["prompt_ids"] + train_rows[0]["chosen_ids"]
        return {"rows": counts, **fit(trainer, run, fingerprint(run, train_rows), probe)}


def loss_terms(policy: "Tensor", reference: "Tensor", mask: "Tensor", beta: float) -> "dict[str, Tensor]":
    """The terms of the loss, and the rewards, of each pair.

    ``policy`` and ``reference`` are log-probabilities (2 x pairs, tokens), chosen rows first; ``mask`` (same shape) is 1
    on the reply's tokens. With r = policy - reference, n = a row's number of reply tokens, all per pair:

    - ``loss/dpo``: -log sigmoid(beta x (sum r of the chosen - sum r of the rejected)), the reference being the model
      without its adapter (DPO, https://huggingface.co/papers/2305.18290)
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

        pairs_in_step: Tensor
        """Pairs of the current optimizer step, on all ranks."""

        def get_batch_samples(self, *arguments: Any, **options: Any) -> Any:
            batches, items = super().get_batch_samples(*arguments, **options)
            # Each pair has two sequences, and padding rows have no reply.
            pairs = sum(batch["completion_mask"].any(-1).sum() for batch in batches) // 2
            self.pairs_in_step = self.accelerator.reduce(pairs.to(self.args.device), "sum")
            return batches, items

        def _prepare_dataset(self, dataset: "Dataset", *_: object, **__: object) -> "Dataset":
            return dataset

        def _compute_loss(
            self, model: Module, inputs: dict[str, Tensor], return_outputs: bool = False
        ) -> Tensor:
            # TRL's loss is a mean over the microbatch, so it is not used. But TRL computes it by two forward passes,
            # of the policy and then of the reference. TRL adds ``log_probs`` to the outputs of both, and the hook
            # collects them.
            seen: list[Tensor] = []
            plain = self.accelerator.unwrap_model(model)
            hook = plain.register_forward_hook(lambda module, args, out: seen.append(out.log_probs))
            try:
                super()._compute_loss(model, inputs, return_outputs)
            finally:
                hook.remove()
            mask = inputs["completion_mask"][..., 1:]
            policy, reference = (log_probs[:, -mask.size(1) :] for log_probs in seen)
            # Padding rows have no reply.
            is_pair = mask.any(-1).chunk(2)[0]
            terms = {k: v[is_pair].sum() for k, v in loss_terms(policy, reference, mask, self.beta).items()}
            settings = self.run.settings
            assert isinstance(settings, DPOSettings)
            loss = (
                terms["loss/dpo"]
                + settings.nll_weight * terms["loss/nll"]
                + settings.kl_weight * terms["loss/kl"]
            )
            terms["loss"] = loss
            self.tally(
                "train" if plain.training else "eval",
                is_pair.sum(),
                {k: v.detach() for k, v in terms.items()},
            )
            if not plain.training:
                return loss / is_pair.sum().clamp(min=1)
            # The trainer divides by the number of microbatches, and averages gradients over the ranks.
            return loss * self.current_gradient_accumulation_steps * self.args.world_size / self.pairs_in_step

    return PreferenceTrainer


METHOD = Method(
    name="dpo",
    settings=DPOSettings,
    takes="pairs",
    train=train,
    texts_per_row=2,
    # The reference's log-probabilities.
    extra_forward=1,
)
