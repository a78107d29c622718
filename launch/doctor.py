"""Checks the machine, the cluster and the services that an experiment needs."""

from offscript.command_line import run

if __name__ == "__main__":
    run("doctor")
