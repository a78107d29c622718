"""Preference pairs per turn, in several formats: the reply in role (chosen) against the plain one to the same history."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import cast

from offscript.settings import identity
from offscript.tasks.messages import Message
from offscript.training.data import preference
from offscript.training.data.base import (
    Counts,
    FormatScenarios,
    MakeContext,
    RowsRequest,
    SourceRow,
    TrainingData,
    TrainingRow,
)
from offscript.training.data.mixture import (
    CHAT,
    Candidate,
    MixtureSettings,
    check_formats,
    choose,
    ended_whole,
    token_targets,
)

TEACHER, STUDENT = "teacher", "student"
"""The roles of the two sides of chat pairs; pairs of another format have its name as their role."""


class TurnPairsSettings(MixtureSettings):
    """``pairs_per_episode``: so many turns of an episode, evenly spread, the last one always, so that long episodes do not
    dominate. ``tokens`` are those of both sides."""

    pairs_per_episode: int = identity(3, ge=1)


def requests(settings: TurnPairsSettings, where: str) -> tuple[RowsRequest, ...]:
    """Teacher and student on chat prompts; and the model as its own teacher in format ``paired_turns``, once for each format.

    Both sides of a turn are replies of one model, so a teacher of another name is not asked off chat.

    Raises:
        UserError: a format is unknown.
    """
    check_formats(settings.formats, where)
    chat: list[RowsRequest] = []
    if settings.share < 1:
        prompts, samples = (FormatScenarios(settings.prompts),), settings.samples
        chat = [
            RowsRequest(
                TEACHER, "teacher", prompts, generator="teacher", system="constitution", samples=samples, counted=False
            ),
            RowsRequest(STUDENT, "student", prompts, of_persona=False, samples=samples),
        ]  # fmt: skip
    paired = [
        RowsRequest(
            name,
            "paired_turns",
            (FormatScenarios(settings.scenarios),),
            generator="own_teacher",
            system="constitution",
            samples=settings.scenario_samples,
            options={"format": name},
            plain_messages=True,
        )
        for name in settings.formats
        if settings.share
    ]
    return (*chat, *paired)


def make(
    rows: Mapping[str, Sequence[SourceRow]], settings: TurnPairsSettings, context: MakeContext
) -> tuple[list[TrainingRow], Counts]:
    """Pairs ``{"scenario", "sample", "turn", "family", "prompt": [message], "chosen": [message], "rejected": [message]}``;
    ``turn`` counts from 0.

    Returns: the pairs, and counts: pairs and tokens of each format, then what was dropped, by format and reason. Of
    chat the reasons are those of ``preference.pairs``; of episodes, how they ended; of turns, ``unfinished`` (a side was
    cut), ``identical``, ``empty``; of pairs, ``too_long``. ``more_turns`` were not needed.

    Raises:
        UserError: the pairs of a format have fewer tokens than are wanted.
    """
    dropped = Counter[str]()
    found: dict[str, list[TrainingRow]] = {}
    sources: dict[str, Sequence[SourceRow]] = {}
    for name in settings.formats:
        if name in rows:
            episodes = ended_whole(rows[name], name, dropped)
            most = settings.pairs_per_episode
            found[name] = [pair for row in episodes for pair in _pairs(row, name, most, dropped)]
            sources[name] = rows[name]
    if TEACHER in rows:
        found[CHAT], reasons = preference.pairs(rows[TEACHER], rows[STUDENT], context.names)
        dropped.update({f"{CHAT}_{name}": n for name, n in reasons.items() if name != "kept"})
        sources[CHAT] = rows[STUDENT]
    pools = {name: _candidates(pairs, name, context, dropped) for name, pairs in found.items()}
    chosen, counts = choose(pools, settings, context.where, sources)
    return chosen, {**counts, **dropped}


def _pairs(row: SourceRow, name: str, most: int, dropped: Counter[str]) -> list[TrainingRow]:
    """The pairs of an episode, at most ``most``."""
    notes = row.get("notes", {})
    plain, cut = cast(list[str], notes["plain"]), cast(list[int], notes["cut"])
    written = [i for i, m in enumerate(row["messages"]) if m["role"] == "assistant"][-len(plain) :]
    usable = []
    for turn, (at, other) in enumerate(zip(written, plain, strict=True)):
        chosen = row["messages"][at]["content"].strip()
        reason = _reason_against(chosen, other.strip(), turn in cut)
        if reason is not None:
            dropped[f"{name}_{reason}"] += 1
            continue
        usable.append(
            {
                "scenario": row["scenario"],
                "sample": row["sample"],
                "turn": turn,
                "family": row["family"],
                "prompt": row["messages"][:at],
                "chosen": [{"role": "assistant", "content": chosen}],
                "rejected": [{"role": "assistant", "content": other.strip()}],
            }
        )
    kept = spread(len(usable), most)
    dropped[f"{name}_more_turns"] += len(usable) - len(kept)
    return [usable[i] for i in kept]


def _reason_against(chosen: str, rejected: str, cut: bool) -> str | None:
    """Why there is no pair of the two replies to a turn; None if there is one."""
    if cut:
        return "unfinished"
    if not chosen or not rejected:
        return "empty"
    return "identical" if chosen == rejected else None


def spread(turns: int, most: int) -> list[int]:
    """At most ``most`` of the numbers below ``turns``, evenly spread, the last one always; ascending."""
    if turns <= most:
        return list(range(turns))
    step = (turns - 1) / max(1, most - 1)
    return sorted(turns - 1 - round(i * step) for i in range(most))


def _candidates(
    pairs: Sequence[TrainingRow], name: str, context: MakeContext, dropped: Counter[str]
) -> list[Candidate]:
    """The pairs with the tokens of both sides; one that does not fit the longest row is dropped."""
    found = []
    for pair in pairs:
        prompt: list[Message] = pair["prompt"]
        turns = 1 + sum(m["role"] == "assistant" for m in prompt)
        sides = [context.count_tokens([*prompt, *pair[side]]) for side in ("chosen", "rejected")]
        if any(len(tokens) < turns for tokens in sides):
            dropped[f"{name}_too_long"] += 1
            continue
        found.append(Candidate(pair, sum(tokens[-1] for tokens in sides)))
    return found


def _trained_tokens(settings: TurnPairsSettings) -> dict[str, float]:
    """Those of ``token_targets``, chat under the role of the side that is counted."""
    targets = token_targets(settings)
    return {STUDENT if role == CHAT else role: tokens for role, tokens in targets.items()}


DATA = TrainingData(
    name="turn_pairs",
    settings=TurnPairsSettings,
    makes="pairs",
    requests=requests,
    make=make,
    typical_rows=2_000,
    renames_teacher=True,
    trained_tokens=_trained_tokens,
)
