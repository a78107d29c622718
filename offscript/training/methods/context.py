"""On-policy distillation of the prompted self: without the constitution, the model learns to go on as it would with it.

After On-Policy Context Distillation (https://arxiv.org/abs/2602.12275) and Self-Distillation Fine-Tuning
(https://arxiv.org/abs/2601.19897): the student's own replies, and at each of their tokens the distribution of the untrained
model that has the constitution before it.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from offscript.settings import TrainerSettings, identity
from offscript.training.data.base import TrainingRow, require_rows
from offscript.training.methods import sft
from offscript.training.methods.base import Method
from offscript.training.run import (
    Metrics,
    Run,
    longest,
    say_dropped,
    split_families,
)
from offscript.training.spans import IGNORED, Unstable, assistant_turns, labels, last_turns, special_token
from offscript.training.start import OWN
from offscript.training.teacher import LOG_PROBS, TOP, add_teacher, grouped, own_logits
from offscript.training.trainers import AdapterTrainer

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase, TrainerCallback

Sequences = list[tuple[list[int], list[tuple[int, int]]]]


class ContextSettings(TrainerSettings):
    """Loss: ``alpha`` x forward KL + (1 - ``alpha``) x reverse KL, over the teacher's ``top`` most probable tokens and the
    rest of the vocabulary as one outcome."""

    alpha: float = identity(0.5, ge=0, le=1)
    top: int = identity(100, ge=1)


def train(run: Run, conversations: Sequence[TrainingRow]) -> Metrics:
    """Trains a LoRA adapter and writes only it to ``run.out``: a new one, on the base or stacked on the frozen adapter in
    ``run.parent``, or with ``run.continues`` a copy of that adapter.

    The teacher is the base without any adapter, and reads each conversation with the prompt in role before it. Its
    distributions are computed once, before the first step (``teacher.add_teacher``). Loss: mean of ``divergences`` over the
    tokens of all trained turns, end tokens included, of the global batch. ``eval_loss`` is the same mean over all
    validation rows. Resuming, several ranks, returned numbers and what is raised are as in ``dpo.train``.

    Rows hold texts, not the token ids that were sampled. The ids are those of the rendered conversation; a row whose turns
    have other ids with the prompt in role before them is left out (``other_tokens``). Of the rows used, ``retokenized``
    counts those whose trained turns have another number of tokens than were sampled.

    Args:
        run: ``run.settings`` are ContextSettings.
        conversations: rows ``{"family", "messages": [message], "role_messages": [message], "trained_turns"}``, of which the
            last ``trained_turns`` assistant turns are trained; ``sampled_tokens`` (their number) may be left out.
    """
    settings = run.settings
    assert isinstance(settings, ContextSettings)

    def prepare(trainer: AdapterTrainer) -> None:
        ids, none = trainer.padding_row["input_ids"], trainer.padding_row["labels"]
        trainer.padding_row |= {"teacher_ids": ids, "teacher_labels": none}
        trainer.add_callback(_adds_teacher(trainer, settings.top))

    rows = partial(_token_rows, run, conversations=conversations)
    return sft.train_tokens(run, rows, trainer_class=_trainer_class, prepare=prepare)


def divergences(student: "Tensor", top: "Tensor", teacher: "Tensor") -> "dict[str, Tensor]":
    """Kullback-Leibler divergences of the student and the teacher at each token.

    The vocabulary is divided into k + 1 outcomes: each of the teacher's k most probable tokens, and all other tokens
    together. With p_i and q_i the probabilities of the outcomes under the teacher and the student, which sum to 1 each:

    - ``loss/forward_kl``: sum of p_i x (log p_i - log q_i)
    - ``loss/reverse_kl``: sum of q_i x (log q_i - log p_i)

    Both are lower bounds of the divergences over the whole vocabulary, and equal them if k is its size. (Renormalising over
    the k tokens, as TRL's ``experimental.sdft`` does by default, would not see what the student gives to all others. With its
    ``distillation_add_tail`` it has the same outcomes, for the student's most probable tokens; its mixture for 0 < alpha < 1
    is a generalised Jensen-Shannon divergence, not a weighted sum of the two divergences.)

    Args:
        student: logits (tokens, vocabulary).
        top: ids (tokens, k) of the teacher's most probable tokens.
        teacher: log-probabilities of the outcomes, (tokens, k + 1); (tokens, k) if k is the size of the vocabulary.

    Returns: tensors of shape (tokens,), in nats.
    """
    own = grouped(student, top.long())
    ratio = teacher - own
    return {
        "loss/forward_kl": (teacher.exp() * ratio).sum(-1),
        "loss/reverse_kl": -(own.exp() * ratio).sum(-1),
    }


def _token_rows(
    run: Run, tokenizer: "PreTrainedTokenizerBase", conversations: Sequence[TrainingRow]
) -> sft.TokenRows:
    """(train, validation) rows of token ids and labels, without and with the prompt in role, and counts."""
    counts = Counter(given=len(conversations), train=0, validation=0)
    kept: list[TrainingRow] = []
    for row in conversations:
        if special_token(tokenizer, row["role_messages"]):
            counts["special_token"] += 1
            continue
        try:
            student, teacher = (
                last_turns(assistant_turns(tokenizer, row[name], run.model.template), row["trained_turns"])
                for name in ("messages", "role_messages")
            )
        except Unstable:
            counts["template_unstable"] += 1
            continue
        if _own_tokens(student) != _own_tokens(teacher):
            counts["other_tokens"] += 1
            continue
        counts["turn_by_turn"] += len(student) > 1
        number = sum(end - start for _, spans in student for start, end in spans)
        counts["retokenized"] += row.get("sampled_tokens", number) != number
        kept += _fitting(student, teacher, row["family"], run, counts)
    train_rows, held_out = split_families(kept, run.settings.validation)
    counts.update(train=len(train_rows), validation=len(held_out))
    say_dropped(run, counts)
    require_rows(train_rows, "own episodes", dict(counts))
    columns = ("input_ids", "labels", "teacher_ids", "teacher_labels")
    strip = [[{c: row[c] for c in columns} for row in rows] for rows in (train_rows, held_out)]
    return strip[0], strip[1], dict(counts)


def _own_tokens(sequences: Sequences) -> list[list[list[int]]]:
    """The ids of every span, sequence by sequence."""
    return [[ids[start:end] for start, end in spans] for ids, spans in sequences]


def _fitting(
    student: Sequences, teacher: Sequences, family: str, run: Run, counts: Counter[str]
) -> list[TrainingRow]:
    """Rows of the sequences, up to the last turn that ends within the longest row of the student and within the model's
    context with the prompt in role; updates ``counts``."""
    rows = []
    for (ids, spans), (role_ids, role_spans) in zip(student, teacher, strict=True):
        fitting = [
            (own, in_role)
            for own, in_role in zip(spans, role_spans, strict=True)
            if own[1] <= longest(run) and in_role[1] <= run.model.context
        ]
        counts["turns_too_long"] += len(spans) - len(fitting)
        if fitting:
            own_spans, in_role_spans = (list(part) for part in zip(*fitting, strict=True))
            cut, role_cut = ids[: own_spans[-1][1]], role_ids[: in_role_spans[-1][1]]
            rows.append(
                {
                    "input_ids": cut,
                    "labels": labels(cut, own_spans),
                    "teacher_ids": role_cut,
                    "teacher_labels": labels(role_cut, in_role_spans),
                    "family": family,
                }
            )
    if not rows:
        counts["too_long" if any(spans for _, spans in student) else "no_reply"] += 1
    return rows


def _trainer_class() -> "Callable[..., AdapterTrainer]":
    import torch
    from torch import Tensor
    from torch.nn import Module
    from trl import SFTTrainer

    class ContextTrainer(AdapterTrainer, SFTTrainer):
        """Distillation on tokenized rows, which have the teacher's distributions from the first step on."""

        adapter = OWN

        def collate(self, rows: Sequence[TrainingRow]) -> dict[str, Tensor]:
            tensors = super().collate([{c: row[c] for c in ("input_ids", "labels")} for row in rows])
            # The padding row has no trained token.
            known = [row for row in rows if TOP in row]
            tensors[TOP] = torch.cat([row[TOP] for row in known] or [torch.zeros(0, 1, dtype=torch.int)])
            tensors[LOG_PROBS] = torch.cat([row[LOG_PROBS] for row in known] or [torch.zeros(0, 2)])
            return tensors

        def loss(self, model: Module, inputs: dict[str, Tensor]) -> Tensor:
            settings = self.run.settings
            assert isinstance(settings, ContextSettings)
            found = divergences(own_logits(model, inputs), inputs[TOP], inputs[LOG_PROBS])
            terms = {name: of_tokens.sum() for name, of_tokens in found.items()}
            forward, reverse = terms.values()
            loss: Tensor = settings.alpha * forward + (1 - settings.alpha) * reverse
            tokens = (inputs["labels"][:, 1:] != IGNORED).sum()
            totals = {name: total.detach() for name, total in {**terms, "loss": loss}.items()}
            self.tally("train" if model.training else "eval", tokens, totals)
            return self.step_loss(loss) if model.training else loss / tokens.clamp(min=1)

    return ContextTrainer


def _adds_teacher(trainer: AdapterTrainer, top: int) -> "TrainerCallback":
    """A callback that computes the teacher's distributions before the first step."""
    from transformers import TrainerCallback

    class AddsTeacher(TrainerCallback):
        def on_train_begin(self, *_: object, **__: object) -> None:
            add_teacher(trainer, top)

    return AddsTeacher()


METHOD = Method(
    name="context",
    settings=ContextSettings,
    takes="prompted_conversations",
    train=train,
    stacks=True,
    continues=True,
    # The teacher's distributions.
    extra_forward=1,
)
