"""Cancels every job of an experiment that has not ended; what is finished stays."""

from offscript.command_line import run

if __name__ == "__main__":
    run("cancel")
