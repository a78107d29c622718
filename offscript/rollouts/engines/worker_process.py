"""A process that an engine starts in another Python environment, and the messages between the two."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

from offscript.json_types import Json

EXIT_S = 15.0
"""Seconds that a process has to end by itself after its socket is closed."""

CHUNK = 2**16


class WorkerLost(Exception):
    """The process has ended, has sent nothing for too long, or cannot go on."""


class WorkerProcess:
    """A process that is started with a socket, over which both sides send lines of JSON. What it prints goes to a file.

    It has a session of its own, so that Ctrl-C at the terminal does not reach it. It ends with this object, and at the
    latest with this process, together with the processes that it has started.

    Args:
        command: its command line; the number of its socket follows as the last argument.
        environment: its environment variables.
        log: the file to which its stdout and stderr are appended.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self._socket, theirs = socket.socketpair()
        self._received = b""
        with theirs, open(log, "ab") as output:
            self._process = subprocess.Popen(
                [*command, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=dict(environment),
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._end = weakref.finalize(self, _end, self._process, self._socket, os.getpid(), EXIT_S)

    def send(self, message: Mapping[str, object], timeout_s: float) -> None:
        """Sends a message.

        Raises:
            WorkerLost: the process has ended, or takes nothing for ``timeout_s`` seconds.
        """
        self._socket.settimeout(timeout_s)
        try:
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except TimeoutError:
            raise WorkerLost(f"has taken no request for {timeout_s:g} s") from None
        except OSError:
            raise WorkerLost(self._how_it_ended()) from None

    def receive(self, timeout_s: float) -> dict[str, Json]:
        """The next message; waits for it.

        Raises:
            WorkerLost: the process has ended, sends nothing for ``timeout_s`` seconds, or sent something else.
        """
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._received:
            left = deadline - time.monotonic()
            if left <= 0:
                raise WorkerLost(f"has sent nothing for {timeout_s:g} s")
            # A process that it has started may keep the socket open after its end.
            if select.select([self._socket], [], [], min(left, 1.0))[0]:
                self._receive_chunk()
            elif self._process.poll() is not None:
                raise WorkerLost(self._how_it_ended())
        line, _, self._received = self._received.partition(b"\n")
        try:
            message = json.loads(line)
        except ValueError:
            raise WorkerLost(f"sent {line[:80]!r}, which is no message") from None
        assert isinstance(message, dict)
        return message

    def close(self) -> None:
        """Closes the socket, upon which the process ends by itself; kills it after EXIT_S seconds."""
        self._end()

    def kill(self) -> None:
        """Ends the process at once, whatever it does."""
        if self._end.detach() is not None:
            _end(self._process, self._socket, os.getpid(), 0.0)

    def _receive_chunk(self) -> None:
        try:
            chunk = self._socket.recv(CHUNK)
        except OSError:
            chunk = b""
        if not chunk:
            raise WorkerLost(self._how_it_ended())
        self._received += chunk

    def _how_it_ended(self) -> str:
        # Its socket closes a moment before it is gone.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        code = self._process.returncode
        if code is None:
            return "has closed its socket"
        return f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"


def _end(process: "subprocess.Popen[bytes]", channel: socket.socket, owner: int, patience_s: float) -> None:
    """Ends a process and those that it has started."""
    # A forked child has the object too, but the process is not its own.
    if os.getpid() != owner:
        return
    channel.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(patience_s)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
