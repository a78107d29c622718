"""What was made elsewhere (adapters, checkpoints, classifiers, training rows): where it lies, and what stands for it in
a key. A local folder or file counts by its content; a hub repository by its name, revision and place inside.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from offscript.errors import UserError
from offscript.settings import HubFileSettings, ModelSettings, RowsSettings, SourceSettings
from offscript.storage import hub
from offscript.storage.files import locate
from offscript.storage.hashing import fingerprint

FIELDS = re.compile(r"\{(\w+)\}")


def filled(source: Any, model: ModelSettings, persona: str | None, where: str) -> Any:
    """``source`` (SourceSettings or RowsSettings) with ``{slug}`` and ``{persona}`` in its texts replaced.

    Raises:
        UserError: another field, or one that has no value here.
    """
    values = {"slug": model.slug, "persona": persona}
    texts = {name: value for name, value in source.model_dump().items() if isinstance(value, str)}
    return source.model_copy(update={n: _fill(t, values, f"{where}.{n}") for n, t in texts.items()})


def _fill(text: str, values: Mapping[str, str | None], where: str) -> str:
    for name in FIELDS.findall(text):
        if values.get(name) is None:
            found = "has no value here" if name in values else "is unknown"
            raise UserError(
                where, f"{{{name}}} in {text!r} {found}", "allowed: {slug} (model.slug), {persona}"
            )
    return FIELDS.sub(lambda match: str(values[match[1]]), text)


def reference(source: SourceSettings | RowsSettings | HubFileSettings) -> hub.Reference | None:
    """The hub repository or file that ``source`` names; None where it is local."""
    if isinstance(source, HubFileSettings):
        return hub.Reference(source.repo, "dataset", source.revision, file=source.file)
    if locate(source.path).exists() or not hub.is_hub_id(source.path):
        return None
    if isinstance(source, RowsSettings):
        return hub.Reference(source.path, "dataset", source.revision, file=source.file)
    return hub.Reference(source.path, "model", source.revision, subfolder=source.subfolder)


def of_model(model: ModelSettings) -> hub.Reference | None:
    """The hub repository of a base model; None where it is a local folder or speaks through an endpoint."""
    if model.endpoint is not None or locate(model.path).exists() or not hub.is_hub_id(model.path):
        return None
    return hub.Reference(model.path, "model", model.revision)


def obtain(source: SourceSettings | RowsSettings | HubFileSettings, where: str) -> Path:
    """The folder (or file) of ``source`` on this machine, fetched from the hub if need be.

    Raises:
        UserError: there is no such place, or the hub does not give it.
    """
    if (ref := reference(source)) is not None:
        return hub.fetch(ref)
    path = _local(source)
    if not path.exists():
        raise UserError(where, f"nothing at {path}", "allowed: a local folder, or the id of a hub repository")
    return path


def at_hand(source: SourceSettings | RowsSettings) -> bool:
    """Whether ``source`` can be read here without a network."""
    ref = reference(source)
    return hub.cached(ref) is not None if ref else _local(source).exists()


def identity(source: SourceSettings | RowsSettings, where: str) -> dict[str, Any]:
    """Plain data that stands for what lies at ``source``.

    Raises:
        UserError: a local place where nothing is.
    """
    if (ref := reference(source)) is not None:
        return {"repo": ref.repo, "revision": ref.revision, "part": ref.subfolder or ref.file}
    path = obtain(source, where)
    return {"content": fingerprint(path)}


def _local(source: Any) -> Path:
    inside = getattr(source, "subfolder", None) or getattr(source, "file", None)
    path = locate(source.path)
    return path / inside if inside else path
