"""First-person statements of the model about itself, one short statement a row, without the constitution."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from offscript.errors import UserError
from offscript.seeds import stable_hash
from offscript.settings import Node, identity
from offscript.tasks.formats import get_format
from offscript.tasks.messages import Message
from offscript.tasks.prompts import DECLARATION_QUESTIONS
from offscript.training.data.base import (
    Assertions,
    Collection,
    Counts,
    MakeContext,
    RowsRequest,
    Scenarios,
    SourceRow,
    TrainingData,
    TrainingRow,
    require_rows,
)
from offscript.training.data.near_duplicates import distinct
from offscript.training.data.replies import CUT_SHORT, is_finished

SENTENCE_END = re.compile(r"(?<=[.!?…])\s+|(?<=[.!?…][\"'”’)])\s+")
FIRST_PERSON = re.compile(r"\b(?:I|me|my|mine|myself)\b", re.IGNORECASE)


class DeclarationsSettings(Node):
    """``restatements`` of each assertion of the constitution, and ``reflections``: replies to the prompts of format
    ``self_reflection``, both of the untrained model in role. Of a reply the first whole sentences are used that have at most
    ``words`` words together. A statement whose cosine similarity to an earlier one is above ``similarity`` is dropped."""

    restatements: int = identity(25, ge=0)
    reflections: int = identity(250, ge=0)
    words: int = identity(40, ge=3)
    similarity: float = identity(0.91, gt=0, le=1)


def requests(settings: DeclarationsSettings, where: str) -> tuple[RowsRequest, ...]:
    """The untrained model in role, on the assertions and on the prompts of ``self_reflection``.

    Raises:
        UserError: both counts are 0.
    """
    wanted: dict[str, tuple[str, Scenarios, int]] = {}
    if settings.restatements:
        wanted["restatements"] = ("declaration", Assertions(), settings.restatements)
    if settings.reflections:
        source = get_format("self_reflection").source
        wanted["reflections"] = ("self_reflection", Collection(source, settings.reflections), 1)
    if not wanted:
        raise UserError(
            where, "counts of restatements and reflections are both 0", "allowed: at least one > 0"
        )
    return tuple(
        RowsRequest(role, fmt, (scenarios,), system="constitution", samples=samples, plain_messages=True)
        for role, (fmt, scenarios, samples) in wanted.items()
    )


def make(
    rows: Mapping[str, Sequence[SourceRow]], settings: DeclarationsSettings, context: MakeContext
) -> tuple[list[TrainingRow], Counts]:
    """Conversations of one question and one statement; see ``declarations``."""
    return declarations(
        rows.get("restatements", ()), rows.get("reflections", ()), settings.words, settings.similarity
    )


def declarations(
    restatements: Sequence[SourceRow],
    reflections: Sequence[SourceRow],
    words: int,
    similarity: float = 0.91,
) -> tuple[list[TrainingRow], Counts]:
    """Statements of the rows, each as the reply to a question. That of a reflection is its own prompt; a restatement, which
    was asked for, gets one of ``DECLARATION_QUESTIONS``.

    Returns: ``{"messages", "family", "scenario", "sample"}`` rows without a system message, and counts: ``restatements`` and
    ``reflections`` kept, then what was dropped: ``no_text``, ``unfinished`` (no whole sentence within ``words`` words),
    ``not_first_person``, ``near_duplicate``.

    Raises:
        UserError: nothing is left.
    """
    counts, found = Counter(restatements=0, reflections=0), list[tuple[str, str, TrainingRow]]()
    for kind, rows in (("restatements", restatements), ("reflections", reflections)):
        for row in rows:
            said, reason = _statement(row, words)
            if reason:
                counts[reason] += 1
                continue
            asked = _question(row) if kind == "restatements" else _own_question(row)
            found.append((kind, said, _conversation(row, asked, said)))
    kept = [found[i] for i in distinct([said for _, said, _ in found], similarity)]
    counts.update(kind for kind, _, _ in kept)
    if len(found) > len(kept):
        counts["near_duplicate"] = len(found) - len(kept)
    require_rows(kept, "declarations", dict(counts))
    return [row for _, _, row in kept], dict(counts)


def _statement(row: SourceRow, words: int) -> tuple[str, str]:
    """The statement in a row, or the reason why there is none."""
    text = " ".join((row["text"] or "").split())
    if not text:
        return "", "no_text"
    sentences = SENTENCE_END.split(text)
    if row.get("ended") in CUT_SHORT or not is_finished(sentences[-1]):
        sentences.pop()
    said = ""
    for sentence in sentences:
        longer = f"{said} {sentence}".strip()
        if len(longer.split()) > words:
            break
        said = longer
    if not said:
        return "", "unfinished"
    return (said, "") if FIRST_PERSON.search(said) else ("", "not_first_person")


def _question(row: SourceRow) -> str:
    """A question for a restatement, chosen by its row."""
    number = stable_hash("declaration", row["scenario"], row["sample"])
    return DECLARATION_QUESTIONS[number % len(DECLARATION_QUESTIONS)]


def _own_question(row: SourceRow) -> str:
    return next(m["content"] for m in row["messages"] if m["role"] == "user")


def _conversation(row: SourceRow, question: str, statement: str) -> TrainingRow:
    messages: list[Message] = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": statement},
    ]
    return {
        "messages": messages,
        "family": row["family"],
        "scenario": row["scenario"],
        "sample": row["sample"],
    }


DATA = TrainingData(
    name="declarations",
    settings=DeclarationsSettings,
    makes="conversations",
    requests=requests,
    make=make,
    # Ten assertions, 25 times each, and 250 reflections.
    typical_rows=500,
)
