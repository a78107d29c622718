"""Next-token training on documents: a loss on every token, without a chat template."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from offscript.settings import TrainerSettings, runtime
from offscript.training.data.base import TrainingRow, require_rows
from offscript.training.methods import sft
from offscript.training.methods.base import Method
from offscript.training.run import Metrics, Run, longest, say_dropped, split_families
from offscript.training.spans import special_token

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class LMSettings(TrainerSettings):
    """``packing``: the rows of a micro-batch follow one another in one sequence, in which no row sees another, in place of
    being padded. The rows of a step, and its loss, are the same."""

    packing: bool = runtime(True)


def train(run: Run, documents: Sequence[TrainingRow]) -> Metrics:
    """Trains a LoRA adapter on ``documents`` and writes it to ``run.out``; everything else is as in ``sft.train``.

    Loss: mean of -log p over all tokens of the global batch but the first of each sequence. A document is tokenized as plain
    text, with the tokens that the tokenizer itself puts before or after a text, and cut into sequences of at most
    ``optimizer.max_length`` tokens.

    Args:
        run: the training.
        documents: rows ``{"family", "text"}``.

    Raises:
        MissingInput: the parent's adapter does not exist.
    """
    settings = run.settings
    assert isinstance(settings, LMSettings)
    return sft.train_tokens(run, partial(_token_rows, run, documents=documents), packing=settings.packing)


def sequences(tokenizer: "PreTrainedTokenizerBase", text: str, longest: int) -> list[list[int]]:
    """The token ids of ``text``, in parts of at most ``longest``. A last part of one token, which predicts nothing, is left
    out."""
    ids: list[int] = tokenizer(text, verbose=False)["input_ids"]
    parts = [ids[start : start + longest] for start in range(0, len(ids), longest)]
    return [part for part in parts if len(part) > 1]


def _token_rows(
    run: Run, tokenizer: "PreTrainedTokenizerBase", documents: Sequence[TrainingRow]
) -> sft.TokenRows:
    """(train, validation) rows of token ids and labels; the parts of one document are in the same of them."""
    counts = Counter(given=len(documents), train=0, validation=0)
    kept = []
    for document in documents:
        if special_token(tokenizer, [{"role": "user", "content": document["text"]}]):
            counts["special_token"] += 1
            continue
        parts = sequences(tokenizer, document["text"], longest(run))
        counts["in_parts"] += len(parts) > 1
        kept += [{"input_ids": part, "labels": part, "family": document["family"]} for part in parts]
    train_rows, held_out = split_families(kept, run.settings.validation)
    counts.update(train=len(train_rows), validation=len(held_out))
    say_dropped(run, counts)
    require_rows(train_rows, "documents", dict(counts))
    return sft.token_columns(train_rows), sft.token_columns(held_out), dict(counts)


METHOD = Method(
    name="lm",
    settings=LMSettings,
    takes="documents",
    train=train,
    stacks=True,
    continues=True,
    reads_prompts=False,
)
