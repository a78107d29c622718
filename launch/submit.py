"""Plans the whole grid of an experiment, skips finished artifacts, and runs or submits the jobs for the others."""

from offscript.command_line import run

if __name__ == "__main__":
    run("submit")
