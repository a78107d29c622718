"""Distillation: the model in role (chosen) preferred to itself plain (rejected), with DPO and a likelihood term."""

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from offscript.models import adapters
from offscript.settings import DeepSpeedSettings, DistillationSettings, ModelSettings
from offscript.training import run as loop
from offscript.training.base_models import BaseModelCache
from offscript.training.spans import Message, Unstable, assistant_spans
from offscript.training.trainers import AdapterTrainer

NOT_CLOSING = set(",:;-–—/\\#&@")
CUT_SHORT = {"length", "error"}  # how an episode ends whose last reply is not whole


# ---------------------------------------------------------------- pairs


def is_finished(text: str) -> bool:
    """Whether a reply ends as a whole one does: in closing punctuation, a bracket, a quote, a symbol or an emoji."""
    text = text.rstrip().rstrip("\ufe0f\u200d")  # marks that may follow an emoji
    if not text or text[-1] in NOT_CLOSING:
        return False
    category = unicodedata.category(text[-1])
    return category[0] in "PS" and category not in ("Ps", "Pi")


def pairs(
    teacher_rows: Sequence[dict], student_rows: Sequence[dict], names: Mapping[str, str] | None = None
) -> tuple[list[dict], dict[str, int]]:
    """Preference pairs of the replies to the same scenario and sample, whichever models gave them.

    ``names`` maps what the teacher calls itself to what the student is called; chosen texts are ``renamed`` by it.

    Returns: pairs ``{"scenario", "sample", "family", "prompt": [message], "chosen": [message], "rejected":
    [message]}`` in the teacher's order, and counts: ``kept``, then what was dropped by reason (``missing_teacher``,
    ``missing_student``: no row or no text; ``other_prompt``: the two were asked different things;
    ``unfinished_teacher``, ``unfinished_student``: that side was cut off or does not end in closing punctuation;
    ``identical``), and with ``names`` how many of the kept ones were ``renamed``. The prompt is the student's: the
    constitution that the teacher saw is not in it. Pairing and dropping as in OpenCharacterTraining; over-long pairs are
    dropped by ``train``, which has the tokenizer.

    Raises:
        UserError: no pair is left.
    """
    spoken, student = _by_sample(teacher_rows), _by_sample(student_rows)
    teacher = {
        place: {**row, "text": renamed(row["text"] or "", names or {})} for place, row in spoken.items()
    }
    kept, counts = [], Counter(kept=0, **({"renamed": 0} if names else {}))
    for place in [*teacher, *(p for p in student if p not in teacher)]:
        reason = _why_not(teacher.get(place), student.get(place))
        counts[reason or "kept"] += 1
        if reason is None:
            kept.append(_pair(teacher[place], student[place]))
            if teacher[place]["text"] != spoken[place]["text"]:
                counts["renamed"] += 1
    loop.require_rows(kept, "preference pairs", dict(counts))
    return kept, dict(counts)


def renamed(text: str, names: Mapping[str, str]) -> str:
    """``text`` with the keys of ``names`` replaced by their values: whole words, the longest name first, in any case.

    A name in small letters or in capitals, where it is not written so itself, gives the new one in these.
    """
    if not names:
        return text
    lower = {name.lower(): name for name in names}
    either = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))

    def new(match: re.Match[str]) -> str:
        found, name = match[0], lower[match[0].lower()]
        if found != name and (found.islower() or found.isupper()):
            return names[name].lower() if found.islower() else names[name].upper()
        return names[name]

    return re.sub(rf"(?<!\w)(?:{either})(?!\w)", new, text, flags=re.IGNORECASE)


def _by_sample(rows: Sequence[dict]) -> dict[tuple[str, int], dict]:
    return {(row["scenario"], row["sample"]): row for row in rows}


def _why_not(teacher: dict | None, student: dict | None) -> str | None:
    if teacher is None or not teacher["text"]:
        return "missing_teacher"
    if student is None or not student["text"]:
        return "missing_student"
    if _users(teacher) != _users(student):
        return "other_prompt"
    for side, row in (("teacher", teacher), ("student", student)):
        if row.get("ended") in CUT_SHORT or not is_finished(row["text"]):
            return f"unfinished_{side}"
    return "identical" if teacher["text"].strip() == student["text"].strip() else None


def _users(row: dict) -> list[str]:
    return [m["content"] for m in row["messages"] if m["role"] == "user"]


def _pair(teacher: dict, student: dict) -> dict[str, Any]:
    prompt = [dict(m) for m in student["messages"]]
    while prompt and prompt[-1]["role"] == "assistant":
        prompt.pop()
    return {
        "scenario": student["scenario"],
        "sample": student["sample"],
        "family": student["family"],
        "prompt": prompt,
        "chosen": [{"role": "assistant", "content": teacher["text"].strip()}],
        "rejected": [{"role": "assistant", "content": student["text"].strip()}],
    }


# ---------------------------------------------------------------- training


def train(
    model: ModelSettings,
    settings: DistillationSettings,
    pairs: Sequence[dict],
    out: Path,
    seed: int,
    callbacks: Sequence[Any] = (),
    on_step: loop.OnStep | None = None,
    say: Any = print,
    *,
    deepspeed: DeepSpeedSettings | None = None,
    bases: BaseModelCache | None = None,
) -> dict[str, Any]:
    """Trains a LoRA adapter on ``pairs`` and writes it to ``out`` in PEFT layout; a rerun after a kill goes on.

    Loss, a mean over the pairs of the global batch, whatever the microbatches and the number of ranks: DPO +
    ``nll_weight`` x NLL + ``kl_weight`` x KL, as in ``loss_terms``; each term is logged per step (``loss/dpo``,
    ``loss/nll``, ``loss/kl``). ``on_step(step, total, logs)`` is called after every optimizer step.

    Every rank calls it with the same arguments (``ranks``); rank 0 alone writes, reports and says anything.
    ``deepspeed``: the ZeRO stage; None or 0: one process, or plain data parallel ones. ``bases`` lends the base model,
    so that it is not loaded for each adapter. On a GPU a bfloat16 base is trained in bfloat16 with float32 master
    weights of the adapter; any other base, and all on a CPU, in float32.

    Returns: rows used and dropped, losses, ``eval_rewards/accuracies`` on the validation families, steps, seconds,
    trainable parameters, ``max_logit_difference``, versions. The same seed, pairs and ranks give the same bytes on CPU.

    Raises:
        UserError: a LoRA target matches nothing, no pair is left, the adapter changes nothing, a GPU is too small.
        TrainingFailed: a loss or gradient is not a finite number (on every rank).
        Interrupted: SIGTERM or SIGUSR2 came (to any rank); a checkpoint is written, and the same call goes on from it.
        BaseModelChanged: training changed the base weights.
    """
    run = loop.Run(model, settings.optimizer, out, seed, callbacks, on_step, say, deepspeed, bases)
    with loop.session(run):
        from trl import DPOConfig

        from offscript.models.loading import load_tokenizer

        arguments = DPOConfig(
            **loop.trainer_arguments(run),
            beta=settings.beta,
            loss_type=["sigmoid"],
            disable_dropout=settings.lora.dropout == 0,
        )
        tokenizer, base = load_tokenizer(model), loop.base_model(run)
        adapters.check_targets(base, settings.lora.targets)
        train_rows, held_out, counts = _token_rows(run, settings, tokenizer, pairs)
        nobody = {"prompt_ids": train_rows[0]["prompt_ids"][:2], "chosen_ids": [], "rejected_ids": []}
        trainer = _trainer_class()(
            model=base,
            args=arguments,
            train_dataset=loop.dataset(run, train_rows, nobody),
            eval_dataset=loop.dataset(run, held_out, nobody),
            processing_class=tokenizer,
            peft_config=loop.lora_config(settings.lora),
        )
        trainer.run, trainer.rows = run, len(train_rows)
        trainer.weights = {"loss/dpo": 1.0, "loss/nll": settings.nll_weight, "loss/kl": settings.kl_weight}
        probe = train_rows[0]["prompt_ids"] + train_rows[0]["chosen_ids"]
        mark = loop.fingerprint(run, settings, train_rows)
        return {"rows": counts, **loop.fit(trainer, run, mark, probe)}


def loss_terms(policy: Any, reference: Any, mask: Any, beta: float) -> dict[str, Any]:
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
    run: loop.Run, settings: DistillationSettings, tokenizer: Any, pairs: Sequence[dict]
) -> tuple[list[dict], list[dict], dict[str, int]]:
    """(train, validation) rows of token ids, and counts; pairs that are too long for the model are left out."""
    counts = Counter(given=len(pairs), train=0, validation=0)
    kept = []
    for pair in pairs:
        try:
            row = _token_row(run, tokenizer, pair)
        except Unstable:
            counts["template_unstable"] += 1
            continue
        if len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"])) > loop.longest(run):
            counts["too_long"] += 1
            continue
        kept.append(row)
    train_rows, held_out = loop.split_families(kept, settings.validation)
    counts.update(train=len(train_rows), validation=len(held_out))
    loop.require_rows(train_rows, "preference pairs", dict(counts))
    columns = ("prompt_ids", "chosen_ids", "rejected_ids")
    strip = [[{c: row[c] for c in columns} for row in rows] for rows in (train_rows, held_out)]
    return strip[0], strip[1], dict(counts)


def _token_row(run: loop.Run, tokenizer: Any, pair: dict) -> dict[str, Any]:
    row: dict[str, Any] = {"family": pair["family"]}
    for side in ("chosen", "rejected"):
        messages: list[Message] = [*pair["prompt"], *pair[side]]
        ids, spans = assistant_spans(tokenizer, messages, run.model.template)
        start, end = spans[-1]
        row["prompt_ids"], row[f"{side}_ids"] = ids[:start], ids[start:end]
    return row


def _trainer_class() -> Any:
    from trl import DPOTrainer

    class PreferenceTrainer(AdapterTrainer, DPOTrainer):
        """DPO on rows that are tokens already, with the published likelihood and squared-log-ratio terms."""

        weights: ClassVar[dict[str, float]] = {}
        pairs_in_step: Any = None  # on all ranks

        def get_batch_samples(self, *arguments: Any, **options: Any) -> Any:
            batches, items = super().get_batch_samples(*arguments, **options)
            real = sum(batch["completion_mask"].any(-1).sum() for batch in batches) // 2
            self.pairs_in_step = self.accelerator.reduce(real.to(self.args.device), "sum")
            return batches, items

        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False) -> Any:
            seen: list[
                Any
            ] = []  # log-probabilities of two forward passes: the policy's, then the reference's
            plain = self.accelerator.unwrap_model(model)
            hook = plain.register_forward_hook(lambda module, args, out: seen.append(out.log_probs))
            try:
                super()._compute_loss(model, inputs, return_outputs)  # its loss is a mean over the microbatch
            finally:
                hook.remove()
            mask = inputs["completion_mask"][..., 1:]
            policy, reference = (log_probs[:, -mask.size(1) :] for log_probs in seen)
            real = mask.any(-1).chunk(2)[0]  # rows that only fill up a rank's batch have no reply
            terms = {k: v[real].sum() for k, v in loss_terms(policy, reference, mask, self.beta).items()}
            loss = sum(weight * terms[name] for name, weight in self.weights.items())
            terms["loss"] = loss
            training = plain.training
            self.tally("train" if training else "eval", real.sum(), {k: v.detach() for k, v in terms.items()})
            if not training:
                return loss / real.sum().clamp(min=1)
            # the trainer divides by the number of microbatches, and averages gradients over the ranks
            return loss * self.current_gradient_accumulation_steps * self.args.world_size / self.pairs_in_step

    return PreferenceTrainer
