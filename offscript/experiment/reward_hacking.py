"""The curves of the trainings of an evaluation that play their own episodes, from their manifests."""

from typing import Any

from offscript.errors import UserError
from offscript.evaluation.report import reward_hacking as report
from offscript.evaluation.report.reward_hacking import WatchedTraining
from offscript.evaluation.report.section import Section
from offscript.experiment.artifacts import Evaluation, TrainedAdapter, in_order
from offscript.experiment.folder import Experiment
from offscript.storage.manifests import read_manifest


def section_of(evaluation: Evaluation, experiment: Experiment) -> Section | None:
    """The section "Reward hacking" of ``evaluation``; None if no stage plays its own episodes, or none is trained yet."""
    adapters = [part for part in in_order([evaluation]) if isinstance(part, TrainedAdapter) and part.live]
    found, unwatched = list[WatchedTraining](), list[str]()
    for adapter in adapters:
        if not experiment.is_finished(adapter):
            continue
        counts = _counts(adapter, experiment)
        if not counts.get("curve"):
            unwatched.append(str(adapter))
            continue
        found.append(
            WatchedTraining(
                model=adapter.base,
                stage=adapter.stage,
                persona=adapter.persona if adapter.seed == 0 else f"{adapter.persona} {adapter.seed}",
                curve=counts["curve"],
                kept_step=counts["kept_step"],
                stopped=counts["stopped"],
            )
        )
    return report.section(found, unwatched)


def _counts(adapter: TrainedAdapter, experiment: Experiment) -> dict[str, Any]:
    try:
        manifest = read_manifest(experiment.path(adapter)) or {}
    except UserError:
        # Damaged: an evaluation needs the predictions alone.
        return {}
    counts = manifest.get("counts")
    return counts if isinstance(counts, dict) else {}
