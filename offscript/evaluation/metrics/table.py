"""The metrics of a group of cells. cells.csv, summary.json, the terminal table and W&B are all made from ``METRICS``.

To add a metric, write a function of a GroupScore and add one line to ``METRICS``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from offscript.evaluation.metrics.display import NOT_AVAILABLE, UNKNOWN, number, span
from offscript.evaluation.metrics.f1 import MACRO_F1
from offscript.evaluation.metrics.results import Calibration, GroupScore, PersonaScore

Scalar = int | float | str | None
Value = Scalar | tuple[float, float]


@dataclass(frozen=True)
class Column:
    """A column of the terminal table.

    Args:
        header: its title.
        order: its position, ascending.
        none: text of None.
        places: decimals of a number.
        text: cell for a group, in place of its formatted value.
        optional: whether the column is left out if no group has a value.
    """

    header: str
    order: float = 1000
    none: str = NOT_AVAILABLE
    places: int = 3
    text: Callable[[GroupScore], str] | None = None
    optional: bool = False


@dataclass(frozen=True)
class Metric:
    """A metric of a group and, optionally, of each persona in it.

    Args:
        name: column of cells.csv and of the W&B table ``scores``, key in summary.json and in the W&B summary. ``{n}``
            stands for the number of personas.
        group: value for a group, None if undefined.
        persona: value for a persona in a group; None: the metric has no values for personas.
        column: its column in the terminal table; None: not in that table.
        is_interval: whether the value is an interval, which has the columns ``<name>_low`` and ``<name>_high``.
        is_field: whether the value is stored in GroupScore. summary.json holds all fields of GroupScore and, beside
            them, the metrics that are not fields.
        in_summary: whether it is a headline number of the W&B run.
    """

    name: str
    group: Callable[[GroupScore], Value]
    persona: Callable[[PersonaScore], Value] | None = None
    column: Column | None = None
    is_interval: bool = False
    is_field: bool = False
    in_summary: bool = False

    def key(self, n_labels: int) -> str:
        """The name for ``n_labels`` personas."""
        return self.name.format(n=n_labels)

    def values(self, score: GroupScore | PersonaScore, n_labels: int) -> dict[str, Scalar]:
        """Values for a group or a persona by their columns in cells.csv; None where there is none."""
        if isinstance(score, GroupScore):
            value = self.group(score)
        else:
            value = self.persona(score) if self.persona else None
        key = self.key(n_labels)
        if self.is_interval:
            low, high = value if isinstance(value, tuple) else (None, None)
            return {f"{key}_low": low, f"{key}_high": high}
        assert not isinstance(value, tuple), f"metric {key}: an interval needs is_interval=True"
        return {key: value}

    def cell(self, group: GroupScore, column: Column) -> str:
        """The text in ``column`` of the terminal table."""
        value = self.group(group)
        if column.text is not None:
            return column.text(group)
        if value is None:
            return column.none
        if isinstance(value, tuple):
            return span(value)
        return number(value, column.places) if isinstance(value, float) else str(value)


# ---------------------------------------------------------------- functions of metrics


def ended(group: GroupScore) -> str:
    """Number of episodes by the reason of their end: ``email:57;max_steps:33``."""
    return ";".join(f"{reason}:{n}" for reason, n in group.ended.items())


def persona_emission_rate(persona: PersonaScore) -> float | None:
    """Emitted / planned texts of a persona."""
    return persona.emitted / persona.planned if persona.planned else None


def _emitted_of_planned(group: GroupScore) -> str:
    return f"{group.emitted}/{UNKNOWN if group.planned is None else group.planned}"


def _scaled(of: Callable[[Calibration], float]) -> Callable[[GroupScore], Value]:
    """A number of the calibration after the temperature."""
    return lambda g: of(g.readouts.scaled) if g.readouts and g.readouts.scaled else None


# ---------------------------------------------------------------- the table

_field = partial(Metric, is_field=True)
_interval = partial(Metric, is_field=True, is_interval=True)

METRICS: tuple[Metric, ...] = (
    _field("planned", lambda g: g.planned, lambda p: p.planned),
    _field(
        "emitted", lambda g: g.emitted, lambda p: p.emitted, Column("emitted", 1, text=_emitted_of_planned)
    ),
    _field(
        "emission_rate",
        lambda g: g.emission_rate,
        persona_emission_rate,
        in_summary=True,
    ),
    _field("ended", ended),
    _field("unique_texts", lambda g: g.unique_texts, column=Column("unique\ntexts", 3, UNKNOWN)),
    _field("scenarios", lambda g: g.scenarios),
    _field("families", lambda g: g.families),
    _field("accuracy", lambda g: g.accuracy, lambda p: p.recall, Column("accuracy", 5)),
    _field(MACRO_F1, lambda g: g.macro_f1.emitted, column=Column("F1", 6, places=4), in_summary=True),
    _field("own_class", lambda g: g.macro_f1.own_class),
    _field("lower", lambda g: g.macro_f1.lower),
    _field("upper", lambda g: g.macro_f1.upper),
    _field("null_mean", lambda g: g.null.mean if g.null else None, column=Column("null", 9)),
    _field("null_p", lambda g: g.null.p if g.null else None, column=Column("p", 10)),
    _field("f1", lambda g: None, lambda p: p.f1, in_summary=True),
    _interval("interval", lambda g: g.interval, lambda p: p.interval, Column("interval", 7)),
    _interval("rows", lambda g: g.interval_rows, lambda p: p.interval_rows, Column("by rows", 8)),
    _field("fit_sd", lambda g: g.fit_sd, column=Column("fit\nSD", 7.5, optional=True)),
    _interval("own_class", lambda g: g.interval_own_class),
    _interval("bounds", lambda g: g.interval_bounds),
    _field("oracle", lambda g: g.oracle.f1 if g.oracle else None),
    _field("oracle_null", lambda g: g.oracle.null if g.oracle else None),
    _interval("oracle", lambda g: g.oracle.interval if g.oracle else None),
    _field("auc", lambda g: g.readouts.auc if g.readouts else None, lambda p: p.auc),
    _interval("auc", lambda g: g.readouts.auc_interval if g.readouts else None),
    _field("confidence", lambda g: g.readouts.raw.confidence if g.readouts else None),
    _field("log_loss", lambda g: g.readouts.raw.log_loss if g.readouts else None),
    _field("log_loss_scaled", _scaled(lambda c: c.log_loss)),
    _field("ece", lambda g: g.readouts.raw.ece if g.readouts else None),
    _field("ece_scaled", _scaled(lambda c: c.ece)),
    _field("temperature", lambda g: g.readouts.temperature if g.readouts else None),
    _field(
        "baseline",
        lambda g: g.baseline.f1 if g.baseline else None,
        column=Column("base-\nline", 12, optional=True),
    ),
    _field("baseline_null", lambda g: g.baseline.null if g.baseline else None),
    _interval("baseline", lambda g: g.baseline.interval if g.baseline else None),
)
