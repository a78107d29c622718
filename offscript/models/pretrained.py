"""Loading of Hugging Face folders: pickled weights are refused, failures become one-line errors."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from offscript.errors import UserError
from offscript.storage import hub

PICKLED = (".bin", ".pt", ".pth")


def require_safetensors(folder: Path, where: str | None = None, name: str = "*") -> None:
    """Checks that ``folder`` holds ``<name>.safetensors``. Pickled weights are refused: they can run code when loaded.

    Args:
        where: setting or file that the error names, by default ``folder``.
        name: name of the weight files without extension, or a glob.

    Raises:
        UserError: there are no such weights, or pickled ones only.
    """
    found_weights = [path for path in folder.glob(f"{name}.safetensors") if not _is_unwanted(path)]
    for path in found_weights:
        # Reading a pipe might never end.
        if not path.is_file():
            raise _error(folder, where, f"holds {path.name}, which is not a regular file", "copy it again")
    if found_weights:
        return
    pickled = sorted(path.name for suffix in PICKLED for path in folder.glob(name + suffix))
    found = (
        f"holds pickled weights only ({pickled[0]}), which can run code when loaded"
        if pickled
        else "holds no weights"
    )
    needed = f"{'model' if name == '*' else name}.safetensors is needed"
    raise _error(folder, where, found, "convert them to safetensors" if pickled else needed)


def from_pretrained(auto_class: Any, folder: Path, where: str | None = None, **options: object) -> Any:
    """``auto_class.from_pretrained(folder)`` without remote code; returns what that returns.

    Args:
        auto_class: a class of transformers, for example ``AutoTokenizer``.
        where: setting or file that the error names, by default ``folder``.
        options: further arguments of ``from_pretrained``.

    Raises:
        UserError: the folder cannot be loaded.
    """
    try:
        return auto_class.from_pretrained(str(folder), trust_remote_code=False, **options)
    except Exception as error:
        # transformers meets damaged files with exceptions of any type.
        raise _error(
            folder,
            where,
            f"cannot be loaded by {auto_class.__name__} ({_reason(error)})",
            "a folder made by save_pretrained is needed",
        ) from error


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Turns off transformers' progress bars and load reports, which ``check_report`` turns into errors."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _reason(error: Exception) -> str:
    """The first line of an error's message, and the next one where the first announces it; its type where that says
    more than a message such as ``0``."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
    if isinstance(error, (OSError, ValueError, RuntimeError)) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _is_unwanted(path: Path) -> bool:
    return any(path.match(pattern) for pattern in hub.UNWANTED)


def _error(folder: Path, where: str | None, found: str, allowed: str) -> UserError:
    if where is None or where == str(folder):
        return UserError(str(folder), found, allowed)
    return UserError(where, f"{folder} {found}", allowed)
