"""What kinds of training data in several formats share: their settings, and which rows make up a share of tokens."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from offscript.errors import UserError, one_of
from offscript.seeds import stable_hash
from offscript.settings import Node, identity
from offscript.tasks.formats import FORMATS
from offscript.training.data.base import (
    Counts,
    FormatScenarios,
    RowsRequest,
    Scenarios,
    SourceRow,
    TrainingRow,
)

CHAT = "chat"
"""The source of chat prompts, and the name of the chat part in counts and messages."""

WHOLE = frozenset({"email", "stop"})
"""How an episode ends that is trained on; no other one did its task."""


class MixtureSettings(Node):
    """Training data in chat and in other formats.

    ``share`` of all trained ``tokens`` is off chat, the same number in each of ``formats``; the rest are chat. Tokens are
    those of the trained turns, by the tokenizer of the trained model. Chat has ``prompts`` shared prompts of split train,
    ``samples`` replies to each; every other format has ``scenarios`` of its own source's split train, and
    ``scenario_samples`` episodes of each. These numbers do not depend on the share, so stages that differ in ``share``,
    ``formats`` or ``tokens`` alone use the same rows.
    """

    formats: tuple[str, ...] = identity(min_length=1)
    share: float = identity(ge=0, le=1)
    tokens: int = identity(ge=1)
    prompts: int = identity(ge=1)
    samples: int = identity(1, ge=1)
    scenarios: int = identity(ge=1)
    scenario_samples: int = identity(1, ge=1)


@dataclass(frozen=True)
class Candidate:
    """A training row that can be chosen, and its number of trained tokens."""

    row: TrainingRow
    tokens: int


def check_formats(formats: Sequence[str], where: str) -> None:
    """Checks ``formats``, a setting in the section ``where``: scored formats whose scenarios are no chat prompts, each once.

    Raises:
        UserError: one is not.
    """
    allowed = [name for name, fmt in FORMATS.items() if fmt.scored and fmt.source != CHAT]
    for name in formats:
        if name not in allowed:
            raise UserError(f"{where}.formats", f"found {name!r}", one_of(allowed))
    if len(set(formats)) < len(formats):
        raise UserError(f"{where}.formats", f"found {list(formats)}", "allowed: each format once")


def in_role(role: str, fmt: str, scenarios: Scenarios, samples: int, counted: bool = True) -> RowsRequest:
    """Episodes of the teacher under the constitution, which is then taken out of the messages."""
    return RowsRequest(
        role,
        fmt,
        (scenarios,),
        generator="teacher",
        system="constitution",
        samples=samples,
        plain_messages=True,
        counted=counted,
    )


def parent_episodes(
    chat: tuple[int, int], others: tuple[int, int], formats: Sequence[str], where: str
) -> tuple[RowsRequest, ...]:
    """Episodes of the parent's weights under a plain system text, in chat and in each of ``formats``.

    Args:
        chat: number of prompts of split train, which may be 0, and replies to each.
        others: of each format, the number of scenarios of its own source's split train, and episodes of each.

    Raises:
        UserError: a format is unknown or named twice, or there is no episode.
    """
    check_formats(formats, where)
    if not chat[0] and not formats:
        raise UserError(where, "prompts is 0 and formats is empty", "allowed: prompts > 0, or a format")
    counts = {**({CHAT: chat} if chat[0] else {}), **dict.fromkeys(formats, others)}
    return tuple(
        RowsRequest(name, name, (FormatScenarios(scenarios),), generator="parent", samples=samples)
        for name, (scenarios, samples) in counts.items()
    )


def token_targets(settings: MixtureSettings) -> dict[str, float]:
    """Trained tokens of each format off chat, and of chat; those that are 0 are left out."""
    off = settings.share * settings.tokens
    targets = {name: off / len(settings.formats) for name in settings.formats}
    targets[CHAT] = settings.tokens - off
    return {role: tokens for role, tokens in targets.items() if tokens}


def choose(
    pools: Mapping[str, Sequence[Candidate]],
    settings: MixtureSettings,
    where: str,
    sources: Mapping[str, Sequence[SourceRow]],
) -> tuple[list[TrainingRow], Counts]:
    """Rows of every pool in the order of a hash, until its tokens are reached: formats off chat first, then chat for the
    rest, so that all together have ``settings.tokens`` up to a part of one row. A larger share has the rows of a smaller
    one, and others.

    Args:
        pools: candidates by format, chat under ``CHAT``.
        settings: see MixtureSettings.
        where: config key of the settings, for messages.
        sources: the rows from which the candidates were made, by role, for messages.

    Returns: the rows, and counts of rows and tokens by format.

    Raises:
        UserError: the rows of a format do not suffice; the message names the setting to raise.
    """
    chosen: list[TrainingRow] = []
    counts: Counts = {}
    off, left = settings.share * settings.tokens, settings.tokens
    names = [*settings.formats, CHAT] if off else [CHAT]
    for number, name in enumerate(names):
        wanted = left if name == CHAT else off / (len(settings.formats) - number)
        rows, tokens = _up_to(pools.get(name, ()), wanted)
        if tokens < wanted:
            raise _too_few(name, tokens, wanted, settings, where, sources.get(name, ()))
        chosen += rows
        counts |= {name: len(rows), f"{name}_tokens": tokens}
        off, left = off - tokens, left - tokens
    return chosen, counts


def _up_to(candidates: Sequence[Candidate], wanted: float) -> tuple[list[TrainingRow], int]:
    """Candidates in the order of a hash, until they have ``wanted`` tokens; with the tokens that they have."""

    def position(candidate: Candidate) -> int:
        row = candidate.row
        return stable_hash("mixture", row["scenario"], row["sample"], row.get("turn", 0))

    rows: list[TrainingRow] = []
    tokens = 0
    for candidate in sorted(candidates, key=position):
        if tokens >= wanted:
            break
        rows.append(candidate.row)
        tokens += candidate.tokens
    return rows, tokens


def _too_few(
    name: str, tokens: int, wanted: float, settings: MixtureSettings, where: str, rows: Sequence[SourceRow]
) -> UserError:
    """The message for a format whose rows do not suffice."""
    scenarios = len({row["scenario"] for row in rows})
    counted, planned = ("prompts", settings.prompts) if name == CHAT else ("scenarios", settings.scenarios)
    samples = "samples" if name == CHAT else "scenario_samples"
    # Fewer than were asked for: the source has no more of them.
    remedies = [f"{counted} ({planned})"] if scenarios >= planned else []
    remedies.append(f"{samples} ({getattr(settings, samples)})")
    return UserError(
        where,
        f"{name} has {tokens} trained tokens of {wanted:.0f} in {len(rows)} rows of {scenarios} {counted}",
        f"raise {' or '.join(remedies)}, or lower tokens ({settings.tokens}) or share ({settings.share:g})",
    )


def ended_whole(rows: Sequence[SourceRow], name: str, counts: Counter[str]) -> list[SourceRow]:
    """The rows whose episodes ended well, with a text. Of the others, the reasons are counted as ``<name>_<reason>``."""
    whole = []
    for row in rows:
        if row["ended"] in WHOLE and row["text"]:
            whole.append(row)
        else:
            counts[f"{name}_{row['ended']}"] += 1
    return whole
