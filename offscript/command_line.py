"""``offscript <command>``, and the scripts of the repository.

What a command needs is loaded when it runs: the list of commands needs neither Hydra nor torch.
"""

import sys

import offscript
from offscript.command_table import COMMANDS, unread_options
from offscript.console import READER_GONE, ReaderGone, prepare_streams, say, show
from offscript.errors import UserError, one_of

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
    from offscript.storage.files import HOME

    prepare_streams()
    if not (HOME / "conf").is_dir():
        say(
            f"error: {HOME / 'conf'}: no such folder; offscript runs from a checkout of its repository: pip install -e ."
        )
        sys.exit(2)
    try:
        from offscript import cli, commands, doctor
    except KeyboardInterrupt:
        say("interrupted")
        sys.exit(130)
    except UserError as error:
        # A file of a folder that is searched, a format for example, is not what it has to be.
        say(f"error: {error}")
        sys.exit(2)
    command: cli.Command = doctor.doctor if name == "doctor" else getattr(commands, name)
    cli.main(COMMANDS[name].config, command, unread_options(name))


def main() -> None:
    """``offscript <command> ...``. Exit code 2 for an unknown command."""
    prepare_streams()
    name, *rest = sys.argv[1:] or [HELP[0]]
    if name in (*HELP, "--version"):
        try:
            show(offscript.__version__ if name == "--version" else usage())
        except ReaderGone:
            sys.exit(READER_GONE)
        sys.exit(0)
    if name not in COMMANDS:
        say(f"error: {name}: no such command; {one_of(COMMANDS)}")
        sys.exit(2)
    sys.argv[1:] = rest
    run(name)
