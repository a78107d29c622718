"""Cancels every SLURM job of an experiment that has not ended. Finished artifacts stay."""

from offscript.command_line import run

if __name__ == "__main__":
    run("cancel")
