"""The section "Recipes": what every trained stage keeps, what it trains on and costs, dose and formats left out."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, cast

import numpy as np

from offscript.evaluation.metrics.display import NOT_AVAILABLE, UNKNOWN, number, span
from offscript.evaluation.metrics.intervals import Contrast
from offscript.evaluation.metrics.results import RecipeScore, Scores
from offscript.evaluation.order import formats_in_order, is_in_distribution
from offscript.evaluation.predictions import Prediction
from offscript.evaluation.report.figures import headings, save
from offscript.evaluation.report.section import Section, Table
from offscript.json_types import Json
from offscript.tasks.formats import FORMATS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME = "recipes"
RELATED = ("side_effects", "confusions")
OFF_CHAT = "off chat"
"""In tables: the mean over the formats off chat."""
SHARE, FORMATS_OF = "share", "formats"
"""Names of the hyper-parameters that set the dose of episodes off chat, and their formats."""

MILLION = 1e6
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = "osD^vP"

KEPT = (
    "A recipe is how the weights of a trained stage are made. Kept: what a stage keeps of its own chat F1 in another format, above "
    "chance. Off chat: the mean over all formats off chat that every trained stage has. A star (and yes below trained on) marks "
    "formats whose episodes the stage, or a stage that it starts from, was trained on, with tasks of other families: only "
    "formats without it show whether the persona generalises."
)
CHANGES = (
    "Changes are paired: both stages are scored on the same resampled families. A stage whose chat F1 is low may keep much of "
    "little, so read F1 beside what is kept. Of several training seeds the means are shown."
)
COST = (
    "Cost is that of one adapter, a persona and a training seed, with those of the stages that it starts from. Tokens: those that "
    "the loss is computed on, in all epochs. Training and rows: seconds times processes; rows that personas share are divided "
    "among them, and rows that stages share count for each. Points: 100 x kept off chat, for each million tokens."
)
DOSE = (
    "The dose is the share of trained tokens that is off chat; the stages of a table differ in nothing else."
)
LEFT_OUT = "Out: the stage, which differs from the others in its formats alone, was not trained on this one."
UNKNOWN_RECIPES = (
    "What a stage was trained on, doses and costs are not known from predictions alone; `offscript evaluate experiment=...` "
    "shows them for a grid."
)


@dataclass(frozen=True)
class Recipe:
    """How the weights of a stage are made. Of its cost, each number is a mean over adapters, and None if it is unknown.

    Args:
        formats: formats of the episodes that it and the stages that it starts from are trained on.
        settings: what makes its weights other than those of another stage, without its parents and rows.
        tokens: trained tokens.
        training_s: seconds of training, times processes.
        rows_s: seconds in which the rows were generated.
    """

    formats: tuple[str, ...]
    settings: Mapping[str, Json] = field(default_factory=dict)
    tokens: float | None = None
    training_s: float | None = None
    rows_s: float | None = None

    def trains_on(self, format_: str) -> bool:
        """Whether ``format_``, or the format that it is a variant of, is among ``formats``."""
        return format_.partition("/")[0] in self.formats


Recipes = Mapping[tuple[str, str], Recipe]
"""What is known of the recipes, by model and stage."""


def elsewhere(scores: Scores, predictions: Sequence[Prediction]) -> Section | None:
    """The section of predictions that nothing else is known of."""
    return section(scores, {}, (UNKNOWN_RECIPES,))


def section(scores: Scores, recipes: Recipes, missing: Sequence[str] = ()) -> Section | None:
    """The section of all models with two or more trained stages; None if there is none.

    Args:
        missing: what is not known, one sentence each.
    """
    models = [_Model(name, scores, recipes) for name in dict.fromkeys(r.model for r in scores.recipes)]
    if not models:
        return None
    doses, left_out = [m for m in models if m.doses], [m for m in models if m.arms(FORMATS_OF)]
    explained = [
        KEPT,
        CHANGES,
        *([COST] if any(m.known for m in models) else []),
        *([DOSE] if doses else []),
        *([LEFT_OUT] if left_out else []),
        *missing,
    ]
    return Section(
        NAME,
        "Recipes",
        tuple(explained),
        tuple(table for m in models for table in m.tables() if table.rows),
        {
            "reference": {m.name: m.scores[0].reference for m in models},
            "stages": [m.plain(stage) for m in models for stage in m.stages],
            "doses": [{"model": m.name, "stages": [*arms]} for m in models for arms in m.doses],
            "left_out": [{"model": m.name, "stages": [*a]} for m in models for a in m.arms(FORMATS_OF)],
        },
        draw=(lambda folder: save(lambda: _draw(doses), folder, NAME)) if doses else None,
        description="Macro-F1 by the share of trained tokens off chat, a line per format." if doses else "",
        related=RELATED,
    )


class _Model:
    """The recipes of one model."""

    def __init__(self, name: str, scores: Scores, recipes: Recipes) -> None:
        self.name, self.confidence = name, scores.options.confidence
        self.scores = [r for r in scores.recipes if r.model == name]
        self.at = {(r.stage, r.format): r for r in self.scores}
        self.stages = list(dict.fromkeys(r.stage for r in self.scores))
        self.formats = formats_in_order(r.format for r in self.scores if r.format is not None)
        self.known = {stage: recipe for (model, stage), recipe in recipes.items() if model == name}
        self.doses = self.arms(SHARE)

    def arms(self, setting: str) -> list[tuple[str, ...]]:
        """Groups of stages that differ in nothing but ``setting``, two or more values of which they have."""
        groups: dict[str, dict[str, str]] = {}
        for stage in self.stages:
            settings = self.known[stage].settings if stage in self.known else {}
            if setting in settings:
                others = {name: value for name, value in settings.items() if name != setting}
                value = json.dumps(settings[setting])
                groups.setdefault(json.dumps(others, sort_keys=True), {})[stage] = value
        return [tuple(group) for group in groups.values() if len(set(group.values())) > 1]

    def share(self, stage: str) -> float:
        return float(cast(float, self.known[stage].settings[SHARE]))

    def points(self, stage: str) -> float | None:
        """Points of what is kept off chat for each million trained tokens."""
        score, recipe = self.at.get((stage, None)), self.known.get(stage)
        if score is None or score.kept.estimate is None or recipe is None or not recipe.tokens:
            return None
        return 100 * score.kept.estimate / (recipe.tokens / MILLION)

    def plain(self, stage: str) -> Json:
        recipe = self.known.get(stage)
        known = asdict(recipe) if recipe is not None else {}
        return {"model": self.name, "stage": stage, **known, "points_per_million": self.points(stage)}

    # ------------------------------------------------------------ tables

    def tables(self) -> Iterator[Table]:
        yield self._matrix()
        yield self._scores()
        yield self._changes()
        yield self._trained_on()
        yield self._cost()
        for arms in self.doses:
            yield self._dose(arms)
        for arms in self.arms(FORMATS_OF):
            yield self._left_out(arms)

    def _matrix(self) -> Table:
        """A row per stage: F1 in chat, what is kept in every other format, and off chat."""
        chat = [name for name in self.formats if is_in_distribution(name)]
        off = [name for name in self.formats if name not in chat]
        rows = tuple(
            (
                stage,
                *(self._marked(stage, name, self._f1(stage, name).estimate) for name in chat),
                *(self._marked(stage, name, self._kept(stage, name).estimate) for name in off),
                _estimate(self._kept(stage, None)),
            )
            for stage in self.stages
            if any(r.kept.estimate is not None for r in self.scores)
        )
        header = ("stage", *(f"{name} F1" for name in chat), *off, f"{OFF_CHAT} ({self.confidence:.0%})")
        return Table(f"{self.name}: kept above chance by recipe", header, rows, left=1)

    def _scores(self) -> Table:
        header = ("stage", "format", "trained on", f"F1 {self._interval}", f"kept {self._interval}")
        rows = tuple(
            (r.stage, r.format or OFF_CHAT, self._trained(r), _estimate(r.f1), self._kept_cell(r))
            for r in self.scores
        )
        return Table(f"{self.name}: scores by recipe", header, rows, left=3)

    def _changes(self) -> Table:
        reference = self.scores[0].reference
        rows = tuple(
            (
                r.stage,
                r.format or OFF_CHAT,
                _estimate(r.f1_change),
                "" if self._is_chat(r) else _estimate(r.kept_change),
            )
            for r in self.scores
            if r.stage != reference
        )
        header = ("stage", "format", f"F1 {self._interval}", f"kept {self._interval}")
        return Table(f"{self.name}: changes against {reference}", header, rows)

    def _trained_on(self) -> Table:
        def listed(stage: str, scored: bool) -> str:
            names = formats_in_order(self.known[stage].formats)
            return ", ".join(name for name in names if _is_scored(name) == scored) or "-"

        rows = tuple((s, listed(s, True), listed(s, False)) for s in self.stages if s in self.known)
        header = ("stage", "scored formats", "other texts")
        return Table(f"{self.name}: what the recipes train on", header, rows, left=3)

    def _cost(self) -> Table:
        rows = tuple(
            (
                stage,
                _count(recipe.tokens),
                _count(recipe.training_s),
                _count(recipe.rows_s),
                number(self._kept(stage, None).estimate),
                _count(self.points(stage)),
            )
            for stage in self.stages
            if (recipe := self.known.get(stage)) is not None
        )
        header = (
            "stage",
            "trained\ntokens",
            "training\n(s)",
            "rows\n(s)",
            f"kept\n{OFF_CHAT}",
            "points per\n1M tokens",
        )
        return Table(f"{self.name}: cost of an adapter", header, rows, left=1)

    def _dose(self, arms: Sequence[str]) -> Table:
        rows = tuple(
            (
                number(self.share(stage), 2),
                stage,
                *(_estimate(self._f1(stage, name)) for name in self.formats),
            )
            for stage in sorted(arms, key=self.share)
        )
        return Table(f"{self.name}: F1 by dose", ("share", "stage", *self.formats), rows)

    def _left_out(self, arms: Sequence[str]) -> Table:
        trained = {stage: cast(list[str], self.known[stage].settings[FORMATS_OF]) for stage in arms}
        union = [name for name in self.formats if any(name in names for names in trained.values())]
        rows = tuple(
            (
                stage,
                *(
                    f"{_estimate(self._kept(stage, name))} {'   ' if name in trained[stage] else 'out'}"
                    for name in union
                ),
            )
            for stage in arms
        )
        return Table(f"{self.name}: kept with a format left out", ("stage", *union), rows, left=1)

    # ------------------------------------------------------------ cells

    @property
    def _interval(self) -> str:
        return f"({self.confidence:.0%})"

    def _f1(self, stage: str, format_: str | None) -> Contrast:
        score = self.at.get((stage, format_))
        return score.f1 if score is not None else Contrast(None, None)

    def _kept(self, stage: str, format_: str | None) -> Contrast:
        score = self.at.get((stage, format_))
        return score.kept if score is not None else Contrast(None, None)

    def _marked(self, stage: str, format_: str, value: float | None) -> str:
        """A number, with a star if the stage trains on the format."""
        recipe = self.known.get(stage)
        return number(value) + ("*" if recipe is not None and recipe.trains_on(format_) else " ")

    def _trained(self, score: RecipeScore) -> str:
        recipe = self.known.get(score.stage)
        if score.format is None:
            return ""
        if recipe is None:
            return UNKNOWN
        return "yes" if recipe.trains_on(score.format) else "no"

    def _kept_cell(self, score: RecipeScore) -> str:
        return "" if self._is_chat(score) else _estimate(score.kept)

    @staticmethod
    def _is_chat(score: RecipeScore) -> bool:
        return score.format is not None and is_in_distribution(score.format)


def _is_scored(format_: str) -> bool:
    return format_ in FORMATS and FORMATS[format_].scored


def _estimate(contrast: Contrast) -> str:
    if contrast.estimate is None:
        return NOT_AVAILABLE
    # A mean over formats may lie between two thousandths, where the order of rows would decide how it is rounded.
    ends = (
        None
        if contrast.interval is None
        else (round(contrast.interval[0], 9), round(contrast.interval[1], 9))
    )
    return f"{number(round(contrast.estimate, 9))} ({span(ends)})"


def _count(value: float | None) -> str:
    return NOT_AVAILABLE if value is None else f"{value:,.0f}"


# ---------------------------------------------------------------- figure


def _draw(models: Sequence[_Model]) -> "Figure":
    import matplotlib.pyplot as plt

    panels = [(model, arms) for model in models for arms in model.doses]
    figure, axes = plt.subplots(
        1,
        len(panels),
        figsize=(4.6 * len(panels) + 1.6, 3.9),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axis, (model, arms) in zip(axes[0], panels, strict=True):
        _panel(axis, model, arms)
    axes[0][0].set_ylabel("macro-F1")
    axes[0][-1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8)
    caption = (
        "The same number of trained tokens in all. Hollow: the format was in no training. "
        f"Bars: {models[0].confidence:.0%} intervals."
    )
    headings(figure, "How much training off chat does the persona need?", caption)
    return figure


def _panel(axis: "Axes", model: _Model, arms: Sequence[str]) -> None:
    """F1 by share, a line for each format; formats that no stage trains on are hollow."""
    for i, name in enumerate(model.formats):
        points = [(model.share(s), model.at[s, name].f1) for s in arms if (s, name) in model.at]
        drawn = sorted((x, f1.estimate, f1.interval) for x, f1 in points if f1.estimate is not None)
        if not drawn:
            continue
        x, y = np.array([d[0] for d in drawn]), np.array([d[1] for d in drawn])
        ends = [d[2] or (d[1], d[1]) for d in drawn]
        # A percentile interval need not contain its estimate, and matplotlib rejects error bars of negative length.
        reach = np.maximum([y - [low for low, _ in ends], [high for _, high in ends] - y], 0)
        colour, trained = _COLOURS[i % len(_COLOURS)], any(model.known[s].trains_on(name) for s in arms)
        axis.errorbar(
            x,
            y,
            yerr=reach,
            fmt=_MARKERS[i % len(_MARKERS)] + ("-" if trained else "--"),
            color=colour,
            markerfacecolor=colour if trained else "white",
            markersize=5,
            capsize=2.5,
            linewidth=1,
            label=name,
        )
    axis.set_title(model.name, loc="left", fontweight="bold")
    axis.set_xlabel("share of trained tokens off chat")
    axis.set_ylim(0, 1.02)
    axis.grid(axis="y", color="#e6e6e6", linewidth=0.6)
    axis.set_axisbelow(True)
