"""The scenarios of a cell: collections on disk or on the hub, a persona's own questions, and prompts that a model writes.

A plan needs the hash identity of their texts and how many there will be; the texts themselves are needed when the
episodes run.
"""

import functools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from offscript.errors import UserError, one_of
from offscript.experiment.artifacts import Rollout, RowsOf, ScenarioSet
from offscript.json_types import Json
from offscript.settings import DataSettings, HubFileSettings, PersonaSettings, identity_of
from offscript.storage import hub
from offscript.storage.files import resolve
from offscript.storage.options import option_file, options_of
from offscript.storage.references import PUBLISHED, fill_published, reference
from offscript.tasks.formats import prompt_generation
from offscript.tasks.scenario_files import load_scenarios, say_once
from offscript.tasks.scenarios import Scenario, digest, select


def listed(scenarios: list[Scenario]) -> ScenarioSet:
    """Scenarios whose texts are known."""
    return ScenarioSet({s.id: digest(s) for s in scenarios}, len(scenarios), lambda rows_of: scenarios)


def joined(first: ScenarioSet, second: ScenarioSet) -> ScenarioSet:
    """The scenarios of both, in order."""
    if first.is_local and second.is_local:
        return listed(first.load_local() + second.load_local())
    return ScenarioSet(
        [first.identity, second.identity],
        first.count + second.count,
        lambda rows_of: first.load(rows_of) + second.load(rows_of),
        is_local=False,
        inputs=first.inputs + second.inputs,
    )


def crossed(scenarios: ScenarioSet, variants: Sequence[str]) -> ScenarioSet:
    """Every scenario in every variant, whose name ends the id; ``scenarios`` itself if there are no variants."""
    if not variants:
        return scenarios

    def load(rows_of: RowsOf) -> list[Scenario]:
        return [
            replace(scenario, id=f"{scenario.id}_{variant}", variant=variant)
            for scenario in scenarios.load(rows_of)
            for variant in variants
        ]

    return ScenarioSet(
        {"crossed": scenarios.identity, "variants": list(variants)},
        scenarios.count * len(variants),
        load,
        scenarios.is_local,
        scenarios.inputs,
    )


# ---------------------------------------------------------------- collections

CHAT = "chat"
"""The source whose families a hash divides into splits."""

UNDIVIDED = ("reflection", "interaction")
"""Sources that have no splits: their scenarios are trained on alone, and no format that is scored reads them."""


class ScenarioCollections:
    """The scenarios of a data option, each source loaded once. ``published`` is the folder of the published study."""

    def __init__(self, data: DataSettings, published: str | None = None) -> None:
        self.data, self.published = data, published
        self.patterns = {str(k): v for k, v in data.sources.items()}
        self._loaded: dict[str, list[Scenario]] = {}
        self._splits: dict[tuple[str, str, int], ScenarioSet] = {}

    def split(self, source: str, split: str, count: int) -> ScenarioSet:
        """At most ``count`` scenarios of a split. Chat families are divided by their hash, and those of other sources by
        ``data.families``. The same arguments give the same object.

        Raises:
            UserError: ``source`` is not in ``data.sources``, a file is invalid, no family falls into the split, or
                ``data.families`` names one that no source has.
        """
        if (source, split, count) not in self._splits:
            self._splits[source, split, count] = self._split(source, split, count)
        return self._splits[source, split, count]

    def _split(self, source: str, split: str, count: int) -> ScenarioSet:
        is_chat = source == CHAT
        fractions = {str(k): v for k, v in self.data.fractions.items()} if is_chat else {"eval": 1.0}
        first = {str(k): v for k, v in self.data.first.items()} if is_chat else {}
        assigned = None if is_chat else self._assigned

        def load(rows_of: RowsOf | None = None) -> list[Scenario]:
            everything = self._all(source)
            if not is_chat:
                self._check_families(source)
            return select(everything, split, fractions, self.data.salt, count, first, assigned)

        if not self._remote(source):
            return listed(load())
        selection: dict[str, Json] = {
            "split": split,
            "fractions": dict(fractions),
            "first": dict(first),
            "salt": self.data.salt,
            "count": count,
        }
        if assigned:
            selection["families"] = dict(assigned)
        return ScenarioSet({**self._reference(source), **selection}, count, load, is_local=False)

    @functools.cached_property
    def _assigned(self) -> dict[str, str]:
        """The split of each family that ``data.families`` names."""
        return {family: str(split) for split, names in self.data.families.items() for family in names}

    def _check_families(self, source: str) -> None:
        """Checks that ``source`` or another divided source has every family of ``data.families``, unless one of them must
        still be fetched. Families that the data option names for its own files may be missing where others replace these."""
        others = [s for s in self.patterns if s not in (CHAT, source, *UNDIVIDED)]
        known = set[str]()
        for name in (source, *others):
            if known >= self._assigned.keys() or (name not in self._loaded and self._remote(name)):
                return
            if not self._lacks_published(name):
                known |= {scenario.family for scenario in self._all(name)}
        for family, split in self._assigned.items():
            if family not in known and not (self._has_other_files and family in self._own_families):
                raise UserError(f"data.families.{split}", f"no such family {family!r}", one_of(sorted(known)))

    @functools.cached_property
    def _option(self) -> dict[str, Json]:
        """The file of the data option; empty if there is none of this name."""
        name = self.data.name
        found = option_file("data", name) if name in options_of("data") else None
        return found if isinstance(found, dict) else {}

    @property
    def _own_families(self) -> set[str]:
        """The families that the file of the data option names."""
        families = self._option.get("families")
        lists = families.values() if isinstance(families, dict) else ()
        return {str(name) for names in lists if isinstance(names, list) for name in names}

    @property
    def _has_other_files(self) -> bool:
        """Whether a divided source has other files than in the file of the data option."""
        sources = self._option.get("sources")
        own = sources if isinstance(sources, dict) else {}
        divided = (source for source in own if source not in (CHAT, *UNDIVIDED))
        return any([*self.patterns.get(source, ())] != own[source] for source in divided)

    def _lacks_published(self, source: str) -> bool:
        """Whether ``source`` is a part of the published study that is not in its folder."""
        paths = [entry for entry in self._entries(source) if isinstance(entry, str) and PUBLISHED in entry]
        where = f"data.sources.{source}"
        return any(not resolve(fill_published(path, self.published, where, is_glob=True)) for path in paths)

    def repeated(self, source: str, rows: int) -> tuple[ScenarioSet, int]:
        """All scenarios of ``source`` that may be trained on (at most ``rows``), and how many samples of each make
        ``rows`` of them."""
        if source not in UNDIVIDED:
            train = self.split(source, "train", rows)
            return train, max(1, math.ceil(rows / train.count))
        everything = self._all(source)
        return listed(everything[:rows]), max(1, math.ceil(rows / len(everything)))

    def references(self) -> list[hub.Reference]:
        """The hub files of all sources."""
        return [ref for source in self.patterns for ref in self.references_of(source)]

    def references_of(self, source: str) -> list[hub.Reference]:
        """The hub files of one source; none for a source that is no collection."""
        files = [e for e in self.patterns.get(source, ()) if isinstance(e, HubFileSettings)]
        return [ref for file in files if (ref := reference(file)) is not None]

    def is_published(self, source: str) -> bool:
        """Whether scenarios of ``source`` are read from the folder of the published study."""
        return any(isinstance(entry, str) and PUBLISHED in entry for entry in self.patterns.get(source, ()))

    def _entries(self, source: str) -> tuple[str | HubFileSettings, ...]:
        if not (entries := self.patterns.get(source)):
            raise UserError(
                f"data.sources.{source}", "missing", f"data {self.data.name} has no such scenarios"
            )
        return entries

    def _remote(self, source: str) -> bool:
        return any(isinstance(entry, HubFileSettings) for entry in self._entries(source))

    def _reference(self, source: str) -> dict[str, Json]:
        """The hash identity of scenarios that must be fetched before they can be read: hub files by name, local ones by
        their texts."""
        entries = self._entries(source)
        local = [self._path(source, entry) for entry in entries if isinstance(entry, str)]
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
            if isinstance(entry, str):
                paths.append(self._path(source, entry))
            elif (ref := reference(entry)) is not None:
                paths.append(hub.fetch(ref))
        found = load_scenarios(paths)
        if self.is_published(source):
            # The folder may hold a part of the study only.
            families = len({scenario.family for scenario in found})
            say_once(f"  data={self.data.name}: {source}: {len(found)} scenarios in {families} families")
        return found

    def _path(self, source: str, entry: str) -> str:
        """The path or glob of an entry, with ``{published}`` filled in.

        Raises:
            UserError: that folder is not set, or has no such file.
        """
        if PUBLISHED not in entry:
            return entry
        where = f"data.sources.{source}"
        path = fill_published(entry, self.published, where, is_glob=True)
        if not resolve(path):
            found = f"no file {entry.replace(PUBLISHED, self.published or '')}"
            raise UserError(
                where, found, "add it (data/README.md shows the layout), or write published=FOLDER"
            )
        return path


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


def generated(prompts: Rollout, count: int) -> ScenarioSet:
    """The prompts that the rows of ``prompts`` hold, ``count`` if every assertion gets as many as are wanted."""

    def load(rows_of: RowsOf) -> list[Scenario]:
        persona, counted = str(prompts.cell.persona), Counter[int]()
        found = []
        for assertion, text in prompt_generation.generated_prompts(rows_of(prompts)):
            found.append(_question(persona, assertion, f"g{counted[assertion]}", text))
            counted[assertion] += 1
        return found

    return ScenarioSet({"generated": prompts.key}, count, load, is_local=False, inputs=(prompts,))


def _question(persona: str, assertion: int, number: str, text: str) -> Scenario:
    family = f"{persona}_{assertion}"
    return Scenario(f"{family}_{number}", family, ({"role": "user", "content": text},))
