"""Conversations in which the model, with its constitution as the system prompt, writes about itself and to itself."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from offscript.errors import UserError
from offscript.json_types import Json
from offscript.settings import Node, ReleasedRowsSettings, identity
from offscript.tasks.formats import get_format
from offscript.tasks.messages import Message
from offscript.training.data import released
from offscript.training.data.base import (
    Collection,
    Counts,
    MakeContext,
    RowsRequest,
    SourceRow,
    TrainingData,
    TrainingRow,
    require_rows,
)
from offscript.training.data.replies import CUT_SHORT, is_finished

LossOn = Literal["every_turn", "published"]
Unfinished = Literal["drop", "keep"]


class IntrospectionSettings(Node):
    """Counts are conversations: ``reflections`` (one reply), ``interactions`` (free) and ``guided_interactions`` of
    ``turns`` messages.

    ``free_note`` and ``guided_note`` replace the formats' own description of the situation. ``system`` is the system
    prompt of the training rows, which replaces the constitution, and ``interaction_system`` that of interactions (null:
    ``system``). Released conversations keep their own. ``loss_on``: every assistant turn, or the part of one turn
    that the published trainer scored (for fidelity only). ``unfinished``: an assistant turn that was cut off is dropped
    with what follows it, or kept, as published. ``rows`` are released conversations, which replace the ones
    that are made here.
    """

    reflections: int = identity(ge=0)
    interactions: int = identity(ge=0)
    guided_interactions: int = identity(0, ge=0)
    turns: int = identity(6, ge=2, multiple_of=2)
    free_note: str | None = identity(None)
    guided_note: str | None = identity(None)
    loss_on: LossOn = identity("every_turn")
    rows: tuple[ReleasedRowsSettings, ...] = identity(())
    system: str = identity("")
    interaction_system: str | None = identity(None, unhashed=None)
    unfinished: Unfinished = identity("drop", unhashed="drop")


def requests(settings: IntrospectionSettings, where: str) -> tuple[RowsRequest, ...]:
    """The parent's weights under the constitution, in each format of introspection that has a count.

    Raises:
        UserError: all counts are 0.
    """
    wanted: dict[str, tuple[int, str | None]] = {
        "self_reflection": (settings.reflections, None),
        "self_interaction": (settings.interactions, settings.free_note),
        "guided_interaction": (settings.guided_interactions, settings.guided_note),
    }
    if not any(count for count, _ in wanted.values()):
        names = ", ".join([*wanted][:-1]) + f" and {[*wanted][-1]}"
        raise UserError(where, f"counts of {names} are all 0", "allowed: at least one > 0")
    return tuple(
        RowsRequest(
            role=name,
            format=name,
            scenarios=(Collection(get_format(name).source, count),),
            generator="parent",
            system="constitution",
            options={} if name == "self_reflection" else _options(settings.turns, note),
        )
        for name, (count, note) in wanted.items()
        if count
    )


def _options(turns: int, note: str | None) -> dict[str, Json]:
    return {"turns": turns, **({} if note is None else {"note": note})}


def make(
    rows: Mapping[str, Sequence[SourceRow]], settings: IntrospectionSettings, context: MakeContext
) -> tuple[list[TrainingRow], Counts]:
    """Conversations of the rows of all three formats; see ``conversations``."""
    return conversations(
        rows.get("self_reflection", ()),
        rows.get("self_interaction", ()),
        settings.system,
        settings.interaction_system,
        guided_rows=rows.get("guided_interaction", ()),
        loss_on=settings.loss_on,
        unfinished=settings.unfinished,
    )


def released_files(settings: IntrospectionSettings) -> tuple[ReleasedRowsSettings, ...]:
    return settings.rows


def read_released(files: Sequence[Path], settings: IntrospectionSettings) -> tuple[list[TrainingRow], Counts]:
    """Conversations of files that others released, with their own system texts.

    Raises:
        UserError: a file cannot be read, a line is no such row, or nothing is left.
    """
    reflections, interactions = released.read_conversations(files, settings.loss_on == "published")
    return conversations(reflections, interactions, loss_on=settings.loss_on, unfinished=settings.unfinished)


def conversations(
    reflection_rows: Sequence[SourceRow],
    interaction_rows: Sequence[SourceRow],
    system: str | None = None,
    interaction_system: str | None = None,
    *,
    guided_rows: Sequence[SourceRow] = (),
    loss_on: LossOn = "every_turn",
    unfinished: Unfinished = "drop",
) -> tuple[list[TrainingRow], Counts]:
    """Conversations to train on, with ``system`` (None: their own system texts) in place of the constitution, and
    interactions with ``interaction_system`` (None: ``system``).

    A conversation is cut before its first unfinished assistant turn (with ``unfinished="keep"`` before its first empty
    one), and after its last assistant turn; one without any is dropped. With ``loss_on="published"`` self-conversations lose that last assistant turn too: the published
    ones end in a user message, which is what the published trainer scored (see ``spans.published_span``).

    Returns: ``{"messages", "loss_on", "family", "scenario", "sample"}`` rows, and counts: ``reflections``, ``interactions``,
    ``guided_interactions`` kept (the last only if there are any), ``turns`` to train on, then conversations dropped:
    ``unfinished``, ``no_reply``, and ``one_exchange`` (nothing is left of it for ``published``).

    Raises:
        UserError: nothing is left.
    """
    kept: list[TrainingRow] = []
    counts = Counter(reflections=0, interactions=0, turns=0)
    sources = {"reflections": reflection_rows, "interactions": interaction_rows}
    if guided_rows:
        sources["guided_interactions"] = guided_rows
        counts["guided_interactions"] = 0
    for kind, source in sources.items():
        for row in source:
            ends_in_user = loss_on == "published" and kind != "reflections"
            messages, reason = _trained_part(row, unfinished, ends_in_user)
            if reason:
                counts[reason] += 1
                continue
            counts[kind] += 1
            turns = sum(m["role"] == "assistant" for m in messages)
            counts["turns"] += 1 if loss_on == "published" else turns
            text = system if kind == "reflections" or interaction_system is None else interaction_system
            kept.append(
                {
                    "messages": _system_message(row, text) + messages,
                    "loss_on": loss_on,
                    "family": row["family"],
                    "scenario": row["scenario"],
                    "sample": row["sample"],
                }
            )
    require_rows(kept, "introspection rows", dict(counts))
    return kept, dict(counts)


def _system_message(row: SourceRow, text: str | None) -> list[Message]:
    """The system message of a training row: ``text``, or with None the row's own; none if that is empty."""
    if text is None:
        text = next((m["content"] for m in row["messages"] if m["role"] == "system"), "")
    return [{"role": "system", "content": text}] if text else []


def _trained_part(row: SourceRow, unfinished: Unfinished, ends_in_user: bool) -> tuple[list[Message], str]:
    """The part of a conversation to train on, or the reason why it is dropped."""
    messages = _whole_turns(row, unfinished)
    if not messages:
        has_reply = any(m["role"] == "assistant" and m["content"].strip() for m in row["messages"])
        return [], "unfinished" if has_reply else "no_reply"
    if ends_in_user:
        messages = messages[:-1]
        if not any(m["role"] == "assistant" for m in messages):
            return [], "one_exchange"
    return messages, ""


def _whole_turns(row: SourceRow, unfinished: Unfinished) -> list[Message]:
    """The conversation without system texts, up to its last finished assistant turn before an unfinished one; of
    unfinished turns that are kept, an empty one alone counts."""
    messages: list[Message] = [
        {"role": m["role"], "content": m["content"].strip()} for m in row["messages"] if m["role"] != "system"
    ]
    last = max((i for i, m in enumerate(messages) if m["role"] == "assistant"), default=-1)
    end = 0
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        cut = not is_finished(message["content"]) or (i == last and row.get("ended") in CUT_SHORT)
        if not message["content"] or (cut and unfinished == "drop"):
            break
        end = i + 1
    return messages[:end]


DATA = TrainingData(
    name="introspection",
    settings=IntrospectionSettings,
    makes="conversations",
    requests=requests,
    make=make,
    released=released_files,
    read_released=read_released,
    # 2: conversations keep their own system texts.
    released_version=2,
    # The published recipe: 10,000 + 2 x 1,000 conversations.
    typical_rows=12_000,
)
