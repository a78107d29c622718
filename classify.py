"""Fits a model's persona classifier if needed, then scores every rollout of the grid."""

from offscript.cli import main
from offscript.commands import classify

if __name__ == "__main__":
    main("classify", classify)
