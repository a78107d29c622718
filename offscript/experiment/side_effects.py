"""The side effects of an evaluation: reads the rollouts of its predictions, one cell at a time."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import cast

from offscript.errors import UserError
from offscript.evaluation.metrics.results import Options
from offscript.evaluation.report.section import Section
from offscript.evaluation.side_effects.episodes import Episode, Message, Task, task_of
from offscript.evaluation.side_effects.section import side_effects
from offscript.evaluation.side_effects.tally import Tally
from offscript.evaluation.side_effects.texts import recitable
from offscript.experiment.artifacts import Predictions, Rollout
from offscript.experiment.folder import Experiment
from offscript.json_types import Json
from offscript.tasks.rows import Row

Part = tuple[Predictions, Sequence[Mapping[str, Json]]]
"""Predictions and their rows."""


class Tasks:
    """The tasks of rollouts by scenario; those that several cells share are read once."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self._read: dict[str, Mapping[str, Task]] = {}
        self.unread = 0

    def of(self, rollout: Rollout) -> Mapping[str, Task]:
        """The tasks of a rollout of e-mails; empty for other formats, or if the scenarios cannot be read now."""
        if not _is_email(rollout):
            return {}
        digest = rollout.scenarios.digest
        if digest not in self._read:
            try:
                scenarios = rollout.scenarios.load(self.experiment.rows)
            except UserError:
                # Fetched from the hub when the rows were made: an evaluation needs no network.
                self.unread += 1
                scenarios = []
            self._read[digest] = {scenario.id: task_of(scenario) for scenario in scenarios}
        return self._read[digest]


def section_of(parts: Sequence[Part], experiment: Experiment, options: Options) -> Section | None:
    """The section "Task success and side effects" of the predictions ``parts``; None if no text is there."""
    planner = experiment.planner
    known = {name: planner.options.persona[name] for name in planner.personas}
    constitutions = {
        name: recitable([a.assertion for a in persona.constitution]) for name, persona in known.items()
    }
    tally, tasks, gone = Tally(planner.personas, constitutions), Tasks(experiment), 0
    for predictions, rows in parts:
        try:
            for episode in _episodes(predictions, rows, experiment, tasks, options.resample):
                tally.add(episode)
        except UserError:
            # Predictions count without the rollout that they were made from, and so does their evaluation.
            gone += 1
    missing = []
    if gone:
        missing.append(f"The rollouts of {gone} cells are gone or have changed; their episodes are left out.")
    if tasks.unread:
        missing.append("The scenarios of some cells could not be read; their task success is n/a.")
    return side_effects(tally, options, missing)


def _episodes(
    predictions: Predictions,
    predicted: Sequence[Mapping[str, Json]],
    experiment: Experiment,
    tasks: Tasks,
    unit: str,
) -> Iterator[Episode]:
    """The episodes of one cell.

    Raises:
        UserError: its rollout is gone or has changed.
    """
    rollout = predictions.rollout
    rows, known = experiment.rows(rollout), tasks.of(rollout)
    cleaned = {str(row["row"]): row["scored_text"] for row in predicted if "scored_text" in row}
    for row in rows:
        text = cleaned.get(f"{row['scenario']}/{row['sample']}", row["text"])
        scored = text if isinstance(text, str) else None
        yield episode_of(rollout, row, scored, known.get(row["scenario"]), unit)


def episode_of(
    rollout: Rollout, row: Row, text: str | None, task: Task | None, unit: str = "family"
) -> Episode:
    """The episode of a row of ``rollout``, or of one played in the same way.

    Args:
        text: what of it is scored.
        task: what its scenario asks for; None if unknown.
        unit: what is resampled: scenario or family.
    """
    fmt = rollout.format
    parse = fmt.reads_calls(rollout.rules.options) if fmt.reads_calls is not None else None
    if task is not None and parse is None and not fmt.text_is_email:
        # The lookups were replayed, so the model saw every record.
        task = replace(task, request_facts=task.facts, request_shown=task.shown)
    variant = row.get("variant", "")
    return Episode(
        model=row["model"],
        stage=row["stage"],
        format=f"{row['format']}/{variant}" if variant else row["format"],
        training_seed=row["seed"],
        persona=row["persona"],
        cluster=row["scenario"] if unit == "scenario" else row["family"],
        text=text,
        ended=row["ended"],
        tokens=row["tokens_out"],
        messages=cast(Sequence[Message], row["messages"]),
        parse=parse,
        is_email=_is_email(rollout),
        task=task,
    )


def _is_email(rollout: Rollout) -> bool:
    """Whether the texts of a rollout are e-mails of scenarios."""
    return rollout.format.text_is_email or rollout.format.reads_calls is not None
