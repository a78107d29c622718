"""Cancels every job of an experiment that has not ended; what is finished stays."""

from offscript.cli import main
from offscript.commands import cancel

if __name__ == "__main__":
    main("cancel", cancel)
