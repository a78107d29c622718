"""Drives all live episodes of many cells through one engine, and writes a row the moment an episode ends."""

import dataclasses
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from offscript.errors import UserError
from offscript.rollouts.engines.base import Completion, Engine, Request, Sampling
from offscript.seeds import row_seed
from offscript.storage.rows import RowWriter
from offscript.tasks.formats.base import Ask, Episode, Format, Outcome, Reply, Rules
from offscript.tasks.scenarios import Scenario

RETRIES = 3
Row = dict[str, Any]
OnRow = Callable[["CellRun", Row], None]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CellRun:
    """The episodes of one cell: every scenario, ``samples`` times, and the file that their rows go to.

    ``labels`` are the fields that all rows share (model, stage, persona, format, split, seed). ``adapter`` is
    the engine's name of the cell's weights, None for the base. ``limit`` keeps the first n episodes; sample 0
    of all scenarios comes before sample 1, so that a look at a few shows different ones.
    """

    key: str
    path: Path
    labels: Mapping[str, Any]
    format: Format
    scenarios: Sequence[Scenario]
    samples: int
    rules: Rules
    adapter: str | None
    sampling: Sampling
    limit: int | None = None

    def planned(self) -> list[tuple[Scenario, int]]:
        """The episodes of this run as (scenario, sample), in their order, up to ``limit``."""
        return [(scenario, k) for k in range(self.samples) for scenario in self.scenarios][: self.limit]


@dataclass
class Counts:
    """What became of a run's episodes; ``emitted`` (rows with a text) and ``ended`` cover reused rows too."""

    planned: int = 0
    written: int = 0
    reused: int = 0
    emitted: int = 0
    ended: Counter = field(default_factory=Counter)

    def add(self, row: Row) -> None:
        self.emitted += row["text"] is not None
        self.ended[row["ended"]] += 1


class RolloutFailed(Exception):
    """Some episodes have no row; all others have. A rerun tries exactly the missing ones again.

    ``failures`` are (path, episode, reason); ``counts`` is what ``roll_out`` would have returned.
    """

    def __init__(self, failures: list[tuple[Path, str, str]], counts: dict[str, Counts]) -> None:
        self.failures, self.counts = failures, counts
        path, episode, reason = failures[0]
        planned = sum(c.planned for c in counts.values())
        super().__init__(
            f"{len(failures)} of {planned} episodes left no row; the first: {path}, {episode}: {reason}"
        )


def roll_out(
    runs: Sequence[CellRun],
    engine: Engine,
    max_live: int,
    on_row: OnRow | None = None,
    on_start: Callable[[Mapping[str, Counts]], None] | None = None,
) -> dict[str, Counts]:
    """Runs every planned episode that has no row yet; returns the counts of each run by its key.

    At most ``max_live`` episodes are suspended at a time: a kill loses no more than those. The caller holds
    the claims on the files and writes their manifests. ``on_row`` sees each new row after it is on disk,
    ``on_start`` what was there before the first of them.

    Raises:
        UserError: a file on disk holds rows that do not belong to its run.
        RolloutFailed: after everything else is done: an engine answered ``error`` 1 + RETRIES times in a row,
            or a format raised. The first exception of a format is its cause.
    """
    with ExitStack() as files:
        scheduler = _Scheduler(runs, engine, max_live, on_row, files)
        if on_start is not None:
            on_start(scheduler.counts)
        return scheduler.run()


@dataclass(eq=False)
class _Live:
    """A suspended episode."""

    run: CellRun
    scenario: Scenario
    sample: int
    episode: Episode
    request: Request | None = None
    turns: int = 0
    errors: int = 0
    tokens_in: int = 0
    tokens_out: int = 0

    def __str__(self) -> str:
        return f"{self.scenario.id}/{self.sample}"


class _Scheduler:
    def __init__(
        self, runs: Sequence[CellRun], engine: Engine, max_live: int, on_row: OnRow | None, files: ExitStack
    ) -> None:
        if len({run.key for run in runs}) != len(runs) or len({run.path for run in runs}) != len(runs):
            raise ValueError("two runs share a key or a file")
        self.engine, self.max_live, self.on_row = engine, max_live, on_row
        self.live: dict[int, _Live] = {}
        self.failures: list[tuple[Path, str, str]] = []
        self.cause: Exception | None = None
        self.ids = count()
        self.counts: dict[str, Counts] = {}
        self.writers: dict[str, RowWriter] = {}
        done = {run.key: self._open(run, files) for run in runs}
        self.queue = _episodes(runs, done)

    def run(self) -> dict[str, Counts]:
        self._fill()
        while self.live:
            completions = self.engine.step()
            if not completions and not self.engine.pending():
                raise RuntimeError(
                    f"the engine has nothing pending, but {len(self.live)} episodes wait for a reply"
                )
            for completion in completions:
                self._receive(completion)
            self._fill()
        if self.failures:
            raise RolloutFailed(self.failures, self.counts) from self.cause
        return self.counts

    def _open(self, run: CellRun, files: ExitStack) -> set[tuple[str, int]]:
        """Opens the run's file and returns the (scenario, sample) that it already has."""
        writer = self.writers[run.key] = files.enter_context(RowWriter(run.path))
        if writer.cut:
            _log.warning("%s: cut a torn last line (%d bytes); its episode runs again", run.path, writer.cut)
        _check_rows(run, writer.rows)
        done = {(row["scenario"], row["sample"]) for row in writer.rows}
        planned = {(scenario.id, sample) for scenario, sample in run.planned()}
        counts = self.counts[run.key] = Counts(planned=len(planned), reused=len(planned & done))
        for row in writer.rows:
            if (row["scenario"], row["sample"]) in planned:
                counts.add(row)
        return done

    def _fill(self) -> None:
        while len(self.live) < self.max_live:
            live = next(self.queue, None)
            if live is None:
                return
            self._resume(live, None)

    def _receive(self, completion: Completion) -> None:
        live = self.live.pop(completion.id, None)
        if live is None:
            raise RuntimeError(f"the engine answered request {completion.id}, which nobody waits for")
        if completion.finish_reason == "error":
            self._retry(live, completion.text)
            return
        live.turns += 1
        live.errors = 0
        live.tokens_in += completion.tokens_in
        live.tokens_out += completion.tokens_out
        self._resume(live, Reply(completion.text, completion.finish_reason, completion.tokens_out))

    def _retry(self, live: _Live, reason: str) -> None:
        live.errors += 1
        if live.errors > RETRIES:
            live.episode.close()
            self._fail(live, f"the engine failed {live.errors} times ({reason})")
        else:
            assert live.request is not None
            self._submit(live, live.request)

    def _resume(self, live: _Live, reply: Reply | None) -> None:
        """Sends a reply into an episode (None starts it) and submits what it asks next, or writes its row."""
        try:
            ask = live.episode.send(reply)  # type: ignore[arg-type]
        except StopIteration as end:
            self._write(live, end.value)
        except Exception as error:
            self.cause = self.cause or error
            self._fail(live, f"its format raised {type(error).__name__}: {error}")
        else:
            self._submit(live, _request(live, ask))

    def _submit(self, live: _Live, request: Request) -> None:
        live.request = dataclasses.replace(request, id=next(self.ids))
        self.live[live.request.id] = live
        self.engine.submit(live.request)

    def _write(self, live: _Live, outcome: Outcome) -> None:
        if not isinstance(outcome, Outcome):
            self._fail(live, f"its format returned {type(outcome).__name__} instead of an Outcome")
            return
        row = _row(live, outcome)
        self.writers[live.run.key].append(row)
        counts = self.counts[live.run.key]
        counts.written += 1
        counts.add(row)
        if self.on_row is not None:
            self.on_row(live.run, row)

    def _fail(self, live: _Live, reason: str) -> None:
        self.failures.append((live.run.path, str(live), reason))


def _episodes(runs: Sequence[CellRun], done: Mapping[str, set[tuple[str, int]]]) -> Iterator[_Live]:
    """Episodes that have no row yet, run by run, the runs of one adapter next to each other.

    Neighbours in the queue are then live together and fill batches of one adapter; taking turns over all runs
    would end every run at the same time, with a few rows of every adapter left for the slow mixed batches.
    """
    adapters = list(dict.fromkeys(run.adapter for run in runs))
    for run in sorted(runs, key=lambda run: adapters.index(run.adapter)):
        for scenario, sample in run.planned():
            if (scenario.id, sample) not in done[run.key]:
                yield _Live(run, scenario, sample, run.format.episode(scenario, run.rules))


def _request(live: _Live, ask: Ask) -> Request:
    run = live.run
    longest = run.sampling.max_tokens
    return Request(
        id=-1,  # set when it is submitted
        messages=tuple(ask.messages),
        adapter=None if ask.speaker == "base" else run.adapter,
        seed=row_seed(run.key, live.scenario.id, live.sample, live.turns),
        sampling=dataclasses.replace(run.sampling, max_tokens=min(longest, ask.max_tokens or longest)),
        prefix=ask.prefix,
    )


def _row(live: _Live, outcome: Outcome) -> Row:
    row = {
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
    return {**row, "notes": dict(outcome.notes)} if outcome.notes else row


def _check_rows(run: CellRun, rows: Sequence[Row]) -> None:
    """Refuses rows of another cell, of unknown episodes, and twins: resuming would mix two experiments."""
    known = {(s.id, k) for s in run.scenarios for k in range(run.samples)}
    seen: set[tuple[str, int]] = set()
    for number, row in enumerate(rows, start=1):
        where, remedy = f"{run.path}, line {number}", "move the file away, then run again"
        if row.get("key") != run.key:
            raise UserError(
                where, f"a row of another cell ({row.get('key')})", f"this is {run.key}; {remedy}"
            )
        if missing := {"scenario", "sample", "text", "ended"} - row.keys():
            raise UserError(where, f"a row without {', '.join(sorted(missing))}", remedy)
        episode = (row["scenario"], row["sample"])
        if episode not in known:
            raise UserError(where, f"an episode that is not planned ({episode[0]}/{episode[1]})", remedy)
        if episode in seen:
            raise UserError(where, f"episode {episode[0]}/{episode[1]} a second time", remedy)
        seen.add(episode)
