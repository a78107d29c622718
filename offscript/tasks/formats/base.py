"""A format is a coroutine: it yields what it wants said, is sent the reply, and returns an Outcome.

    def episode(scenario: Scenario, rules: Rules) -> Generator[Ask, Reply, Outcome]: ...

Nothing in a format knows about batching, adapters, engines or files, so a new format is one small file.
"""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

from offscript.tasks.scenarios import Scenario

Message = dict[str, str]


@dataclass(frozen=True)
class Ask:
    """What a format wants said: ``speaker`` is ``self`` (the cell's weights) or ``base`` (no adapter)."""

    messages: tuple[Message, ...]
    speaker: str = "self"
    prefix: str = ""
    max_tokens: int | None = None


@dataclass(frozen=True)
class Reply:
    """What was said. ``finish_reason`` is ``stop`` or ``length``; ``tokens`` counts the new ones."""

    text: str
    finish_reason: str = "stop"
    tokens: int = 0


@dataclass(frozen=True)
class Outcome:
    """What an episode leaves: the text to score (None when there is none), the transcript, and why it ended.

    ``notes`` are whatever else is worth a look in its row (plain JSON data); no key or score depends on them.
    """

    text: str | None
    messages: tuple[Message, ...]
    ended: str
    tool_calls: int = 0
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rules:
    """What a cell tells its format: the system text (constitution or plain) and all of the format's own options."""

    system: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


Episode = Generator[Ask, Reply, Outcome]


@dataclass(frozen=True)
class Format:
    """A format's code and what identifies it.

    ``version`` is raised by hand when the same replies would leave a different outcome (golden transcripts guard it).
    ``source`` is the collection of scenarios that it draws from (chat, office, reflection, interaction), or
    ``constitution``: a scenario per assertion of a persona, whose messages are its text and its seed questions.
    ``templates`` are the prompt templates that it fills; they are part of a cell's identity.
    ``options`` names the settings that it understands, with their defaults.
    """

    name: str
    version: int
    source: str
    episode: Callable[[Scenario, Rules], Episode]
    templates: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
