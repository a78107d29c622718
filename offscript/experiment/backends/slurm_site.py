"""SLURM as a site offers it: running its commands, and the limits of its partitions, checked before a submission."""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from offscript.errors import UserError, one_of
from offscript.experiment.backends.plan import MAX_TASKS
from offscript.settings import ClusterSettings, ResourceSettings

TIMEOUT_S = 60.0

NO_CONTROLLER = "is the SLURM controller up, and is this machine configured for it (SLURM_CONF)?"

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
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=timeout_s, env=env
        )
    except FileNotFoundError:
        raise _no_slurm(command[0]) from None
    except OSError as error:
        raise UserError(command[0], f"cannot be run ({error.strerror})", NO_CONTROLLER) from None
    except subprocess.TimeoutExpired:
        raise UserError(command[0], f"no answer in {timeout_s:.0f} seconds", NO_CONTROLLER) from None
    if done.returncode:
        output = done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}"
        raise refusal(command[0], output)
    return done.stdout


def refusal(program: str, output: str, where: str = "", remedy: str = "") -> UserError:
    """The error of a SLURM command that failed with ``output``: its last line about an error. ``remedy`` is that of a
    controller that answers."""
    said = [line for line in output.splitlines() if not line.startswith("Try ")] or [""]
    lines = [line for line in said if re.search("error|fatal", line)] or said
    found = re.sub(rf"^{program}: ((error|fatal): )*", "", lines[-1].strip())
    down = re.search("contact|configuration source|controller|onnection|imed out", found)
    return UserError(where or program, found, NO_CONTROLLER if down else remedy)


def fields(program: str, line: str, count: int) -> list[str]:
    """The ``count`` parts of a line, between ``|``; the last one may hold further ones.

    Raises:
        UserError: it has fewer.
    """
    parts = line.split("|", count - 1)
    if len(parts) < count:
        found = f"its output has the line {line[:80]!r}, with {len(parts)} of {count} columns"
        raise UserError(program, found, "a wrapper of the site may print it; call SLURM's own program")
    return parts


def _no_slurm(program: str) -> UserError:
    found = f"no SLURM here ({program} is not on the path)"
    return UserError(
        "cluster", found, "run this on a login node of the cluster, or the grid with cluster=local"
    )


def check_controller() -> None:
    """Checks that jobs can be submitted: sbatch is there, and the controller answers.

    Raises:
        UserError: SLURM is not installed, or does not answer.
    """
    if shutil.which("sbatch") is None:
        raise _no_slurm("sbatch")
    run_command("squeue", "--me", "-h", "-o", "%i")


def max_array_tasks() -> int:
    """How many tasks the cluster allows in one array; ``MAX_TASKS`` if it does not say.

    MaxArraySize is the first index that is not allowed, and indices begin at 0. A scheduler may allow fewer tasks.
    """
    try:
        text = run_command("scontrol", "show", "config", timeout_s=10)
    except UserError:
        return MAX_TASKS
    limits = re.findall(r"^MaxArraySize\s*=\s*(\d+)|\bmax_array_tasks=(\d+)", text, re.MULTILINE)
    found = [int(a or b) for a, b in limits]
    return max(1, min(found)) if found else MAX_TASKS


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
    rows = (fields("sinfo", line, 5) for line in text.splitlines() if line.strip())
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
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", limit):
        return float("inf")
    days, _, rest = limit.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    hours, minutes = (parts[0], parts[1]) if len(parts) == 3 else (0, parts[0])
    return int(days or 0) * 1440 + hours * 60 + minutes
