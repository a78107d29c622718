"""Files made outside of this repository (adapters, checkpoints, classifiers, training rows): their local path and their
hash identity. A local folder or file is identified by its content, a hub repository by its name, revision and subfolder.
"""

import glob
import re
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import TypeVar

from offscript.errors import UserError
from offscript.json_types import Json
from offscript.settings import (
    ClassifierSettings,
    HubFileSettings,
    ModelSettings,
    ReleasedRowsSettings,
    SourceSettings,
)
from offscript.storage import hub, packages
from offscript.storage.files import locate
from offscript.storage.hashing import fingerprint

PUBLISHED = "{published}"
"""In a path: the folder of the setting ``published``."""

_FIELD = re.compile(r"\{(\w+)\}")

S = TypeVar("S", SourceSettings, ReleasedRowsSettings)


def fill_fields(source: S, model: ModelSettings, persona: str | None, where: str) -> S:
    """``source`` with the fields ``{slug}`` and ``{persona}`` of its texts replaced.

    Raises:
        UserError: an unknown field, or one without a value for this model and persona; or a place outside ``path``.
    """
    values = {"slug": model.slug, "persona": persona}
    texts = {name: value for name, value in source.model_dump().items() if isinstance(value, str)}
    update = {name: _fill(text, values, f"{where}.{name}") for name, text in texts.items()}
    filled = source.model_copy(update=update)
    inside = PurePath(_inside(filled) or "")
    if inside.is_absolute() or ".." in inside.parts:
        name = "file" if isinstance(filled, ReleasedRowsSettings) else "subfolder"
        raise UserError(f"{where}.{name}", f"found {str(inside)!r}", f"allowed: a place inside {filled.path}")
    return filled


def _fill(text: str, values: Mapping[str, str | None], where: str) -> str:
    for name in _FIELD.findall(text):
        if values.get(name) is None:
            found = "has no value here" if name in values else "is unknown"
            raise UserError(
                where, f"{{{name}}} in {text!r} {found}", "allowed: {slug} (model.slug), {persona}"
            )
    return _FIELD.sub(lambda match: str(values[match[1]]), text)


def fill_published(text: str, published: str | None, where: str, is_glob: bool = False) -> str:
    """``text`` with ``{published}`` replaced by the folder of the published study. With ``is_glob``, special characters
    of the folder's name match themselves.

    Raises:
        UserError: the setting ``published`` is not set, or names no folder; ``where`` is the setting that needs it.
    """
    if PUBLISHED not in text:
        return text
    remedy = "write published=FOLDER, or export OFFSCRIPT_PUBLISHED=FOLDER; data/README.md shows its layout"
    if not published:
        raise UserError("published", f"not set, and {where} needs it", remedy)
    if not locate(published).is_dir():
        raise UserError("published", f"no folder at {published}, and {where} needs it", remedy)
    folder = str(locate(published))
    return text.replace(PUBLISHED, glob.escape(folder) if is_glob else folder)


def reference(source: SourceSettings | ReleasedRowsSettings | HubFileSettings) -> hub.Reference | None:
    """The hub repository or file of ``source``; None if it is local."""
    if isinstance(source, HubFileSettings):
        return hub.Reference(source.repo, "dataset", source.revision, file=source.file)
    if locate(source.path).exists() or not hub.is_hub_id(source.path):
        return None
    if isinstance(source, ReleasedRowsSettings):
        return hub.Reference(source.path, "dataset", source.revision, file=source.file)
    return hub.Reference(source.path, "model", source.revision, subfolder=source.subfolder)


def local_path(model: ModelSettings | ClassifierSettings) -> Path | None:
    """The folder or file (GGUF, zip) that holds the weights of ``model``; None where the hub or an endpoint holds them.

    A path that cannot be a hub id is returned even if nothing is there.
    """
    if model.path is None or _is_served(model):
        return None
    path = locate(model.path)
    if path.exists() or not hub.is_hub_id(model.path):
        return path
    if model.package is None or hub.cached(hub.Reference(model.path, "model", model.revision)) is not None:
        return None
    return packages.find(model.package)


def model_reference(model: ModelSettings | ClassifierSettings) -> hub.Reference | None:
    """The hub repository of a model; None if it is on this machine or served by an endpoint."""
    if model.path is None or _is_served(model) or local_path(model) is not None:
        return None
    return hub.Reference(model.path, "model", model.revision)


def _is_served(model: ModelSettings | ClassifierSettings) -> bool:
    return isinstance(model, ModelSettings) and model.is_only_served


def describe_weights(model: ModelSettings | ClassifierSettings) -> str:
    """Where the weights of ``model`` come from, in words for a manifest."""
    if _is_served(model):
        return f"endpoint: {model.path}"
    if (ref := model_reference(model)) is not None:
        return f"hub: {ref}"
    path = local_path(model)
    if model.package is not None and path == packages.find(model.package):
        return f"package: {packages.describe(model.package)}"
    return f"path: {model.path}"


def check_model_path(path: str, where: str) -> None:
    """Checks that ``path`` is a model folder, or may be the id of a hub repository.

    Raises:
        UserError: it is neither; the message begins with ``where``.
    """
    allowed = "allowed: a model folder, or the id of a hub repository"
    folder = locate(path)
    if folder.exists() and not (folder / "config.json").is_file():
        raise UserError(where, f"{path} is not a model folder (no config.json)", allowed)
    if not folder.exists() and not hub.is_hub_id(path):
        raise UserError(where, f"no folder at {path}", allowed)


def fetch(source: SourceSettings | ReleasedRowsSettings | HubFileSettings, where: str) -> Path:
    """The local folder or file of ``source``, downloaded from the hub if needed.

    Raises:
        UserError: no such local path, or the hub refuses it.
    """
    if (ref := reference(source)) is not None:
        return hub.fetch(ref)
    assert not isinstance(source, HubFileSettings)
    path = _local_path(source)
    if not path.exists():
        raise UserError(where, f"nothing at {path}", "allowed: a local folder, or the id of a hub repository")
    if not path.is_file() and not path.is_dir():
        raise UserError(where, f"{path} is not a regular file", "allowed: a file or folder")
    return path


def is_local(source: SourceSettings | ReleasedRowsSettings) -> bool:
    """Whether ``source`` can be read without a network."""
    ref = reference(source)
    return hub.cached(ref) is not None if ref else _local_path(source).exists()


def identity(source: SourceSettings | ReleasedRowsSettings, where: str) -> dict[str, Json]:
    """The hash identity of ``source``, as plain data.

    Raises:
        UserError: no such local path.
    """
    if (ref := reference(source)) is not None:
        return {"repo": ref.repo, "revision": ref.revision, "part": ref.subfolder or ref.file}
    return {"content": fingerprint(fetch(source, where))}


def _local_path(source: SourceSettings | ReleasedRowsSettings) -> Path:
    inside, path = _inside(source), locate(source.path)
    return path / inside if inside else path


def _inside(source: SourceSettings | ReleasedRowsSettings) -> str | None:
    """The place inside the repository or folder of ``source``."""
    return source.file if isinstance(source, ReleasedRowsSettings) else source.subfolder
