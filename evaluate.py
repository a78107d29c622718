"""Makes tables, figures and a report of persona retention."""

from offscript.command_line import run

if __name__ == "__main__":
    run("evaluate")
