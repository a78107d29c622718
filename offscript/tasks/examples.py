"""Example exchanges that a model is shown before the conversation of an episode."""

from collections.abc import Sequence
from dataclasses import dataclass

from offscript.json_types import Json
from offscript.seeds import unit_hash
from offscript.settings import Exchange
from offscript.tasks.messages import Message


@dataclass(frozen=True)
class Examples:
    """The example exchanges of a cell: every episode is shown ``count`` of them, drawn for its row.

    Small models ignore a constitution in their system prompt and follow examples (few-shot prompting).
    """

    exchanges: tuple[Exchange, ...]
    count: int

    @property
    def identity(self) -> dict[str, Json]:
        """The hash identity: everything about them that can change a text."""
        return {"count": self.count, "exchanges": [[e.question, e.reply] for e in self.exchanges]}

    @property
    def mean_characters(self) -> float:
        """Mean number of characters that they add to a prompt."""
        characters = sum(len(e.question) + len(e.reply) for e in self.exchanges)
        return self.count * characters / len(self.exchanges)

    def drawn(self, key: str, scenario: str, sample: int) -> tuple[int, ...]:
        """Positions in ``exchanges`` of those that one row is shown, in the order in which they are shown. They depend on
        the row alone: the key of its cell, its scenario and its sample."""
        order = [unit_hash("examples", key, scenario, sample, i) for i in range(len(self.exchanges))]
        return tuple(sorted(range(len(self.exchanges)), key=order.__getitem__)[: self.count])

    def before(self, messages: Sequence[Message], positions: Sequence[int]) -> tuple[Message, ...]:
        """``messages`` with the exchanges at ``positions`` as turns after the system message."""
        start = 1 if messages and messages[0]["role"] == "system" else 0
        turns: list[Message] = []
        for exchange in (self.exchanges[i] for i in positions):
            turns.append({"role": "user", "content": exchange.question})
            turns.append({"role": "assistant", "content": exchange.reply})
        return (*messages[:start], *turns, *messages[start:])
