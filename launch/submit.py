"""Plans an experiment's whole grid, skips what is done, runs the rest."""

from offscript.cli import main
from offscript.commands import submit

if __name__ == "__main__":
    main("launch", submit)
