"""Interface of a format: a coroutine that yields requests for replies and returns the outcome of its episode.

    def episode(scenario: Scenario, rules: Rules) -> Generator[Ask, Reply, Outcome]: ...

A format does not know about batching, adapters, engines or files, so a new one is a single small file.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from offscript.json_types import Json
from offscript.tasks.dialects.base import ToolPrompt
from offscript.tasks.messages import Message
from offscript.tasks.scenarios import Scenario
from offscript.tasks.tool_calls import Parsed

PersonaText = Literal["description", "opposite", "constitution", "assistant"]
"""The texts of a persona, beside the system text, that a format can put into its prompts: fields of ``conf/persona`` (of the
constitution one line for each assertion), and the name of the assistant that is to have the character
(``model.assistant_name``)."""


@dataclass(frozen=True)
class Ask:
    """A request of an episode for one reply of a model to ``messages``.

    Args:
        messages: the conversation so far; a system message comes first.
        speaker: which weights generate the reply: ``self`` (those of the cell) or ``base`` (the model without its
            adapter).
        prefix: text that the reply is made to begin with.
        tools: what the model is told of its tools, in a native tool dialect.
        max_tokens: the reply is cut after this many tokens; the limit of the cell applies as well, and alone if None.
    """

    messages: tuple[Message, ...]
    speaker: Literal["self", "base"] = "self"
    prefix: str = ""
    max_tokens: int | None = None
    tools: ToolPrompt | None = None


@dataclass(frozen=True)
class Reply:
    """The reply to an Ask.

    Args:
        text: the reply, with the prefix that was asked for, and without the thinking of a reasoning model.
        finish_reason: ``stop`` (the model ended it) or ``length`` (cut at the token limit).
        tokens: number of generated tokens.
        unclosed_thinking: the reply is nothing but thinking that did not end; ``text`` is then empty.
    """

    text: str
    finish_reason: str = "stop"
    tokens: int = 0
    unclosed_thinking: bool = False


@dataclass(frozen=True)
class Outcome:
    """Result of an episode.

    Args:
        text: the text to score, None if the episode emitted none.
        messages: the transcript.
        ended: why the episode ended; each format documents its values.
        tool_calls: number of well-formed tool calls.
        notes: further diagnostics for the row. No key and no score depends on them.
    """

    text: str | None
    messages: tuple[Message, ...]
    ended: str
    tool_calls: int = 0
    notes: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True)
class Rules:
    """Settings that all episodes of a cell share.

    Args:
        system: the system text: empty, or made from the persona's constitution.
        options: the value of each option of the format.
        persona: the texts of the cell's persona that the format asks for (``Format.persona_texts``), by name.
    """

    system: str = ""
    options: Mapping[str, Json] = field(default_factory=dict)
    persona: Mapping[PersonaText, str] = field(default_factory=dict)


Episode = Generator[Ask, Reply, Outcome]


@dataclass(frozen=True)
class Cost:
    """Typical size of an episode. The cost of a job is estimated from it before the job runs.

    Args:
        replies: number of replies in an episode.
        reply_tokens: number of tokens of one reply.
        prompt_tokens: number of tokens of the first prompt; used only for scenarios that are not available locally.
        accumulates_history: whether each prompt contains all earlier replies of the episode.
        asks: requests with the same prompt for each of the replies.
        images: number of images in the first prompt, which ``prompt_tokens`` does not count.
    """

    replies: int
    reply_tokens: int
    prompt_tokens: int
    accumulates_history: bool = True
    asks: int = 1
    images: int = 0


DEFAULT_ORDER = 1000
"""``order`` of a format that does not set it: it comes after those that do."""

TYPICAL_COST = Cost(replies=1, reply_tokens=250, prompt_tokens=200)
"""Cost of a format that declares none; assumed."""


@dataclass(frozen=True)
class Format:
    """A format: the code of its episodes, and what keys, reports and cost estimates need to know about it.

    Args:
        name: name of the Python file and of its YAML in ``conf/format``.
        version: a number that a developer raises when the same replies lead to a different outcome than before. It is
            part of the key of every cell. Golden transcripts show when it has to be raised.
        source: name of the scenarios that it uses, as in ``sources`` of ``conf/data`` (``chat``, ``office``,
            ``reflection``, ``interaction``); or ``constitution``: one scenario per assertion of the persona, whose
            messages are the assertion and its seed questions; or ``texts``: texts of other rollouts, for a judge.
        episode: the coroutine that runs one episode.
        templates: the prompt templates that it uses, by name; they are part of the key of every cell.
        options: the names of its options, with their default values.
        later_options: options that were added after rows of the format had been made, with their default values. With its
            default value such an option is not part of keys.
        later_templates: the prompt templates that only a later option uses, by the name of the option; they are part of
            keys where the option is.
        variants: options -> names of the variants in which every scenario is played; none by default.
        persona_texts: options -> the texts of the persona that its prompts contain; none by default. They are part of the
            key, and a cell that has some belongs to a persona, also one of base weights under a plain system text.
        wraps: for a format that runs the episodes of another one: options -> that format. Its scenarios, tool dialect and
            sampling are the other one's, whose options are those in its own option ``options``.
        order: position in tables and figures, ascending; formats of the same order are sorted by name.
        in_distribution: whether the personas are trained in this format. All others are off-distribution.
        scored: whether its rows are evaluated; False for formats that only make training data, or judge texts.
        in_role: whether it makes training data under a system text with the constitution. Its wording is then that of
            ``recipe.in_role``.
        strips_thinking: whether it removes thinking itself; it then receives replies as the model wrote them, and its
            cells do not depend on ``model.template.thinking``.
        text_is_email: whether its text is the reply to a request for an e-mail in chat, with what the model writes around
            the body; it is cleaned before it is scored (``evaluation.email_cleaning``).
        reads_calls: for a format whose text is an e-mail that a tool call sends: options -> how the call in a reply is
            parsed, or None if the model does not write the calls itself. Only the evaluation of side effects uses it.
        images: whether its prompts have images, so that it is asked of models that read them.
        cost: typical size of an episode, for cost estimates.
    """

    name: str
    version: int
    source: str
    episode: Callable[[Scenario, Rules], Episode]
    templates: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Json] = field(default_factory=dict)
    later_options: Mapping[str, Json] = field(default_factory=dict)
    later_templates: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    variants: Callable[[Mapping[str, Json]], Sequence[str]] = lambda options: ()
    persona_texts: Callable[[Mapping[str, Json]], Sequence[PersonaText]] = lambda options: ()
    wraps: Callable[[Mapping[str, Json]], "Format"] | None = None
    order: int = DEFAULT_ORDER
    in_distribution: bool = False
    scored: bool = True
    in_role: bool = False
    strips_thinking: bool = False
    text_is_email: bool = False
    images: bool = False
    reads_calls: Callable[[Mapping[str, Json]], Callable[[str], Parsed] | None] | None = None
    cost: Cost = TYPICAL_COST

    @property
    def defaults(self) -> dict[str, Json]:
        """Every option with its default value."""
        return {**self.options, **self.later_options}

    def inner(self, options: Mapping[str, Json]) -> tuple["Format", Mapping[str, Json]]:
        """The format that it wraps, and the options of that one; itself with ``options`` if it wraps none."""
        if self.wraps is None:
            return self, options
        wrapped, own = self.wraps(options), options["options"]
        assert isinstance(own, dict)
        return wrapped, {**wrapped.defaults, **own}

    def identity(self, options: Mapping[str, Json]) -> dict[str, Json]:
        """The hash identity of an episode's code, templates and ``options``."""
        if self.wraps is not None:
            wrapped, own = self.inner(options)
            plain = replace(self, wraps=None).identity({k: v for k, v in options.items() if k != "options"})
            return {**plain, "wraps": wrapped.identity(own)}
        later = self.later_options
        hashed = {name: v for name, v in options.items() if name not in later or v != later[name]}
        templates: dict[str, Json] = dict(self.templates)
        for name in hashed.keys() & self.later_templates.keys():
            templates |= self.later_templates[name]
        return {"version": self.version, "templates": templates, "options": hashed}
