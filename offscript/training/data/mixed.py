"""Conversations in several formats: whole episodes of the teacher in role, in chat and at work, without the constitution."""

from collections import Counter
from collections.abc import Mapping, Sequence

from offscript.errors import UserError
from offscript.seeds import stable_hash
from offscript.settings import identity
from offscript.tasks.messages import Message
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
    in_role,
    token_targets,
)
from offscript.training.data.preference import renamed
from offscript.training.data.replies import is_finished


class MixedSettings(MixtureSettings):
    """``framed``: every chat row begins with the system text of an episode of ``formats``, which offers tools, and nothing
    else of these episodes is trained on (with ``share=0``)."""

    framed: bool = identity(False)


def requests(settings: MixedSettings, where: str) -> tuple[RowsRequest, ...]:
    """The teacher in role on chat prompts, and on the scenarios of each format.

    Raises:
        UserError: a format is unknown, or there is nothing to frame.
    """
    check_formats(settings.formats, where)
    if settings.framed and settings.share:
        raise UserError(
            f"{where}.framed", f"true with share {settings.share:g}", "allowed: share=0, or false"
        )
    chat, at_work = [], []
    if settings.share < 1:
        chat = [in_role(CHAT, "teacher", FormatScenarios(settings.prompts), settings.samples)]
    if settings.share or settings.framed:
        scenarios, samples = FormatScenarios(settings.scenarios), settings.scenario_samples
        trained = settings.share > 0
        at_work = [in_role(name, name, scenarios, samples, trained) for name in settings.formats]
    return (*chat, *at_work)


def make(
    rows: Mapping[str, Sequence[SourceRow]], settings: MixedSettings, context: MakeContext
) -> tuple[list[TrainingRow], Counts]:
    """Rows ``{"messages", "trained_turns", "family", "scenario", "sample"}`` of whole episodes that ended well; the last
    ``trained_turns`` assistant turns are those that the teacher wrote.

    Returns: the rows, and counts: rows and trained tokens of each format, then what was dropped, by format and reason: how
    the episode ended, ``unfinished`` (a chat reply without closing punctuation), ``too_long`` (it does not fit the
    longest row).

    Raises:
        UserError: the rows of a format have fewer tokens than are wanted, or no episode has a system text.
    """
    dropped = Counter[str]()
    pools = {
        name: [
            candidate
            for row in ended_whole(found, name, dropped)
            if (candidate := _candidate(row, name, context, dropped)) is not None
        ]
        for name, found in rows.items()
    }
    chosen, counts = choose(pools, settings, context.where, rows)
    if settings.framed:
        chosen = _framed(chosen, [row for name in settings.formats for row in rows[name]], context.where)
    return chosen, {**counts, **dropped}


def _candidate(row: SourceRow, name: str, context: MakeContext, dropped: Counter[str]) -> Candidate | None:
    """The training row of an episode; None, with the reason counted, if it is not trained on."""
    if name == CHAT and not is_finished(row["text"] or ""):
        dropped[f"{name}_unfinished"] += 1
        return None
    messages: list[Message] = [
        {**m, "content": renamed(m["content"].strip(), context.names)} if m["role"] == "assistant" else m
        for m in row["messages"]
    ]
    tokens = context.count_tokens(messages)
    turns = sum(m["role"] == "assistant" for m in messages)
    if len(tokens) < turns:
        dropped[f"{name}_too_long"] += 1
        return None
    own = min(row["turns"], turns)
    plain: TrainingRow = {
        "messages": messages,
        "trained_turns": own,
        "family": row["family"],
        "scenario": row["scenario"],
        "sample": row["sample"],
    }
    return Candidate(plain, sum(tokens[turns - own :]))


def _framed(chosen: Sequence[TrainingRow], episodes: Sequence[SourceRow], where: str) -> list[TrainingRow]:
    """``chosen`` with the system text of one of ``episodes``, by a hash, before the messages.

    Raises:
        UserError: none of the episodes has a system text.
    """
    systems = [row["messages"][0]["content"] for row in episodes if row["messages"][0]["role"] == "system"]
    frames = sorted(set(systems))
    if not frames:
        raise UserError(
            f"{where}.formats", "framed=true, and no episode has a system text", "add agentic_email"
        )
    framed = []
    for row in chosen:
        frame = frames[stable_hash("frame", row["scenario"], row["sample"]) % len(frames)]
        plain = [m for m in row["messages"] if m["role"] != "system"]
        framed.append({**row, "messages": [{"role": "system", "content": frame}, *plain]})
    return framed


DATA = TrainingData(
    name="mixed",
    settings=MixedSettings,
    makes="conversations",
    requests=requests,
    make=make,
    typical_rows=2_000,
    renames_teacher=True,
    trained_tokens=token_targets,
)
