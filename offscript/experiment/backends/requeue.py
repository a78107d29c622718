"""Lets submitit requeue a job whose training was stopped by a signal."""

import signal

from offscript.console import say
from offscript.signals import wait_for_kill
from offscript.training.interrupt import Interrupted


def forward_signal_to_submitit(stop: Interrupted) -> bool:
    """Passes on a signal that training has handled although it was meant for submitit, which requeues the job.

    After a warning of the time limit (SIGUSR2), the signal is raised again. After SIGTERM, the process waits until
    SLURM kills it, since a job that exits by itself is not requeued. Outside a job of submitit nothing happens.

    Returns: whether this is a job of submitit, which reports ``stop``.
    """
    # The default action of SIGUSR2 is not callable. If it is callable, submitit has installed its handler.
    if not callable(signal.getsignal(signal.SIGUSR2)):
        return False
    say(str(stop))
    if stop.number == signal.SIGUSR2:
        # On rank 0, submitit's handler does not return: it requeues the job and exits. On other ranks it returns.
        signal.raise_signal(signal.SIGUSR2)
    wait_for_kill()
    return True
