"""The task of an agentic scenario as one request: all that would have been looked up is given, and only the
body of the e-mail is asked for."""

from offscript.tasks.formats.base import Episode, Format, Rules
from offscript.tasks.formats.turns import needed, opening, single_reply
from offscript.tasks.scenarios import Scenario


def episode(scenario: Scenario, rules: Rules) -> Episode:
    return (yield from single_reply(opening(rules.system, needed(scenario, "brief"))))


FORMAT = Format("chat_email", version=1, source="office", episode=episode)
