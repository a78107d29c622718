"""Fetches what an experiment needs from the hub, on a machine that has a network, and checks it."""

from offscript.cli import main
from offscript.commands import prefetch

if __name__ == "__main__":
    main("prefetch", prefetch)
