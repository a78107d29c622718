"""Stopping at a signal: any rank may get it, all stop after the same step, and a checkpoint is written first."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

from offscript.training import ranks

SIGNALS = (signal.SIGTERM, signal.SIGUSR2)


class Interrupted(RuntimeError):
    """Training was asked to stop and wrote a checkpoint; the same call goes on from it. ``ended``: this process was told
    that it will be ended (SIGTERM), and not only warned."""

    def __init__(self, step: int, total: int, terminated: bool = False) -> None:
        self.step, self.total, self.terminated = step, total, terminated
        super().__init__(f"stopped by a signal after step {step} of {total}; run it again to go on")


class SignalStopper:
    """Whether a signal came to this process. Its handlers stand only inside ``listening``, and only in the main
    thread, where Python allows them."""

    def __init__(self) -> None:
        self.signalled = self.stopped = False
        self.signals: set[int] = set()

    @contextlib.contextmanager
    def handle_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._note) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, _: object) -> None:
        self.signalled = True
        self.signals.add(number)

    @property
    def terminated(self) -> bool:
        return self.signals == {signal.SIGTERM}

    def callback(self) -> Any:
        """A trainer callback that stops all ranks after the step in which the signal came to one of them."""
        from transformers import TrainerCallback

        stopper = self

        class StopAtSignal(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if ranks.any_rank(stopper.signalled) and state.global_step < state.max_steps:
                    stopper.stopped = control.should_save = control.should_training_stop = True

        return StopAtSignal()
