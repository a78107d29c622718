"""Manifests: an artifact without one is unfinished."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from offscript.errors import UserError
from offscript.storage.files import ensure_folder, read_json_object, refusals_explained, write_json
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


@contextlib.contextmanager
def replace_files(folder: Path, manifest: Mapping[str, object]) -> Iterator[Path]:
    """A temporary folder whose files take the place of those that the manifest of ``folder`` lists, at the end of the
    block. Other files stay. The new manifest is ``manifest`` with the ``files``. If the block raises, nothing changes.

    The caller holds the claim of ``folder``.

    Raises:
        UserError: one of the files would replace a file that no manifest lists, or the manifest is damaged.
    """
    listed = _listed_files(folder)
    ensure_folder(folder.parent)
    scratch = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    try:
        with refusals_explained(folder):
            scratch.mkdir()
            yield scratch
            files = digests(scratch, sorted(path for path in scratch.rglob("*") if path.is_file()))
            _check_free([folder / name for name in files if name not in listed])
            # After a kill, the next call still knows all of these files as its own.
            write_partial_manifest(folder, {"key": None, "files": {**listed, **files}})
            manifest_path(folder).unlink(missing_ok=True)
            for name in files:
                os.replace(scratch / name, ensure_folder((folder / name).parent) / Path(name).name)
            for name in listed.keys() - files.keys():
                (folder / name).unlink(missing_ok=True)
                _remove_empty(folder, (folder / name).parent)
            write_manifest(folder, {**manifest, "files": files})
            (folder / PARTIAL).unlink(missing_ok=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _listed_files(folder: Path) -> dict[str, str]:
    """The files that the manifests of ``folder`` list, with their digests."""
    listed: dict[str, str] = {}
    for path in (manifest_path(folder), folder / PARTIAL):
        if path.exists():
            files = read_json_object(path, "files")["files"]
            root = folder.resolve()
            if not isinstance(files, dict) or not all(
                (root / name).resolve().is_relative_to(root) for name in files
            ):
                raise UserError(str(path), "damaged: files are not names within its folder", "delete it")
            listed |= files
    return listed


def _check_free(places: Sequence[Path]) -> None:
    for place in places:
        if os.path.lexists(place):
            raise UserError(str(place), "was not written by an export", "move it away")


def _remove_empty(root: Path, folder: Path) -> None:
    """Removes ``folder`` and its parents below ``root`` as far as they are empty."""
    while folder != root:
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent
