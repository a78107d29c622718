"""The table of commands: each is a configuration of ``conf/`` and a function of that name."""

from dataclasses import dataclass

CELL = ("persona", "stage", "format", "split", "seed", "scale")
"""Options that select one cell. A command on the whole grid takes ``grid.persona=[...]`` and so on."""

OPTIONS = (
    *CELL,
    "limit",
    "show",
    "dry_run",
    "watch",
    "json",
    "predictions",
    "planned",
    "beside",
    "labels",
    "compare",
    "export_as",
)
"""Settings of single commands. All commands share the others: the model, the experiment, the cluster and so on."""


@dataclass(frozen=True)
class Command:
    """A command.

    Args:
        script: the script of the repository that runs it too.
        summary: one line for the list of commands.
        config: name of its configuration, ``conf/<config>.yaml``.
        reads: which of ``OPTIONS`` it reads; it refuses the others, which it would ignore.
    """

    script: str
    summary: str
    config: str
    reads: frozenset[str] = frozenset()


def _reads(*options: str) -> frozenset[str]:
    return frozenset(options)


COMMANDS: dict[str, Command] = {
    "train": Command(
        "train.py",
        "train the adapter of one persona and stage, and make its rows",
        "train",
        _reads("persona", "stage", "seed"),
    ),
    "rollout": Command(
        "rollout.py", "run the episodes of one cell", "rollout", _reads(*CELL, "limit", "show")
    ),
    "classify": Command(
        "classify.py", "fit the persona classifier of a model, score every rollout", "classify"
    ),
    "evaluate": Command(
        "evaluate.py",
        "compute tables, figures and the report",
        "evaluate",
        _reads("predictions", "format", "planned", "beside", "labels", "compare"),
    ),
    "export": Command(
        "launch/export.py",
        "write rows as Parquet, tables as LaTeX and Markdown, logs of Inspect",
        "export",
        _reads("export_as"),
    ),
    "submit": Command(
        "launch/submit.py",
        "plan a grid, skip finished artifacts, run or submit the rest",
        "launch",
        _reads("dry_run"),
    ),
    "status": Command(
        "launch/status.py",
        "show which artifacts are done, running or failed",
        "status",
        _reads("watch", "json"),
    ),
    "cancel": Command("launch/cancel.py", "cancel the SLURM jobs of an experiment", "cancel"),
    "doctor": Command(
        "launch/doctor.py", "check what an experiment needs of this machine and cluster", "doctor"
    ),
    "prefetch": Command("launch/prefetch.py", "download what an experiment needs from the hub", "prefetch"),
    "sync": Command("launch/sync.py", "upload W&B runs that were kept offline", "sync", _reads("watch")),
    "dashboard": Command("launch/dashboard.py", "save a W&B workspace for the project", "dashboard"),
}


def unread_options(name: str) -> dict[str, str]:
    """The options that the command ``name`` does not read, each with what to write instead. ``{value}`` is its value."""
    found, reads = {}, COMMANDS[name].reads
    for option in OPTIONS:
        if option in reads:
            continue
        readers = [other for other, command in COMMANDS.items() if option in command.reads]
        by_grid = option in CELL and option != "split" and "persona" not in reads
        found[option] = (
            f"write grid.{option}=[{{value}}]" if by_grid else f"for offscript {' and '.join(readers)}"
        )
    return found
