"""Tables, figures and a report of what was retained."""

from offscript.command_line import run

if __name__ == "__main__":
    run("evaluate")
