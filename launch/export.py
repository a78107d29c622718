"""Writes the rows and tables of an experiment for other programs."""

from offscript.command_line import run

if __name__ == "__main__":
    run("export")
