"""Writes a saved view of the W&B project with wandb-workspaces."""

from offscript.command_line import run

if __name__ == "__main__":
    run("dashboard")
