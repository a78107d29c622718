"""What trainings that play their own episodes get from an experiment: how these are played, rewarded and watched."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING

from offscript.evaluation.classifier import predict
from offscript.evaluation.email_cleaning import cleaned
from offscript.evaluation.rewards import Usual, log_odds, recited
from offscript.evaluation.side_effects.tally import progress
from offscript.evaluation.side_effects.texts import Run, recitable
from offscript.experiment.artifacts import Classifier, LiveTraining, Rollout, TrainedAdapter
from offscript.experiment.folder import Experiment
from offscript.experiment.jobs.live_judge import LiveJudge
from offscript.experiment.jobs.rollouts import cell_run
from offscript.experiment.side_effects import Tasks, episode_of
from offscript.tasks.rows import Row
from offscript.training.episodes import LiveEpisodes
from offscript.training.start import OWN

if TYPE_CHECKING:
    from offscript.evaluation.classifier.fits import Classifier as LoadedClassifier


def live_episodes(adapter: TrainedAdapter, experiment: Experiment) -> LiveEpisodes:
    """How the episodes of ``adapter`` are played while it is trained, and what scores them."""
    live = adapter.live
    assert live is not None
    cells = {
        rollout.cell.format: replace(cell_run(rollout, experiment, None), adapter=OWN)
        for _, rollout in live.episodes
    }
    keys = [rollout.key for _, rollout in live.episodes]
    return LiveEpisodes(
        cells=cells,
        scorer=LiveScorer(adapter, live, experiment),
        engine=experiment.planner.settings.engine,
        identity=(*keys, *(part.key for part in live.inputs)),
    )


@dataclass(frozen=True)
class LiveScorer:
    """Scores the episodes of one training; see ``training.episodes.Scorer``. Classifiers are loaded when they are needed."""

    adapter: TrainedAdapter
    live: LiveTraining
    experiment: Experiment

    def rewards(self, rows: Sequence[Row], length_multiple: float) -> Mapping[str, Sequence[float | None]]:
        """The rewards of ``evaluation.rewards``."""
        texts = [self._text(row) for row in rows]
        shares = [recited(text, self._constitution) for text in texts]
        pairs = list(zip(rows, texts, strict=True))
        return {
            "persona": log_odds(self._reward, texts, self.adapter.persona).tolist(),
            "task": [self._progress(row, text) for row, text in pairs],
            "length": [self._usual[row["format"]].penalty(text, length_multiple) for row, text in pairs],
            "recitation": [None if share is None else -share for share in shares],
        }

    def measures(self, rows: Sequence[Row]) -> dict[str, float]:
        """Means over ``rows``: log-odds of the persona by the classifier that is the ``reward``, by the evaluating
        ``classifier`` and in formats off chat by their ``oracle`` (nats); ``task`` progress; ``emission`` rate; ``length`` as a
        multiple of the usual one; ``recitation`` as a share of runs; ``judge``, the share of a judge's answers that name the
        persona, if there is one. What applies to no row is left out."""
        texts = [self._text(row) for row in rows]
        pairs = list(zip(rows, texts, strict=True))
        oracle: list[float] = []
        for name, classifier in self._oracles.items():
            of_format = [text for row, text in pairs if row["format"] == name]
            oracle += self._log_odds(classifier, of_format)
        found: dict[str, Sequence[float | None]] = {
            "reward": self._log_odds(self._reward, texts),
            "classifier": self._log_odds(self._classifier, texts),
            "oracle": oracle,
            "task": [self._progress(row, text) for row, text in pairs],
            "emission": [float(text is not None) for text in texts],
            "length": [self._usual[row["format"]].ratio(text) for row, text in pairs],
            "recitation": [recited(text, self._constitution) for text in texts],
            "judge": [self._judged(rows, texts)],
        }
        known = {name: [v for v in values if v is not None] for name, values in found.items()}
        return {name: fmean(values) for name, values in known.items() if values}

    def _judged(self, rows: Sequence[Row], texts: Sequence[str | None]) -> float | None:
        if self.live.judge is None:
            return None
        return LiveJudge(self.live.judge, self.experiment).share(rows, texts, self.adapter.persona)

    def _log_odds(self, classifier: "LoadedClassifier", texts: Sequence[str | None]) -> list[float]:
        found: list[float] = log_odds(classifier, texts, self.adapter.persona).tolist()
        return found

    # ------------------------------------------------------------ parts

    def _text(self, row: Row) -> str | None:
        """What of a row is scored."""
        is_email = self._rollouts[row["format"]].format.text_is_email
        return cleaned(row["text"], self.live.email_cleaning if is_email else None)

    def _progress(self, row: Row, text: str | None) -> float | None:
        rollout = self._rollouts[row["format"]]
        return progress(episode_of(rollout, row, text, self._tasks.of(rollout).get(row["scenario"])))

    @functools.cached_property
    def _rollouts(self) -> dict[str, Rollout]:
        return {rollout.cell.format: rollout for _, rollout in self.live.episodes}

    @functools.cached_property
    def _tasks(self) -> Tasks:
        return Tasks(self.experiment)

    @functools.cached_property
    def _usual(self) -> dict[str, Usual]:
        """The length of texts in role, by format."""
        texts = {
            name: [text for row in self.experiment.rows(rollout) if (text := self._text(row)) is not None]
            for name, rollout in self.live.in_role.items()
        }
        return {name: Usual.of(own) for name, own in texts.items()}

    @functools.cached_property
    def _constitution(self) -> frozenset[Run]:
        persona = self.experiment.planner.options.persona[self.adapter.persona]
        return recitable([a.assertion for a in persona.constitution])

    @functools.cached_property
    def _reward(self) -> "LoadedClassifier":
        return self._load(self.live.reward)

    @functools.cached_property
    def _classifier(self) -> "LoadedClassifier":
        return self._load(self.live.classifier)

    @functools.cached_property
    def _oracles(self) -> "dict[str, LoadedClassifier]":
        return {name: self._load(classifier) for name, classifier in self.live.oracles.items()}

    def _load(self, classifier: Classifier) -> "LoadedClassifier":
        return predict.load(
            self.experiment.path(classifier),
            expected=classifier.personas,
            batch_tokens=classifier.settings.predict_batch_tokens,
        )
