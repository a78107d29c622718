"""Uploads the W&B runs that an experiment kept offline, and what is new in them, as often as wanted."""

from offscript.cli import main
from offscript.commands import sync

if __name__ == "__main__":
    main("sync", sync)
