"""Scheduler: runs the episodes of many cells through one engine, and writes a row as soon as its episode has ended."""

import dataclasses
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import cast

from offscript.errors import UserError
from offscript.json_types import Json
from offscript.rollouts.engines.base import Completion, Engine, Request, Sampling
from offscript.seeds import row_seed
from offscript.settings import ThinkingSettings
from offscript.storage.rows import RowWriter
from offscript.tasks.examples import Examples
from offscript.tasks.formats.base import Ask, Episode, Format, Outcome, Reply, Rules
from offscript.tasks.rows import Row
from offscript.tasks.scenarios import Scenario
from offscript.tasks.thinking import strip_thinking

RETRIES = 3
"""How often a request that the engine answered with ``error`` is submitted again, with the same seed. Then its episode
fails."""

OnRow = Callable[["CellRun", Row], None]
OnReply = Callable[["CellRun", Scenario, int, Request, Completion], None]
"""Called with a cell, a scenario and the number of a sample: the episode; then with its request and the reply."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CellRun:
    """The episodes of one cell: each scenario ``samples`` times.

    Args:
        key: key of the cell.
        path: JSONL file of its rows; None: they are given to ``on_row`` alone.
        labels: fields that all of its rows share (model, stage, persona, format, split, seed).
        format: the format whose episodes are run.
        scenarios: its scenarios.
        samples: episodes per scenario.
        rules: what the cell sets for its episodes.
        adapter: the engine's name for the cell's weights, None for the base model.
        sampling: how replies are sampled; ``max_tokens`` bounds each of them.
        thinking: marks of the thinking that is removed from every reply before the format receives it; None: nothing is
            removed.
        examples: exchanges, of which every episode is shown some before its own conversation; None: none. The speaker
            ``base`` is shown none.
        limit: only the first n episodes; sample 0 of every scenario comes before sample 1 of any.
    """

    key: str
    path: Path | None
    labels: Mapping[str, Json]
    format: Format
    scenarios: Sequence[Scenario]
    samples: int
    rules: Rules
    adapter: str | None
    sampling: Sampling
    thinking: ThinkingSettings | None = None
    examples: Examples | None = None
    limit: int | None = None

    def planned(self) -> list[tuple[Scenario, int]]:
        """The episodes as (scenario, sample), in order, up to ``limit``."""
        return [(scenario, k) for k in range(self.samples) for scenario in self.scenarios][: self.limit]


@dataclass
class EpisodeCounts:
    """Numbers of episodes of a ``CellRun``.

    ``reused`` counts the rows that were in the file before, and ``written`` the new ones. ``emitted`` (rows with a text
    to score) and ``ended`` (rows by the reason for which they ended) count both.
    """

    planned: int = 0
    written: int = 0
    reused: int = 0
    emitted: int = 0
    ended: Counter[str] = field(default_factory=Counter)

    def add(self, row: Row) -> None:
        self.emitted += row["text"] is not None
        self.ended[row["ended"]] += 1


class RolloutFailed(Exception):
    """Some episodes failed and have no row; all others have one. Running them again runs the failed ones only.

    Attributes:
        failures: file (None without one), episode (``scenario/sample``) and reason of each failure.
        counts: what ``run_episodes`` would have returned.
    """

    def __init__(
        self, failures: list[tuple[Path | None, str, str]], counts: dict[str, EpisodeCounts]
    ) -> None:
        self.failures, self.counts = failures, counts
        path, episode, reason = failures[0]
        planned = sum(c.planned for c in counts.values())
        place = f"{path}, {episode}" if path is not None else episode
        super().__init__(f"{len(failures)} of {planned} episodes left no row; the first: {place}: {reason}")


def run_episodes(
    runs: Sequence[CellRun],
    engine: Engine,
    max_live: int,
    on_row: OnRow | None = None,
    on_start: Callable[[Mapping[str, EpisodeCounts]], None] | None = None,
    on_reply: OnReply | None = None,
) -> dict[str, EpisodeCounts]:
    """Runs every planned episode that has no row yet, and returns the counts of each cell by its key.

    The caller must hold the locks of the files (``storage.locks.claim``), and writes their manifests.

    Args:
        runs: the cells. No two have the same key or file.
        engine: an engine with the adapters of all ``runs``.
        max_live: largest number of episodes that run at the same time. A killed process loses only these.
        on_row: called with each new row after it is written.
        on_start: called once before the first episode starts, with the counts of the rows that are in the files.
        on_reply: called with each reply that an episode receives.

    Raises:
        UserError: a file contains a row that does not belong to its cell.
        RolloutFailed: an episode failed: the engine answered one of its requests with ``error`` 1 + RETRIES times, or
            its format raised an exception. It is raised after all other episodes have ended, from the first exception
            of a format.
    """
    with ExitStack() as files:
        scheduler = _Scheduler(runs, engine, max_live, on_row, files, on_reply)
        if on_start is not None:
            on_start(scheduler.counts)
        return scheduler.run()


@dataclass(eq=False)
class _LiveEpisode:
    """An episode that waits for a reply."""

    run: CellRun
    scenario: Scenario
    sample: int
    episode: Episode
    request: Request | None = None
    turns: int = 0
    errors: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    replies: list[str] = field(default_factory=list)
    has_thinking: bool = False

    def __str__(self) -> str:
        return f"{self.scenario.id}/{self.sample}"

    @property
    def shown(self) -> tuple[int, ...]:
        """Positions of the examples that it is shown."""
        if self.run.examples is None:
            return ()
        return self.run.examples.drawn(self.run.key, self.scenario.id, self.sample)


class _Scheduler:
    def __init__(
        self,
        runs: Sequence[CellRun],
        engine: Engine,
        max_live: int,
        on_row: OnRow | None,
        files: ExitStack,
        on_reply: OnReply | None = None,
    ) -> None:
        paths = [run.path for run in runs if run.path is not None]
        if len({run.key for run in runs}) != len(runs) or len(set(paths)) != len(paths):
            raise ValueError("two runs share a key or a file")
        self.engine, self.max_live, self.on_row, self.on_reply = engine, max_live, on_row, on_reply
        self.live: dict[int, _LiveEpisode] = {}
        self.failures: list[tuple[Path | None, str, str]] = []
        self.cause: Exception | None = None
        self.ids = count()
        self.counts: dict[str, EpisodeCounts] = {}
        self.writers: dict[str, RowWriter] = {}
        done = {run.key: self._open(run, files) for run in runs}
        self.queue = _episodes(runs, done)

    def run(self) -> dict[str, EpisodeCounts]:
        self._start_episodes()
        while self.live:
            completions = self.engine.step()
            if not completions and not self.engine.pending():
                raise RuntimeError(
                    f"the engine has nothing pending, but {len(self.live)} episodes wait for a reply"
                )
            for completion in completions:
                self._receive(completion)
            self._start_episodes()
        if self.failures:
            raise RolloutFailed(self.failures, self.counts) from self.cause
        return self.counts

    def _open(self, run: CellRun, files: ExitStack) -> set[tuple[str, int]]:
        """Opens the file of ``run`` for writing, and returns scenario and sample of every row in it."""
        if run.path is None:
            self.counts[run.key] = EpisodeCounts(planned=len(run.planned()))
            return set()
        writer = self.writers[run.key] = files.enter_context(RowWriter(run.path))
        if writer.cut:
            _log.warning(
                "%s: removed an incomplete last line (%d bytes); its episode runs again", run.path, writer.cut
            )
        _check_rows(run, writer.rows)
        rows = cast(list[Row], writer.rows)
        done = {(row["scenario"], row["sample"]) for row in rows}
        planned = {(scenario.id, sample) for scenario, sample in run.planned()}
        counts = self.counts[run.key] = EpisodeCounts(planned=len(planned), reused=len(planned & done))
        for row in rows:
            if (row["scenario"], row["sample"]) in planned:
                counts.add(row)
        # The writer lives as long as the run: memory would grow with the rows of all cells.
        writer.rows = []
        return done

    def _start_episodes(self) -> None:
        while len(self.live) < self.max_live:
            live = next(self.queue, None)
            if live is None:
                return
            self._resume(live, None)

    def _receive(self, completion: Completion) -> None:
        live = self.live.pop(completion.id, None)
        if live is None:
            raise RuntimeError(f"the engine answered request {completion.id}, which no episode waits for")
        if completion.finish_reason == "error":
            self._retry(live, completion.text)
            return
        live.turns += 1
        live.errors = 0
        live.tokens_in += completion.tokens_in
        live.tokens_out += completion.tokens_out
        if self.on_reply is not None:
            assert live.request is not None
            self.on_reply(live.run, live.scenario, live.sample, live.request, completion)
        self._resume(live, _reply(live, completion))

    def _retry(self, live: _LiveEpisode, reason: str) -> None:
        live.errors += 1
        if live.errors > RETRIES:
            live.episode.close()
            self._fail(live, f"the engine failed {live.errors} times ({reason})")
        else:
            assert live.request is not None
            self._submit(live, live.request)

    def _resume(self, live: _LiveEpisode, reply: Reply | None) -> None:
        """Sends a reply to an episode (None starts it), then submits its next request or writes its row."""
        try:
            ask = live.episode.send(reply)  # type: ignore[arg-type]
        except StopIteration as end:
            self._write(live, end.value)
        except Exception as error:
            self.cause = self.cause or error
            self._fail(live, f"its format raised {type(error).__name__}: {error}")
        else:
            self._submit(live, _request(live, ask))

    def _submit(self, live: _LiveEpisode, request: Request) -> None:
        live.request = dataclasses.replace(request, id=next(self.ids))
        self.live[live.request.id] = live
        self.engine.submit(live.request)

    def _write(self, live: _LiveEpisode, outcome: Outcome) -> None:
        if not isinstance(outcome, Outcome):
            self._fail(live, f"its format returned {type(outcome).__name__} instead of an Outcome")
            return
        row = _row(live, outcome)
        if live.run.path is not None:
            self.writers[live.run.key].append(row)
        counts = self.counts[live.run.key]
        counts.written += 1
        counts.add(row)
        if self.on_row is not None:
            self.on_row(live.run, row)

    def _fail(self, live: _LiveEpisode, reason: str) -> None:
        self.failures.append((live.run.path, str(live), reason))


def _episodes(runs: Sequence[CellRun], done: Mapping[str, set[tuple[str, int]]]) -> Iterator[_LiveEpisode]:
    """Yields the episodes that have no row, one cell after another; cells with the same adapter follow each other.

    Neighbours in this order run at the same time, so most batches need a single adapter. If cells with different
    adapters took turns, all would end at the same time, and the last batches would mix a few requests of every adapter,
    which is slow.
    """
    adapters = list(dict.fromkeys(run.adapter for run in runs))
    for run in sorted(runs, key=lambda run: adapters.index(run.adapter)):
        for scenario, sample in run.planned():
            if (scenario.id, sample) not in done[run.key]:
                yield _LiveEpisode(run, scenario, sample, run.format.episode(scenario, run.rules))


def _request(live: _LiveEpisode, ask: Ask) -> Request:
    run = live.run
    bound = run.sampling.max_tokens
    messages = tuple(ask.messages)
    if run.examples is not None and ask.speaker == "self":
        messages = run.examples.before(messages, live.shown)
    return Request(
        # Set by _submit.
        id=-1,
        messages=messages,
        adapter=None if ask.speaker == "base" else run.adapter,
        seed=row_seed(run.key, live.scenario.id, live.sample, live.turns),
        sampling=dataclasses.replace(run.sampling, max_tokens=min(bound, ask.max_tokens or bound)),
        prefix=ask.prefix,
        tools=ask.tools,
    )


def _reply(live: _LiveEpisode, completion: Completion) -> Reply:
    """The reply for the format: the completion without thinking."""
    marks, text = live.run.thinking, completion.text
    said = strip_thinking(text, marks.start, marks.end, opened=marks.opened) if marks else text
    live.replies.append(text)
    live.has_thinking |= said != text
    return Reply(said or "", completion.finish_reason, completion.tokens_out, unclosed_thinking=said is None)


def _row(live: _LiveEpisode, outcome: Outcome) -> Row:
    row: dict[str, object] = {
        "key": live.run.key,
        **live.run.labels,
        "scenario": live.scenario.id,
        "family": live.scenario.family,
        "sample": live.sample,
        "text": outcome.text,
        "ended": outcome.ended,
        "turns": live.turns,
        "messages": [dict(m) for m in outcome.messages],
        "tool_calls": outcome.tool_calls,
        "tokens_in": live.tokens_in,
        "tokens_out": live.tokens_out,
    }
    if live.scenario.variant:
        row["variant"] = live.scenario.variant
    if live.run.examples is not None:
        row["examples"] = list(live.shown)
    if live.has_thinking:
        row["replies"] = live.replies
    if outcome.notes:
        row["notes"] = dict(outcome.notes)
    return cast(Row, row)


def _check_rows(run: CellRun, rows: Sequence[Mapping[str, object]]) -> None:
    """Checks that every row of the file belongs to an episode of ``run``, and that no episode has two rows. Otherwise
    the file would mix rows of several experiments.

    Raises:
        UserError: a row belongs to another cell or to no episode, lacks a field, or repeats an episode.
    """
    episodes = {(s.id, k) for s in run.scenarios for k in range(run.samples)}
    seen: set[tuple[object, object]] = set()
    for number, row in enumerate(rows, start=1):
        where, remedy = f"{run.path}, line {number}", "move the file away, then run again"
        if row.get("key") != run.key:
            raise UserError(
                where, f"a row of another cell ({row.get('key')})", f"this is {run.key}; {remedy}"
            )
        if missing := {"scenario", "sample", "text", "ended"} - row.keys():
            raise UserError(where, f"a row without {', '.join(sorted(missing))}", remedy)
        episode = (row["scenario"], row["sample"])
        if episode not in episodes:
            raise UserError(where, f"an episode that is not planned ({episode[0]}/{episode[1]})", remedy)
        if episode in seen:
            raise UserError(where, f"episode {episode[0]}/{episode[1]} a second time", remedy)
        seen.add(episode)
