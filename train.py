"""Trains one persona into one model, and makes the training rows that this needs."""

from offscript.cli import main
from offscript.commands import train

if __name__ == "__main__":
    main("train", train)
