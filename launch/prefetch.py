"""Fetches what an experiment needs from the hub, on a machine that has a network, and checks it."""

from offscript.command_line import run

if __name__ == "__main__":
    run("prefetch")
