"""Manifests: an artifact without one is work in progress."""

from pathlib import Path
from typing import Any

from offscript.storage.files import read_json, write_json


def manifest_path(artifact: Path) -> Path:
    """Where the manifest of an artifact lies: inside a folder, beside a file. Decided by the name's suffix."""
    return (
        artifact.with_name(artifact.name + ".manifest.json")
        if artifact.suffix
        else artifact / "manifest.json"
    )


def write_manifest(artifact: Path, manifest: dict[str, Any]) -> None:
    """Marks ``artifact`` as finished. Written last: an artifact without a manifest is work in progress."""
    write_json(manifest_path(artifact), manifest)


def read_manifest(artifact: Path) -> dict[str, Any] | None:
    """The manifest of a finished artifact, or None. An artifact that itself was deleted counts as not finished."""
    path = manifest_path(artifact)
    return read_json(path) if path.exists() and artifact.exists() else None
