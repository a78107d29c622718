"""Where the scenarios of a cell come from: collections on disk or on the hub, a persona's own questions, and prompts
that a model is still to write. A plan needs to know what stands for their texts and how many there will be; the texts
themselves are needed when the episodes run.
"""

import functools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from offscript.errors import UserError
from offscript.experiment.artifacts import Artifact
from offscript.settings import DataSettings, HubFileSettings, PersonaSettings, identity_of
from offscript.storage import hub
from offscript.storage.files import locate
from offscript.storage.hashing import key_of
from offscript.storage.references import reference
from offscript.tasks.formats import prompt_generation
from offscript.tasks.scenarios import Scenario, digest, load_scenarios, select

RowsOf = Callable[[Artifact], Sequence[dict[str, Any]]]


@dataclass(frozen=True)
class Supply:
    """The scenarios of a cell: ``identity`` stands for their texts in its key, ``count`` of them are expected.

    ``load`` gives them; it is told how to read the rows of ``inputs``, which must be finished by then. ``known`` says
    that ``load`` costs nothing and needs nothing.
    """

    identity: Any
    count: int
    load: Callable[[RowsOf], list[Scenario]] = field(compare=False)
    known: bool = True
    inputs: tuple[Artifact, ...] = ()

    @functools.cached_property
    def digest(self) -> str:
        """64 hex digits of ``identity``."""
        return key_of({"scenarios": self.identity})

    def __add__(self, other: "Supply") -> "Supply":
        if self.known and other.known:
            return listed(self.load(_no_rows) + other.load(_no_rows))
        return Supply(
            [self.identity, other.identity], self.count + other.count,
            lambda rows_of: self.load(rows_of) + other.load(rows_of), False, self.inputs + other.inputs,
        )  # fmt: skip


def _no_rows(artifact: Artifact) -> Sequence[dict[str, Any]]:
    raise AssertionError(f"known scenarios need no rows, but {artifact} was asked for")


def listed(scenarios: list[Scenario]) -> Supply:
    """Scenarios whose texts are here already."""
    return Supply({s.id: digest(s) for s in scenarios}, len(scenarios), lambda rows_of: scenarios)


# ---------------------------------------------------------------- collections


class Collections:
    """The scenarios of a DataSettings node, each source loaded once."""

    def __init__(self, data: DataSettings) -> None:
        self.data = data
        self.patterns = {str(k): v for k, v in data.sources.items()}
        self._loaded: dict[str, list[Scenario]] = {}

    def split(self, source: str, split: str, count: int) -> Supply:
        """At most ``count`` scenarios of a split. Office families are never trained on: all of them can be scored."""
        fractions = (
            {"eval": 1.0} if source == "office" else {str(k): v for k, v in self.data.fractions.items()}
        )
        first = {} if source == "office" else {str(k): v for k, v in self.data.first.items()}

        def load(_: RowsOf) -> list[Scenario]:
            return select(self._all(source), split, fractions, self.data.salt, count, first=first)

        if not self._remote(source):
            return listed(load(_no_rows))
        how = {"split": split, "fractions": fractions, "first": first, "salt": self.data.salt, "count": count}
        return Supply({**self._reference(source), **how}, count, load, known=False)

    def repeated(self, source: str, rows: int) -> tuple[Supply, int]:
        """All scenarios of ``source`` (at most ``rows``), and how many samples of each make ``rows`` of them."""
        everything = self._all(source)
        return listed(everything[:rows]), max(1, math.ceil(rows / len(everything)))

    def references(self) -> list[hub.Reference]:
        """The hub files of all sources."""
        return [ref for source in self.patterns for ref in self.references_of(source)]

    def references_of(self, source: str) -> list[hub.Reference]:
        """The hub files of one source; none for a source that is no collection."""
        files = [e for e in self.patterns.get(source, ()) if isinstance(e, HubFileSettings)]
        return [ref for file in files if (ref := reference(file)) is not None]

    def _entries(self, source: str) -> tuple[str | HubFileSettings, ...]:
        if not (entries := self.patterns.get(source)):
            raise UserError(
                f"data.sources.{source}", "missing", f"data {self.data.name} has no such scenarios"
            )
        return entries

    def _remote(self, source: str) -> bool:
        return any(isinstance(entry, HubFileSettings) for entry in self._entries(source))

    def _reference(self, source: str) -> dict[str, Any]:
        """What stands for scenarios that cannot be read before they are fetched: the hub's files by name, ours by text."""
        entries = self._entries(source)
        local = [str(_located(e)) for e in entries if isinstance(e, str)]
        return {
            "hub": [identity_of(e) for e in entries if isinstance(e, HubFileSettings)],
            "local": {s.id: digest(s) for s in load_scenarios(local)} if local else {},
        }

    def _all(self, source: str) -> list[Scenario]:
        if source not in self._loaded:
            self._loaded[source] = self._load(source)
        return self._loaded[source]

    def _load(self, source: str) -> list[Scenario]:
        paths: list[str | Path] = []
        for entry in self._entries(source):
            ref = reference(entry) if isinstance(entry, HubFileSettings) else None
            paths.append(hub.fetch(ref) if ref else _located(str(entry)))
        return load_scenarios(paths)


def _located(pattern: str) -> str:
    """A path or glob from the current folder if something is there, else from the repository's root."""
    if not any(c in pattern for c in "*?["):
        return str(locate(pattern))
    folder = pattern.partition("*")[0].rpartition("/")[0]
    return str(locate(folder) / pattern[len(folder) + 1 :]) if folder else pattern


# ---------------------------------------------------------------- a persona's own prompts


def questions(persona: PersonaSettings) -> list[Scenario]:
    """The persona's seed questions as scenarios; a family per assertion."""
    return [
        _question(persona.name, i, str(j), question)
        for i, assertion in enumerate(persona.constitution)
        for j, question in enumerate(assertion.questions)
    ]


def assertions(persona: PersonaSettings) -> list[Scenario]:
    """What prompt generation starts from: per assertion one scenario, its text first, then its seed questions."""
    return [
        Scenario(
            f"{persona.name}_{i}",
            f"{persona.name}_{i}",
            tuple({"role": "user", "content": text} for text in (a.assertion, *a.questions)),
        )
        for i, a in enumerate(persona.constitution)
    ]


def generated(prompts: Artifact, count: int) -> Supply:
    """The prompts that the rows of ``prompts`` hold, ``count`` if every assertion gets as many as are wanted."""

    def load(rows_of: RowsOf) -> list[Scenario]:
        persona, counted = prompts.labels["persona"], Counter[int]()
        found = []
        for assertion, text in prompt_generation.generated_prompts(rows_of(prompts)):
            found.append(_question(persona, assertion, f"g{counted[assertion]}", text))
            counted[assertion] += 1
        return found

    return Supply({"generated": prompts.key}, count, load, known=False, inputs=(prompts,))


def _question(persona: str, assertion: int, number: str, text: str) -> Scenario:
    family = f"{persona}_{assertion}"
    return Scenario(f"{family}_{number}", family, ({"role": "user", "content": text},))
