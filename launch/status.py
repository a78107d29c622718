"""One table of an experiment: what is done, running, waiting, failed or stale."""

from offscript.cli import main
from offscript.commands import status

if __name__ == "__main__":
    main("status", status)
