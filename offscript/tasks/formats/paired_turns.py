"""The episodes of another format, in role, with the plain reply to every turn: pairs per turn for preference training.

Option ``format`` names the other format, ``options`` are its own. Each of its requests is made twice: as it is, and without
the cell's system text to the base weights. The first reply goes on with the episode; the second ones are kept in the notes
of the outcome: ``plain``, in the order of turns, and in ``cut`` the turns of which one reply was cut at the token limit.
Text and end are those of the other format.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from offscript.json_types import Json
from offscript.storage.plugins import choose
from offscript.tasks.formats.base import Cost, Episode, Format, PersonaText, Rules
from offscript.tasks.formats.episodes import without_system
from offscript.tasks.scenarios import Scenario


def episode(scenario: Scenario, rules: Rules) -> Episode:
    inner, options = FORMAT.inner(rules.options)
    own = inner.episode(scenario, replace(rules, options=options))
    plain: list[Json] = []
    cut: list[Json] = []
    try:
        ask = next(own)
        while True:
            reply = yield ask
            messages = tuple(without_system(rules.system, ask.messages))
            other = yield replace(ask, messages=messages, speaker="base")
            if "length" in (reply.finish_reason, other.finish_reason):
                cut.append(len(plain))
            plain.append(other.text)
            ask = own.send(reply)
    except StopIteration as end:
        outcome = end.value
    return replace(outcome, notes={**outcome.notes, "plain": plain, "cut": cut})


def wrapped(options: Mapping[str, Json]) -> Format:
    """The format that option ``format`` names.

    Raises:
        UserError: there is none.
    """
    # The formats are found by importing this file.
    from offscript.tasks.formats import FORMATS

    others = {name: fmt for name, fmt in FORMATS.items() if fmt.wraps is None}
    return choose(others, str(options["format"]), "format.options.format", "format", (), "FORMAT")


def _variants(options: Mapping[str, Json]) -> Sequence[str]:
    inner, own = FORMAT.inner(options)
    return inner.variants(own)


def _persona_texts(options: Mapping[str, Json]) -> Sequence[PersonaText]:
    inner, own = FORMAT.inner(options)
    return inner.persona_texts(own)


FORMAT = Format(
    "paired_turns",
    version=1,
    source="office",
    episode=episode,
    options={"format": "chat_email", "options": {}},
    variants=_variants,
    persona_texts=_persona_texts,
    wraps=wrapped,
    order=135,
    scored=False,
    in_role=True,
    # Of the default format; every reply is followed by a plain one.
    cost=Cost(replies=1, reply_tokens=250, prompt_tokens=740, asks=2),
)
