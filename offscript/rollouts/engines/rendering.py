"""Requests as token ids, and token ids as replies: what engines share that run the weights themselves."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from offscript.errors import UserError
from offscript.models.chat_templates import Schemas, render_prompt, thinking_opening
from offscript.models.dialect_checks import check_template_speaks
from offscript.models.template_checks import end_of_reply, warn
from offscript.rollouts.engines.base import Completion, Request, SampledTokens
from offscript.settings import ModelSettings, TemplateSettings
from offscript.tasks.dialects.base import ToolPrompt
from offscript.tasks.messages import Image, images_of

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase


@dataclass(eq=False)
class Row:
    """A request with the token ids of its prompt and of its reply, at most ``limit`` of them. ``finish``: why the reply
    ended, None while it has not. ``ends``: tokens that end this reply, besides those of the engine. ``log_probs``: those
    of ``new``; None if they are not kept. ``images``: those of the prompt, in the order of their tokens."""

    request: Request
    prompt: list[int]
    limit: int
    new: list[int] = field(default_factory=list)
    finish: str | None = None
    ends: frozenset[int] = frozenset()
    log_probs: list[float] | None = None
    images: tuple[Image, ...] = ()

    def take(self, token: int, stops: frozenset[int], log_prob: float = 0.0) -> None:
        """Adds a sampled token; -1 stands for logits that are not finite. ``log_prob`` is read if it is kept."""
        if self.finish is not None:
            return
        if token < 0:
            self.finish = "error"
            return
        self.new.append(token)
        if self.log_probs is not None:
            self.log_probs.append(log_prob)
        if token in stops or token in self.ends:
            self.finish = "stop"
        elif len(self.new) == self.limit:
            self.finish = "length"

    def restarted(self) -> "Row":
        """The row before its first token."""
        kept: list[float] | None = None if self.log_probs is None else []
        return Row(self.request, self.prompt, self.limit, ends=self.ends, log_probs=kept, images=self.images)


class Renderer:
    """Renders the requests of one model as rows of token ids, and the finished rows as completions.

    Args:
        tokenizer: the tokenizer of ``model``.
        model: settings of the model; its context bounds prompt and reply together.
        reads_images: whether the engine gives images to the model.
    """

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", model: ModelSettings, reads_images: bool = False
    ) -> None:
        self.tokenizer, self.model, self.reads_images = tokenizer, model, reads_images
        self._opening = thinking_opening(tokenizer, model.template)
        added = tokenizer.added_tokens_decoder.items()
        self._special = {i for i, token in added if token.special} | set(tokenizer.all_special_ids)

    def row(self, request: Request) -> Row:
        """The row of ``request``, with ``finish`` "length" if its prompt fills the context.

        Raises:
            UserError: the chat template refuses its messages, or does not speak its tool dialect; or they have images, which
                the engine does not read.
        """
        images = tuple(images_of(request.messages))
        if images and not self.reads_images:
            raise UserError(
                "engine.name", "a prompt has an image, which this engine does not read", "transformers"
            )
        schemas: Schemas = ()
        ends: frozenset[int] = frozenset()
        if request.tools is not None:
            check_template_speaks(self.tokenizer, request.tools.dialect)
            schemas, ends = request.tools.schemas, self._ids(request.tools.dialect.ends)
        prompt = render_prompt(self.tokenizer, request.messages, self.model.template, request.prefix, schemas)
        limit = min(request.sampling.max_tokens, self.model.context - len(prompt))
        finish = None if limit > 0 else "length"
        return Row(request, prompt, limit, finish=finish, ends=ends, images=images)

    def completion(self, row: Row) -> Completion:
        """The completion of a finished row: its reply after the request's prefix; without the token that ended it."""
        ids = row.new[:-1] if row.finish == "stop" else row.new
        text = self._text(ids, row.request.tools)
        if row.finish == "error":
            text = f"logits are not finite after {len(row.new)} tokens"
        elif row.limit > 0:
            text = self._opening + row.request.prefix + text
        tokens = None
        if row.log_probs is not None:
            tokens = SampledTokens(tuple(row.prompt), tuple(row.new), tuple(row.log_probs))
        return Completion(row.request.id, text, row.finish or "error", len(row.prompt), len(row.new), tokens)

    def _text(self, ids: list[int], tools: ToolPrompt | None) -> str:
        """A reply without special tokens, except for the marks of a tool dialect: some models have them as special
        tokens (``<|python_tag|>``), without which a call could not be recognized."""
        if tools is None:
            text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        else:
            kept = [i for i in ids if i not in self._special or i in self._ids(tools.dialect.marks)]
            text = self.tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return str(text)

    def _ids(self, tokens: Sequence[str]) -> frozenset[int]:
        """The ids of those of ``tokens`` that the vocabulary has as tokens of their own."""
        added = self.tokenizer.get_added_vocab()
        return frozenset(added[token] for token in tokens if token in added)


def stop_tokens(
    generation: "GenerationConfig", tokenizer: "PreTrainedTokenizerBase", template: TemplateSettings
) -> frozenset[int]:
    """Token ids that end a reply: those of the model's generation config, the tokenizer's end token, and the special token
    that the chat template puts after a reply, which training teaches. Many fine-tuned checkpoints name only the first
    two; Gemma would then generate past the end of its turn."""
    named = generation.eos_token_id
    named = named if isinstance(named, list) else [named]
    ends = [*named, tokenizer.eos_token_id, end_of_reply(tokenizer, template)]
    if not (stops := frozenset(t for t in ends if t is not None)):
        warn(
            f"{tokenizer.name_or_path}: no end token is known; every reply goes on to model.max_reply_tokens"
        )
    return stops
