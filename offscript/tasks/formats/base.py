"""Interface of a format: a coroutine that yields requests for replies and returns the outcome of its episode.

    def episode(scenario: Scenario, rules: Rules) -> Generator[Ask, Reply, Outcome]: ...

A format does not know about batching, adapters, engines or files, so a new one is a single small file.
"""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from offscript.json_types import Json
from offscript.tasks.messages import Message
from offscript.tasks.scenarios import Scenario


@dataclass(frozen=True)
class Ask:
    """A request for one reply to ``messages``.

    Args:
        messages: the conversation so far, system message first if there is one.
        speaker: whose reply: ``self`` (the weights of the cell) or ``base`` (the model without an adapter).
        prefix: text that the reply begins with.
        max_tokens: upper bound of the reply, in tokens; None: the bound of the cell.
    """

    messages: tuple[Message, ...]
    speaker: Literal["self", "base"] = "self"
    prefix: str = ""
    max_tokens: int | None = None


@dataclass(frozen=True)
class Reply:
    """The reply to an Ask.

    Args:
        text: the reply, with the prefix that was asked for.
        finish_reason: ``stop`` (the model ended it) or ``length`` (cut at the token limit).
        tokens: number of generated tokens.
    """

    text: str
    finish_reason: str = "stop"
    tokens: int = 0


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
    """What a cell sets for all of its episodes.

    Args:
        system: the system text, empty or made from the constitution.
        options: a value for each option of the format.
    """

    system: str = ""
    options: Mapping[str, Json] = field(default_factory=dict)


Episode = Generator[Ask, Reply, Outcome]


@dataclass(frozen=True)
class Cost:
    """Typical size of an episode, from which the cost of a job is estimated before it runs.

    Args:
        replies: replies in an episode.
        reply_tokens: tokens of one reply.
        prompt_tokens: tokens of the first prompt, for scenarios that are not available locally.
        accumulates_history: whether each prompt contains all earlier replies of the episode.
    """

    replies: int
    reply_tokens: int
    prompt_tokens: int
    accumulates_history: bool = True


DEFAULT_ORDER = 1000
"""Display order of a format that declares none."""

TYPICAL_COST = Cost(replies=1, reply_tokens=250, prompt_tokens=200)
"""Cost of a format that declares none; assumed."""


@dataclass(frozen=True)
class Format:
    """A format: its code, what identifies it, and how it is displayed and budgeted.

    Args:
        name: name of the Python file and of its YAML in ``conf/format``.
        version: raised by hand when the same replies would lead to a different outcome (golden transcripts check it).
        source: the collection of scenarios that it draws from (``chat``, ``office``, ``reflection``, ``interaction``),
            or ``constitution``: one scenario per assertion of a persona, whose messages are the assertion and its seed
            questions.
        episode: the coroutine that runs one episode.
        templates: the prompt templates that it fills, by name; they are part of a cell's identity.
        options: its settings with their defaults.
        order: position in tables and figures, ascending; formats of the same order are sorted by name.
        in_distribution: whether characters are trained in this format. All others are off-distribution.
        scored: whether its rows are evaluated; False for formats that only make training data.
        in_role: whether its rows are training data that is generated under the constitution.
        cost: typical size of an episode.
    """

    name: str
    version: int
    source: str
    episode: Callable[[Scenario, Rules], Episode]
    templates: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Json] = field(default_factory=dict)
    order: int = DEFAULT_ORDER
    in_distribution: bool = False
    scored: bool = True
    in_role: bool = False
    cost: Cost = TYPICAL_COST
