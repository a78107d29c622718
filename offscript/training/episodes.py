"""Episodes that a training plays: by the weights that are trained, through the scheduler and the formats of all rollouts, with
the token ids as they were sampled."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from offscript.rollouts.engines.base import Completion, Request, SampledTokens, Sampling
from offscript.rollouts.scheduler import CellRun, run_episodes
from offscript.settings import EngineSettings
from offscript.tasks.rows import Row
from offscript.tasks.scenarios import Scenario

if TYPE_CHECKING:
    from offscript.rollouts.engines.trained import TrainedEngine

Place = tuple[str, str]
"""Format and scenario id."""


class Scorer(Protocol):
    """What episodes are rewarded for, and what a training is watched by."""

    def rewards(self, rows: Sequence[Row], length_multiple: float) -> Mapping[str, Sequence[float | None]]:
        """The reward of each of ``rows`` by its name; None where it does not apply. A text is too long above
        ``length_multiple`` times the usual length."""
        ...

    def measures(self, rows: Sequence[Row]) -> dict[str, float]:
        """Means over ``rows``, by name."""
        ...


@dataclass(frozen=True)
class LiveEpisodes:
    """What a training that plays its episodes needs beside its rows.

    Args:
        cells: how the episodes of each format are played, with all scenarios; labels and sampling are those of scored rows.
        scorer: scores them.
        engine: bounds of the batches in which replies are generated.
        identity: the keys of the cells and of all that the scorer consists of.
    """

    cells: Mapping[str, CellRun]
    scorer: Scorer
    engine: EngineSettings
    identity: tuple[str, ...]

    @functools.cached_property
    def scenarios(self) -> Mapping[Place, Scenario]:
        """The scenarios by their places."""
        return {(name, s.id): s for name, cell in self.cells.items() for s in cell.scenarios}


@dataclass(frozen=True)
class Turn:
    """A reply of the trained weights: its tokens, and whether it was cut at a limit."""

    tokens: SampledTokens
    cut: bool


@dataclass
class PlayedEpisode:
    """The row of an episode, and the replies in it that the trained weights generated, in order."""

    row: Row
    turns: list[Turn] = field(default_factory=list)


def play(
    engine: "TrainedEngine",
    live: LiveEpisodes,
    places: Sequence[Place],
    samples: int,
    key: str,
    temperature: float | None = None,
) -> list[PlayedEpisode]:
    """Plays the scenario at each of ``places`` ``samples`` times.

    Args:
        places: no place twice.
        key: the episodes are a function of it, of their scenarios and of the weights.
        temperature: replies are sampled at it from all tokens, without top-p and repetition penalty; None: as scored ones.

    Returns: ``samples`` episodes for each place, in the order of ``places``.

    Raises:
        RolloutFailed: an episode left no row.
    """
    assert len(set(places)) == len(places), "a place twice would have the same replies twice"
    runs = []
    for name, cell in live.cells.items():
        scenarios = [live.scenarios[place] for place in places if place[0] == name]
        if scenarios:
            sampling = cell.sampling
            if temperature is not None:
                sampling = Sampling(temperature, 1.0, 1.0, sampling.max_tokens)
            runs.append(
                dataclasses.replace(
                    cell,
                    key=f"{key}/{name}",
                    path=None,
                    scenarios=scenarios,
                    samples=samples,
                    sampling=sampling,
                )
            )
    rows: dict[tuple[str, str, int], Row] = {}
    turns: dict[tuple[str, str, int], list[Turn]] = {}

    def on_row(run: CellRun, row: Row) -> None:
        rows[run.format.name, row["scenario"], row["sample"]] = row

    def on_reply(
        run: CellRun, scenario: Scenario, sample: int, request: Request, completion: Completion
    ) -> None:
        # The replies of the base in a format with two speakers are not trained.
        if request.adapter is None:
            return
        assert completion.tokens is not None
        turn = Turn(completion.tokens, completion.finish_reason != "stop")
        turns.setdefault((run.format.name, scenario.id, sample), []).append(turn)

    with engine.current_weights():
        run_episodes(runs, engine, live.engine.max_live, on_row, on_reply=on_reply)
    episodes = [(*place, sample) for place in places for sample in range(samples)]
    return [PlayedEpisode(rows[episode], turns.get(episode, [])) for episode in episodes]


# ---------------------------------------------------------------- token sequences


@dataclass(frozen=True)
class TrainedSequence:
    """An episode as it is trained on: a prompt, and the ``completion`` after it with a mask and log-probabilities of equal
    lengths. ``mask`` is 1 for sampled tokens and 0 for all others: results of tools, messages of the user, and what the chat
    template writes between. ``left_out`` is the number of replies that are not in it; ``why`` says why nothing is trained.
    """

    prompt: list[int]
    completion: list[int]
    mask: list[int]
    log_probs: list[float]
    left_out: int = 0
    why: str | None = None


def sequence_of(episode: PlayedEpisode, longest: int, padding: int) -> TrainedSequence:
    """The sequence of an episode, of at most ``longest`` tokens. No text is tokenized: the ids are those that were sampled.

    A turn follows the one before it if its prompt begins with the prompt and the reply of that turn. Some templates render
    earlier turns otherwise once the conversation goes on; then the sequence begins with the turn after the last such break,
    so that every token is trained in the context in which it was sampled. Turns that end beyond ``longest`` are left out.

    Nothing is trained (one token with mask 0) if a reply was cut at a limit (``truncated``), if no turn fits
    (``too_long``), or if there is no reply (``no_reply``).

    Args:
        padding: the id in place of a sequence that does not exist.
    """
    nothing = TrainedSequence([padding], [padding], [0], [0.0])
    if not episode.turns:
        return dataclasses.replace(nothing, why="no_reply")
    if any(turn.cut for turn in episode.turns):
        return dataclasses.replace(nothing, why="truncated")
    start = max(
        (i for i in range(1, len(episode.turns)) if not _follows(*episode.turns[i - 1 : i + 1])), default=0
    )
    prompt = list(episode.turns[start].tokens.prompt)
    completion: list[int] = []
    mask: list[int] = []
    log_probs: list[float] = []
    left_out = start
    for turn in episode.turns[start:]:
        tokens = turn.tokens
        between = tokens.prompt[len(prompt) + len(completion) :]
        if len(tokens.prompt) + len(tokens.new) > longest:
            left_out += 1
            continue
        completion += [*between, *tokens.new]
        mask += [0] * len(between) + [1] * len(tokens.new)
        log_probs += [0.0] * len(between) + list(tokens.log_probs)
    if not completion:
        return dataclasses.replace(nothing, left_out=left_out, why="too_long")
    return TrainedSequence(prompt, completion, mask, log_probs, left_out)


def _follows(before: Turn, turn: Turn) -> bool:
    """Whether the prompt of ``turn`` begins with the tokens of the turn ``before``."""
    known = (*before.tokens.prompt, *before.tokens.new)
    return turn.tokens.prompt[: len(known)] == known
