"""Trains one persona into one model, and makes the training rows that this needs."""

from offscript.command_line import run

if __name__ == "__main__":
    run("train")
