"""One table of an experiment: what is done, running, waiting, failed or stale."""

from offscript.command_line import run

if __name__ == "__main__":
    run("status")
