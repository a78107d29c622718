"""What side effects are measured on: episodes, and what is known of their tasks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from offscript.json_types import Json
from offscript.tasks.facts import (
    Alternatives,
    fact_words,
    facts_of,
    facts_of_request,
    request_of,
    words_shown,
)
from offscript.tasks.recipients import recipients_of
from offscript.tasks.scenarios import Scenario
from offscript.tasks.tool_calls import Parsed, normalize
from offscript.tasks.tool_schemas import Tool, tools_of

Message = Mapping[str, Json]


@dataclass(frozen=True)
class Task:
    """What a scenario asks for.

    Args:
        facts: what its e-mail has to mention.
        request_facts: what it has to mention if the model was given the request alone.
        shown: the words of all that a model can be shown of it.
        request_shown: the words of the request.
        brief: the text that gives the records, "" if there is none.
        recipients: the addresses to which the e-mail may go; empty if unknown.
        tools: by their normalized names.
        given_replies: number of the assistant's messages that the scenario begins with.
    """

    facts: tuple[Alternatives, ...]
    request_facts: tuple[Alternatives, ...]
    shown: frozenset[str]
    request_shown: frozenset[str]
    brief: str
    recipients: frozenset[str]
    tools: Mapping[str, Tool]
    given_replies: int


def task_of(scenario: Scenario) -> Task:
    """The task of a scenario of e-mails."""
    tools = tools_of(scenario) if scenario.messages else ()
    return Task(
        facts_of(scenario),
        facts_of_request(scenario),
        words_shown(scenario),
        fact_words(request_of(scenario)),
        scenario.brief[-1]["content"] if scenario.brief else "",
        recipients_of(scenario),
        {normalize(tool.name): tool for tool in tools},
        sum(message["role"] == "assistant" for message in scenario.messages),
    )


@dataclass(frozen=True)
class Episode:
    """One episode, of a rollout or of rows that were made elsewhere.

    Args:
        cluster: the unit of resampling that it belongs to.
        text: the text that was scored, None if there is none.
        ended: why it ended; None if the rows hold scored texts only.
        tokens: number of tokens of all replies; None if unknown.
        messages: the transcript; empty if unknown.
        parse: reads the call in a reply; None if the episode is no tool loop.
        is_email: whether its text is an e-mail.
        task: None if unknown, or if its text is no e-mail.
    """

    model: str
    stage: str
    format: str
    training_seed: int | None
    persona: str | None
    cluster: str
    text: str | None
    ended: str | None
    tokens: int | None
    messages: Sequence[Message]
    parse: Callable[[str], Parsed] | None
    is_email: bool
    task: Task | None
