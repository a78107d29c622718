"""Trains one persona into one model, after making the training rows."""

from offscript.command_line import run

if __name__ == "__main__":
    run("train")
