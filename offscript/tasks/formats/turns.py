"""What several formats share: how an episode opens, and the episode of a single reply."""

from offscript.errors import UserError
from offscript.tasks.formats.base import Ask, Episode, Message, Outcome, Rules
from offscript.tasks.prompts import join_system
from offscript.tasks.scenarios import Scenario

THINKING_END = "</think>"


def opening(system: str, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """``messages`` under the cell's system text, joined with their own one if they bring it."""
    own, rest = ("", messages)
    if messages[0]["role"] == "system":
        own, rest = messages[0]["content"], messages[1:]
    joined = join_system(system, own)
    return ({"role": "system", "content": joined}, *rest) if joined else rest


def said(text: str) -> Message:
    return {"role": "assistant", "content": text}


def single_reply(messages: tuple[Message, ...]) -> Episode:
    """One reply to ``messages``, which is the text. Ends ``stop``, ``length`` (cut), or ``empty`` (no text)."""
    reply = yield Ask(messages)
    return concluded(messages, reply.text, reply.finish_reason)


def concluded(messages: tuple[Message, ...], reply: str, finish_reason: str) -> Outcome:
    """The outcome of an episode whose text is ``reply`` to ``messages``."""
    text = reply.strip()
    return Outcome(text or None, (*messages, said(reply)), finish_reason if text else "empty")


def without_thinking(reply: str, begun: str = "", end: str = THINKING_END) -> str | None:
    """What ``reply`` says after its thinking, which goes up to the first ``end``; None where it never ends.

    A reply thinks if it holds ``end``, or if it begins with ``begun`` (given to it as its beginning) or with the mark
    that ``end`` closes (``<think>`` for ``</think>``), as a reasoning model's does unasked. Any other one is all said.
    """
    _, closed, rest = reply.partition(end)
    if closed:
        return rest.lstrip()
    marks = (begun, end.replace("/", "", 1))
    return None if any(mark and reply.lstrip().startswith(mark.lstrip()) for mark in marks) else reply


def answered(scenario: Scenario, rules: Rules) -> Episode:
    """The episode of the formats that differ in their scenarios and in the cell's system text alone."""
    return (yield from single_reply(opening(rules.system, needed(scenario, "messages"))))


def needed(scenario: Scenario, part: str) -> tuple[Message, ...]:
    """``messages`` or ``brief`` of a scenario, which not every scenario has.

    Raises:
        UserError: the scenario lacks it.
    """
    if messages := getattr(scenario, part):
        return messages
    wanted = {"messages": "a scenario with initial_messages", "brief": "a scenario with chat_email messages"}
    raise UserError(f"scenario {scenario.id}", f"has no {part} for this format", f"it needs {wanted[part]}")
