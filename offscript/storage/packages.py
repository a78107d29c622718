"""Models inside installed Python packages, for machines that reach a package index but not the hub."""

from importlib import metadata
from pathlib import Path

from offscript.settings import PackageSettings


def find(package: PackageSettings) -> Path | None:
    """The file of ``package``; None where the package is not installed, or does not hold it. Nothing is imported."""
    try:
        path = Path(str(metadata.distribution(package.name).locate_file(package.file)))
    except metadata.PackageNotFoundError:
        return None
    return path if path.is_file() else None


def describe(package: PackageSettings) -> str:
    """Name, version and file of an installed package."""
    return f"{package.name} {metadata.version(package.name)}: {package.file}"
