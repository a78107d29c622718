"""Lets submitit requeue a job whose training was stopped by a signal."""

import os
import signal
import time

from offscript.console import say
from offscript.training.interrupt import Interrupted

KILL_WAIT_S = 900.0
"""Upper bound of the time after SIGTERM in which SLURM kills a job (KillWait or GraceTime)."""


def forward_signal_to_submitit(stop: Interrupted) -> None:
    """Passes on a signal that training has handled although it was meant for submitit, which requeues the job.

    After a warning of the time limit (SIGUSR2), the signal is raised again. After SIGTERM, the process waits until
    SLURM kills it, since a job that exits by itself is not requeued. Outside a job of submitit nothing happens.
    """
    # The default action of SIGUSR2 is not callable. If it is callable, submitit has installed its handler.
    if not callable(signal.getsignal(signal.SIGUSR2)):
        return
    say(str(stop))
    if not stop.terminated:
        # On rank 0, submitit's handler does not return: it requeues the job and exits. On other ranks it returns.
        signal.raise_signal(signal.SIGUSR2)
    if "SLURM_JOB_ID" in os.environ:
        time.sleep(KILL_WAIT_S)
