"""Runs the episodes of one cell and writes one row for each."""

from offscript.command_line import run

if __name__ == "__main__":
    run("rollout")
