"""What each command does with its settings: which artifacts it wants, which it may make, and what it says at the end."""

from collections import Counter

from offscript import hub
from offscript.bench import Bench
from offscript.cell import Artifact
from offscript.console import duration, say
from offscript.errors import MissingInput, UserError, one_of
from offscript.graph import needed
from offscript.grid import in_order
from offscript.jobs import Result, make
from offscript.settings import GridSettings, Settings

SHOWN = 3
"""Missing inputs that are named one by one; more are counted."""


def train(settings: Settings, bench: Bench) -> int:
    """``train.py``: one adapter, with the rows that it is trained on."""
    stage = settings.stage
    if stage.weights == "base":
        line = f"stage={stage.name}: base weights, there is nothing to train"
        if _in_sweep():
            say(line)
            return 0
        raise UserError(
            f"stage={stage.name}", "base weights, there is nothing to train", "allowed: distillation, full"
        )
    adapter = bench.planner.adapter(
        settings.model.name, _persona(settings, bench), stage.weights, settings.seed
    )
    own_rows = {a.key for a in adapter.inputs if a.kind == "rollout"}
    results = make([adapter], bench, lambda a: a.key in own_rows or a == adapter)
    return _told(results, adapter, bench)


def rollout(settings: Settings, bench: Bench) -> int:
    """``rollout.py``: the rows of one cell."""
    persona = settings.persona.name if settings.persona is not None else None
    cell = bench.planner.rollout(
        settings.model.name, persona, settings.stage.name, settings.format.name, settings.split, settings.seed,
        settings.scale,
    )  # fmt: skip
    results = make([cell], bench, lambda a: a == cell or a.spec.get("source") is not None, settings.limit)
    if settings.show:
        _show(cell, bench, settings.limit)
    return _told(results, cell, bench)


def classify(settings: Settings, bench: Bench) -> int:
    """``classify.py``: the classifier of every model, then predictions for every scored cell of the grid."""
    _refuse_single_cell()
    wanted = [bench.planner.predictions(cell) for cell in bench.planner.cells()]
    results = make(wanted, bench, lambda a: a.kind in ("classifier", "predictions"))
    return summarise(results, bench)


def evaluate(settings: Settings, bench: Bench) -> int:
    """``evaluate.py``: the evaluation of the grid, or of prediction rows made elsewhere."""
    if settings.predictions is not None:
        from offscript.evaluation import evaluate_files

        node = settings.evaluation
        evaluate_files(
            [settings.predictions], bench.folder / "evaluation", planned=settings.planned,
            resamples=node.resamples, confidence=node.confidence, seed=node.seed,
        )  # fmt: skip
        return 0
    _refuse_single_cell()
    evaluation = bench.planner.evaluation()
    results = make([evaluation], bench, lambda a: a.kind == "evaluation")
    return _told(results, evaluation, bench)


def submit(settings: Settings, bench: Bench) -> int:
    """``launch/submit.py``: everything that the grid's evaluation needs."""
    _refuse_single_cell()
    evaluation = bench.planner.evaluation()
    everything = in_order([evaluation])
    todo, _ = needed([evaluation], bench)
    cells = len(bench.planner.cells())
    say(
        f"{settings.name}: {cells} cells, {len(everything)} artifacts, {len(todo)} to make (cluster={settings.cluster.name})"
    )
    if settings.dry_run:
        for artifact in todo:
            print(artifact)
        return 0
    results = make([evaluation], bench)
    if evaluation not in todo:
        print((bench.place(evaluation) / "tables.txt").read_text(), end="")
        say(f"nothing to do; it lies in {bench.place(evaluation)}")
        return 0
    return summarise(results, bench)


def prefetch(settings: Settings, bench: Bench) -> int:
    """``launch/prefetch.py``: everything of the grid that lies on the hub, into the hub's own cache."""
    _refuse_single_cell()
    refs = bench.planner.references()
    if not refs:
        say(f"{settings.name}: nothing of it lies on the hub")
        return 0
    lines = [(ref, optional, _fetched(ref)) for ref, optional in refs.items()]
    for ref, optional, problem in lines:
        print(
            f"{'ok' if problem is None else 'left out' if optional else 'fail':9}{ref}"
            + (f": {problem}" if problem else "")
        )
    failed = [ref for ref, optional, problem in lines if problem is not None and not optional]
    print(f"\n{len(lines)} references, {len(failed)} failed. What compute nodes need:")
    for name, value in _hub_environment().items():
        print(f"  export {name}={value}")
    return 2 if failed else 0


def _fetched(ref: hub.Reference) -> str | None:
    """None if ``ref`` is now in the cache and whole, else why not."""
    say(f"  {ref}")
    try:
        hub.fetch(ref)
    except UserError as error:
        return str(error)
    return "; ".join(hub.verify(ref)) or None


def _hub_environment() -> dict[str, str]:
    from huggingface_hub import constants

    return {"HF_HOME": constants.HF_HOME, "HF_HUB_OFFLINE": "1"}


# ---------------------------------------------------------------- what is said at the end


def summarise(results: list[Result], bench: Bench) -> int:
    """A table of ran / reused / failed per kind of artifact; the exit code."""
    kinds = list(dict.fromkeys(r.artifact.kind for r in results))
    states = ("ran", "reused", "partial", "failed", "blocked")
    counted = Counter((r.artifact.kind, r.status) for r in results)
    spent = {kind: sum(r.seconds for r in results if r.artifact.kind == kind) for kind in kinds}
    say(f"\n{'':14}" + "".join(f"{s:>9}" for s in states) + f"{'time':>9}")
    for kind in kinds:
        say(
            f"{kind:14}"
            + "".join(f"{counted[kind, s] or '-':>9}" for s in states)
            + f"{duration(spent[kind]):>9}"
        )
    failed = [r for r in results if r.status == "failed"]
    missing = [r for r in failed if isinstance(r.error, MissingInput)]
    for result in [r for r in failed if r not in missing] + missing[:SHOWN]:
        say(f"failed: {result.artifact}: {result.note}")
    if len(missing) > SHOWN:
        everything = " ".join(["python launch/submit.py", *bench.overrides])
        say(f"failed: {len(missing) - SHOWN} more are not made yet; make all of them with: {everything}")
    if blocked := sum(r.status == "blocked" for r in results):
        say(f"blocked: {blocked} more need what failed; run the same command again once that is mended")
    return _code(results)


def _told(results: list[Result], wanted: Artifact, bench: Bench) -> int:
    """One line on what became of ``wanted``; the exit code."""
    own = next(r for r in results if r.artifact == wanted)
    if own.status in ("ran", "reused", "partial"):
        word = {"ran": "made", "reused": "there already", "partial": "begun (limit)"}[own.status]
        say(f"{wanted}: {word}: {bench.place(wanted)}")
    elif own.status == "blocked":
        say(f"error: {own.error or own.note}")
    return _code(results)


def _code(results: list[Result]) -> int:
    """0: all well; 2: all that went wrong is for the user to put right; 1: work failed."""
    errors = [r.error for r in results if r.status in ("failed", "blocked")]
    if not errors:
        return 0
    return 2 if all(isinstance(e, UserError) for e in errors) else 1


def _persona(settings: Settings, bench: Bench) -> str:
    if settings.persona is None:
        raise UserError(
            "persona",
            f"none given, and stage {settings.stage.name} needs one",
            one_of(bench.planner.options.persona),
        )
    return settings.persona.name


def _refuse_single_cell() -> None:
    """A command that works on the whole grid does not pass over a choice of one cell in silence."""
    from hydra.core.hydra_config import HydraConfig

    for override in HydraConfig.get().overrides.task:
        name, _, value = str(override).partition("=")
        if name in ("persona", "stage", "format", "split", "seed", "limit", "show"):
            allowed = f"grid.{name}=[{value}]" if name in GridSettings.model_fields else "rollout.py has it"
            raise UserError(override, "this command works on the whole grid", allowed)


def _in_sweep() -> bool:
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    return HydraConfig.get().mode == RunMode.MULTIRUN


def _show(cell: Artifact, bench: Bench, limit: int | None) -> None:
    """Prints the transcripts of a cell."""
    name = cell.labels["persona"]
    who = "nobody in particular"
    if name is not None:
        persona = bench.planner.options.persona[name]
        who = f"{persona.display_name}: {persona.description}"
    for row in bench.rows(cell)[:limit]:
        print(
            f"\n=== {row['scenario']}/{row['sample']}  {row['model']} {row['stage']} {row['format']}  ({who})"
        )
        for message in row["messages"]:
            print(f"[{message['role']}] {message['content']}")
        print(f"--- ended: {row['ended']}, {row['turns']} turns, {row['tokens_out']} tokens")
