"""Prints the state of an experiment: artifacts done, running, waiting, failed, missing or stale."""

from offscript.command_line import run

if __name__ == "__main__":
    run("status")
