"""Tables, figures and a report of what was retained."""

from offscript.cli import main
from offscript.commands import evaluate

if __name__ == "__main__":
    main("evaluate", evaluate)
