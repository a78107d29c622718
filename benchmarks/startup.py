"""Time until a command does its work, compared with the same command in a process that has imported every library first.

    python benchmarks/startup.py

The commands are: the list of commands, the help of a command, the status and the plan of ``experiment=demo``, and a rollout
of one episode of the embedded model, with and without an adapter. Each is a new process per measurement.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from pairs import Work, add_options, compare, report

from offscript.storage.files import HOME

LIBRARIES = "torch, transformers, peft, trl, deepspeed, datasets, sklearn, matplotlib, wandb, submitit"
EVERYTHING = f"import {LIBRARIES}\n"
COMMANDS = {
    "list of commands": ["--help"],
    "help of a command": ["rollout", "--help"],
    "status": ["status", "experiment=demo"],
    "plan": ["submit", "experiment=demo", "dry_run=true"],
    "one episode": ["rollout", "stage=base", "format=chat", "limit=1", "tracking=off"],
}


def started(before: str, words: list[str], root: Path) -> Work:
    """Runs a command in a new process and a new folder, after the statements ``before``."""
    code = f"{before}import sys; from offscript.command_line import main; sys.argv[0] = 'offscript'; main()"

    def work() -> float:
        with tempfile.TemporaryDirectory(dir=root) as folder:
            where = [] if "--help" in words else [f"root={folder}"]
            command = [sys.executable, "-c", code, *words, *where]
            subprocess.run(command, cwd=HOME, check=True, capture_output=True)
        return 1.0

    return work


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--commands", nargs="*", default=list(COMMANDS), choices=list(COMMANDS))
    add_options(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = [
            compare(
                name,
                "starts",
                {
                    "all libraries": started(EVERYTHING, COMMANDS[name], Path(folder)),
                    "offscript": started("", COMMANDS[name], Path(folder)),
                },
                options.pairs,
            )
            for name in options.commands
        ]
    report("startup", results, options.out)


if __name__ == "__main__":
    main()
