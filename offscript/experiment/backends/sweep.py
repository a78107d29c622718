"""Sweeps through Hydra's submitit launcher (``-m ... hydra/launcher=local`` or ``slurm``): what became of every job is
told, with its log, and the jobs' exit codes reach the command.

By itself the launcher asks its jobs one after the other and raises at the first that was killed: the reports of all
others are lost, and what a job returned is dropped.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from offscript.console import say
from offscript.errors import UserError
from offscript.experiment.backends.slurm_queue import squeue
from offscript.training.interrupt import Interrupted

POLL_S = 10.0
"""Between two looks at the queue. submitit looks every ten minutes, for which a killed job then seems to be alive."""

LATE_S = 15.0
"""For so long a report may not be seen yet on a shared disk once its job has left the queue."""

LOST = 1
"""Exit code of a job that ended without a report: it was killed."""

ENDED_WITHIN_S = 900.0
"""After a last warning SLURM ends a job within its KillWait or GraceTime."""


@contextlib.contextmanager
def heard(codes: list[int]) -> Iterator[None]:
    """Inside, every job of a launcher is waited for and told, and its exit code is added to ``codes``.

    The launcher offers no hook between a job's end and its own: the place where it asks for a job's results is replaced.
    """
    from submitit.core.core import Job

    ask = Job.results

    def results(job: Any) -> list[Any]:
        told = _outcome(job, ask)
        codes.append(told)
        return [SimpleNamespace(return_value=told)]

    Job.results = results  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        Job.results = ask  # type: ignore[method-assign]


def _outcome(job: Any, ask: Any) -> int:
    """The exit code of ``job``, once it has ended; one line says how it fared."""
    from submitit.core.utils import FailedJobError, UncompletedJobError

    code, why = LOST, "ended without a report"
    if _reported(job):
        with contextlib.suppress(UncompletedJobError, FailedJobError):
            code, why = max((_code(report) for report in ask(job)), key=lambda found: found[0])
    words = " ".join(str(word) for word in job.submission().args[0])
    if code:
        say(f"failed: {words}: {why or f'exit code {code}'} (log: {job.paths.stdout})")
    else:
        say(f"done: {words}")
    return code


def _reported(job: Any) -> bool:
    """Whether ``job`` has left a report, once it can leave none any more.

    Of SLURM the queue is asked: one that lost its node is queued again, though submitit takes it for ended, and of one
    that the accounting does not know it would wait for ever.
    """
    from submitit.slurm.slurm import SlurmJob

    if not isinstance(job, SlurmJob):
        job.wait()
        return True
    report = job.paths.result_pickle
    try:
        while not report.exists() and _queued(job.job_id):
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        say(f"the jobs go on; end them with: scancel {job.job_id.partition('_')[0]}")
        raise
    if not report.exists():
        time.sleep(LATE_S)
    return report.exists()


def _queued(job_id: str) -> bool:
    try:
        return job_id in squeue()
    except UserError:  # the controller does not answer: it may be there still
        return True


def _code(report: Any) -> tuple[int, str]:
    """What the task function returned, or what Hydra failed at before it was called."""
    try:
        return int(report.return_value), ""
    except Exception as error:
        return LOST, (str(error).splitlines() or [type(error).__name__])[0]


def give_way(stop: Interrupted) -> None:
    """What a launcher's job does when training has taken the signal that was meant for submitit: warned of its time
    limit, it hands the signal on and is run again; told that it will be ended, it waits for SLURM to do so, since a job
    that ends by itself is not queued again. Elsewhere this does nothing."""
    if not callable(signal.getsignal(signal.SIGUSR2)):
        return
    say(str(stop))
    if not stop.terminated:
        signal.raise_signal(signal.SIGUSR2)  # on rank 0 submitit does not return from here
    if "SLURM_JOB_ID" in os.environ:
        time.sleep(ENDED_WITHIN_S)
