"""A judge that reads episodes of a training, as one more measure that is not rewarded."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from offscript.console import say
from offscript.experiment.artifacts import Rollout
from offscript.experiment.folder import Experiment
from offscript.experiment.jobs.rollouts import cell_run, parts_of
from offscript.experiment.judgements import (
    ID_BYTES,
    chosen_personas,
    judged_personas,
    random_order,
    scenario_of,
)
from offscript.rollouts.engines import open_engine
from offscript.rollouts.scheduler import CellRun, RolloutFailed, run_episodes
from offscript.seeds import stable_hash, unit_hash
from offscript.settings import EngineSettings, JudgeSettings
from offscript.tasks.rows import Row

ENGINE = "transformers"
"""vLLM would not find the memory that it takes at its start beside a training. An endpoint stays one."""

ANSWERED = 0.5
"""A judge that answers a smaller share of its questions gives no measure: it would be one of a few texts, others at each point."""

Text = tuple[Row, str]


@dataclass(frozen=True)
class LiveJudge:
    """Asks a judge which persona texts show; its weights are in memory only while it reads.

    Args:
        rollout: how the judge is asked, without texts.
        experiment: gives the judge's settings, the personas of the list, and the bounds of the batches.
    """

    rollout: Rollout
    experiment: Experiment

    def share(self, rows: Sequence[Row], texts: Sequence[str | None], persona: str) -> float | None:
        """The share of the judge's answers that name ``persona``: it reads ``evaluation.judge.texts`` texts of each format at
        most, and is asked twice for each. None if it answers less than ``ANSWERED`` of the questions.

        Args:
            texts: what of each row is scored, None where it left no text.
        """
        planner = self.experiment.planner
        judge = planner.settings.evaluation.judge
        assert judge is not None
        personas = judged_personas(judge, planner.personas, planner.options, planner.settings.model.name)
        orders = {}
        scenarios = []
        for row, text in _read(rows, texts, judge):
            order = random_order(name := _id(row), planner.personas)
            orders[name] = order
            scenarios.append(scenario_of(name, row["family"], text, personas, order))
        run = replace(cell_run(self.rollout, self.experiment, None), path=None, scenarios=scenarios)
        replies = self._replies(run)
        answers = (name for reply in replies for name in chosen_personas(reply, orders[reply["scenario"]]))
        stated = [name for name in answers if name is not None]
        if not stated or len(stated) < ANSWERED * 2 * len(scenarios):
            return None
        return stated.count(persona) / len(stated)

    def _replies(self, run: CellRun) -> list[Row]:
        settings: EngineSettings = self.experiment.planner.settings.engine.model_copy(update={"name": ENGINE})
        engine = open_engine(parts_of([self.rollout], self.experiment).model, {}, {}, settings)
        found: list[Row] = []
        try:
            run_episodes([run], engine, settings.max_live, on_row=lambda _, row: found.append(row))
        except RolloutFailed as error:
            # Hours of training do not end because a server did not answer once.
            say(f"warning: evaluation.judge: {error}")
        finally:
            engine.close()
        return found


def _read(rows: Sequence[Row], texts: Sequence[str | None], judge: JudgeSettings) -> list[Text]:
    """The texts that the judge reads: of each format those of the same episodes at every point, if they have a text."""
    by_format: dict[str, list[Text]] = defaultdict(list)
    for row, text in zip(rows, texts, strict=True):
        if text is not None and text.strip():
            by_format[row["format"]].append((row, text))
    found: list[Text] = []
    for own in by_format.values():
        own.sort(key=lambda pair: unit_hash("judge text", judge.seed, _id(pair[0])))
        found += own[: judge.texts]
    return found


def _id(row: Row) -> str:
    """The id of the text of an episode, from which a judge learns nothing."""
    return f"{stable_hash(row['format'], row['scenario'], row['sample'], size=ID_BYTES):012x}"
