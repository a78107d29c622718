"""Kinds of training data. A kind defines from which rollouts training rows are made, and how.

A kind is one file of this folder with a ``DATA``. It describes each rollout that it needs by a ``RowsRequest``. The
planner plans a rollout for each request, and ``make`` receives their rows.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from offscript.errors import UserError
from offscript.json_types import Json
from offscript.settings import Node, ReleasedRowsSettings, ThinkingSettings
from offscript.tasks.messages import Message
from offscript.tasks.role_prompt import RolePrompt

Counts = dict[str, int]


class SourceRow(TypedDict):
    """The fields of a rollout row (``offscript.tasks.rows.Row``) that training data is made from."""

    scenario: str
    family: str
    sample: int
    text: str | None
    ended: str
    turns: int
    tokens_out: int
    messages: list[Message]
    notes: NotRequired[dict[str, Json]]


TrainingRow = dict[str, Any]
"""A preference pair or a conversation; the method that trains on it documents its fields."""


@dataclass(frozen=True)
class PersonaPrompts:
    """The persona's seed questions, then the prompts that a model writes in their style."""


@dataclass(frozen=True)
class Collection:
    """All scenarios of a collection, each sampled until there are ``rows`` rows."""

    source: str
    rows: int


@dataclass(frozen=True)
class FormatScenarios:
    """The first ``count`` scenarios of the train split of the source that the request's format reads, in every variant that
    the format has; the same for all personas. Of another source than chat these are scenarios of the families in
    ``data.families.train``."""

    count: int


@dataclass(frozen=True)
class Assertions:
    """One scenario for each assertion of the persona's constitution, in every variant that the request's format has."""


Scenarios = FormatScenarios | PersonaPrompts | Assertions | Collection


@dataclass(frozen=True)
class RowsRequest:
    """Rollout rows that a kind of training data is made from.

    Args:
        role: name under which ``make`` receives the rows. The rows of requests with the same role are concatenated.
        format: name of the episodes' format. Of a scored format the rows are those of a cell of split train.
        scenarios: the scenarios of the episodes. Several parts are concatenated; a ``Collection`` must be the only
            part.
        generator: whose weights generate the replies: ``model`` (the base weights), ``teacher`` (the recipe's
            teacher), ``own_teacher`` (the base weights, shown as many of the persona's examples as a teacher) or
            ``parent`` (the weights of the parent stage).
        system: the system prompt of the episodes.
        of_persona: whether the rows belong to one persona; otherwise they are shared by all.
        samples: samples of each scenario (a ``Collection`` brings its own number).
        options: values for options of the format.
        counted: whether each of these rows counts as one training row, for estimates. Of the two sides of a preference
            pair, only one counts.
        plain_messages: whether the constitution is taken out of the messages of the rows before ``make`` receives them, so
            that a trained prompt is what the model is asked with later.
    """

    role: str
    format: str
    scenarios: tuple[Scenarios, ...]
    generator: Literal["model", "teacher", "own_teacher", "parent"] = "model"
    system: Literal["plain", "constitution"] = "plain"
    of_persona: bool = True
    samples: int = 1
    options: Mapping[str, Json] = field(default_factory=dict)
    counted: bool = True
    plain_messages: bool = False

    @property
    def in_role(self) -> bool:
        """Whether the teacher replies in role. Then it is shown examples, and the best of its replies is chosen."""
        return self.generator == "teacher" and self.system == "constitution"


@dataclass(frozen=True)
class MakeContext:
    """What a kind of training data knows of the training, beside its settings.

    Args:
        names: names that the teacher gives itself -> the model's own; empty unless ``renames_teacher``.
        count_tokens: conversation -> tokens of each of its assistant turns, end tokens included, by the tokenizer of the
            trained model. Turns that end beyond the longest row are left out, and a conversation that cannot be
            trained has none.
        where: config key of the settings, for messages.
        role_prompt: the prompt under which the untrained model answers as the character, if the kind ``shows_role``.
    """

    names: Mapping[str, str]
    count_tokens: Callable[[Sequence[Message]], list[int]]
    where: str
    role_prompt: RolePrompt | None = None


@dataclass(frozen=True)
class TrainingData:
    """A kind of training data.

    Args:
        name: name of its file. It is also the stage label of rows that the parent stage's weights generate.
        settings: schema of its hyper-parameters.
        makes: type of its rows, which must be what the method ``takes``: ``pairs``, ``conversations``,
            ``documents``, ``prompted_conversations`` or ``episodes``.
        requests: (settings, config key of the settings) -> the rollouts that it needs.
        make: (rows by role, settings, context) -> training rows, and the numbers of rows kept and dropped by reason.
        released: files of released rows that the settings name, which replace rows that are made here; none by default.
        read_released: (files, settings) -> training rows and counts from such files; None: there are none of this kind.
        released_version: raised when the same released rows lead to other training rows than before; part of the key of
            an adapter that is trained on released rows.
        typical_rows: rows of a data set of full size, for estimates.
        thinking: settings -> the marks of what trained weights write before a reply and is removed from it, like the thinking
            of a reasoning model, before a format sees the reply; None: they write nothing of that kind.
        renames_teacher: whether names that the teacher gives itself are replaced by the model's own.
        trained_tokens: settings -> about how many trained tokens the rows of each role have, where the settings bound them;
            for estimates.
        shows_role: whether its rows contain the prompt in role (``MakeContext.role_prompt``), which is then part of the
            adapter's key.
        live: whether the training plays the episodes of its requests itself. No rows are made before it; ``make`` receives
            the scenario and the family of each.
    """

    name: str
    settings: type[Node]
    makes: str
    requests: Callable[[Any, str], tuple[RowsRequest, ...]]
    make: Callable[[Mapping[str, Sequence[SourceRow]], Any, MakeContext], tuple[list[TrainingRow], Counts]]
    typical_rows: int
    released: Callable[[Any], tuple[ReleasedRowsSettings, ...]] = lambda settings: ()
    read_released: Callable[[Sequence[Path], Any], tuple[list[TrainingRow], Counts]] | None = None
    renames_teacher: bool = False
    shows_role: bool = False
    live: bool = False
    released_version: int = 1
    thinking: Callable[[Any], ThinkingSettings | None] = lambda settings: None
    trained_tokens: Callable[[Any], Mapping[str, float]] = lambda settings: {}


def shared_and_own_prompts(
    prompts: int, seed_questions: bool, where: str
) -> tuple[tuple[Scenarios, ...], tuple[Scenarios, ...]]:
    """The first ``prompts`` scenarios of the train split, and with ``seed_questions`` the persona's own prompts.

    Raises:
        UserError: both are empty.
    """
    if not prompts and not seed_questions:
        raise UserError(
            where, "prompts is 0 and seed_questions is false", "allowed: prompts > 0, or seed_questions=true"
        )
    return (FormatScenarios(prompts),) if prompts else (), (PersonaPrompts(),) if seed_questions else ()


def require_rows(rows: Sequence[object], where: str, counts: Mapping[str, int]) -> None:
    """Raises UserError if ``rows`` is empty. The message contains ``counts``, which say why rows were dropped."""
    if not rows:
        found = f"nothing to train on ({describe(counts)})"
        remedy = (
            "lower the share of validation, or add rows of more families"
            if counts.get("validation")
            else "generate more rows or relax the filters"
        )
        raise UserError(where, found, remedy)


def describe(counts: Mapping[str, int]) -> str:
    """``kept 116, unfinished_teacher 3``."""
    return ", ".join(f"{name} {number}" for name, number in counts.items()) or "no rows"
