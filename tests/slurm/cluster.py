"""A SLURM cluster on one machine for tests, with several virtual nodes, accounting and preemption.

    python tests/slurm/cluster.py install     # Debian packages, as root; starts nothing
    python tests/slurm/cluster.py start       # running daemons are left alone
    python tests/slurm/cluster.py status      # exit code 1 if it does not run
    eval "$(python tests/slurm/cluster.py env)"; sinfo; sbatch ...
    python tests/slurm/cluster.py stop        # cancels its jobs and stops its daemons
    python tests/slurm/cluster.py clean       # stops it, and removes all jobs and accounting

All its files are in one folder ($OFFSCRIPT_SLURM_ROOT, or offscript-slurm in the user's cache folder). It needs root,
but no systemd, cgroups or network. Only the standard library is used, so any Python 3.11 can run it.

A virtual node is a slurmd in its own namespaces (host name, processes, /etc/hosts). A job sees the name of its node as
the host name and resolves the names of the others, as on a real cluster. Stopping a node kills every process on it, as a
power cut does. The host name and /etc/hosts of the machine do not change.

Environment variables and their defaults: OFFSCRIPT_SLURM_NODES (4), _CPUS (2, per node), _GPUS (2, per node; fake: a
job that requests one gets CUDA_VISIBLE_DEVICES, but no device), _MEMORY (16384 MiB per node; not checked against the
machine) and _PORT (17800, the first of the TCP ports).
"""

import argparse
import fcntl
import getpass
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

# The -core packages contain the MariaDB programs without a service that starts at boot.
PACKAGES = (
    "slurmctld",
    "slurmd",
    "slurm-client",
    "slurmdbd",
    "munge",
    "mariadb-server-core",
    "mariadb-client-core",
)
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "slurmdbd", "munged", "mariadbd", "mariadb", "unshare")
PREFIX = "OFFSCRIPT_SLURM_"

SLURM_CONF = """\
ClusterName=offscript
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job may start again only once its credential has expired, by default after two minutes.
AuthInfo=socket={root}/run/munge.socket,cred_expire=5
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/run/slurmctld.pid
SlurmdPidFile={root}/run/slurmd.%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd.%n.log

# Neither cgroups nor systemd. Memory use is sampled every other second.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=2
JobAcctGatherParams=OverMemoryKill
MpiDefault=none
SwitchType=switch/none

# Nodes have the resources below, whatever the machine has. A node that did not answer returns when it does again; one
# that was set DOWN stays DOWN until it is resumed.
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU={default_memory}
SlurmdParameters=config_overrides
ReturnToService=1
GresTypes=gpu

# The scheduler runs without delays, since tests wait for it. Timeouts are long, since two busy cores answer slowly.
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1,default_queue_depth=1000
SlurmdTimeout=20
SlurmctldTimeout=20
MessageTimeout=30
KillWait=3
InactiveLimit=0
CompleteWait=0
EpilogMsgTime=0
MinJobAge=300

# A job whose dependency failed is cancelled, a lost or preempted job is requeued, and a job that requested a signal gets
# it before it is preempted too.
DependencyParameters=kill_invalid_depend
JobRequeue=1
MaxArraySize=10001
MaxJobCount=20000
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal

AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={database_port}
AccountingStoragePass={root}/run/munge.socket
AccountingStoreFlags=job_comment
AccountingStorageTRES=gres/gpu

NodeName=node[1-{nodes}] NodeAddr=127.0.0.1 Port={node_ports} CPUs={cpus} RealMemory={memory} {gres} State=UNKNOWN

# A job in main is preempted at once. One in graceful gets a signal and has 10 s (up to 40, since the controller checks
# twice a minute); if it exits by itself in that time, SLURM does not requeue it. Sites use either mode.
PartitionName=main Nodes=ALL Default=YES MaxTime=1-0 DefaultTime=60 PriorityTier=1 PreemptMode=REQUEUE
PartitionName=graceful Nodes=ALL MaxTime=1-0 DefaultTime=60 PriorityTier=1 PreemptMode=REQUEUE GraceTime=10
PartitionName=urgent Nodes=ALL MaxTime=1-0 DefaultTime=60 PriorityTier=10 PreemptMode=OFF
"""

DATABASE_CONF = """\
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={database_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={root}/run/munge.socket
PidFile={root}/run/slurmdbd.pid
LogFile={root}/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm
"""

# The shell is process 1 of the node's namespace, since slurmd would not reap orphaned processes.
NODE_BOOT = 'hostname "$1" && mount --bind "$2" /etc/hosts && { slurmd -D -f "$3" -N "$1" & wait; }'


class ClusterError(Exception):
    """The cluster cannot be used; the message is one line."""


@dataclass(frozen=True)
class Daemon:
    """A daemon of the cluster. ``ready`` returns whether it serves requests; ``port`` is the port that it listens on."""

    name: str
    command: list[str]
    ready: Callable[[], bool]
    port: int | None = None
    env: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Cluster:
    """Folder and size of the cluster. Sizes are per node; memory is in MiB."""

    root: Path
    nodes: int = 4
    cpus: int = 2
    gpus: int = 2
    memory: int = 16384
    port: int = 17800

    @classmethod
    def from_environment(cls) -> "Cluster":
        """The cluster that OFFSCRIPT_SLURM_* describe. Raises `ClusterError` if a size is not a whole number."""
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        root = Path(os.environ.get(PREFIX + "ROOT") or cache / "offscript-slurm").absolute()
        sizes = {key: _size(key) for key in ("nodes", "cpus", "gpus", "memory", "port")}
        return cls(root, **{key: value for key, value in sizes.items() if value is not None})

    @property
    def conf(self) -> Path:
        return self.root / "etc" / "slurm.conf"

    @property
    def node_names(self) -> list[str]:
        return [f"node{i}" for i in range(1, self.nodes + 1)]

    def environment(self) -> dict[str, str]:
        """The environment for SLURM's commands to use this cluster, without variables of an enclosing job."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
        return {**kept, "SLURM_CONF": str(self.conf), "PATH": _path()}

    # --- start and stop

    def start(self, keep: bool = True) -> None:
        """Start the daemons that do not run; return when every node accepts jobs.

        ``keep``: the cluster keeps running after its last user has left (`in_use`).

        Raises:
            ClusterError: not root, not installed, a port is in use, or a daemon did not start.
        """
        _need_root()
        _need_programs()
        self.folder()
        with self._locked():
            if self._configure() and self.running():
                self._stop_daemons()
            new = not self.running()
            try:
                self._start_daemons()
            except BaseException:
                if new:
                    self._stop_daemons()
                raise
            if keep:
                self._stop_marker().unlink(missing_ok=True)
            elif new:
                self._stop_marker().touch()

    def stop(self) -> None:
        """Cancel all jobs and stop all daemons of this cluster, if there are any."""
        if not self._lock.exists():
            return
        _need_root()
        with self._locked():
            self._stop_daemons()
            self._stop_marker().unlink(missing_ok=True)

    def clean(self) -> None:
        """Stop, and remove the folder with all jobs and accounting. Job ids start at 1 again afterwards."""
        if self.root.exists() and not self._lock.exists():
            raise ClusterError(f"{self.root} is not the folder of a cluster, and was not removed")
        self.stop()
        shutil.rmtree(self.root, ignore_errors=True)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Runs the cluster within the block. The last user stops it, unless it ran before or was started to be kept."""
        _need_root()
        with (self.folder() / "users").open("a") as users:
            fcntl.flock(users, fcntl.LOCK_SH)
            self.start(keep=False)
            try:
                yield
            finally:
                if _try_exclusive_lock(users) and self._stop_marker().exists():
                    self.stop()

    def is_in_use(self) -> bool:
        """Whether any process is inside `in_use`."""
        users = self.root / "users"
        if not users.exists():
            return False
        with users.open("a") as lock:
            return not _try_exclusive_lock(lock)

    def folder(self) -> Path:
        """The folder of the cluster, created if it is missing. Raises `ClusterError` if the path cannot be used."""
        if reason := self._refuse_folder():
            raise ClusterError(f"{self.root}: {reason}; set {PREFIX}ROOT to an empty or new folder")
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock.touch()
        return self.root

    def running(self) -> list[str]:
        """The names of the running daemons."""
        return sorted(self.processes())

    def is_up(self) -> bool:
        return set(self.running()) == {daemon.name for daemon in self._daemons()}

    def status(self) -> str:
        """The daemons, the nodes and the queue, as text."""
        expected = [daemon.name for daemon in self._daemons()]
        down = [name for name in expected if name not in self.running()]
        lines = [f"folder {self.root}", f"down: {', '.join(down)}" if down else "all daemons are running"]
        if "slurmctld" not in down:
            lines += [self.run_command("sinfo", "-N", "-l"), self.run_command("squeue")]
        return "\n".join(line.rstrip() for line in lines)

    def run_command(self, *command: str) -> str:
        """The output of a SLURM command. Raises `ClusterError` with its error message."""
        done = subprocess.run(command, env=self.environment(), capture_output=True, text=True)
        if done.returncode:
            raise ClusterError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()}")
        return done.stdout

    # --- single nodes

    def power_off(self, node: str) -> None:
        """Kill a node and every process on it. The controller notices after SlurmdTimeout."""
        if node in (running := self.processes()):
            _end(running[node], signal.SIGKILL)

    def power_on(self, node: str) -> None:
        """Start a node that is off; return when it accepts jobs."""
        if node not in self.processes():
            self._start_daemon(self._node(self.node_names.index(node)))
        self._recover_nodes()

    # --- configuration

    @property
    def _lock(self) -> Path:
        """Its presence also marks a folder as a cluster's."""
        return self.root / "offscript-slurm.lock"

    def _refuse_folder(self) -> str | None:
        """Why the folder cannot be used; None if it can."""
        if any(c.isspace() for c in str(self.root)):
            return "SLURM allows no blank in a path"
        if len(str(self.root)) > 80:
            return "the path of a socket in it would be too long"
        if self.root.exists() and any(self.root.iterdir()) and not self._lock.exists():
            return "it has other content"
        return None

    def _configure(self) -> bool:
        """Write keys and configuration; returns whether the configuration has changed."""
        for name in ("etc", "run", "log", "state", "spool", "database"):
            (self.root / name).mkdir(exist_ok=True)
        key = self.root / "etc" / "munge.key"
        if not key.exists():
            _write(key, os.urandom(128))
        hosts = Path("/etc/hosts").read_text() + "".join(f"127.0.0.1 {name}\n" for name in self.node_names)
        files = {
            "slurm.conf": SLURM_CONF.format(**self._values()),
            "slurmdbd.conf": DATABASE_CONF.format(**self._values()),
            "gres.conf": self._fake_gpus(),
            "hosts": hosts,
        }
        before = {name: _read(self.root / "etc" / name) for name in files}
        for name, text in files.items():
            if before[name] != text:
                _write(self.root / "etc" / name, text.encode())
        return before != files

    def _values(self) -> dict[str, object]:
        first, last = self.port + 2, self.port + 1 + self.nodes
        return {
            "root": self.root,
            "host": socket.gethostname().split(".")[0],
            "nodes": self.nodes,
            "cpus": self.cpus,
            "memory": self.memory,
            "default_memory": self.memory // self.cpus,
            "controller_port": self.port,
            "database_port": self.port + 1,
            "node_ports": f"{first}-{last}" if last > first else first,
            "gres": f"Gres=gpu:{self.gpus}" if self.gpus else "",
        }

    def _fake_gpus(self) -> str:
        """Device files for the fake GPUs, which behave as /dev/null. SLURM derives CUDA_VISIBLE_DEVICES from them."""
        for i in range(self.gpus):
            device = self.root / "etc" / f"gpu{i}"
            if not device.exists():
                os.mknod(device, 0o666 | stat.S_IFCHR, os.stat("/dev/null").st_rdev)
        files = f"{self.root}/etc/gpu[0-{self.gpus - 1}]" if self.gpus > 1 else f"{self.root}/etc/gpu0"
        return f"NodeName=node[1-{self.nodes}] Name=gpu File={files}\n" if self.gpus else ""

    # --- daemons

    def _daemons(self) -> list[Daemon]:
        """All daemons in the order of their start. They run in the foreground, so their process ids are known."""
        run, etc, data = self.root / "run", self.root / "etc", self.root / "database"
        munge, database = f"{run}/munge.socket", f"{run}/mariadb.socket"
        mariadb = ["mariadbd", "--no-defaults", "--user=root", f"--datadir={data}", f"--socket={database}"]
        mariadb += ["--skip-networking", f"--pid-file={run}/mariadbd.pid", "--innodb-buffer-pool-size=64M"]
        mariadb += ["--innodb-lock-wait-timeout=900", "--innodb-flush-log-at-trx-commit=0"]
        return [
            # --force: munged expects a world-readable folder for its socket; this one is readable by root only.
            Daemon("munged", ["munged", "-F", "--force", f"--key-file={etc}/munge.key", f"--socket={munge}",
                              f"--pid-file={run}/munged.pid", f"--log-file={self.root}/log/munged.log",
                              f"--seed-file={run}/munge.seed"],
                   lambda: self._succeeds("munge", "-n", "-S", munge)),
            Daemon("mariadbd", mariadb, lambda: self._succeeds("mariadb", *_client(database), "-e", "SELECT 1")),
            Daemon("slurmdbd", ["slurmdbd", "-D"], lambda: self._succeeds("sacctmgr", "-n", "list", "cluster"),
                   self.port + 1, {"MYSQL_UNIX_PORT": database}),
            Daemon("slurmctld", ["slurmctld", "-D", "-f", str(self.conf)],
                   lambda: "is UP" in self._output("scontrol", "ping"), self.port),
            *(self._node(i) for i in range(self.nodes)),
        ]  # fmt: skip

    def _node(self, index: int) -> Daemon:
        name = self.node_names[index]
        namespaces = ["unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
        namespaces += ["--propagation", "private"]
        boot = ["sh", "-c", NODE_BOOT, "sh", name, str(self.root / "etc" / "hosts"), str(self.conf)]
        return Daemon(name, [*namespaces, *boot], lambda: True, self.port + 2 + index)

    def _start_daemons(self) -> None:
        missing = [daemon for daemon in self._daemons() if daemon.name not in self.processes()]
        for port in [daemon.port for daemon in missing if daemon.port]:
            if not _is_free(port):
                raise ClusterError(
                    f"port {port} is in use; set {PREFIX}PORT to the first port of a free range"
                )
        for daemon in missing:
            self._start_daemon(daemon)
        self._recover_nodes()

    def _stop_marker(self) -> Path:
        """Exists if the cluster was started by `in_use`, and not with ``keep`` since."""
        return self.root / "run" / "stop-when-unused"

    def _start_daemon(self, daemon: Daemon) -> None:
        if daemon.name == "mariadbd":
            self._create_database()
        if daemon.name == "slurmctld":
            self._register()
        log = self.root / "log" / f"{daemon.name}.out"
        variable, _, value = self._tag(daemon.name).partition("=")
        env = {**self.environment(), **daemon.env, variable: value}
        with log.open("wb") as out:
            process = subprocess.Popen(
                daemon.command,
                env=env,
                cwd=self.root,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        _wait_for(lambda: daemon.ready() or process.poll() is not None, f"{daemon.name} (see {log})", 60)
        if process.poll() is not None:
            raise ClusterError(f"{daemon.name} exited at its start: {_last_line(log)} (see {log})")

    def _create_database(self) -> None:
        data = self.root / "database"
        if (data / "mysql").exists():
            return
        command = [
            "mariadb-install-db",
            "--no-defaults",
            "--user=root",
            f"--datadir={data}",
            "--skip-test-db",
        ]
        self.run_command(*command, "--auth-root-authentication-method=socket", "--auth-root-socket-user=root")

    def _register(self) -> None:
        """Add the cluster to the accounting, which the controller needs at its start."""
        if (
            "offscript"
            not in self.run_command("sacctmgr", "-n", "-P", "list", "cluster", "format=cluster").split()
        ):
            self.run_command("sacctmgr", "-i", "add", "cluster", "offscript")

    def _recover_nodes(self) -> None:
        """Wait for all nodes; those that a test has set DOWN or DRAIN are resumed."""

        def all_ready() -> bool:
            states = dict(
                line.split() for line in self._output("sinfo", "-h", "-N", "-o", "%N %T").splitlines()
            )
            for node, state in states.items():
                if state.startswith(("down", "drain")):
                    self._succeeds("scontrol", "update", f"nodename={node}", "state=resume")
            usable = [
                state for state in states.values() if state in ("idle", "mixed", "allocated", "completing")
            ]
            return len(usable) == self.nodes

        _wait_for(all_ready, f"the nodes (see {self.root}/log)", 60)

    def _stop_daemons(self) -> None:
        running = self.processes()
        if "slurmctld" in running:
            self._succeeds("scancel", "--quiet", "--user", getpass.getuser())
            _wait_for(lambda: not self._output("squeue", "-h").strip(), "the queue", 20, fail=False)
        for name in sorted(running, key=_stop_order):
            # A killed node takes its processes with it; the other daemons save their state at SIGTERM.
            _end(running[name], signal.SIGKILL if name.startswith("node") else signal.SIGTERM)

    # --- processes

    def processes(self) -> dict[str, int]:
        """The process id of each running daemon, by name.

        Daemons are identified by a variable in their environment. Their children inherit it, so the daemon is the
        process whose parent does not have it. Unlike a file with the process id, this is never out of date.
        """
        tagged = {pid: name for pid in _all_pids() if (name := self._tag_of(pid))}
        return {name: pid for pid, name in tagged.items() if tagged.get(_parent(pid)) != name}

    def _tag(self, name: str) -> str:
        return f"{PREFIX}DAEMON={self.root}/{name}"

    def _tag_of(self, pid: int) -> str | None:
        start = self._tag("").encode()
        found = [v for v in _proc(pid, "environ").split(b"\0") if v.startswith(start)]
        return found[0].removeprefix(start).decode() if found else None

    def _succeeds(self, *command: str) -> bool:
        return subprocess.run(command, env=self.environment(), capture_output=True).returncode == 0

    def _output(self, *command: str) -> str:
        return subprocess.run(command, env=self.environment(), capture_output=True, text=True).stdout

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One start or stop at a time."""
        with self._lock.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def is_installed() -> bool:
    return not _missing_programs()


def install() -> None:
    """Install the Debian packages. Raises `ClusterError` if that is not possible."""
    _need_root()
    if not shutil.which("apt-get"):
        raise ClusterError(
            "apt-get is not available; install SLURM and MariaDB by hand: " + " ".join(PACKAGES)
        )
    apt = ["apt-get", "-qq", "-o", "Dpkg::Use-Pty=0"]
    options = ["install", "-y", "--no-install-recommends", *PACKAGES]
    with _no_service_starts():
        for command in ([*apt, "update"], [*apt, *options]):
            done = subprocess.run(command, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})
            if done.returncode:
                raise ClusterError(f"{' '.join(command)}: exit code {done.returncode}")
    _need_programs()


@contextmanager
def _no_service_starts() -> Iterator[None]:
    """Within the block, Debian does not start daemons when their packages are installed (policy-rc.d)."""
    switch = Path("/usr/sbin/policy-rc.d")
    if switch.exists():
        yield
        return
    switch.write_text("#!/bin/sh\nexit 101\n")
    switch.chmod(0o755)
    try:
        yield
    finally:
        switch.unlink()


def _need_root() -> None:
    if os.geteuid():
        raise ClusterError("nodes run in their own namespaces: run this as root")


def _need_programs() -> None:
    if missing := _missing_programs():
        raise ClusterError(f"{', '.join(missing)} not found: run `python tests/slurm/cluster.py install`")


def _missing_programs() -> list[str]:
    return [name for name in PROGRAMS if not shutil.which(name, path=_path())]


def _path() -> str:
    """PATH with sbin, where the daemons are."""
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def _size(key: str) -> int | None:
    name = PREFIX + key.upper()
    text = os.environ.get(name)
    if text is None:
        return None
    least = 0 if key == "gpus" else 1
    if not text.isdecimal() or int(text) < least:
        raise ClusterError(f"{name}={text}: a whole number from {least} is needed")
    return int(text)


def _client(database: str) -> list[str]:
    return ["--no-defaults", f"--socket={database}", "--user=root"]


def _stop_order(name: str) -> int:
    return {"slurmctld": 1, "slurmdbd": 2, "mariadbd": 3, "munged": 4}.get(name, 0)


def _try_exclusive_lock(lock: IO[str]) -> bool:
    """Whether no other process holds the lock."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_free(port: int) -> bool:
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind(("", port))
        except OSError:
            return False
    return True


def _is_running(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    stat = _proc(pid, "stat")
    return bool(stat) and stat.rpartition(b")")[2].split()[0] not in (b"Z", b"X")


def _all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _parent(pid: int) -> int:
    stat = _proc(pid, "stat").rpartition(b")")[2].split()
    return int(stat[1]) if stat else 0


def _proc(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def _end(pid: int, how: signal.Signals, patience: float = 15) -> None:
    for sent in (how, signal.SIGKILL):
        try:
            os.kill(pid, sent)
        except ProcessLookupError:
            return
        if _wait_for(lambda: not _is_running(pid), f"process {pid}", patience, fail=False):
            return


def _wait_for(true: Callable[[], bool], what: str, seconds: float, fail: bool = True) -> bool:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            if fail:
                raise ClusterError(f"waited {seconds:g} s for {what}")
            return False
        time.sleep(0.05)
    return True


def _write(path: Path, content: bytes) -> None:
    """Write a file that only its owner can read, as SLURM and munge require of keys and passwords."""
    path.touch(mode=0o600)
    path.write_bytes(content)


def _read(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "no output"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = ("install", "start", "stop", "status", "clean", "env")
    parser.add_argument("verb", choices=verbs)
    verb = parser.parse_args(arguments).verb
    try:
        if verb == "install":
            install()
            return 0
        cluster = Cluster.from_environment()
        if verb == "env":
            print(f"export SLURM_CONF={cluster.conf}")
        elif verb == "status":
            print(cluster.status())
            return 0 if cluster.is_up() else 1
        else:
            if verb != "start" and cluster.is_in_use():
                raise ClusterError(f"tests are running on {cluster.root}: wait until they have ended")
            getattr(cluster, verb)()
    except ClusterError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
