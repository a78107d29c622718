"""A form that is filled in as one JSON object; its free texts are scored.

The text is every string in the object that has at least MIN_WORDS words, in order, one a line: names, dates and choices
are shorter. Ends as ``chat`` does, ``malformed`` (no JSON object in the reply) or ``no_free_text``.
"""

from collections.abc import Iterator

from offscript.json_types import Json
from offscript.tasks.formats.base import Ask, Cost, Episode, Format, Outcome, Rules
from offscript.tasks.formats.episodes import assistant_message, require, with_system, without_text
from offscript.tasks.scenarios import Scenario
from offscript.tasks.tool_calls import first_object

MIN_WORDS = 4


def episode(scenario: Scenario, rules: Rules) -> Episode:
    messages = with_system(rules.system, require(scenario, "messages"))
    reply = yield Ask(messages)
    transcript = (*messages, assistant_message(reply.text))
    if not reply.text.strip():
        return Outcome(None, transcript, without_text(reply))
    try:
        form = first_object(reply.text)
    except ValueError:
        return Outcome(None, transcript, "malformed")
    texts = [text for text in free_texts(form) if len(text.split()) >= MIN_WORDS]
    return Outcome("\n".join(texts) or None, transcript, reply.finish_reason if texts else "no_free_text")


def free_texts(value: Json) -> Iterator[str]:
    """Every string in ``value``, stripped, in order."""
    if isinstance(value, str):
        yield value.strip()
    elif isinstance(value, list):
        for item in value:
            yield from free_texts(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from free_texts(item)


FORMAT = Format(
    "structured_form",
    version=1,
    source="structured_form",
    episode=episode,
    order=45,
    # Reply: assumed for chat models of 4B to 8B parameters. Prompt: mean of data/scaffolds, at 4 characters a token.
    cost=Cost(replies=1, reply_tokens=300, prompt_tokens=317),
)
