"""Jobs that project activations: cells of one model, each with its own weights, on the persona vectors of the grid."""

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from offscript.console import Progress, counted, duration, say
from offscript.experiment.artifacts import Artifact, Projections
from offscript.experiment.folder import Experiment, now, tracked, write_artifact_manifest
from offscript.experiment.jobs.rollouts import parts_of
from offscript.experiment.jobs.scoring import episode_fields, scored_text
from offscript.json_types import Json
from offscript.models.chat_templates import Schemas
from offscript.storage.files import write_text
from offscript.tasks.dialects import dialect_of, open_in
from offscript.tasks.messages import Image, Message, images_of
from offscript.tasks.rows import Row
from offscript.training.scored_tokens import ScoredTokens, batches, scored_tokens

if TYPE_CHECKING:
    from torch import Tensor

    from offscript.models.steering import SteeringVector
    from offscript.rollouts.engines.transformers import TransformersEngine

DIGITS = 6
"""Significant digits of a projection in its file. Beyond them it depends on the batch."""


@dataclass(frozen=True)
class Direction:
    """A persona's vector of length 1 at its layer: ``unit`` (width,), float32 on the CPU."""

    layer: int
    unit: "Tensor"


def run(artifacts: Sequence[Artifact], experiment: Experiment, limit: int | None) -> None:
    """Makes projections of cells of one model, or of one whole checkpoint. A cell that is finished stays finished."""
    from offscript.models.steering import load_vector

    wanted, started = [a for a in artifacts if isinstance(a, Projections)], now()
    directions = {v.persona: direction(load_vector(experiment.path(v))) for v in wanted[0].vectors}
    engine = _engine(wanted, experiment)
    # Cells of one adapter follow each other, so that it is merged once.
    names = list(dict.fromkeys(a.rollout.adapter_name for a in wanted))
    wanted.sort(key=lambda a: names.index(a.rollout.adapter_name))
    with tracked(wanted, experiment, "projections") as tracker:
        progress = Progress(f"projections {wanted[0].model}: {counted(len(wanted), 'cell')}", 1, "texts")
        rows = {a.key: _emitted(a, experiment) for a in wanted}
        progress.update(0, sum(map(len, rows.values())))
        for artifact in wanted:
            lines = _lines(artifact, rows[artifact.key], experiment, engine, directions, progress)
            text = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
            write_text(experiment.path(artifact), text)
            counts = {"rows": len(lines), "whole_replies": sum(bool(line["whole_reply"]) for line in lines)}
            write_artifact_manifest(artifact, experiment, started, counts=counts, engine=engine.info())
        seconds, texts = progress.close(), sum(map(len, rows.values()))
        tracker.summary({"seconds": seconds, "texts": texts})
    engine.close()
    say(f"  projections: {texts} texts in {counted(len(wanted), 'cell')}, {duration(seconds)}")


def direction(vector: "SteeringVector") -> Direction:
    """The direction of a vector, whatever the strength that it is added with."""
    added = vector.added.float().cpu()
    return Direction(vector.layer, added / added.norm())


def _engine(wanted: Sequence[Projections], experiment: Experiment) -> "TransformersEngine":
    """The weights of all cells, and their tokenizer. It is this engine whichever one generates: no other shows activations."""
    from offscript.rollouts.engines.transformers import TransformersEngine

    parts = parts_of([a.rollout for a in wanted], experiment)
    settings = experiment.planner.settings.engine
    return TransformersEngine(parts.model, parts.adapters, settings, parts.scales, vectors=parts.vectors)


def _emitted(artifact: Projections, experiment: Experiment) -> list[tuple[Row, str]]:
    """The rows of the cell that have a text, each with the text as it is scored."""
    rows = experiment.rows(artifact.rollout)
    return [(row, text) for row in rows if (text := scored_text(artifact, row))]


def _lines(
    artifact: Projections,
    rows: Sequence[tuple[Row, str]],
    experiment: Experiment,
    engine: "TransformersEngine",
    directions: dict[str, Direction],
    progress: Progress,
) -> list[dict[str, Json]]:
    """The lines of a file of projections, in the order of ``rows``."""
    template, tools = engine.model_settings.template, _tools(artifact, experiment)
    texts = [
        scored_tokens(
            engine.tokenizer, conversation(artifact, row), text, template, tools.get(row["scenario"], ())
        )
        for row, text in rows
    ]
    values: dict[int, dict[str, float]] = {}
    images = [images_of(row["messages"]) for row, _ in rows]
    for batch in batches([len(text.ids) for text in texts]):
        read, seen = [texts[i] for i in batch], [image for i in batch for image in images[i]]
        found = project(engine, artifact.rollout.adapter_name, read, directions, seen)
        values |= dict(zip(batch, found, strict=True))
        for _ in batch:
            progress.advance()
    return [
        {
            **episode_fields(artifact, row),
            "tokens": sum(text.inside),
            "whole_reply": text.whole_reply,
            "projections": cast(Json, values[i]),
        }
        for i, ((row, _), text) in enumerate(zip(rows, texts, strict=True))
    ]


def conversation(artifact: Projections, row: Row) -> Sequence[Message]:
    """The messages of an episode, with the examples that it was shown before them."""
    examples = artifact.rollout.examples
    return row["messages"] if examples is None else examples.before(row["messages"], row["examples"])


def _tools(artifact: Projections, experiment: Experiment) -> dict[str, Schemas]:
    """By scenario, the schemas of the tools that the model was told of in a native tool dialect."""
    rollout = artifact.rollout
    dialect = dialect_of(rollout.rules.options)
    if not dialect.native:
        return {}
    openings = {s.id: open_in(dialect, s) for s in rollout.scenarios.load(experiment.rows)}
    return {name: opening.tools.schemas if opening.tools else () for name, opening in openings.items()}


def project(
    engine: "TransformersEngine",
    adapter: str | None,
    texts: Sequence[ScoredTokens],
    directions: dict[str, Direction],
    images: Sequence[Image] = (),
) -> list[dict[str, float]]:
    """For each text and persona, the mean output of the persona's layer over the tokens of the text, projected on its vector
    (Chen et al. 2025, arXiv 2507.21509, section 3). In the unit of the activations, not centred.

    Args:
        adapter: the engine's name of the adapter or vector of the cell, None for base weights.
        images: the images in the prompts of ``texts``, in their order.
    """
    import torch

    from offscript.models.steering import mean_outputs

    width = max(len(text.ids) for text in texts)
    pad = cast(int, engine.tokenizer.pad_token_id)
    ids, mask, inside = (
        torch.tensor([[*values, *[fill] * (width - len(values))] for values in columns])
        for fill, columns in (
            (pad, [text.ids for text in texts]),
            (0, [[1] * len(text.ids) for text in texts]),
            (False, [text.inside for text in texts]),
        )
    )
    ids, mask = ids.to(engine.device), mask.to(engine.device)
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    if images:
        inputs = engine.encoder.inputs(engine.weights.base, engine.encoder.features_of(images), ids, mask)
    names = [adapter] * len(texts)
    forward = functools.partial(engine.weights.forward, names, **inputs, logits_to_keep=1, use_cache=False)
    means = mean_outputs(engine.weights.base, inside, forward, {d.layer for d in directions.values()})
    columns = {name: (means[d.layer] @ d.unit).tolist() for name, d in directions.items()}
    return [
        {name: float(f"{column[i]:.{DIGITS}g}") for name, column in columns.items()}
        for i in range(len(texts))
    ]
