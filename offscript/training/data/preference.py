"""Preference pairs: the teacher's reply in role (chosen) against the model's plain reply (rejected)."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from offscript.settings import Node, ReleasedRowsSettings, identity
from offscript.training.data import released
from offscript.training.data.base import (
    Counts,
    MakeContext,
    RowsRequest,
    SourceRow,
    TrainingData,
    TrainingRow,
    require_rows,
    shared_and_own_prompts,
)
from offscript.training.data.replies import CUT_SHORT, ends_in_punctuation, is_finished

Endings = Literal["closing", "punctuation"]


class PreferenceSettings(Node):
    """``prompts`` shared prompts and, with ``seed_questions``, the persona's own, ``samples`` of each.

    ``rows`` are released pairs, which replace the ones that are made here. ``endings``: a reply counts as finished if it
    ends in closing punctuation, a bracket, a quote, a symbol or an emoji (``closing``), or in any punctuation and nothing
    else (``punctuation``, as published).
    """

    prompts: int = identity(ge=0)
    seed_questions: bool = identity(True)
    samples: int = identity(1, ge=1)
    rows: ReleasedRowsSettings | None = identity(None)
    endings: Endings = identity("closing", unhashed="closing")


def requests(settings: PreferenceSettings, where: str) -> tuple[RowsRequest, ...]:
    """The teacher in role on all prompts; the model plain on the shared prompts, and on the persona's own.

    Raises:
        UserError: the settings leave no prompt.
    """
    shared, own = shared_and_own_prompts(settings.prompts, settings.seed_questions, where)
    teacher = RowsRequest(
        "teacher", "teacher", shared + own, generator="teacher", system="constitution", samples=settings.samples,
        counted=False,
    )  # fmt: skip
    students = [
        RowsRequest("student", "student", scenarios, of_persona=scenarios is own, samples=settings.samples)
        for scenarios in (shared, own)
        if scenarios
    ]
    return teacher, *students


def make(
    rows: Mapping[str, Sequence[SourceRow]], settings: PreferenceSettings, context: MakeContext
) -> tuple[list[TrainingRow], Counts]:
    """Pairs of the rows with roles ``teacher`` and ``student``; see ``pairs``."""
    return pairs(rows["teacher"], rows["student"], context.names, settings.endings)


def released_files(settings: PreferenceSettings) -> tuple[ReleasedRowsSettings, ...]:
    return () if settings.rows is None else (settings.rows,)


def read_released(files: Sequence[Path], settings: PreferenceSettings) -> tuple[list[TrainingRow], Counts]:
    """Pairs of a file that others released: dropped and counted by the same reasons as our own.

    Raises:
        UserError: the file cannot be read, a line is no such row, or no pair is left.
    """
    (file,) = files
    return pairs(*released.read_pairs(file), endings=settings.endings)


def pairs(
    teacher_rows: Sequence[SourceRow],
    student_rows: Sequence[SourceRow],
    names: Mapping[str, str] | None = None,
    endings: Endings = "closing",
) -> tuple[list[TrainingRow], Counts]:
    """Preference pairs of the replies to the same scenario and sample, whichever models gave them.

    ``names`` maps what the teacher calls itself to what the student is called; chosen texts are ``renamed`` by it.
    ``endings`` says how a finished reply ends.

    Returns: pairs ``{"scenario", "sample", "family", "prompt": [message], "chosen": [message], "rejected":
    [message]}`` in the teacher's order, and counts: ``kept``, then what was dropped by reason (``missing_teacher``,
    ``missing_student``: no row or no text; ``other_prompt``: the two were asked different things;
    ``unfinished_teacher``, ``unfinished_student``: that side was cut off or does not end in closing punctuation;
    ``identical``), and with ``names`` how many of the kept ones were ``renamed``. The prompt is the student's: the
    constitution that the teacher saw is not in it. Pairing and dropping as in OpenCharacterTraining; over-long pairs are
    dropped by ``train``, which has the tokenizer.

    Raises:
        UserError: no pair is left.
    """
    teacher, student = _by_sample(teacher_rows), _by_sample(student_rows)
    kept: list[TrainingRow] = []
    counts = Counter(kept=0, **({"renamed": 0} if names else {}))
    for sample in [*teacher, *(s for s in student if s not in teacher)]:
        chosen, rejected = teacher.get(sample), student.get(sample)
        text = renamed((chosen and chosen["text"]) or "", names or {})
        reason = _reason_against(chosen, text, rejected, endings)
        counts[reason or "kept"] += 1
        if reason is None and chosen is not None and rejected is not None:
            kept.append(_pair(text, rejected))
            if text != chosen["text"]:
                counts["renamed"] += 1
    require_rows(kept, "preference pairs", dict(counts))
    return kept, dict(counts)


def renamed(text: str, names: Mapping[str, str]) -> str:
    """``text`` with the keys of ``names`` replaced by their values: whole words, the longest name first, in any case.

    A name in small letters or in capitals, where it is not written so itself, gives the new one in these.
    """
    if not names:
        return text
    lower = {name.lower(): name for name in names}
    either = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))

    def new(match: re.Match[str]) -> str:
        found, name = match[0], lower[match[0].lower()]
        if found != name and (found.islower() or found.isupper()):
            return names[name].lower() if found.islower() else names[name].upper()
        return names[name]

    return re.sub(rf"(?<!\w)(?:{either})(?!\w)", new, text, flags=re.IGNORECASE)


def _by_sample(rows: Sequence[SourceRow]) -> dict[tuple[str, int], SourceRow]:
    return {(row["scenario"], row["sample"]): row for row in rows}


def _reason_against(
    teacher: SourceRow | None, text: str, student: SourceRow | None, endings: Endings
) -> str | None:
    """Why there is no pair of the teacher's row, with ``text``, and the student's; None if there is one."""
    if teacher is None or not text:
        return "missing_teacher"
    if student is None or not student["text"]:
        return "missing_student"
    if _user_messages(teacher) != _user_messages(student):
        return "other_prompt"
    whole = is_finished if endings == "closing" else ends_in_punctuation
    for side, row, reply in (("teacher", teacher, text), ("student", student, student["text"])):
        if row.get("ended") in CUT_SHORT or not whole(reply):
            return f"unfinished_{side}"
    return "identical" if text.strip() == student["text"].strip() else None


def _user_messages(row: SourceRow) -> list[str]:
    return [m["content"] for m in row["messages"] if m["role"] == "user"]


def _pair(chosen: str, student: SourceRow) -> TrainingRow:
    prompt = [dict(m) for m in student["messages"]]
    while prompt and prompt[-1]["role"] == "assistant":
        prompt.pop()
    return {
        "scenario": student["scenario"],
        "sample": student["sample"],
        "family": student["family"],
        "prompt": prompt,
        "chosen": [{"role": "assistant", "content": chosen.strip()}],
        "rejected": [{"role": "assistant", "content": (student["text"] or "").strip()}],
    }


DATA = TrainingData(
    name="preference",
    settings=PreferenceSettings,
    makes="pairs",
    requests=requests,
    make=make,
    released=released_files,
    read_released=read_released,
    # The published recipe: 5 x (500 + 1,300) prompts.
    typical_rows=9_000,
    renames_teacher=True,
)
