"""Uploads what is new in the offline W&B runs of an experiment."""

from offscript.command_line import run

if __name__ == "__main__":
    run("sync")
