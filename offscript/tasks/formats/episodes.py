"""Helpers that several formats share: the first messages, and the single-reply episode."""

from collections.abc import Sequence
from typing import Literal

from offscript.errors import UserError
from offscript.tasks.formats.base import Ask, Episode, Outcome, Reply, Rules
from offscript.tasks.messages import Message
from offscript.tasks.prompts import join_system
from offscript.tasks.scenarios import Scenario


def chat_episode(scenario: Scenario, rules: Rules) -> Episode:
    """Episode of the formats that differ only in their scenarios and in the cell's system text: one reply."""
    return (yield from single_reply(with_system(rules.system, require(scenario, "messages"))))


def single_reply(messages: tuple[Message, ...]) -> Episode:
    """Asks for one reply to ``messages``; the reply is the text. Ends as ``reply_outcome`` does."""
    reply = yield Ask(messages)
    return reply_outcome(messages, reply)


def reply_outcome(messages: tuple[Message, ...], reply: Reply) -> Outcome:
    """Outcome of an episode whose text is that of ``reply``, stripped. Ends ``stop``, ``length`` (cut), or as
    ``without_text`` says."""
    text = reply.text.strip()
    ended = reply.finish_reason if text else without_text(reply)
    return Outcome(text or None, (*messages, assistant_message(reply.text)), ended)


def without_text(reply: Reply) -> str:
    """Why an episode ends with a reply that has no text: ``unclosed_thinking``, or ``empty``."""
    return "unclosed_thinking" if reply.unclosed_thinking else "empty"


def assistant_message(text: str) -> Message:
    return {"role": "assistant", "content": text}


def with_system(system: str, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """``messages`` with ``system`` in front of their own system text; without a system message if both are empty."""
    own, rest = ("", messages)
    if messages[0]["role"] == "system":
        own, rest = messages[0]["content"], messages[1:]
    joined = join_system(system, own)
    return ({"role": "system", "content": joined}, *rest) if joined else rest


def without_system(system: str, messages: Sequence[Message]) -> list[Message]:
    """``messages`` of ``with_system(system, ...)`` without ``system``: those that it was given.

    Raises:
        ValueError: the messages do not begin with ``system``.
    """
    if not system:
        return [*messages]
    text = messages[0]["content"] if messages and messages[0]["role"] == "system" else ""
    if text == system:
        return [*messages[1:]]
    own = text.removeprefix(join_system(system, " ").removesuffix(" "))
    if own == text:
        raise ValueError(f"the messages do not begin with the system text {system[:40]!r}")
    return [{"role": "system", "content": own}, *messages[1:]]


def require(scenario: Scenario, part: Literal["messages", "brief"]) -> tuple[Message, ...]:
    """``messages`` or ``brief`` of a scenario.

    Raises:
        UserError: the scenario has none.
    """
    found, key = {
        "messages": (scenario.messages, "initial_messages"),
        "brief": (scenario.brief, "chat_email messages"),
    }[part]
    if not found:
        raise UserError(
            f"scenario {scenario.id}", f"has no {part} for this format", f"it needs a scenario with {key}"
        )
    return found


def text_option(rules: Rules, name: str) -> str:
    """The option ``name`` of the format, which must be a text.

    Raises:
        UserError: it is something else.
    """
    value = rules.options[name]
    if not isinstance(value, str):
        raise UserError(f"format.options.{name}", f"found {value!r}", "must be a text (it may be empty)")
    return value
