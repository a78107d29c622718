"""Sweeps through Hydra's submitit launcher (``-m ... hydra/launcher=local`` or ``slurm``).

By itself the launcher asks its jobs for their results one after the other, and raises at the first that was killed: the
reports of the others are lost, and so are the values that the jobs returned. Here every job is reported with its log,
and its exit code reaches the command.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Protocol, TypeVar, cast

from offscript.console import say
from offscript.errors import UserError
from offscript.experiment.backends.slurm_queue import root_id, squeue
from offscript.experiment.backends.slurm_site import check_controller, refusal
from offscript.threads import shared_by

if TYPE_CHECKING:
    from submitit import AutoExecutor
    from submitit.core.core import Job

R = TypeVar("R")

POLL_S = 10.0
"""Interval between queries of the queue. submitit's own is up to ten minutes, in which a killed job looks alive."""

REPORT_DELAY_S = 15.0
"""How long a shared disk may take to show the report of a job that has left the queue."""

KILLED = 1
"""Exit code of a job that ended without a report."""


class Report(Protocol):
    """The result of a Hydra job. ``return_value`` raises the exception of a job that failed."""

    @property
    def return_value(self) -> object: ...


Results = Callable[["Job[object]"], Sequence[Report]]


@contextlib.contextmanager
def collect_exit_codes(codes: list[int]) -> Iterator[None]:
    """Within the block: waits for every launcher job, reports its status, and appends its exit code to ``codes``. Jobs on
    this machine share its CPUs.

    The launcher has no hook for the start or the end of a job, so the executor that it makes, and ``Job.results``, which
    it calls for each job, are replaced.
    """
    import submitit
    from submitit.core.core import Job

    original, executor = cast(Results, Job.results), submitit.AutoExecutor

    def results(job: "Job[object]") -> list[object]:
        code = _wait_and_report(job, original)
        codes.append(code)
        return [SimpleNamespace(return_value=code)]

    Job.results = results  # type: ignore[assignment, method-assign]
    submitit.AutoExecutor = _executor_class()  # type: ignore[misc]
    try:
        yield
    finally:
        Job.results = original  # type: ignore[assignment, method-assign]
        submitit.AutoExecutor = executor  # type: ignore[misc]


def _executor_class() -> "type[AutoExecutor]":
    from submitit import AutoExecutor
    from submitit.core.utils import FailedJobError

    class Executor(AutoExecutor):
        """Says in one line why SLURM takes no jobs, and divides the CPUs of this machine among jobs on it."""

        def __init__(self, folder: str | Path, cluster: str | None = None, **parameters: object) -> None:
            if cluster == "slurm":
                check_controller()
            super().__init__(folder, cluster, **parameters)

        def map_array(self, fn: Callable[..., R], *iterable: Iterable[object]) -> "list[Job[R]]":
            arguments = [list(one) for one in iterable]
            shared = shared_by(len(arguments[0])) if self.cluster == "local" else contextlib.nullcontext()
            try:
                with shared:
                    return super().map_array(fn, *arguments)
            except FailedJobError as error:
                raise refusal("sbatch", str(error), remedy="see hydra.launcher and cluster=") from None

    return Executor


def _wait_and_report(job: "Job[object]", results: Results) -> int:
    """Waits for ``job``, prints one line on how it ended, and returns its exit code."""
    from submitit.core.utils import FailedJobError, UncompletedJobError

    code, reason = KILLED, "ended without a report"
    if _wait_for_report(job):
        with contextlib.suppress(UncompletedJobError, FailedJobError):
            code, reason = max((_exit_code(report) for report in results(job)), key=lambda pair: pair[0])
    # Hydra is given every known key with ``++``, see arguments.py.
    overrides = " ".join(str(word).removeprefix("++") for word in job.submission().args[0])
    if code:
        say(f"failed: {overrides}: {reason or f'exit code {code}'} (log: {job.paths.stdout})")
    else:
        say(f"done: {overrides}")
    return code


def _wait_for_report(job: "Job[object]") -> bool:
    """Waits until ``job`` has ended; returns whether it may have left a report.

    The queue is queried instead of submitit: submitit considers a job that lost its node as ended although it is queued
    again, and it waits forever for one that the accounting does not know.
    """
    from submitit.slurm.slurm import SlurmJob

    if not isinstance(job, SlurmJob):
        job.wait()
        return True
    report = job.paths.result_pickle
    try:
        while not report.exists() and _is_queued(job.job_id):
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        say(f"the jobs continue; cancel them with: scancel {root_id(job.job_id)}")
        raise
    if not report.exists():
        time.sleep(REPORT_DELAY_S)
    return report.exists()


def _is_queued(job_id: str) -> bool:
    try:
        return job_id in squeue()
    except UserError:
        # The controller does not answer: the job may still be there.
        return True


def _exit_code(report: Report) -> tuple[int, str]:
    """The exit code that the task function returned, or 1 and the error with which Hydra failed before it."""
    try:
        return int(cast(int, report.return_value)), ""
    except Exception as error:
        return KILLED, (str(error).splitlines() or [type(error).__name__])[0]
