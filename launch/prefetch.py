"""Downloads and verifies everything that an experiment needs from the hub."""

from offscript.command_line import run

if __name__ == "__main__":
    run("prefetch")
