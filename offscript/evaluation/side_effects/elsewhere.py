"""Side effects of prediction rows that were made elsewhere: what their texts and transcripts tell without the scenarios."""

from collections.abc import Mapping, Sequence

from offscript.evaluation.copies import cross_copies
from offscript.evaluation.metrics.results import Scores
from offscript.evaluation.predictions import Prediction
from offscript.evaluation.report.section import Section
from offscript.evaluation.side_effects.episodes import Episode
from offscript.evaluation.side_effects.section import side_effects
from offscript.evaluation.side_effects.tally import Tally
from offscript.json_types import Json
from offscript.tasks.formats import FORMATS
from offscript.tasks.tool_calls import parse_reply

NO_SCENARIOS = (
    "These rows were made elsewhere, and their scenarios and constitutions are not known: addresses, facts, success and "
    "recitation are n/a. Tool calls are read from messages, where the rows hold them; whether a tool exists and "
    "takes its arguments is not known."
)


def side_effects_elsewhere(
    predictions: Sequence[Prediction], rows: Sequence[Mapping[str, Json]], scores: Scores
) -> Section | None:
    """The section of ``predictions``, each of which was read from the row in its place; None if no row holds its text."""
    by_rows = scores.options.resample == "rows"
    kept = predictions if by_rows else cross_copies(predictions, scores.labels)[0]
    row_of = {prediction.where: row for prediction, row in zip(predictions, rows, strict=True)}
    tally = Tally(scores.labels, {})
    for prediction in kept:
        if prediction.persona is None or prediction.persona in scores.labels:
            tally.add(episode(prediction, row_of[prediction.where], scores.options.resample))
    return side_effects(tally, scores.options, [NO_SCENARIOS])


def episode(prediction: Prediction, row: Mapping[str, Json], unit: str) -> Episode:
    """The episode of a row. Never raises: rows of others may have anything under ``messages`` and ``tokens_out``."""
    held, tokens = row.get("messages"), row.get("tokens_out")
    messages = [m for m in held if isinstance(m, dict)] if isinstance(held, list) else []
    has_tools = any(m.get("role") == "tool" or m.get("tool_calls") for m in messages)
    # Of a row that was scored and does not hold its text, it cannot be told which call sent it.
    lacks_text = prediction.predicted is not None and prediction.text is None
    known = FORMATS.get(prediction.format)
    return Episode(
        model=prediction.model,
        stage=prediction.stage,
        format=prediction.format,
        training_seed=prediction.training_seed,
        persona=prediction.persona,
        cluster=prediction.scenario if unit == "scenario" else prediction.family,
        text=prediction.text,
        ended=prediction.ended,
        tokens=tokens if isinstance(tokens, int) and not isinstance(tokens, bool) else None,
        messages=messages,
        parse=parse_reply if has_tools and not lacks_text else None,
        is_email=known is not None and known.text_is_email,
        task=None,
    )
