"""What side effects are measured on: episodes, and what is known of their tasks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from offscript.evaluation.predictions import Prediction
from offscript.json_types import Json
from offscript.tasks.facts import Alternatives, facts_of, facts_of_request
from offscript.tasks.formats import FORMATS
from offscript.tasks.recipients import recipients_of
from offscript.tasks.scenarios import Scenario
from offscript.tasks.tool_calls import Parsed, normalize, parse_reply
from offscript.tasks.tool_schemas import Tool, tools_of

Message = Mapping[str, Json]


@dataclass(frozen=True)
class Task:
    """What a scenario asks for.

    Args:
        facts: what its e-mail has to mention.
        request_facts: what it has to mention if the model was given the request alone.
        brief: the text that gives the records, "" if there is none.
        recipients: the addresses to which the e-mail may go; empty if unknown.
        tools: by their normalized names.
        given_replies: number of the assistant's messages that the scenario begins with.
    """

    facts: tuple[Alternatives, ...]
    request_facts: tuple[Alternatives, ...]
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


def episode_elsewhere(prediction: Prediction, row: Mapping[str, Json], unit: str) -> Episode:
    """The episode of a prediction row that was made elsewhere, whose scenario is unknown. Never raises: rows of others may
    have anything under ``messages`` and ``tokens_out``."""
    held = row.get("messages")
    messages = [m for m in held if isinstance(m, dict)] if isinstance(held, list) else []
    calls_tools = any(m.get("role") == "tool" or m.get("tool_calls") for m in messages)
    tokens = row.get("tokens_out")
    known = FORMATS.get(prediction.format)
    return Episode(
        prediction.model,
        prediction.stage,
        prediction.format,
        prediction.training_seed,
        prediction.persona,
        prediction.scenario if unit == "scenario" else prediction.family,
        prediction.text,
        prediction.ended,
        tokens if isinstance(tokens, int) and not isinstance(tokens, bool) else None,
        messages,
        parse_reply if calls_tools else None,
        calls_tools or (known is not None and known.text_is_email),
        None,
    )
