"""What tests ask of the cluster, and the harm that they do to it."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from tests.slurm.cluster import Cluster, ClusterError

# A job in one of these is over and stays so; NODE_FAIL, PREEMPTED and REQUEUED may be on their way back to the queue.
FINAL = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL"}
ACCOUNTED = ("JobID", "JobName", "State", "ExitCode", "Partition", "NodeList", "Start", "End", "Reason")


@dataclass(frozen=True)
class Slurm:
    """A running cluster in the hands of a test. A job id is a number, or ``12_3`` for one task of an array."""

    cluster: Cluster

    @property
    def nodes(self) -> list[str]:
        return self.cluster.node_names

    def submit_script(self, text: str, **options: object) -> int:
        """Submit a bash script; the id of the job or array.

        ``options`` are sbatch's long ones with underscores (``cpus_per_task=2``; True for a flag without a value). What a
        job prints is dropped unless ``output`` says where to.
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
            answer = self.cluster.ask("squeue", "-h", "-r", "-t", "all", "-j", str(job), "-o", "%i %T")
        except ClusterError:  # the controller forgets what ended long ago, or it is down
            answer = ""
        if not answer.strip():
            return {row["JobID"]: row["State"].split()[0] for row in self.sacct(job)}
        return dict(line.split() for line in answer.splitlines())

    def wait_for_state(self, job: int | str, wanted: str | Collection[str], timeout: float = 60) -> None:
        """Wait until the job, or every task of the array, is in one of the ``wanted`` states.

        Fails at once when one of them ended otherwise, and after ``timeout`` seconds.
        """
        wanted = {wanted} if isinstance(wanted, str) else set(wanted)

        def arrived() -> bool:
            states = self.states(job)
            wrong = {id: state for id, state in states.items() if state in FINAL - wanted}
            assert not wrong, f"waited for {sorted(wanted)}, but {wrong}"
            return bool(states) and set(states.values()) <= wanted

        self.wait_until(arrived, f"job {job} to be {sorted(wanted)}", timeout, lambda: self.states(job))

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
        """The accounting's rows of a job or array (`ACCOUNTED`), one a task; ``every_run`` adds those before a requeue."""
        again = ["--duplicates"] if every_run else []
        answer = self.cluster.ask(
            "sacct", "-X", "-P", "-n", *again, "-j", str(job), "-o", ",".join(ACCOUNTED)
        )
        return [dict(zip(ACCOUNTED, line.split("|"), strict=True)) for line in answer.splitlines()]

    def node_of(self, job: int | str) -> str:
        """The first node of a running job."""
        nodes = self.cluster.ask("squeue", "-h", "-j", str(job), "-o", "%N").split()
        return self.cluster.ask("scontrol", "show", "hostnames", *nodes).split()[0]

    def node_state(self, node: str) -> str:
        """In small letters; ``down*`` for one that does not answer."""
        return self.cluster.ask("sinfo", "-h", "-N", "-p", "main", "-n", node, "-o", "%T").strip()

    def nodes_idle(self, timeout: float = 60) -> None:
        """Wait until every node is idle."""

        def states() -> list[str]:
            return [self.node_state(node) for node in self.nodes]

        self.wait_until(lambda: set(states()) == {"idle"}, "idle nodes", timeout, states)

    def quiet(self) -> None:
        """Cancel every job, and bring back every node."""
        self.cluster.ask("scancel", "--quiet", "--user", "root")
        self.cluster.start(keep=False)
        self.nodes_idle()

    # --- harm

    def requeue(self, job: int | str) -> None:
        self.cluster.ask("scontrol", "requeue", str(job))

    def cancel(self, job: int | str) -> None:
        self.cluster.ask("scancel", str(job))

    def down(self, node: str) -> None:
        """What an administrator sets DOWN: its jobs are queued again, and what ran of them is killed."""
        self._update(node, "down")

    def drain(self, node: str) -> None:
        """No further job starts on it."""
        self._update(node, "drain")

    def lose(self, node: str) -> None:
        """A power cut: every process on the node ends this moment, and the controller takes note."""
        self.cluster.power_off(node)
        self._update(node, "down")

    def resume(self, node: str) -> None:
        """Undo `down`, `drain` or `lose`; back when the node is idle or has work."""
        if node not in self.cluster.running():
            self.cluster.power_on(node)
        if self.node_state(node).rstrip("*").startswith(("down", "drain")):
            self.cluster.ask("scontrol", "update", f"nodename={node}", "state=resume")
        usable = ("idle", "mixed", "allocated")
        self.wait_until(lambda: self.node_state(node) in usable, f"{node} to be back")

    def _update(self, node: str, state: str) -> None:
        self.cluster.ask("scontrol", "update", f"nodename={node}", f"state={state}", "reason=test")

    def processes(self, job: int | str, pattern: str = "") -> dict[int, str]:
        """The processes of a job or array task whose command line contains a match of ``pattern``: ids and command lines."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                command = (
                    (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                )
                environment = dict(_pairs((folder / "environ").read_bytes()))
            except OSError:  # it ended meanwhile
                continue
            if command and _belongs(environment, str(job), self.cluster) and re.search(pattern, command):
                found[int(folder.name)] = command
        return found

    def kill(
        self, job: int | str, pattern: str = "", how: int = signal.SIGKILL, timeout: float = 30
    ) -> list[int]:
        """Send a signal to every process of a job that matches, waiting for one to be there; the ids."""
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
    """A task of an array has a job id of its own, and in its environment those of the array and the task as well."""
    if environment.get("SLURM_CONF") != str(cluster.conf) or "SLURM_JOB_ID" not in environment:
        return False
    array, task = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
    return job in {environment["SLURM_JOB_ID"], array, f"{array}_{task}"}
