"""SLURM as a site offers it: running its commands, and the limits of its partitions, checked before a submission."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from offscript.errors import UserError, one_of
from offscript.settings import ClusterSettings, ResourceSettings

TIMEOUT_S = 60.0

SETTING_OF = {
    "partition": "cluster.partition",
    "account": "cluster.account",
    "qos": "cluster.qos",
    "time": "minutes",
    "constraint": "cluster.constraint",
    "signal": "cluster.signal_s",
    "mail-user": "cluster.mail",
    "nodes": "nodes",
    "ntasks-per-node": "tasks",
    "cpus-per-task": "cpus",
    "gpus-per-node": "gpus",
    "mem": "memory_gb",
}
"""sbatch options that have a setting of their own, which is checked; ``cluster.extra`` may not hold them."""

RESERVED = {
    *("array", "job-name", "output", "error", "open-mode", "chdir", "wait", "wrap"),
    *("requeue", "no-requeue", "kill-on-invalid-dep"),
}
"""sbatch options that the launch sets itself: requeueing and logs depend on them."""


def run_command(*command: str, timeout_s: float = TIMEOUT_S) -> str:
    """Runs a SLURM command and returns its output; times in it are in seconds since 1970.

    Raises:
        UserError: the command is not installed, fails, or gives no answer within ``timeout_s`` seconds.
    """
    env = {**os.environ, "SLURM_TIME_FORMAT": "%s"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, env=env)
    except FileNotFoundError:
        raise _no_slurm(command[0]) from None
    except subprocess.TimeoutExpired:
        found = f"no answer in {timeout_s:.0f} seconds"
        raise UserError(command[0], found, "is the SLURM controller up?") from None
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()
        remedy = "is the SLURM controller up?" if "contact" in lines[-1] else ""
        raise UserError(command[0], lines[-1], remedy)
    return done.stdout


def _no_slurm(program: str) -> UserError:
    found = f"no SLURM here ({program} is not on the path)"
    return UserError("cluster", found, "cluster=local, or a login node")


# ---------------------------------------------------------------- checks before a submission


@dataclass(frozen=True)
class NodeLimits:
    """What one node offers to a job of one partition; ``minutes`` is the partition's time limit."""

    partition: str
    default: bool
    minutes: float
    cpus: int
    memory_gb: float
    gpus: int


def check_cluster(cluster: ClusterSettings, kinds: Sequence[str]) -> None:
    """Checks the cluster's settings and the resources of jobs of ``kinds`` against what the site offers.

    Raises:
        UserError: SLURM is not installed, the partition does not exist, a job asks for more than the nodes have, or
            ``cluster.extra`` holds an option that is set elsewhere.
    """
    if shutil.which("sbatch") is None:
        raise _no_slurm("sbatch")
    _check_extra(cluster)
    nodes = parse_sinfo(run_command("sinfo", "-N", "-h", "-o", "%P|%l|%c|%m|%G"))
    usable = _in_partition(cluster.partition, nodes)
    for kind in kinds:
        resources = cluster.resources(kind)
        where = "cluster.default" if resources is cluster.default else f"cluster.jobs.{kind}"
        _check_resources(where, resources, usable)


def _check_extra(cluster: ClusterSettings) -> None:
    for key in cluster.extra:
        option = key.replace("_", "-")
        if option in SETTING_OF:
            name = SETTING_OF[option]
            setting = name if "." in name else f"cluster.default.{name} or cluster.jobs.<kind>.{name}"
            raise UserError(f"cluster.extra.{key}", "has a setting of its own", setting)
        if option in RESERVED:
            raise UserError(f"cluster.extra.{key}", "is set by the launch itself", "leave it out")
    if (dependency := cluster.extra.get("dependency")) is not None:
        _check_dependency(str(dependency))


def _check_dependency(text: str) -> None:
    """Checks that SLURM knows the jobs of a dependency: it treats one on an unknown job as fulfilled, even if that job
    failed."""
    for part in text.replace("?", ",").split(","):
        for job in part.split(":")[1:]:
            number = job.partition("+")[0]
            try:
                run_command("scontrol", "show", "job", number)
            except UserError as error:
                found = f"{part} (job {number}: {error.found})"
                remedy = "a job that SLURM still knows; leave it out if the job completed"
                raise UserError("cluster.extra.dependency", found, remedy) from None


def _in_partition(wanted: str | None, nodes: Sequence[NodeLimits]) -> list[NodeLimits]:
    names = sorted({node.partition for node in nodes})
    if wanted is None:
        own = [node for node in nodes if node.default]
        if not own:
            raise UserError("cluster.partition", "none given, and no partition is the default", one_of(names))
        return own
    if unknown := [name for name in wanted.split(",") if name not in names]:
        raise UserError("cluster.partition", f"no partition {unknown[0]!r}", one_of(names))
    return [node for node in nodes if node.partition in wanted.split(",")]


def _check_resources(where: str, resources: ResourceSettings, nodes: Sequence[NodeLimits]) -> None:
    """Checks each resource against the largest node, and the number of nodes against those that have all of them."""
    tasks = resources.gpus or resources.tasks
    wanted = {
        "minutes": resources.minutes,
        "gpus": resources.gpus,
        "cpus": resources.cpus * tasks,
        "memory_gb": resources.memory_gb,
    }
    for name, amount in wanted.items():
        most = max(getattr(node, name) for node in nodes)
        if amount > most:
            each = (
                f" ({resources.cpus} for each of {tasks} processes)" if name == "cpus" and tasks > 1 else ""
            )
            raise UserError(f"{where}.{name}", f"asks for {amount:g}{each}", f"allowed: at most {most:g}")
    able = sum(all(getattr(node, name) >= amount for name, amount in wanted.items()) for node in nodes)
    if able < resources.nodes:
        allowed = f"allowed: at most {able}, the nodes of the partition with all these resources"
        raise UserError(f"{where}.nodes", f"asks for {resources.nodes}", allowed)


def parse_sinfo(text: str) -> list[NodeLimits]:
    """The nodes in the output of ``sinfo -N -h -o '%P|%l|%c|%m|%G'``, whose memory is in MiB."""
    rows = (line.split("|") for line in text.splitlines())
    return [
        NodeLimits(
            partition=name.rstrip("*"),
            default=name.endswith("*"),
            minutes=parse_minutes(limit),
            cpus=_parse_count(cpus),
            memory_gb=_parse_count(memory) / 1024,
            gpus=count_gpus(gres),
        )
        for name, limit, cpus, memory, gres in rows
    ]


def _parse_count(text: str) -> int:
    """``64+`` -> 64."""
    return int("".join(c for c in text if c.isdigit()) or 0)


def count_gpus(gres: str) -> int:
    """The GPUs of a node, of all types: ``gpu:h100:4(S:0-1),shard:8`` -> 4."""
    plain = "".join(part.partition(")")[2] if i else part for i, part in enumerate(gres.split("(")))
    counts = [part.split(":")[-1] for part in plain.split(",") if part.startswith("gpu:")]
    return sum(int(count) for count in counts if count.isdigit())


def parse_minutes(limit: str) -> float:
    """Minutes of a time limit in SLURM's format: ``2-12:00:00``, ``12:00:00``, ``30:00`` or ``infinite``."""
    if not limit[:1].isdigit():
        return float("inf")
    days, _, rest = limit.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    hours, minutes = (parts[0], parts[1]) if len(parts) == 3 else (0, parts[0])
    return int(days or 0) * 1440 + hours * 60 + minutes
