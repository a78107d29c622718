"""What tests do with the cluster: submitting and querying jobs, and injecting failures."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from tests.slurm.cluster import Cluster, ClusterError

# Final states; a job in NODE_FAIL, PREEMPTED or REQUEUED may be requeued.
FINAL = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL"}
ACCOUNTED = ("JobID", "JobName", "State", "ExitCode", "Partition", "NodeList", "Start", "End", "Reason")


@dataclass(frozen=True)
class Slurm:
    """A running cluster. A job id is a number, or ``12_3`` for one task of an array."""

    cluster: Cluster

    @property
    def nodes(self) -> list[str]:
        return self.cluster.node_names

    def submit_script(self, text: str, **options: object) -> int:
        """Submit a bash script; returns the id of the job or array.

        ``options`` are the long options of sbatch with underscores (``cpus_per_task=2``; True for a flag without value).
        The output of the job is dropped unless ``output`` is given.
        """
        given = {"output": "/dev/null", **options}
        flags = [_flag(name, value) for name, value in given.items() if value is not False]
        done = subprocess.run(
            ["sbatch", "--parsable", *flags],
            input=f"#!/bin/bash\n{text}\n",
            env=self.cluster.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return int(done.stdout.strip().split(";")[0])

    def states(self, job: int | str) -> dict[str, str]:
        """The state of a job, or of each task of an array, by id; from the controller, else from the accounting."""
        try:
            output = self.cluster.run_command(
                "squeue", "-h", "-r", "-t", "all", "-j", str(job), "-o", "%i %T"
            )
        except ClusterError:
            # The controller has dropped an old job, or is down.
            output = ""
        if not output.strip():
            return {row["JobID"]: row["State"].split()[0] for row in self.sacct(job)}
        return dict(line.split() for line in output.splitlines())

    def wait_for_state(self, job: int | str, wanted: str | Collection[str], timeout: float = 60) -> None:
        """Wait until the job, or every task of the array, is in one of the ``wanted`` states.

        Fails if one of them ends in another state, and after ``timeout`` seconds.
        """
        wanted = {wanted} if isinstance(wanted, str) else set(wanted)

        def reached() -> bool:
            states = self.states(job)
            wrong = {id: state for id, state in states.items() if state in FINAL - wanted}
            assert not wrong, f"waited for {sorted(wanted)}, but {wrong}"
            return bool(states) and set(states.values()) <= wanted

        self.wait_until(reached, f"job {job} to be {sorted(wanted)}", timeout, lambda: self.states(job))

    def wait_until(
        self,
        true: Callable[[], bool],
        what: str,
        timeout: float = 60,
        found: Callable[[], object] = lambda: "",
    ) -> None:
        deadline = time.monotonic() + timeout
        while not true():
            assert time.monotonic() < deadline, f"waited {timeout} s for {what}; found {found()}"
            time.sleep(0.1)

    def sacct(self, job: int | str, every_run: bool = False) -> list[dict[str, str]]:
        """The accounting's rows (`ACCOUNTED`) of a job, one per task; ``every_run`` adds the runs before a requeue."""
        duplicates = ["--duplicates"] if every_run else []
        output = self.cluster.run_command(
            "sacct", "-X", "-P", "-n", *duplicates, "-j", str(job), "-o", ",".join(ACCOUNTED)
        )
        return [dict(zip(ACCOUNTED, line.split("|"), strict=True)) for line in output.splitlines()]

    def node_of(self, job: int | str) -> str:
        """The first node of a running job."""
        nodes = self.cluster.run_command("squeue", "-h", "-j", str(job), "-o", "%N").split()
        return self.cluster.run_command("scontrol", "show", "hostnames", *nodes).split()[0]

    def node_state(self, node: str) -> str:
        """The state of a node in lower case; ``down*`` if it does not answer."""
        return self.cluster.run_command("sinfo", "-h", "-N", "-p", "main", "-n", node, "-o", "%T").strip()

    def nodes_idle(self, timeout: float = 60) -> None:
        """Wait until every node is idle."""

        def states() -> list[str]:
            return [self.node_state(node) for node in self.nodes]

        self.wait_until(lambda: set(states()) == {"idle"}, "idle nodes", timeout, states)

    def reset(self) -> None:
        """Cancel every job and resume every node."""
        self.cluster.run_command("scancel", "--quiet", "--user", "root")
        self.cluster.start(keep=False)
        self.nodes_idle()

    # --- failures

    def requeue(self, job: int | str) -> None:
        self.cluster.run_command("scontrol", "requeue", str(job))

    def cancel(self, job: int | str) -> None:
        self.cluster.run_command("scancel", str(job))

    def down(self, node: str) -> None:
        """Set a node DOWN, as an administrator does: its jobs are killed and requeued."""
        self._update(node, "down")

    def drain(self, node: str) -> None:
        """Set a node to DRAIN: no further job starts on it."""
        self._update(node, "drain")

    def lose(self, node: str) -> None:
        """Simulate a power cut: kill every process on the node, and set it DOWN."""
        self.cluster.power_off(node)
        self._update(node, "down")

    def resume(self, node: str) -> None:
        """Undo `down`, `drain` or `lose`; return when the node is idle or runs jobs."""
        if node not in self.cluster.running():
            self.cluster.power_on(node)
        if self.node_state(node).rstrip("*").startswith(("down", "drain")):
            self.cluster.run_command("scontrol", "update", f"nodename={node}", "state=resume")
        usable = ("idle", "mixed", "allocated")
        self.wait_until(lambda: self.node_state(node) in usable, f"{node} to be usable")

    def _update(self, node: str, state: str) -> None:
        self.cluster.run_command("scontrol", "update", f"nodename={node}", f"state={state}", "reason=test")

    def processes(self, job: int | str, pattern: str = "") -> dict[int, str]:
        """The processes of a job or task whose command line matches ``pattern``: id -> command line."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                command = (
                    (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                )
                environment = dict(_pairs((folder / "environ").read_bytes()))
            except OSError:
                # The process has ended.
                continue
            if command and _belongs(environment, str(job), self.cluster) and re.search(pattern, command):
                found[int(folder.name)] = command
        return found

    def kill(
        self, job: int | str, pattern: str = "", how: int = signal.SIGKILL, timeout: float = 30
    ) -> list[int]:
        """Wait for processes of a job that match, send a signal to each, and return their ids."""
        self.wait_until(
            lambda: bool(self.processes(job, pattern)), f"a process like {pattern!r} of job {job}", timeout
        )
        pids = list(self.processes(job, pattern))
        for pid in pids:
            os.kill(pid, how)
        return pids


def _flag(name: str, value: object) -> str:
    option = "--" + name.replace("_", "-")
    return option if value is True else f"{option}={value}"


def _pairs(environ: bytes) -> list[tuple[str, str]]:
    lines = [line.decode(errors="replace").partition("=") for line in environ.split(b"\0")]
    return [(key, value) for key, _, value in lines]


def _belongs(environment: dict[str, str], job: str, cluster: Cluster) -> bool:
    """Whether a process is of ``job``. A task has its own job id, and those of array and task in other variables."""
    if environment.get("SLURM_CONF") != str(cluster.conf) or "SLURM_JOB_ID" not in environment:
        return False
    array, task = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
    return job in {environment["SLURM_JOB_ID"], array, f"{array}_{task}"}
