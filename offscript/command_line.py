"""The table of commands, for ``offscript <command>`` and for the scripts of the repository.

A command is a configuration of ``conf/`` and a function of that name. Both are loaded when it runs: the list of commands
needs neither Hydra nor torch.
"""

import sys
from dataclasses import dataclass

import offscript
from offscript.console import say
from offscript.errors import UserError, one_of
from offscript.storage.files import HOME


@dataclass(frozen=True)
class Command:
    """A command.

    Args:
        script: the script of the repository that runs it too.
        summary: one line for the list of commands.
        config: name of its configuration, ``conf/<config>.yaml``.
    """

    script: str
    summary: str
    config: str


COMMANDS: dict[str, Command] = {
    "train": Command("train.py", "train the adapter of one persona and stage, and make its rows", "train"),
    "rollout": Command("rollout.py", "run the episodes of one cell", "rollout"),
    "classify": Command(
        "classify.py", "fit the persona classifier of a model, score every rollout", "classify"
    ),
    "evaluate": Command("evaluate.py", "compute tables, figures and the report", "evaluate"),
    "submit": Command(
        "launch/submit.py", "plan a grid, skip finished artifacts, run or submit the rest", "launch"
    ),
    "status": Command("launch/status.py", "show which artifacts are done, running or failed", "status"),
    "cancel": Command("launch/cancel.py", "cancel the SLURM jobs of an experiment", "cancel"),
    "doctor": Command(
        "launch/doctor.py", "check what an experiment needs of this machine and cluster", "doctor"
    ),
    "prefetch": Command("launch/prefetch.py", "download what an experiment needs from the hub", "prefetch"),
    "sync": Command("launch/sync.py", "upload W&B runs that were kept offline", "sync"),
    "dashboard": Command("launch/dashboard.py", "save a W&B workspace for the project", "dashboard"),
}

HELP = ("--help", "-h", "help")


def usage() -> str:
    """The list of commands."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            f"offscript {offscript.__version__}: does a trained character survive off script?",
            "",
            "usage: offscript <command> [group=option] [key=value] ...",
            "",
            *lines,
            "",
            "offscript <command> --help lists the options of a command; the scripts of the repository take the same ones.",
        ]
    )


def run(name: str) -> None:
    """Runs the command ``name`` with the arguments in ``sys.argv[1:]``; exits as ``offscript.cli.main`` does."""
    if not (HOME / "conf").is_dir():
        say(
            f"error: {HOME / 'conf'}: no such folder; offscript runs from a checkout of its repository: pip install -e ."
        )
        sys.exit(2)
    try:
        from offscript import cli, commands, doctor
    except UserError as error:
        # A file of a folder that is searched, a format for example, is not what it has to be.
        say(f"error: {error}")
        sys.exit(2)
    command: cli.Command = doctor.doctor if name == "doctor" else getattr(commands, name)
    cli.main(COMMANDS[name].config, command, has_dry_run=name == "submit")


def main() -> None:
    """``offscript <command> ...``. Exit code 2 for an unknown command."""
    name, *rest = sys.argv[1:] or [HELP[0]]
    if name in HELP:
        print(usage())
        sys.exit(0)
    if name == "--version":
        print(offscript.__version__)
        sys.exit(0)
    if name not in COMMANDS:
        say(f"error: {name}: no such command; {one_of(COMMANDS)}")
        sys.exit(2)
    sys.argv[1:] = rest
    run(name)
