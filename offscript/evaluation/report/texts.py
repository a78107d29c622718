"""The texts of an evaluation as the page reads them: an index of all episodes, and chunks of transcripts.

The index is one record of columns, so that 50,000 episodes are found and filtered without their transcripts. A chunk
holds the transcripts of consecutive episodes of the index. Keys of all objects are fixed: names and texts of rows are
values only.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from offscript.evaluation.order import formats_in_order, personas_in_order, stages_in_order
from offscript.evaluation.predictions import Prediction
from offscript.evaluation.report.transcripts import Transcript, Turn
from offscript.evaluation.report.visible import visible
from offscript.json_types import Json

CHUNK_EPISODES = 200
CHUNK_CHARACTERS = 500_000
"""A chunk ends after this many episodes or characters of text, whichever comes first."""

BEGINNING = 120
"""Characters of a text that the index holds, for the list and for searching."""

Read = Callable[[int], Transcript | None]
"""The transcript of the row with this number; None if it cannot be read. Called once per row, in the order of the page,
so that the rows of one cell follow each other."""


def script_json(value: Json) -> Markup:
    """``value`` as JSON for a script element or a script file: ASCII, without ``<``, ``>`` and ``&``, so that nothing in it can end
    the element."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        # Outside strings, JSON has none of these characters.
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def page_order(predictions: Sequence[Prediction]) -> list[int]:
    """Numbers of ``predictions`` in the order of the page. The cells of one file of rows follow each other."""
    stages = _positions(stages_in_order(p.stage for p in predictions))
    formats = _positions(formats_in_order(p.format for p in predictions))
    personas = _positions(personas_in_order(p.persona for p in predictions if p.persona is not None))

    def key(i: int) -> tuple[object, ...]:
        p = predictions[i]
        persona = -1 if p.persona is None else personas[p.persona]
        seed = -1 if p.training_seed is None else p.training_seed
        return p.model, stages[p.stage], seed, persona, formats[p.format], p.scenario, p.sample

    return sorted(range(len(predictions)), key=key)


def _positions(names: Sequence[str]) -> dict[str, int]:
    return {name: i for i, name in enumerate(names)}


@dataclass
class Column:
    """Values of one column of the index: distinct ``names``, and for each episode the position of its name; -1 for None."""

    names: dict[str, int] = field(default_factory=dict)
    rows: list[int] = field(default_factory=list)

    def add(self, name: str | None) -> None:
        self.rows.append(-1 if name is None else self.names.setdefault(name, len(self.names)))

    def json(self) -> Json:
        return {"names": [visible(name) for name in self.names], "rows": list(self.rows)}


COLUMNS: dict[str, Callable[[Prediction], str | None]] = {
    "model": lambda p: p.model,
    "stage": lambda p: p.stage,
    "persona": lambda p: p.persona,
    "format": lambda p: p.format,
    "scenario": lambda p: p.scenario,
    "predicted": lambda p: p.predicted,
    "ended": lambda p: p.ended,
    "seed": lambda p: None if p.training_seed is None else str(p.training_seed),
    "sample": lambda p: str(p.sample),
}


class TextIndex:
    """The index, filled as ``chunks`` runs."""

    def __init__(self, predictions: Sequence[Prediction]) -> None:
        self.columns = {name: Column() for name in COLUMNS}
        # Probability of the predicted label in thousandths.
        self.probability: list[int] = []
        self.beginnings: list[str] = []
        self.starts: list[int] = []
        self.labels = {
            p.model: personas_in_order(p.probs) for p in reversed(predictions) if p.probs is not None
        }
        self.has_turns = False

    def add(self, p: Prediction, transcript: Transcript | None) -> None:
        for name, value in COLUMNS.items():
            self.columns[name].add(value(p))
        known = p.probs is not None and p.predicted is not None
        self.probability.append(round(1000 * p.probs[p.predicted]) if known else -1)  # type: ignore[index]
        text = (transcript.text if transcript else None) or ""
        self.beginnings.append(visible(" ".join(text[: 2 * BEGINNING].split())[:BEGINNING]))
        self.has_turns = self.has_turns or bool(transcript and transcript.turns)

    def json(self) -> Json:
        return {
            "columns": {name: column.json() for name, column in self.columns.items()},
            "probability": list(self.probability),
            "beginnings": list(self.beginnings),
            "starts": list(self.starts),
            "labels": [[visible(m), [visible(label) for label in names]] for m, names in self.labels.items()],
        }


def chunks(predictions: Sequence[Prediction], read: Read, index: TextIndex) -> Iterator[Json]:
    """The chunks of all episodes in the order of the page, each as JSON; fills ``index`` with the episodes of a chunk
    before it is yielded."""
    chunk = _Chunk()
    for number, i in enumerate(page_order(predictions)):
        p, transcript = predictions[i], read(i)
        if not chunk.episodes:
            index.starts.append(number)
        index.add(p, transcript)
        chunk.add(p, transcript, index.labels.get(p.model, []))
        if len(chunk.episodes) >= CHUNK_EPISODES or chunk.characters >= CHUNK_CHARACTERS:
            yield chunk.json()
            chunk = _Chunk()
    if chunk.episodes:
        yield chunk.json()


class _Chunk:
    """Transcripts of consecutive episodes. A system text, which many of them share, is held once."""

    def __init__(self) -> None:
        self.episodes: list[Json] = []
        self.shared: dict[str, int] = {}
        self.characters = 0

    def add(self, p: Prediction, transcript: Transcript | None, labels: Sequence[str]) -> None:
        found: dict[str, Json] = {"read": transcript is not None}
        if transcript is not None:
            found["text"] = None if transcript.text is None else self._count(visible(transcript.text))
            found["turns"] = [self._turn(turn) for turn in transcript.turns]
        if p.probs is not None:
            found["probs"] = [round(p.probs[label], 4) for label in labels]
        self.episodes.append(found)

    def _turn(self, turn: Turn) -> Json:
        content = visible(turn.content)
        found: dict[str, Json] = {"role": visible(turn.role)}
        if turn.role == "system":
            if content not in self.shared:
                self.shared[self._count(content)] = len(self.shared)
            found["shared"] = self.shared[content]
        else:
            found["content"] = self._count(content)
        if turn.calls:
            found["calls"] = [
                [visible(call.tool), [[visible(name), visible(text)] for name, text in call.arguments]]
                for call in turn.calls
            ]
        return found

    def _count(self, text: str) -> str:
        self.characters += len(text)
        return text

    def json(self) -> Json:
        return {"shared": list(self.shared), "episodes": self.episodes}
