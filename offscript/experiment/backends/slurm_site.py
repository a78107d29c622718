"""What SLURM says of itself: its commands, asked with patience, and what the nodes of its partitions have."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from offscript.errors import UserError, one_of
from offscript.settings import ClusterSettings, ResourceSettings

PATIENCE_S = 60.0

SETTINGS = {
    "partition": "cluster.partition", "account": "cluster.account", "qos": "cluster.qos", "time": "minutes",
    "constraint": "cluster.constraint", "signal": "cluster.signal_s", "mail-user": "cluster.mail", "nodes": "nodes",
    "ntasks-per-node": "tasks", "cpus-per-task": "cpus", "gpus-per-node": "gpus", "mem": "memory_gb",
}  # fmt: skip
"""sbatch keys that have a setting of their own, by which they are checked."""

OURS = (
    "array", "job-name", "output", "error", "open-mode", "requeue", "no-requeue", "kill-on-invalid-dep", "chdir", "wait",
    "wrap",
)  # fmt: skip
"""sbatch keys on which the survival of a launch rests."""


def ask(*command: str, patience_s: float = PATIENCE_S) -> str:
    """What a SLURM command says.

    Raises:
        UserError: it is not here, it fails, or the controller does not answer.
    """
    env = {**os.environ, "SLURM_TIME_FORMAT": "%s"}  # times in seconds since 1970
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=patience_s, env=env)
    except FileNotFoundError:
        raise _no_slurm(command[0]) from None
    except subprocess.TimeoutExpired:
        raise UserError(
            command[0], f"no answer in {patience_s:.0f} seconds", "is the SLURM controller up?"
        ) from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()
        raise UserError(command[0], said[-1], "is the SLURM controller up?" if "contact" in said[-1] else "")
    return done.stdout


def _no_slurm(program: str) -> UserError:
    return UserError(
        "cluster", f"no SLURM here ({program} is not on the path)", "cluster=local, or a login node"
    )


# ---------------------------------------------------------------- before anything is submitted


@dataclass(frozen=True)
class Offer:
    """What one node gives to the jobs of one partition; ``minutes`` is the longest time limit there."""

    partition: str
    default: bool
    minutes: float
    cpus: int
    memory_gb: float
    gpus: int


def check(cluster: ClusterSettings, kinds: Sequence[str]) -> None:
    """Refuses what the cluster would refuse, or would never start.

    Raises:
        UserError: there is no SLURM here, no such partition, a job asks for more than nodes have, or an extra key of
            sbatch has another place.
    """
    if shutil.which("sbatch") is None:
        raise _no_slurm("sbatch")
    _check_extra(cluster)
    offers = offered(ask("sinfo", "-N", "-h", "-o", "%P|%l|%c|%m|%G"))
    own = _of_partition(cluster.partition, offers)
    for kind in kinds:
        where = (
            f"cluster.jobs.{kind}" if cluster.resources(kind) is not cluster.default else "cluster.default"
        )
        _check_size(where, cluster.resources(kind), own)


def _check_extra(cluster: ClusterSettings) -> None:
    for key in cluster.extra:
        name = key.replace("_", "-")
        if name in SETTINGS:
            place = SETTINGS[name]
            known = place if "." in place else f"cluster.default.{place} or cluster.jobs.<kind>.{place}"
            raise UserError(f"cluster.extra.{key}", "has a setting of its own", known)
        if name in OURS:
            raise UserError(f"cluster.extra.{key}", "is set by the launch itself", "leave it out")
    if (dependency := cluster.extra.get("dependency")) is not None:
        _check_dependency(str(dependency))


def _check_dependency(text: str) -> None:
    """SLURM counts a dependency on a job that it has forgotten as fulfilled, however that job ended."""
    for part in text.replace("?", ",").split(","):
        for job in part.split(":")[1:]:
            number = job.partition("+")[0]
            try:
                ask("scontrol", "show", "job", number)
            except UserError as error:
                raise UserError(
                    "cluster.extra.dependency", f"{part} (job {number}: {error.found})",
                    "a job that SLURM still knows; leave it out if that one ended well",
                ) from None  # fmt: skip


def _of_partition(wanted: str | None, offers: Sequence[Offer]) -> list[Offer]:
    names = sorted({offer.partition for offer in offers})
    if wanted is None:
        own = [offer for offer in offers if offer.default]
        if not own:
            raise UserError("cluster.partition", "none given, and no partition is the default", one_of(names))
        return own
    if unknown := [name for name in wanted.split(",") if name not in names]:
        raise UserError("cluster.partition", f"no partition {unknown[0]!r}", one_of(names))
    return [offer for offer in offers if offer.partition in wanted.split(",")]


def _check_size(where: str, asked: ResourceSettings, offers: Sequence[Offer]) -> None:
    """Refuses what no node has, and more nodes than have all of it together."""
    tasks = asked.gpus or asked.tasks
    wanted = {
        "minutes": asked.minutes,
        "gpus": asked.gpus,
        "cpus": asked.cpus * tasks,
        "memory_gb": asked.memory_gb,
    }
    for name, amount in wanted.items():
        most = max(getattr(offer, name) for offer in offers)
        if amount > most:
            each = f" ({asked.cpus} for each of {tasks} processes)" if name == "cpus" and tasks > 1 else ""
            raise UserError(f"{where}.{name}", f"asks for {amount:g}{each}", f"allowed: at most {most:g}")
    able = [o for o in offers if all(getattr(o, name) >= amount for name, amount in wanted.items())]
    if len(able) < asked.nodes:
        raise UserError(
            f"{where}.nodes",
            f"asks for {asked.nodes}",
            f"{len(able)} of the partition's nodes have all that it asks",
        )


def offered(text: str) -> list[Offer]:
    """Offers from ``sinfo -N -h -o '%P|%l|%c|%m|%G'``; memory is there in MiB."""
    rows = (line.split("|") for line in text.splitlines())
    return [
        Offer(
            name.rstrip("*"),
            name.endswith("*"),
            minutes(limit),
            _number(cpus),
            _number(memory) / 1024,
            gpus(gres),
        )
        for name, limit, cpus, memory, gres in rows
    ]


def _number(text: str) -> int:
    return int("".join(c for c in text if c.isdigit()) or 0)


def gpus(text: str) -> int:
    """``gpu:h100:4(S:0-1),shard:8`` -> 4; several kinds add up."""
    plain = "".join(part.partition(")")[2] if i else part for i, part in enumerate(text.split("(")))
    found = [part.split(":")[-1] for part in plain.split(",") if part.startswith("gpu:")]
    return sum(int(n) for n in found if n.isdigit())


def minutes(text: str) -> float:
    """Of a time limit as SLURM writes it: ``2-12:00:00``, ``12:00:00``, ``30:00`` or ``infinite``."""
    if not text[:1].isdigit():
        return float("inf")
    days, _, rest = text.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    hours, mins = (parts[0], parts[1]) if len(parts) == 3 else (0, parts[0])
    return int(days or 0) * 1440 + hours * 60 + mins
