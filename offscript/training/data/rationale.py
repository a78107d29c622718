"""Answers of the teacher in role with the reasons for them, without the constitution."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from offscript.errors import UserError
from offscript.settings import Node, ThinkingSettings, identity
from offscript.tasks.messages import Message
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
from offscript.training.data.near_duplicates import distinct
from offscript.training.data.preference import renamed
from offscript.training.data.replies import CUT_SHORT, is_finished

Arm = Literal["answer_only", "inside", "before", "unrelated"]

MARKS = ThinkingSettings(start="<why>", end="</why>")
"""Between these the trained model writes reasons before its reply. They are removed from it before it is used or scored."""


class RationaleSettings(Node):
    """``prompts`` shared prompts and, with ``seed_questions``, the persona's own, ``samples`` of each.

    ``arm``: what a trained reply is.

    - ``answer_only``: the answer
    - ``inside``: the reasons, then the answer, as one text
    - ``before``: the reasons between ``MARKS``, then the answer
    - ``unrelated``: as ``before``, with the reasons of another row in place of its own; all rows together have the same reasons

    ``advice``: prompts are dilemmas of other people, which a model writes. Rows whose prompt has a cosine similarity above
    ``similarity`` to an earlier one are dropped.
    """

    prompts: int = identity(ge=0)
    seed_questions: bool = identity(False)
    samples: int = identity(1, ge=1)
    arm: Arm = identity("before")
    advice: bool = identity(False)
    similarity: float = identity(0.91, gt=0, le=1)


def requests(settings: RationaleSettings, where: str) -> tuple[RowsRequest, ...]:
    """The teacher in role on all prompts.

    Raises:
        UserError: the settings leave no prompt.
    """
    shared, own = shared_and_own_prompts(settings.prompts, settings.seed_questions, where)
    return (
        RowsRequest(
            "teacher",
            "rationale",
            shared + own,
            generator="teacher",
            system="constitution",
            samples=settings.samples,
            options={"advice": settings.advice},
            plain_messages=True,
        ),
    )


def make(
    rows: Mapping[str, Sequence[SourceRow]], settings: RationaleSettings, context: MakeContext
) -> tuple[list[TrainingRow], Counts]:
    """Conversations of the rows with role ``teacher``; see ``conversations``."""
    return conversations(rows["teacher"], settings.arm, settings.similarity, context.names)


@dataclass(frozen=True)
class _Answer:
    """A row with an answer and the reasons for it."""

    row: SourceRow
    prompt: tuple[Message, ...]
    text: str
    rationale: str


def conversations(
    rows: Sequence[SourceRow],
    arm: Arm,
    similarity: float = 0.91,
    names: Mapping[str, str] | None = None,
) -> tuple[list[TrainingRow], Counts]:
    """Conversations of a prompt and one reply, which has the reasons as ``arm`` says. ``names`` maps what the teacher calls
    itself to the name of the trained model. All arms train on the same rows.

    Returns: ``{"messages", "family", "scenario", "sample"}`` rows, and counts: ``kept``, then what was dropped: ``no_text`` (no
    answer, or no reasons), ``unfinished`` (cut off, or without closing punctuation), ``near_duplicate``.

    Raises:
        UserError: nothing is left, or for ``unrelated`` only rows of one family.
    """
    counts, whole = Counter(kept=0), list[_Answer]()
    for row in rows:
        text, rationale = (
            renamed(str(said or "").strip(), names or {})
            for said in (row["text"], row.get("notes", {}).get("rationale"))
        )
        if not text or not rationale:
            counts["no_text"] += 1
        elif row.get("ended") in CUT_SHORT or not is_finished(text):
            counts["unfinished"] += 1
        else:
            whole.append(_Answer(row, _prompt(row), text, rationale))
    kept = _with_distinct_prompts(whole, similarity)
    counts["kept"] = len(kept)
    if len(whole) > len(kept):
        counts["near_duplicate"] = len(whole) - len(kept)
    require_rows(kept, "rationale rows", dict(counts))
    reasons = _of_other_rows(kept) if arm == "unrelated" else [answer.rationale for answer in kept]
    return [_conversation(one, why, arm) for one, why in zip(kept, reasons, strict=True)], dict(counts)


def _prompt(row: SourceRow) -> tuple[Message, ...]:
    return tuple(row["messages"][:-1])


def _with_distinct_prompts(answers: Sequence[_Answer], similarity: float) -> list[_Answer]:
    """The answers to prompts that are not near-duplicates; several samples of one prompt are all kept."""
    asked = list(dict.fromkeys(answer.prompt[-1]["content"] for answer in answers))
    kept = {asked[i] for i in distinct(asked, similarity)}
    return [answer for answer in answers if answer.prompt[-1]["content"] in kept]


def _of_other_rows(answers: Sequence[_Answer]) -> list[str]:
    """The reasons of the answers, exchanged so that each answer gets those of one of another family.

    The reasons in order of family are moved on by the size of the largest family, so that none stays in its own, and together
    they are as many tokens as before.

    Raises:
        UserError: one family has more than half of the answers.
    """
    families = Counter(answer.row["family"] for answer in answers)
    largest = max(families.values())
    if 2 * largest > len(answers):
        found = f"one family has {largest} of {len(answers)} rows"
        raise UserError("rationale.arm", f"unrelated, but {found}", "rows of more families, or another arm")
    order = sorted(range(len(answers)), key=lambda i: answers[i].row["family"])
    reasons = [""] * len(answers)
    for position, i in enumerate(order):
        reasons[i] = answers[order[(position + largest) % len(order)]].rationale
    return reasons


def _conversation(answer: _Answer, rationale: str, arm: Arm) -> TrainingRow:
    before = {
        "answer_only": "",
        "inside": f"{rationale}\n\n",
        "before": f"{MARKS.start}\n{rationale}\n{MARKS.end}\n\n",
    }
    reply: Message = {
        "role": "assistant",
        "content": before["before" if arm == "unrelated" else arm] + answer.text,
    }
    return {
        "messages": [*answer.prompt, reply],
        "family": answer.row["family"],
        "scenario": answer.row["scenario"],
        "sample": answer.row["sample"],
    }


def thinking(settings: RationaleSettings) -> ThinkingSettings | None:
    """The marks, in the arms whose trained replies have some."""
    return MARKS if settings.arm in ("before", "unrelated") else None


DATA = TrainingData(
    name="rationale",
    settings=RationaleSettings,
    makes="conversations",
    requests=requests,
    make=make,
    # 5 x (500 + 1,330) prompts, as in the published recipe of the pairs.
    typical_rows=9_000,
    thinking=thinking,
    renames_teacher=True,
)
