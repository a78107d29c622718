"""Stops a training at a signal to any rank: all ranks stop after the same step, once a checkpoint is written."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from offscript import signals
from offscript.training import ranks

if TYPE_CHECKING:
    from transformers import TrainerCallback, TrainerControl, TrainerState

SIGNALS = (*signals.ENDING, signal.SIGUSR2)


class Interrupted(RuntimeError):
    """The signal ``number`` stopped the training after it wrote a checkpoint; the same call resumes from it.

    After SIGTERM and SIGHUP the process will be killed; SIGUSR2 announces a time limit.
    """

    def __init__(self, step: int, total: int, number: int = signal.SIGUSR2) -> None:
        self.step, self.total, self.number = step, total, number
        super().__init__(f"stopped by a signal after step {step} of {total}; run it again to continue")

    @property
    def exit_code(self) -> int:
        """As a shell reports a process that the signal has ended."""
        return 128 + self.number


class SignalStopper:
    """Records signals to this process and stops the training. The handlers are installed only inside
    ``handle_signals``, and only in the main thread, where Python allows it."""

    def __init__(self) -> None:
        self.stopped = False
        self.signals: set[int] = set()

    @contextlib.contextmanager
    def handle_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        caught = [number for number in SIGNALS if not signals.is_ignored(number)]
        previous = {number: signal.signal(number, self._record) for number in caught}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        if self.signals and not self.stopped:
            # It came after the last step, and has to end what follows the training.
            signal.raise_signal(self.number)

    def _record(self, number: int, _: object) -> None:
        self.signals.add(number)

    @property
    def number(self) -> int:
        """The signal that counts: SIGUSR2 if it came, since it requeues the job, and on a rank that got none."""
        others = self.signals - {signal.SIGUSR2}
        return signal.SIGUSR2 if signal.SIGUSR2 in self.signals or not others else min(others)

    def callback(self) -> "TrainerCallback":
        """Returns a Trainer callback that stops all ranks after the step in which one of them received a signal."""
        from transformers import TrainerCallback

        stopper = self

        class StopAtSignal(TrainerCallback):
            def on_step_end(
                self, args: object, state: "TrainerState", control: "TrainerControl", **_: object
            ) -> None:
                if ranks.any_rank(bool(stopper.signals)) and state.global_step < state.max_steps:
                    stopper.stopped = control.should_save = control.should_training_stop = True

        return StopAtSignal()
