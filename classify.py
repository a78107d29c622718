"""Fits the persona classifier of each model if it is missing, then classifies the texts of every rollout of the grid."""

from offscript.command_line import run

if __name__ == "__main__":
    run("classify")
