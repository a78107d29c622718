"""Manifests: an artifact without one is unfinished."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from offscript.storage.files import read_json_object, write_json


def manifest_path(artifact: Path) -> Path:
    """Path of an artifact's manifest: inside a folder, beside a file. A name with a suffix is a file."""
    return (
        artifact.with_name(artifact.name + ".manifest.json")
        if artifact.suffix
        else artifact / "manifest.json"
    )


def write_manifest(artifact: Path, manifest: Mapping[str, object]) -> None:
    """Marks ``artifact`` as finished. Called last."""
    write_json(manifest_path(artifact), manifest)


def read_manifest(artifact: Path) -> dict[str, Any] | None:
    """The manifest of a finished artifact; None if there is none, or if the artifact itself was deleted.

    Raises:
        UserError: the file is damaged.
    """
    path = manifest_path(artifact)
    if not path.exists() or not artifact.exists():
        return None
    return read_json_object(path, "key")
