"""Stops a training at a signal to any rank: all ranks stop after the same step, once a checkpoint is written."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from offscript.training import ranks

if TYPE_CHECKING:
    from transformers import TrainerCallback, TrainerControl, TrainerState

SIGNALS = (signal.SIGTERM, signal.SIGUSR2)


class Interrupted(RuntimeError):
    """A signal stopped the training after it wrote a checkpoint; the same call resumes from it.

    ``terminated``: True after SIGTERM (the process will be killed), False after SIGUSR2 (time limit).
    """

    def __init__(self, step: int, total: int, terminated: bool = False) -> None:
        self.step, self.total, self.terminated = step, total, terminated
        super().__init__(f"stopped by a signal after step {step} of {total}; run it again to continue")


class SignalStopper:
    """Records signals to this process and stops the training. The handlers are installed only inside
    ``handle_signals``, and only in the main thread, where Python allows it."""

    def __init__(self) -> None:
        self.signalled = self.stopped = False
        self.signals: set[int] = set()

    @contextlib.contextmanager
    def handle_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {number: signal.signal(number, self._record) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _record(self, number: int, _: object) -> None:
        self.signalled = True
        self.signals.add(number)

    @property
    def terminated(self) -> bool:
        return self.signals == {signal.SIGTERM}

    def callback(self) -> "TrainerCallback":
        """Returns a Trainer callback that stops all ranks after the step in which one of them received a signal."""
        from transformers import TrainerCallback

        stopper = self

        class StopAtSignal(TrainerCallback):
            def on_step_end(
                self, args: object, state: "TrainerState", control: "TrainerControl", **_: object
            ) -> None:
                if ranks.any_rank(stopper.signalled) and state.global_step < state.max_steps:
                    stopper.stopped = control.should_save = control.should_training_stop = True

        return StopAtSignal()
