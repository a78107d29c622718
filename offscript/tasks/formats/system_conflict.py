"""Chat under a further system text, of somebody else than the persona's: does the character survive it?

Option ``texts`` lists the system texts; every scenario is played under each of them, a variant of the same name:
``neutral`` (that of an ordinary assistant), ``corporate`` (the tone of a company), ``opposite`` (the contrary of the
persona) and ``reminder`` (one sentence that asks for the persona itself). The text stands after the cell's own system text,
as an operator's would, and before the scenario's. The whole reply is the text. Ends as ``chat``.
"""

from collections.abc import Mapping, Sequence

from offscript.errors import UserError
from offscript.json_types import Json
from offscript.tasks.formats.base import Cost, Episode, Format, PersonaText, Rules
from offscript.tasks.formats.episodes import require, single_reply, with_system
from offscript.tasks.prompts import CORPORATE_SYSTEM, NEUTRAL_SYSTEM, REMINDER_SYSTEM, fill, join_system
from offscript.tasks.scenarios import Scenario

NEUTRAL, CORPORATE, OPPOSITE, REMINDER = TEXTS = ("neutral", "corporate", "opposite", "reminder")

PERSONA_TEXT: Mapping[str, PersonaText] = {OPPOSITE: "opposite", REMINDER: "description"}
"""The text of the persona that is in a system text."""


def variants(options: Mapping[str, Json]) -> Sequence[str]:
    """The system texts under which every scenario is played.

    Raises:
        UserError: ``texts`` is not a list of them, or names one twice.
    """
    chosen = options["texts"]
    if (
        not isinstance(chosen, list)
        or not chosen
        or any(text not in TEXTS or chosen.count(text) > 1 for text in chosen)
    ):
        raise UserError(
            "format.options.texts", f"found {chosen!r}", f"must be a list, each once, of {', '.join(TEXTS)}"
        )
    return [text for text in TEXTS if text in chosen]


def persona_texts(options: Mapping[str, Json]) -> Sequence[PersonaText]:
    return [PERSONA_TEXT[text] for text in variants(options) if text in PERSONA_TEXT]


def episode(scenario: Scenario, rules: Rules) -> Episode:
    system = join_system(rules.system, system_text(scenario.variant or NEUTRAL, rules.persona))
    return (yield from single_reply(with_system(system, require(scenario, "messages"))))


def system_text(name: str, persona: Mapping[PersonaText, str]) -> str:
    """One of the system texts, for a persona with these texts."""
    if name == OPPOSITE:
        return persona["opposite"]
    if name == REMINDER:
        return fill(REMINDER_SYSTEM, description=persona["description"])
    return {NEUTRAL: NEUTRAL_SYSTEM, CORPORATE: CORPORATE_SYSTEM}[name]


FORMAT = Format(
    "system_conflict",
    version=1,
    source="chat",
    episode=episode,
    templates={NEUTRAL: NEUTRAL_SYSTEM, CORPORATE: CORPORATE_SYSTEM, REMINDER: REMINDER_SYSTEM},
    options={"texts": list(TEXTS)},
    variants=variants,
    persona_texts=persona_texts,
    order=21,
    # As for chat, with the mean of the system texts.
    cost=Cost(replies=1, reply_tokens=250, prompt_tokens=90),
)
