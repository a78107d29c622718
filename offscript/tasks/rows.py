"""The type of a rollout row: what one episode leaves in its cell's JSONL file."""

from typing import NotRequired, TypedDict

from offscript.json_types import Json
from offscript.tasks.messages import Message


class Row(TypedDict):
    """One finished episode.

    ``key`` is that of the cell; ``text`` is the text to score, None where the episode left none; ``ended`` says why it
    ended; ``turns`` counts replies, ``tokens_in`` and ``tokens_out`` tokens over all of them. ``replies`` are the
    model's replies in order, as it wrote them; they are kept where thinking was removed from one of them. ``variant``
    is that of the scenario, where its format has variants; it also ends ``scenario``. ``examples`` are the positions of the
    persona's examples that preceded the conversation, in this order; ``messages`` begin after them. A row that was selected from several samples has the number of the
    ``chosen`` one, and the ``scores`` of all of them.
    """

    key: str
    model: str
    stage: str
    persona: str | None
    format: str
    split: str
    seed: int
    scenario: str
    family: str
    sample: int
    text: str | None
    ended: str
    turns: int
    messages: list[Message]
    tool_calls: int
    tokens_in: int
    tokens_out: int
    variant: NotRequired[str]
    examples: NotRequired[list[int]]
    chosen: NotRequired[int]
    scores: NotRequired[list[float | None]]
    replies: NotRequired[list[str]]
    notes: NotRequired[dict[str, Json]]
