"""Plans an experiment's whole grid, skips what is done, runs the rest."""

from offscript.command_line import run

if __name__ == "__main__":
    run("submit")
