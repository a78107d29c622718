"""Texts about the character, for next-token training: the teacher writes them with the whole constitution before it."""

from collections import Counter
from collections.abc import Mapping, Sequence

from offscript.json_types import Json
from offscript.settings import Node, identity
from offscript.tasks.prompts import DOCUMENT_DOMAINS, DOCUMENT_TYPES
from offscript.training.data.base import (
    Assertions,
    Counts,
    MakeContext,
    RowsRequest,
    SourceRow,
    TrainingData,
    TrainingRow,
    require_rows,
)
from offscript.training.data.near_duplicates import distinct
from offscript.training.data.preference import renamed
from offscript.training.data.replies import CUT_SHORT, is_finished


class DocumentsSettings(Node):
    """For each assertion of the constitution, ``samples`` texts of every type in ``types`` and every place in ``domains``
    (names of ``offscript/tasks/prompts.py``), of about ``words`` words. A text whose cosine similarity to an earlier one is
    above ``similarity`` is dropped."""

    types: tuple[str, ...] = identity(tuple(DOCUMENT_TYPES), min_length=1)
    domains: tuple[str, ...] = identity(tuple(DOCUMENT_DOMAINS), min_length=1)
    samples: int = identity(1, ge=1)
    words: int = identity(300, ge=10)
    similarity: float = identity(0.91, gt=0, le=1)


def requests(settings: DocumentsSettings, where: str) -> tuple[RowsRequest, ...]:
    """The teacher, not in role, on every assertion in every type and place."""
    options: dict[str, Json] = {
        "types": [*settings.types],
        "domains": [*settings.domains],
        "words": settings.words,
    }
    return (
        RowsRequest(
            "documents",
            "document",
            (Assertions(),),
            generator="teacher",
            samples=settings.samples,
            options=options,
        ),
    )


def make(
    rows: Mapping[str, Sequence[SourceRow]], settings: DocumentsSettings, context: MakeContext
) -> tuple[list[TrainingRow], Counts]:
    """Documents of the rows with role ``documents``; see ``documents``."""
    return documents(rows["documents"], settings.similarity, context.names)


def documents(
    rows: Sequence[SourceRow], similarity: float = 0.91, names: Mapping[str, str] | None = None
) -> tuple[list[TrainingRow], Counts]:
    """The texts of ``rows``, without those that are not whole or repeat an earlier one.

    ``names`` maps what the teacher calls itself to the name of the trained model.

    Returns: ``{"text", "family", "scenario", "sample"}`` rows, and counts: ``kept``, then what was dropped: ``no_text``,
    ``unfinished`` (cut off, or without closing punctuation), ``near_duplicate``.

    Raises:
        UserError: nothing is left.
    """
    counts, whole = Counter(kept=0), list[TrainingRow]()
    for row in rows:
        text = renamed((row["text"] or "").strip(), names or {})
        if not text:
            counts["no_text"] += 1
        elif row.get("ended") in CUT_SHORT or not is_finished(text):
            counts["unfinished"] += 1
        else:
            fields = {"family": row["family"], "scenario": row["scenario"], "sample": row["sample"]}
            whole.append({"text": text, **fields})
    kept = [whole[i] for i in distinct([row["text"] for row in whole], similarity)]
    counts["kept"] = len(kept)
    if len(whole) > len(kept):
        counts["near_duplicate"] = len(whole) - len(kept)
    require_rows(kept, "documents", dict(counts))
    return kept, dict(counts)


DATA = TrainingData(
    name="documents",
    settings=DocumentsSettings,
    makes="documents",
    requests=requests,
    make=make,
    # Ten assertions in six types and six places, twelve times each.
    typical_rows=4_320,
    renames_teacher=True,
)
