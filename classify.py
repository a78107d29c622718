"""Fits a model's persona classifier if needed, then scores every rollout of the grid."""

from offscript.command_line import run

if __name__ == "__main__":
    run("classify")
