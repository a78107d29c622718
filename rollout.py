"""Runs the episodes of one cell."""

from offscript.command_line import run

if __name__ == "__main__":
    run("rollout")
