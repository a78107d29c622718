"""Writes a saved view of the W&B project with wandb-workspaces."""

from offscript.cli import main
from offscript.commands import dashboard

if __name__ == "__main__":
    main("dashboard", dashboard)
