"""Runs a command in the process of the test: Hydra, the schema and the command, without the seconds of a new interpreter."""

import contextlib
import io
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from offscript import command_line


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


def invoke(folder: Path, name: str, *words: str) -> Done:
    """``offscript <name> <words>`` in the working folder ``folder``."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.ExitStack() as stack:
        # Other tests keep a Hydra open, see tests/composed.py.
        stack.enter_context(mock.patch.object(GlobalHydra.instance(), "hydra", None))
        stack.enter_context(mock.patch.object(HydraConfig.instance(), "cfg", None))
        stack.enter_context(mock.patch.object(sys, "argv", [name, *words]))
        stack.enter_context(mock.patch.dict(os.environ))
        stack.callback(os.chdir, os.getcwd())
        os.chdir(folder)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                command_line.run(name)
            except SystemExit as end:
                code = int(end.code or 0)
    return Done(code, out.getvalue(), err.getvalue())


def refused(folder: Path, name: str, *words: str) -> str:
    """Runs a command that must be refused before it writes or prints anything; returns its one line."""
    before = sorted(folder.rglob("*"))
    done = invoke(folder, name, *words)
    assert done.code == 2, done
    assert done.out == "" and sorted(folder.rglob("*")) == before, "something was written"
    (line,) = done.err.splitlines()
    return line
