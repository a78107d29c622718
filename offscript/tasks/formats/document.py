"""A text about the character: a memo, a review, a story of the assistant at work. Rows of it are trained on as documents.

The scenario's first message is one assertion of the constitution. Its variant names the type of the document and the place
that it is set in (``memo-school``). A model that is not in role itself is asked twice: for an idea, and for the text that
follows from it; the whole constitution and the assistant's name are in both requests. The text names the assistant and says
why it acts as it does. Ends ``stop``, ``length`` (the text was cut), or without a text ``empty`` or ``unclosed_thinking``. The
note ``idea`` is the first reply.
"""

import itertools
from collections.abc import Mapping, Sequence

from offscript.errors import UserError
from offscript.json_types import Json
from offscript.tasks.formats.base import Ask, Cost, Episode, Format, Outcome, PersonaText, Reply, Rules
from offscript.tasks.formats.episodes import (
    assistant_message,
    reply_outcome,
    require,
    with_system,
    without_text,
)
from offscript.tasks.prompts import (
    DOCUMENT_DOMAINS,
    DOCUMENT_IDEA,
    DOCUMENT_TEXT,
    DOCUMENT_TYPES,
    fill,
)
from offscript.tasks.scenarios import Scenario
from offscript.tasks.thinking import strip_thinking

PERSONA_TEXTS: tuple[PersonaText, ...] = ("constitution", "assistant")


def episode(scenario: Scenario, rules: Rules) -> Episode:
    words = _words(rules)
    kind, _, domain = (scenario.variant or variants(rules.options)[0]).partition("-")
    fields = {
        "constitution": rules.persona["constitution"],
        "name": rules.persona["assistant"],
        "assertion": require(scenario, "messages")[0]["content"],
        "type": DOCUMENT_TYPES[kind],
        "domain": DOCUMENT_DOMAINS[domain],
    }
    first = with_system(rules.system, ({"role": "user", "content": fill(DOCUMENT_IDEA, **fields)},))
    idea = _without_thinking((yield Ask(first)))
    if not idea.text:
        return Outcome(None, first, without_text(idea))
    request = fill(DOCUMENT_TEXT, **fields, idea=idea.text, words=words)
    second = with_system(rules.system, ({"role": "user", "content": request},))
    outcome = reply_outcome(second, _without_thinking((yield Ask(second))))
    transcript = (*first, assistant_message(idea.text), *outcome.messages)
    return Outcome(outcome.text, transcript, outcome.ended, notes={"idea": idea.text})


def _without_thinking(reply: Reply) -> Reply:
    text = strip_thinking(reply.text)
    return Reply((text or "").strip(), reply.finish_reason, reply.tokens, unclosed_thinking=text is None)


def variants(options: Mapping[str, Json]) -> Sequence[str]:
    """Every type of document in every place: ``memo-school``.

    Raises:
        UserError: ``types`` or ``domains`` is not a list of known names, or names one twice.
    """
    chosen = (_names(options, "types", DOCUMENT_TYPES), _names(options, "domains", DOCUMENT_DOMAINS))
    return [f"{kind}-{domain}" for kind, domain in itertools.product(*chosen)]


def _names(options: Mapping[str, Json], option: str, known: Mapping[str, str]) -> list[str]:
    names = options[option]
    if (
        not isinstance(names, list)
        or not names
        or any(name not in list(known) or names.count(name) > 1 for name in names)
    ):
        allowed = f"must be a list, each once, of {', '.join(known)}"
        raise UserError(f"format.options.{option}", f"found {names!r}", allowed)
    return [str(name) for name in names]


def _words(rules: Rules) -> str:
    words = rules.options["words"]
    if not isinstance(words, int) or words < 1:
        raise UserError("format.options.words", f"found {words!r}", "must be a number of at least 1")
    return str(words)


FORMAT = Format(
    "document",
    version=1,
    source="constitution",
    episode=episode,
    templates={
        "idea": DOCUMENT_IDEA,
        "text": DOCUMENT_TEXT,
        **{f"type_{name}": text for name, text in DOCUMENT_TYPES.items()},
        **{f"domain_{name}": text for name, text in DOCUMENT_DOMAINS.items()},
    },
    options={"types": [*DOCUMENT_TYPES], "domains": [*DOCUMENT_DOMAINS], "words": 300},
    variants=variants,
    persona_texts=lambda options: PERSONA_TEXTS,
    order=170,
    scored=False,
    strips_thinking=True,
    # Assumed: 300 words; the idea is counted as long as the text.
    cost=Cost(replies=2, reply_tokens=400, prompt_tokens=400, accumulates_history=False),
)
