"""Saves a W&B workspace for the project."""

from offscript.command_line import run

if __name__ == "__main__":
    run("dashboard")
