"""Runs the episodes of one cell."""

from offscript.cli import main
from offscript.commands import rollout

if __name__ == "__main__":
    main("rollout", rollout)
