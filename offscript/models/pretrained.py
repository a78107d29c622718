"""Loading of Hugging Face folders: pickled weights are refused, failures become one-line errors."""

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
    if any(not _is_unwanted(path) for path in folder.glob(f"{name}.safetensors")):
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
    from safetensors import SafetensorError

    try:
        return auto_class.from_pretrained(str(folder), trust_remote_code=False, **options)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise _error(
            folder, where, f"cannot be loaded ({reason})", "a folder made by save_pretrained is needed"
        ) from None


def _is_unwanted(path: Path) -> bool:
    return any(path.match(pattern) for pattern in hub.UNWANTED)


def _error(folder: Path, where: str | None, found: str, allowed: str) -> UserError:
    if where is None or where == str(folder):
        return UserError(str(folder), found, allowed)
    return UserError(where, f"{folder} {found}", allowed)
