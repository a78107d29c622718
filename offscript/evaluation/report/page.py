"""``report.html``: figures, tables, legend and notes on one page without scripts. It links to the figures only."""

from html import escape

from offscript.evaluation.metrics.results import Scores
from offscript.evaluation.report.tables import Table, legend, tables

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
img { max-width: 100%; height: auto }
table { border-collapse: collapse; margin: .5rem 0 2rem; font-size: .85rem; font-variant-numeric: tabular-nums }
th, td { padding: .15rem .6rem; text-align: right; white-space: nowrap }
th.word, td.word { text-align: left }
thead th { border-bottom: 1px solid #888 }
tbody tr:nth-child(even) { background: #f5f5f5 }
.scroll { overflow-x: auto }
"""


def page(scores: Scores, title: str, headline: str, heatmap: str, drift: str | None = None) -> str:
    """The HTML text. ``headline``, ``heatmap`` and ``drift`` (None if there is none) are paths of the images relative to the
    page. All names are escaped."""
    head = "retention of trained personas off script"
    notes = "".join(f"<li>{escape(note)}</li>" for note in scores.notes)
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f"<title>{escape(title)}: {head}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(title)}: {head}</h1>",
        f'<img src="{escape(headline, quote=True)}" alt="Macro-F1 by format for each stage, with intervals; the same '
        'numbers are in the tables below">',
        "<h2>How to read the numbers</h2>",
        *(f"<p>{escape(line)}</p>" for line in legend(scores)),
        f"<h2>Notes</h2><ul>{notes}</ul>" if notes else "",
        f'<h2>F1 of each persona</h2><img src="{escape(heatmap, quote=True)}" alt="A row per persona, a column per '
        'stage and format">',
        _sessions(drift),
        *(_html(table) for table in tables(scores)),
        "</body></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _sessions(drift: str | None) -> str:
    if drift is None:
        return ""
    alt = "Macro-F1 by the number of turns before the question, for each stage"
    return f'<h2>Long sessions</h2><img src="{escape(drift, quote=True)}" alt="{alt}">'


def _html(table: Table) -> str:
    def row(tag: str, cells: tuple[str, ...]) -> str:
        shown = (
            f'<{tag} class="word">{escape(cell)}</{tag}>'
            if i < table.left
            else f"<{tag}>{escape(cell)}</{tag}>"
            for i, cell in enumerate(cells)
        )
        return f"<tr>{''.join(shown)}</tr>"

    body = "\n".join(row("td", cells) for cells in table.rows)
    return (
        f'<h2>{escape(table.title)}</h2><div class="scroll"><table><thead>{row("th", tuple(title.replace(chr(10), " ") for title in table.header))}</thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )
