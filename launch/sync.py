"""Uploads the W&B runs that an experiment kept offline, and what is new in them, as often as wanted."""

from offscript.command_line import run

if __name__ == "__main__":
    run("sync")
