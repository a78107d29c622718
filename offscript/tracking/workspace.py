"""Saves a view of the W&B project (``launch/dashboard.py``) with sections for training, rollouts, classifiers and
retention. Needs wandb-workspaces, an optional package.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from offscript.errors import UserError
from offscript.settings import TrackingSettings
from offscript.tracking.account import viewer
from offscript.tracking.results import BARS, HEATMAP, RETENTION, SCORES
from offscript.tracking.tracker import STEP

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2 import LinePlot
    from wandb_workspaces.reports.v2.interface import PanelTypes
    from wandb_workspaces.workspaces import Workspace

PACKAGE = "wandb-workspaces==0.4.13"

CURVES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "Training": {
        "Loss": ("train/loss",),
        "Held-out loss": ("eval/loss",),
        "DPO": ("train/loss/dpo",),
        "Likelihood of the chosen reply": ("train/loss/nll",),
        "Squared log-ratio to the reference": ("train/loss/kl",),
        "Pairs in the right order": ("train/rewards/accuracies", "eval/rewards/accuracies"),
        "Margin": ("train/rewards/margins",),
        "Gradient norm": ("train/grad_norm",),
        "Learning rate": ("train/learning_rate",),
    },
    "Rollouts": {
        "Rows": ("rollout/rows",),
        "Rows per second": ("rollout/rows_per_s",),
        "Tokens per second": ("rollout/tokens_per_s",),
        "Emission rate": ("rollout/emission_rate",),
    },
    "Classifiers": {"Held-out macro-F1": ("eval/macro_f1",)},
}
"""Metrics that are plotted over the step, by section and title. Each run, so each persona and stage, is a line."""


def save(tracking: TrackingSettings, formats: Sequence[str]) -> str:
    """Saves a new view of the project of ``tracking`` and returns its URL.

    Raises:
        UserError: wandb-workspaces is not installed, or W&B did not save the view.
    """
    try:
        import wandb_workspaces.workspaces  # noqa: F401
    except ImportError:
        raise UserError("wandb-workspaces", "is not installed", f"pip install {PACKAGE}") from None
    base, name = viewer()
    view = workspace(tracking.entity or name, tracking.project, formats)
    try:
        view.save()
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            base,
            f"did not save the view ({reason})",
            "is tracking.entity a team of yours, and is there a run yet?",
        ) from None
    return str(view.url)


def workspace(entity: str, project: str, formats: Sequence[str]) -> "Workspace":
    """Returns the view: a section for the results, and one for each of ``CURVES``."""
    from wandb_workspaces import workspaces as ws

    sections = [
        ws.Section(
            name=name, panels=[_curve(title, metrics) for title, metrics in curves.items()], is_open=True
        )
        for name, curves in CURVES.items()
    ]
    results = ws.Section(name="Retention", panels=_results(formats), is_open=True)
    return ws.Workspace(entity=entity, project=project, name="offscript", sections=[results, *sections])


def _curve(title: str, metrics: Sequence[str]) -> "LinePlot":
    from wandb_workspaces.reports import v2 as wr

    return wr.LinePlot(title=title, x=wr.Metric(STEP), y=[wr.Metric(name) for name in metrics])


def _results(formats: Sequence[str]) -> "list[PanelTypes]":
    """Returns the tables of retention and scores, a bar chart for each format, and the heatmap of the personas."""
    from wandb_workspaces.reports import v2 as wr

    bars = [
        wr.CustomChart(
            # The client logs the data of a chart as a table of this name.
            query={"summaryTable": {"tableKey": f"{BARS}/{name}_table"}},
            chart_name="wandb/bar/v0",
            chart_fields={"label": "label", "value": "value"},
            chart_strings={"title": name},
        )
        for name in formats
    ]
    return [
        wr.WeavePanelSummaryTable(table_name=RETENTION),
        wr.WeavePanelSummaryTable(table_name=SCORES),
        *bars,
        wr.MediaBrowser(title="Personas", media_keys=[HEATMAP]),
    ]
