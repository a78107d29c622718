"""Log files of Inspect (``inspect_ai``), one per cell, which ``inspect view`` and ``read_eval_log`` open.

A sample is an episode: its input are the messages before the first reply, its score is that of the persona classifier.
``target`` is the true persona and ``answer`` the predicted one, ``C`` or ``I``. Episodes without a text, and texts without
a persona, are unscored as Inspect has it: they count in no metric, and ``reason`` says why.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import offscript
from offscript.errors import UserError
from offscript.evaluation.export.cells import ExportedCell, ExportedRow
from offscript.storage.files import ensure_folder
from offscript.tasks.messages import Message, described

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog, EvalResults, EvalSample
    from inspect_ai.model import ChatMessage, ModelOutput
    from inspect_ai.scorer import Score

SCORER = "persona"
"""Name of the score of each sample, and of the scorer."""

STOP_REASONS = {"length": "max_tokens"}
"""``stop_reason`` of the last reply by the reason for which the episode ended; others are ``stop``."""

SAMPLE_METADATA = (
    "key", "predictions_key", "stage", "persona", "format", "variant", "split", "seed", "family", "ended",
    "turns", "tool_calls", "replies", "notes",
)  # fmt: skip
"""Fields of a row that are the metadata of its sample."""


def check_installed() -> None:
    """Checks that Inspect can be imported.

    Raises:
        UserError: it is not installed.
    """
    try:
        import inspect_ai.log  # noqa: F401
    except ImportError:
        raise UserError(
            "export_as=inspect",
            "needs the package inspect-ai, which is not installed",
            "install it with: pip install -r requirements-inspect.txt",
        ) from None


def write(cells: Iterable[ExportedCell], folder: Path) -> None:
    """Writes a log for each of ``cells`` into ``folder``, below the folders of its model, stage and persona."""
    from inspect_ai.log import write_eval_log

    for cell in cells:
        place = folder / cell.path.with_suffix(".eval")
        ensure_folder(place.parent)
        write_eval_log(log(cell), str(place), format="eval")


def log(cell: ExportedCell) -> "EvalLog":
    """The log of ``cell``."""
    from inspect_ai.log import EvalConfig, EvalDataset, EvalLog, EvalSpec, EvalStats

    labels = cell.labels
    samples = [_sample(row) for row in cell.rows]
    ids = list(dict.fromkeys(str(sample.id) for sample in samples))
    names = [str(labels[name]) for name in ("format", "stage", "persona") if labels[name] is not None]
    spec = EvalSpec(
        created=cell.started,
        eval_id=cell.predictions_key,
        run_id=cell.predictions_key,
        task_id=cell.key,
        task=str(labels["format"]),
        task_display_name=" ".join(names),
        task_args=dict(labels),
        tags=names,
        model=str(labels["model"]),
        dataset=EvalDataset(
            name=f"{labels['format']}-{labels['split']}", samples=len(ids), sample_ids=ids, shuffled=False
        ),
        config=EvalConfig(epochs=max((s.epoch for s in samples), default=1)),
        packages={"offscript": offscript.__version__},
        metadata={**labels, "key": cell.key, "predictions_key": cell.predictions_key},
    )
    return EvalLog(
        status="success",
        eval=spec,
        samples=samples,
        results=_results(samples),
        stats=EvalStats(started_at=cell.started, completed_at=cell.finished),
    )


def _results(samples: "Sequence[EvalSample]") -> "EvalResults":
    """Accuracy over the scored samples, and how many are unscored."""
    from inspect_ai.log import EvalMetric, EvalResults, EvalScore

    values = [s.scores[SCORER].value for s in samples if s.scores]
    correct, scored = values.count("C"), values.count("C") + values.count("I")
    metrics = {"accuracy": EvalMetric(name="accuracy", value=correct / scored)} if scored else {}
    score = EvalScore(
        name=SCORER,
        scorer=SCORER,
        scored_samples=scored,
        unscored_samples=len(samples) - scored,
        metrics=metrics,
    )
    return EvalResults(total_samples=len(samples), completed_samples=len(samples), scores=[score])


def _sample(row: ExportedRow) -> "EvalSample":
    from inspect_ai.log import EvalSample

    messages = _messages(row)
    replies = [i for i, m in enumerate(messages) if m.role == "assistant"]
    # Assistant messages before the model's own replies are part of the scenario.
    first = replies[-min(row["turns"], len(replies))] if replies and row["turns"] else len(messages)
    about = {name: value for name, value in row.items() if name in SAMPLE_METADATA}
    return EvalSample(
        id=row["row"].rpartition("/")[0],
        epoch=row["sample"] + 1,
        input=messages[:first],
        target=row["persona"] or "",
        messages=messages,
        output=_output(row, messages),
        scores={SCORER: _score(row)},
        metadata=about,
        uuid=f"{row['predictions_key'][:16]}-{row['row']}",
    )


def _score(row: ExportedRow) -> "Score":
    from inspect_ai.scorer import CORRECT, INCORRECT, Score

    about = {"probs": dict(row["probs"])} if row["probs"] is not None else None
    if row["correct"] is None:
        return Score.unscored(
            answer=row["predicted"],
            explanation=row["scored_text"],
            reason="no_response" if row["predicted"] is None else "no_persona",
            metadata=about,
        )
    value = CORRECT if row["correct"] else INCORRECT
    return Score(value=value, answer=row["predicted"], explanation=row["scored_text"], metadata=about)


def _output(row: ExportedRow, messages: "Sequence[ChatMessage]") -> "ModelOutput":
    """The last reply, with the tokens of all of them."""
    from inspect_ai.model import ChatCompletionChoice, ChatMessageAssistant, ModelOutput, ModelUsage

    last = [m for m in messages if isinstance(m, ChatMessageAssistant)][-1:] if row["turns"] else []
    reason = STOP_REASONS.get(row["ended"], "stop")
    total = row["tokens_in"] + row["tokens_out"]
    return ModelOutput(
        model=row["model"],
        choices=[ChatCompletionChoice(message=m, stop_reason=reason) for m in last],
        usage=ModelUsage(input_tokens=row["tokens_in"], output_tokens=row["tokens_out"], total_tokens=total),
    )


def _messages(row: ExportedRow) -> "list[ChatMessage]":
    """The transcript. A tool message answers the calls of the message before it in their order, if it has calls of a
    tool dialect; calls that are written as text stay in the content."""
    converted: list[ChatMessage] = []
    waiting: list[tuple[str, str]] = []
    for number, message in enumerate(row["messages"]):
        name = f"{row['key'][:16]}-{row['row']}-{number}"
        if message["role"] == "tool":
            call = waiting.pop(0) if waiting else None
            converted.append(_tool_message(message, name, call))
        else:
            converted.append(_message(message, name))
            waiting = [
                (f"{name}-{i}", call["function"]["name"])
                for i, call in enumerate(message.get("tool_calls", ()))
            ]
    return converted


def _tool_message(message: Message, name: str, call: tuple[str, str] | None) -> "ChatMessage":
    from inspect_ai.model import ChatMessageTool

    identity, function = call or (None, None)
    return ChatMessageTool(id=name, content=message["content"], tool_call_id=identity, function=function)


def _message(message: Message, name: str) -> "ChatMessage":
    from inspect_ai.model import ChatMessageAssistant, ChatMessageSystem, ChatMessageUser
    from inspect_ai.tool import ToolCall

    if message["role"] == "assistant":
        calls = [
            ToolCall(
                id=f"{name}-{i}", function=c["function"]["name"], arguments=dict(c["function"]["arguments"])
            )
            for i, c in enumerate(message.get("tool_calls", ()))
        ]
        return ChatMessageAssistant(id=name, content=message["content"], tool_calls=calls or None)
    kind = ChatMessageSystem if message["role"] == "system" else ChatMessageUser
    return kind(id=name, content=described(message["content"], message.get("images", ())))
