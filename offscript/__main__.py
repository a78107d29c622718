"""``python -m offscript <command> ...``, for launchers that start modules (torchrun)."""

from offscript.command_line import main

if __name__ == "__main__":
    main()
