"""The one exception that a user is meant to read."""


class UserError(Exception):
    """Something a user can put right: names the file or key, what was found and what is allowed.

    Entry points print it as one line on stderr and exit with code 2, without a traceback.
    """

    def __init__(self, where: str, found: str, allowed: str = "") -> None:
        self.where, self.found, self.allowed = where, found, allowed
        line = f"{where}: {found}" + (f"; {allowed}" if allowed else "")
        super().__init__(" ".join(line.split()))


class MissingInput(UserError):
    """An input that another command makes; ``allowed`` holds that command."""


def command_line(name: str, *arguments: str) -> str:
    """The command line that a message suggests, as README and ``offscript --help`` write it. Every script of the
    repository is also a command of that name."""
    return " ".join(["offscript", name, *arguments])


def one_of(names) -> str:
    """Text for the choices a setting allows, e.g. ``allowed: a, b, c``."""
    return "allowed: " + ", ".join(str(n) for n in names)
