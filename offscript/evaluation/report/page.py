"""``report.html``: one page without any other file. It opens with the answer and a figure; then the grid, retention, missing
texts, personas and confusion, what was run, and the texts.

The transcripts of a large evaluation are in script files in a folder beside the page, which it loads as they are needed;
without that folder the page shows everything else.
"""

import base64
import functools
import hashlib
import re
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from offscript.evaluation.metrics.display import NOT_AVAILABLE, UNKNOWN, number, span
from offscript.evaluation.metrics.intervals import Interval
from offscript.evaluation.metrics.results import GroupScore, PersonaScore, Retention, Scores
from offscript.evaluation.order import formats_in_order, is_in_distribution, stages_in_order
from offscript.evaluation.predictions import Prediction
from offscript.evaluation.report.answer import answers, percent
from offscript.evaluation.report.provenance import Provenance
from offscript.evaluation.report.section import Section
from offscript.evaluation.report.tables import legend, stage_name, tables
from offscript.evaluation.report.texts import Read, TextIndex, chunks, script_json
from offscript.evaluation.report.visible import visible
from offscript.json_types import Json
from offscript.storage.files import ensure_folder, write_text
from offscript.storage.hashing import key_of

if TYPE_CHECKING:
    from jinja2 import Environment

PAGE = "report.html"
TEXTS = "report_texts"
"""Folder of the transcripts of a large evaluation, beside the page."""

EPISODES_IN_PAGE = 2_000
BYTES_IN_PAGE = 8_000_000
"""Up to this many episodes and bytes of transcripts are in the page itself."""

WEB = Path(__file__).parent / "web"


@dataclass(frozen=True)
class Texts:
    """The episodes of an evaluation: their predictions, and how to read the transcript of each."""

    predictions: Sequence[Prediction]
    read: Read


@dataclass(frozen=True)
class Figures:
    """SVG files that are copied into the page: the headline, that of long sessions, if there are any, and those of sections
    by the name of the section."""

    headline: Path
    sessions: Path | None = None
    sections: Mapping[str, Path] = field(default_factory=dict)


def write_page(
    scores: Scores,
    folder: Path,
    figures: Figures,
    title: str,
    texts: Texts | None,
    provenance: Provenance,
    sections: Sequence[Section] = (),
) -> list[Path]:
    """Writes ``report.html`` and, for a large evaluation, the folder ``report_texts`` into ``folder``.

    Args:
        texts: None: the page has no texts.

    Returns:
        The paths of the page and of the script files.
    """
    # A page of one evaluation and texts of another must not stand beside each other after a kill.
    (folder / PAGE).unlink(missing_ok=True)
    shutil.rmtree(folder / TEXTS, ignore_errors=True)
    index, inside, beside = _write_texts(texts, folder / TEXTS)
    html = render(scores, title, figures, provenance, index, inside, sections)
    write_text(folder / PAGE, html)
    return [folder / PAGE, *beside]


def _write_texts(texts: Texts | None, folder: Path) -> tuple[Json, list[Markup], list[Path]]:
    """Index and chunks for the page, and the files of a large evaluation, whose page has no chunks and the name of the
    index only."""
    if texts is None:
        return None, [], []
    index = TextIndex(texts.predictions)
    held: list[Markup] = []
    files: list[Path] = []
    # Shown by the page if the folder beside it is that of another evaluation.
    episodes = [[str(part) for part in (*p.episode, p.text_hash, p.predicted)] for p in texts.predictions]
    name = key_of({"episodes": episodes})[:12]
    in_page = len(texts.predictions) <= EPISODES_IN_PAGE
    for chunk in chunks(texts.predictions, texts.read, index):
        held.append(script_json(chunk))
        if in_page and sum(map(len, held)) > BYTES_IN_PAGE:
            in_page = False
        if not in_page:
            files += _write_chunks(folder, name, held, len(files))
            held.clear()
    if in_page:
        return index.json(), held, []
    path = folder / "index.js"
    write_text(path, f'offscript.addIndex("{name}", {script_json(index.json())});\n')
    return {"folder": TEXTS, "name": name}, [], [path, *files]


def _write_chunks(folder: Path, name: str, held: Sequence[Markup], first: int) -> list[Path]:
    paths = []
    for number_, chunk in enumerate(held, start=first):
        path = ensure_folder(folder) / f"{number_:04d}.js"
        write_text(path, f'offscript.addChunk("{name}", {number_}, {chunk});\n')
        paths.append(path)
    return paths


# ---------------------------------------------------------------- the page


def render(
    scores: Scores,
    title: str,
    figures: Figures,
    provenance: Provenance,
    index: Json = None,
    inside: Sequence[Markup] = (),
    sections: Sequence[Section] = (),
) -> str:
    """The HTML text of the page.

    Args:
        index: index of the texts, or the name of the folder that holds it; None: the page has no texts.
        inside: chunks of transcripts.
    """
    script = Markup((WEB / "page.js").read_text(encoding="utf-8"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        environment()
        .get_template("page.html")
        .render(
            title=title,
            scores=scores,
            answers=answers(scores),
            figure=inline_svg(figures.headline, "headline"),
            sessions=inline_svg(figures.sessions, "sessions") if figures.sessions else None,
            models=[_model(scores, name) for name in dict.fromkeys(g.model for g in scores.groups)],
            tables=tables(scores),
            legend=legend(scores),
            sections=sections,
            drawn={name: inline_svg(path, name) for name, path in figures.sections.items()},
            provenance=provenance,
            index=None if index is None else script_json(index),
            beside=f"{TEXTS}/index.js" if isinstance(index, dict) and "folder" in index else None,
            inside=inside,
            style=Markup((WEB / "page.css").read_text(encoding="utf-8")),
            script=script,
            script_digest=digest,
        )
    )


@functools.cache
def environment() -> "Environment":
    """Templates that escape whatever they print."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(WEB),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printed,
    )
    environment.filters |= {
        "number": number,
        "span": span,
        "percent": percent,
        "heat": heat,
        "share": share,
    }
    environment.globals |= {"UNKNOWN": UNKNOWN, "NOT_AVAILABLE": NOT_AVAILABLE}
    return environment


def _printed(value: object) -> object:
    return visible(value) if type(value) is str else value


def inline_svg(path: Path, name: str) -> Markup:
    """An SVG file of matplotlib's as an element of the page, in the colours of the page, described by the element
    ``<name>-text``. It is parsed, so that only well-formed elements without comments remain."""
    svg = "http://www.w3.org/2000/svg"
    ElementTree.register_namespace("", svg)
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    # Names of rows are in matplotlib's comments, control characters too, which XML does not have.
    root = ElementTree.fromstring(_NOT_XML.sub("", path.read_text(encoding="utf-8")))
    for metadata in root.findall(f"{{{svg}}}metadata"):
        root.remove(metadata)
    for element in root.iter():
        for key, value in element.attrib.items():
            if key == "style":
                for colour, of_page in _COLOURS.items():
                    value = value.replace(colour, of_page)
            # Two figures of a page may have equal ids.
            value = f"{name}-{value}" if key == "id" else _REFERENCE.sub(rf"\1{name}-", value)
            element.set(key, value)
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    root.attrib |= {"fill": "currentColor", "role": "img", "aria-labelledby": f"{name}-text"}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


_REFERENCE = re.compile(r"(^#|url\(#)")
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_COLOURS = {
    "#ffffff": "var(--page)",
    "#000000": "currentColor",
    "#e6e6e6": "var(--rule)",
    "#444444": "var(--quiet)",
    "#555555": "var(--quiet)",
    "#0072b2": "var(--blue)",
}


def heat(value: float | None) -> Markup:
    """The style of a cell of a heat map for a value from 0 to 1: a colour of cividis, and the ink on it."""
    import matplotlib

    if value is None:
        return Markup("")
    red, green, blue, _ = matplotlib.colormaps["cividis"](min(max(value, 0.0), 1.0), bytes=True)
    # Black has the greater contrast from this relative luminance on (WCAG 2).
    linear = [
        (c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4) for c in (red, green, blue)
    ]
    luminance = sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    ink = "#000" if luminance > 0.179 else "#fff"
    return Markup(f"background:#{red:02x}{green:02x}{blue:02x};color:{ink}")


def share(value: float) -> str:
    """A position from 0 to 1 as a CSS percentage."""
    return f"{100 * min(max(value, 0.0), 1.0):.1f}%"


# ---------------------------------------------------------------- what a model shows


@dataclass(frozen=True)
class Cell:
    """One group of the grid as the page shows it; ``id`` names its details, ``stage`` has its training seed."""

    id: str
    stage: str
    group: GroupScore
    retention: Retention | None

    @property
    def bounds(self) -> Interval:
        low, high = self.group.macro_f1.lower, self.group.macro_f1.upper
        return None if low is None or high is None else (low, high)


@dataclass(frozen=True)
class PersonaRow:
    """A persona at one stage: its score by format, chat first."""

    persona: str
    stage: str
    by_format: Mapping[str, PersonaScore]

    @property
    def chat(self) -> float | None:
        """The score in the first in-distribution format, which the others are compared with."""
        return next((p.f1 for name, p in self.by_format.items() if is_in_distribution(name)), None)


@dataclass(frozen=True)
class ModelView:
    """The parts of the page on one model. ``grid`` has the cell of each stage and format, if there is one."""

    name: str
    formats: list[str]
    grid: list[tuple[str, list[Cell | None]]]
    cells: list[Cell]
    personas: list[PersonaRow]

    @property
    def retention(self) -> list[Cell]:
        return [cell for cell in self.cells if cell.retention is not None]


def _model(scores: Scores, model: str) -> ModelView:
    number_of = {id(g): i for i, g in enumerate(scores.groups)}
    kept = {(r.stage, r.format, r.training_seed, r.seeds): r for r in scores.retention if r.model == model}
    groups = [g for g in scores.groups if g.model == model]
    stages, formats = stages_in_order(g.stage for g in groups), formats_in_order(g.format for g in groups)
    cells = [
        Cell(
            f"cell-{number_of[id(g)]}",
            stage_name(scores, g.stage, g.training_seed, g.seeds),
            g,
            kept.get((g.stage, g.format, g.training_seed, g.seeds)),
        )
        for g in sorted(groups, key=lambda g: (stages.index(g.stage), g.seeds == 1, formats.index(g.format)))
    ]
    rows: dict[str, dict[str, Cell]] = {}
    for cell in cells:
        rows.setdefault(cell.stage, {})[cell.group.format] = cell
    grid = [(stage, [of_format.get(f) for f in formats]) for stage, of_format in rows.items()]
    return ModelView(model, formats, grid, cells, _personas(scores, model))


def _personas(scores: Scores, model: str) -> list[PersonaRow]:
    groups = [g for g in scores.main_groups(model) if not g.is_base]
    return [
        PersonaRow(
            label,
            stage,
            {g.format: g.personas[i] for g in groups if g.stage == stage and g.personas[i].emitted},
        )
        for i, label in enumerate(scores.labels)
        for stage in dict.fromkeys(g.stage for g in groups)
    ]
