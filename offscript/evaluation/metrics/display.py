"""Numbers as the text of a table cell."""

from offscript.evaluation.metrics.intervals import Interval

NOT_AVAILABLE = "n/a"
UNKNOWN = "?"


def number(value: float | None, places: int = 3) -> str:
    """``.182``, ``-.041``, ``1.00``: no leading zero, as wide as ``places`` decimals; ``n/a`` for None."""
    if value is None:
        return NOT_AVAILABLE
    shown = f"{value:.{places}f}"
    if float(shown) == 0:
        shown = shown.removeprefix("-")
    if abs(float(shown)) >= 1:
        return f"{value:.{places - 1}f}"
    return shown.replace("0.", ".", 1)


def span(interval: Interval) -> str:
    """``.138-.221``; ``-.020 to .031`` if an end is negative, so that its sign is not read as the dash."""
    if interval is None:
        return NOT_AVAILABLE
    low, high = (number(end) for end in interval)
    return f"{low} to {high}" if "-" in low + high else f"{low}-{high}"
