"""The prompt under which an untrained model answers as a character, put before a conversation that was had without it."""

from collections.abc import Sequence
from dataclasses import dataclass

from offscript.json_types import Json
from offscript.tasks.examples import Examples
from offscript.tasks.formats.episodes import with_system
from offscript.tasks.messages import Message


@dataclass(frozen=True)
class RolePrompt:
    """A system text with the constitution, and examples (None: none) that are drawn for each scenario and sample."""

    system: str
    examples: Examples | None = None

    @property
    def identity(self) -> dict[str, Json]:
        """The hash identity: everything about it that can change a prompt."""
        shown = {} if self.examples is None else {"examples": self.examples.identity}
        return {"system": self.system, **shown}

    @property
    def mean_characters(self) -> float:
        """Mean number of characters that it adds to a conversation."""
        return len(self.system) + (self.examples.mean_characters if self.examples is not None else 0)

    def before(self, messages: Sequence[Message], scenario: str, sample: int) -> list[Message]:
        """``messages`` of an episode with the system text in front of their own, followed by the examples."""
        prompted = with_system(self.system, tuple(messages))
        if self.examples is None:
            return [*prompted]
        return [*self.examples.before(prompted, self.examples.drawn("role prompt", scenario, sample))]
