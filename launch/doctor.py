"""Checks what an experiment needs of this machine, of the cluster and of the services."""

from offscript.command_line import run

if __name__ == "__main__":
    run("doctor")
