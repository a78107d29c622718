"""Scenarios: the concrete tasks of the formats, their families, and how they are split."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from offscript.errors import UserError, one_of
from offscript.json_types import Json
from offscript.seeds import stable_hash, unit_hash
from offscript.settings import SPLITS
from offscript.tasks.messages import Message


@dataclass(frozen=True)
class Rule:
    """A response of a simulated tool. ``match`` maps arguments to globs; None matches every call."""

    match: Mapping[str, str] | None
    response: Json


@dataclass(frozen=True)
class ToolStub:
    """A simulated tool: a call gets the response of the first rule that it matches."""

    tool: str
    rules: tuple[Rule, ...]


@dataclass(frozen=True)
class Scenario:
    """One concrete task.

    Args:
        id: unique name.
        family: shared by the variants of one task; the unit of splitting and resampling.
        messages: the first messages of its episode; empty for a scenario that is only a ``brief``.
        tools: the simulated tools, for agentic formats.
        max_steps: largest number of replies in an agentic episode.
        brief: the same task as a request for the body of an e-mail; empty if there is none.
        meta: notes for readers, which no model sees.
        variant: one of the format's ``variants``, which also ends the id; empty if the format has none.
        facts: what the e-mail has to mention, for evaluation; each fact is a list of alternatives. Empty: see
            ``tasks.facts``. No model sees it.
        recipients: the addresses to which the e-mail may go, for evaluation. Empty: see ``tasks.recipients``.
    """

    id: str
    family: str
    messages: tuple[Message, ...]
    tools: tuple[ToolStub, ...] = ()
    max_steps: int = 8
    brief: tuple[Message, ...] = ()
    meta: Mapping[str, object] = field(default_factory=dict)
    variant: str = ""
    facts: tuple[tuple[str, ...], ...] = ()
    recipients: tuple[str, ...] = ()


def task_of(scenario_id: str) -> str:
    """The id without the prefix of its format, which the published scenarios carry."""
    return re.sub(r"^(agentic_actions|chat_email)_(?=.)", "", scenario_id)


def family_of(scenario_id: str) -> str:
    """Family that an id implies: ``recognition`` for ``agentic_actions_recognition_v2``.

    ``chat_email_recognition_v1`` has the same family, so that both formats of a task are resampled jointly.
    """
    return re.sub(r"_v\d+$", "", task_of(scenario_id))


def digest(scenario: Scenario) -> str:
    """16 hex digits that identify everything in a scenario that can change an outcome.

    This includes the id (seeds depend on it) and the order of keys in a tool's response (models see it as JSON).
    """
    tools = [[s.tool, [[r.match, r.response] for r in s.rules]] for s in scenario.tools]
    parts = [scenario.id, scenario.messages, tools, scenario.max_steps, scenario.brief]
    return f"{stable_hash(json.dumps(parts, ensure_ascii=False)):016x}"


# ---------------------------------------------------------------- splits


def split_of(family: str, salt: str | int, fractions: Mapping[str, float]) -> str:
    """Split of a family, from a hash of its name alone: adding or removing other families never moves it.

    Args:
        family: name of the family.
        salt: another salt gives another assignment.
        fractions: share of each split, in any order; they add up to 1.

    Raises:
        UserError: a split is unknown, a share is negative, or the shares do not add up to 1.
    """
    if unknown := sorted(set(fractions) - set(SPLITS)):
        raise UserError("split fractions", f"unknown split {unknown[0]!r}", one_of(SPLITS))
    if min(fractions.values(), default=0) < 0 or abs(sum(fractions.values()) - 1) > 1e-6:
        raise UserError("split fractions", f"found {dict(fractions)}", "shares must be >= 0 and add up to 1")
    position, upper = unit_hash("split", salt, family), 0.0
    shares = [(split, fractions[split]) for split in SPLITS if fractions.get(split)]
    for split, share in shares:
        upper += share
        if position < upper:
            return split
    return shares[-1][0]


def select(
    scenarios: Iterable[Scenario],
    split: str,
    fractions: Mapping[str, float],
    salt: str | int,
    count: int | None = None,
    first: Mapping[str, int] | None = None,
    assigned: Mapping[str, str] | None = None,
) -> list[Scenario]:
    """At most ``count`` scenarios of ``split`` (None: all), one of each family in turn.

    Families and their scenarios are in hash order, so the result does not depend on the order of files, and a smaller
    ``count`` gives a prefix of a larger one.

    ``first`` overrides the hash: it maps a split to a number n, and the first n of ``scenarios``, in their order, belong
    to that split with their whole families and to no other. Of several splits, train comes first, then classifier, then
    eval. ``assigned`` overrides both: it maps families to their splits. The message for an empty split points to
    ``data.families`` if it is given.

    Raises:
        UserError: ``split`` is unknown, ``first`` is invalid, or no family falls into the split.
    """
    if split not in SPLITS:
        raise UserError("split", f"unknown split {split!r}", one_of(SPLITS))
    scenarios, families = list(scenarios), dict[str, list[Scenario]]()
    for scenario in scenarios:
        families.setdefault(scenario.family, []).append(scenario)
    exceptions = {**_assign_first(scenarios, first or {}), **(assigned or {})}
    chosen = [f for f in families if (exceptions.get(f) or split_of(f, salt, fractions)) == split]
    if not chosen:
        found = f"none of {len(families)} families falls into it"
        if assigned is not None:
            raise UserError(f"split {split}", found, "change data.families, or add families")
        other = ", lower data.first" if first else ""
        raise UserError(f"split {split}", found, f"raise its fraction{other}, or add families")
    queues = [
        sorted(families[f], key=lambda s: unit_hash("order", salt, s.id))
        for f in sorted(chosen, key=lambda f: unit_hash("order", salt, f))
    ]
    rounds = range(max(map(len, queues)))
    return [queue[i] for i in rounds for queue in queues if i < len(queue)][:count]


def _assign_first(scenarios: Sequence[Scenario], first: Mapping[str, int]) -> dict[str, str]:
    """The split of each family that has one of the ``first`` scenarios; the earliest scenario decides."""
    if wrong := [split for split, n in first.items() if split not in SPLITS or n < 0]:
        where, found = f"data.first.{wrong[0]}", f"found {first[wrong[0]]}"
        raise UserError(where, found, f"a number >= 0 for one of {', '.join(SPLITS)}")
    assigned: dict[str, str] = {}
    start = 0
    for split in SPLITS:
        stop = start + first.get(split, 0)
        for scenario in scenarios[start:stop]:
            assigned.setdefault(scenario.family, split)
        start = stop
    return assigned
