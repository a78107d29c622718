"""An engine whose replies come from a function: for tests, and to try a format without a model (``engine=scripted``)."""

import os
import random
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from offscript.rollouts.engines.base import Completion, EngineStats, Request
from offscript.seeds import unit_hash
from offscript.settings import EngineSettings, ModelSettings

READS_IMAGES = True

Script = Callable[[Request], "str | Completion"]


def echo(request: Request) -> str:
    """The request's prefix, then the content of its last message."""
    return request.prefix + request.messages[-1]["content"]


class ScriptedEngine:
    """Answers with ``script(request)``, in batches of ``batch_size`` per step.

    Args:
        script: a text, or a whole Completion, for a request.
        batch_size: replies a step at most.
        shuffle: a seed that puts the waiting requests in another order before each step; None keeps the order.
        delay_s: seconds that a step takes.
        error_rate: share of replies that come back as ``error``, decided per (row seed, attempt), so that a retry may
            succeed and a rerun fails at the same places.
        raise_at: number of the step (from 1) that raises RuntimeError.
        kill_at: number of the step (from 1) at which the process kills itself with SIGKILL.
    """

    def __init__(
        self,
        script: Script,
        *,
        batch_size: int = 64,
        shuffle: int | None = None,
        delay_s: float = 0.0,
        error_rate: float = 0.0,
        raise_at: int | None = None,
        kill_at: int | None = None,
    ) -> None:
        self.script, self.batch_size, self.delay_s, self.error_rate = script, batch_size, delay_s, error_rate
        self.raise_at, self.kill_at = raise_at, kill_at
        self.stats = EngineStats()
        self.seen: list[Request] = []
        self.batches: list[int] = []
        self._order = None if shuffle is None else random.Random(shuffle)
        self._waiting: list[Request] = []
        self._attempts: dict[tuple[str | None, int], int] = {}

    def submit(self, request: Request) -> None:
        self.seen.append(request)
        self._waiting.append(request)

    def step(self) -> list[Completion]:
        """The next batch's completions.

        Raises:
            RuntimeError: this is step ``raise_at``.
        """
        if self._order is not None:
            self._order.shuffle(self._waiting)
        batch, self._waiting = self._waiting[: self.batch_size], self._waiting[self.batch_size :]
        self.batches.append(len(batch))
        if len(self.batches) == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if len(self.batches) == self.raise_at:
            raise RuntimeError(f"scripted failure at step {self.raise_at}")
        time.sleep(self.delay_s)
        return [self._answer(request) for request in batch]

    def pending(self) -> int:
        return len(self._waiting)

    def close(self) -> None:
        pass

    def info(self) -> dict[str, str]:
        return {"engine": "scripted", "script": getattr(self.script, "__name__", "unnamed")}

    def _answer(self, request: Request) -> Completion:
        attempt = self._attempts[request.adapter, request.seed] = (
            self._attempts.get((request.adapter, request.seed), 0) + 1
        )
        if unit_hash("scripted error", request.seed, attempt) < self.error_rate:
            return Completion(request.id, "scripted error", "error", 0, 0)
        reply = self.script(request)
        if isinstance(reply, str):
            words_in = sum(len(m["content"].split()) for m in request.messages)
            reply = Completion(request.id, reply, "stop", words_in, len(reply.split()))
        self.stats.add(reply, "scripted")
        return reply


def open_engine(
    model: ModelSettings, adapters: Mapping[str, Path], scales: Mapping[str, float], settings: EngineSettings
) -> ScriptedEngine:
    """An engine with the script ``echo``; neither the model nor its adapters are loaded.

    See ``offscript.rollouts.engines.open_engine``.
    """
    return ScriptedEngine(echo, batch_size=settings.batch_size)
