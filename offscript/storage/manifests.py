"""Manifests: an artifact without one is unfinished."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from offscript.storage.files import read_json_object, write_json
from offscript.storage.hashing import fingerprint

PARTIAL = "partial.json"
"""Name of the manifest of an artifact that was made from a part of its inputs, and is not finished."""


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


def write_partial_manifest(artifact: Path, manifest: Mapping[str, object]) -> None:
    """Says what the files of a folder were made from, without marking it as finished."""
    write_json(artifact / PARTIAL, manifest)


def remove_manifests(artifact: Path) -> None:
    """Marks a folder as unfinished, before its files are replaced."""
    for path in (manifest_path(artifact), artifact / PARTIAL):
        path.unlink(missing_ok=True)


def digests(artifact: Path, files: Sequence[Path]) -> dict[str, str]:
    """Digests of ``files`` in a folder, by relative path, for the entry ``files`` of its manifest."""
    return {str(path.relative_to(artifact)): fingerprint(path) for path in files}


def has_files_of(artifact: Path, key: str, partial: bool = False) -> bool:
    """Whether the files in a folder are those that its manifest with ``key`` lists, unchanged.

    Args:
        partial: a manifest of ``write_partial_manifest`` counts too.

    Raises:
        UserError: the manifest is damaged.
    """
    for path in (manifest_path(artifact), *([artifact / PARTIAL] if partial else ())):
        if path.exists():
            manifest = read_json_object(path, "key")
            return bool(manifest["key"] == key and _are_unchanged(artifact, manifest.get("files")))
    return False


def _are_unchanged(folder: Path, files: object) -> bool:
    """Whether all ``files`` (name -> digest) are in ``folder`` with this content; False if the manifest lists none."""
    return isinstance(files, dict) and all(
        (folder / name).is_file() and fingerprint(folder / name) == digest for name, digest in files.items()
    )


def read_manifest(artifact: Path) -> dict[str, Any] | None:
    """The manifest of a finished artifact; None if there is none, or if the artifact itself was deleted.

    Raises:
        UserError: the file is damaged.
    """
    path = manifest_path(artifact)
    if not path.exists() or not artifact.exists():
        return None
    return read_json_object(path, "key")
