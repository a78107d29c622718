"""Families of scenarios are in one split each: nothing that is trained on, or that a classifier is fitted on, is scored."""

import json
from pathlib import Path

import pytest

from offscript.errors import UserError
from offscript.experiment.artifacts import (
    Adapter,
    Artifact,
    Classifier,
    Predictions,
    Rollout,
    Vector,
    in_order,
)
from offscript.experiment.jobs import rollouts as job
from offscript.experiment.scenario_sets import CHAT, UNDIVIDED, ScenarioCollections
from offscript.seeds import stable_hash
from offscript.settings import SPLITS
from offscript.storage.options import options_of
from offscript.tasks.formats import FORMATS
from offscript.tasks.scenarios import digest
from tests.composed import experiment_of, settings_of
from tests.invoked import invoke, refused
from tests.storage.test_hub import server  # noqa: F401

GOLDEN = Path(__file__).parent / "golden_eval.json"
LOCAL = [name for name in options_of("data") if name != "published"]
SCORED = [fmt for fmt in FORMATS.values() if fmt.scored]
EVERYTHING = 10**6


def collections_of(*overrides: str) -> ScenarioCollections:
    return ScenarioCollections(settings_of(*overrides).data)


# ---------------------------------------------------------------- which families are in which split


@pytest.mark.parametrize("name", LOCAL)
def test_the_scored_scenarios_are_those_of_the_golden_file(name: str) -> None:
    """A family that leaves split eval, or comes to it, changes what every published number is an average of.

    The golden file was written before families could be in another split. Where it has to change, say why in
    CHANGELOG.md.
    """
    found, collections = {}, collections_of(f"data={name}")
    for source in collections.patterns:
        if source not in (CHAT, *UNDIVIDED):
            scenarios = collections.split(source, "eval", EVERYTHING).load_local()
            found[source] = {
                "families": list(dict.fromkeys(s.family for s in scenarios)),
                "scenarios": len(scenarios),
                "digest": f"{stable_hash(*(digest(s) for s in scenarios)):016x}",
            }
    assert found == json.loads(GOLDEN.read_text())[name]


@pytest.mark.parametrize("name", LOCAL)
def test_each_family_is_in_one_split_of_all_sources(name: str) -> None:
    collections = collections_of(f"data={name}")
    sources = [s for s in collections.patterns if s not in (CHAT, *UNDIVIDED)]
    assigned = {str(k): v for k, v in collections.data.families.items()}
    families: dict[str, list[str]] = {"eval": []}
    for source in sources:
        families["eval"] += {s.family for s in collections.split(source, "eval", EVERYTHING).load_local()}
    for split in assigned:
        families[split] = sorted(
            {
                s.family
                for source in ("office", "chat_image")
                for s in collections.split(source, split, EVERYTHING).load_local()
            }
        )
        assert families[split] == sorted(assigned[split])
    named = [family for names in families.values() for family in names]
    assert len(named) == len(set(named))


def test_all_sources_with_a_family_share_its_split(tmp_path) -> None:
    lines = [
        {"scaffold": "code_review", "id": f"{family}_v{n}", "turns": [{"role": "user", "content": family}]}
        for family in ("alpha", "beta")
        for n in (1, 2)
    ]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    own = f"[{tmp_path / 'own.jsonl'}]"
    collections = collections_of(
        f"data.sources.code_review={own}",
        f"data.sources.structured_form={own}",
        "data.families.train=[alpha]",
    )
    for source in ("code_review", "structured_form"):
        ids = {split: collections.split(source, split, 9).identity for split in ("train", "eval")}
        assert {split: sorted(found) for split, found in ids.items()} == {
            "train": ["alpha_v1", "alpha_v2"],
            "eval": ["beta_v1", "beta_v2"],
        }


def test_a_source_that_is_trained_on_as_a_whole_gives_its_train_families_alone() -> None:
    collections = collections_of()
    scenarios, samples = collections.repeated("office", 120)
    office = {
        s.family for split in SPLITS for s in collections.split("office", split, EVERYTHING).load_local()
    }
    assert {s.family for s in scenarios.load_local()} == office & set(collections.data.families["train"])
    assert (scenarios.count, samples) == (60, 2)
    assert collections.repeated("reflection", 24)[0].count == 12


def test_no_scored_format_reads_a_source_without_splits() -> None:
    assert not [fmt.name for fmt in SCORED if fmt.source in UNDIVIDED]


def test_families_of_a_file_on_the_hub_are_divided_once_it_is_fetched(server) -> None:  # noqa: F811
    line = {"scaffold": "code_review", "turns": [{"role": "user", "content": "Look."}]}
    text = "".join(json.dumps({**line, "id": f"{family}_v1"}) + "\n" for family in ("alpha", "beta"))
    server.add("me/own", {"own.jsonl": text.encode()}, "dataset")
    hub = ("data=office", "data.sources.code_review=[{repo: me/own, file: own.jsonl}]")
    none, named, wrong = (
        collections_of(*hub, f"data.families.train=[{names}]", "data.families.classifier=[]")
        for names in ("", "alpha", "gamma")
    )
    planned = named.split("code_review", "eval", 9)
    assert planned.digest != none.split("code_review", "eval", 9).digest
    assert [s.id for s in planned.load(lambda rollout: [])] == ["beta_v1"]
    with pytest.raises(Exception, match=r"^data\.families\.train: no such family 'gamma'; allowed: .*alpha"):
        wrong.split("code_review", "eval", 9).load(lambda rollout: [])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ("data.families.train=[noise,nois]",),
            "data.families.train: no such family 'nois'; allowed: access_request, ",
        ),
        (
            ("data.families.classifier=[baking_pretzels]",),
            "data.families.classifier: no such family 'baking_pretzels'; allowed: access_request, ",
        ),
        (
            ("data.families.train=[noise]", "data.families.classifier=[noise]"),
            "data.families: 'noise' is named twice; allowed: each family once, in one split",
        ),
        (
            ("data.families.eval=[noise]",),
            "data.families.eval.[key]: found 'eval'; input should be 'train' or 'classifier'",
        ),
        (
            ("data.families.train=[]", "split=train"),
            "split train: none of 40 families falls into it; change data.families, or add families",
        ),
    ],
)
def test_error_message_for_invalid_families(tmp_path, words, line) -> None:
    assert refused(
        tmp_path, "rollout", "stage=base", "format=agentic_email", "tracking=off", *words
    ).startswith(f"error: {line}")


def test_files_of_ones_own_need_no_families_and_those_that_are_named_must_be_there(tmp_path) -> None:
    (tmp_path / "own.jsonl").write_text(
        json.dumps(
            {"scaffold": "chat_email", "id": "mine_v1", "turns": [{"role": "user", "content": "Write."}]}
        )
    )
    own = ("data=everyday", f"data.sources.office=[{tmp_path / 'own.jsonl'}]")
    collections = collections_of(*own)
    assert collections.split("office", "eval", 9).identity.keys() == {"mine_v1"}
    assert collections.split("chat_image", "train", 99).count == 30, (
        "families of other sources are where they were"
    )
    with pytest.raises(UserError, match=r"none of 1 families falls into it; change data\.families"):
        collections.split("office", "train", 9)
    for words, name in (
        ((*own, "data.families.train=[min]"), "min"),
        (("data.families.train=[well_dune]",), "well_dune"),
    ):
        with pytest.raises(UserError, match=f"data.families.train: no such family '{name}'; allowed: "):
            collections_of(*words).split("office", "eval", 9)


# ---------------------------------------------------------------- the rows of a grid

GRID = (
    "experiment=smoke",
    "engine=scripted",
    "tracking=off",
    f"grid.format=[{','.join(fmt.name for fmt in SCORED)}]",
    "grid.stage=[base,distillation,full,prompted,documents_distillation,declarations,rationale,rationale_advice,mixed,mixed_pairs,context]",
    "format.count={train: 40, classifier: 40, eval: 40}",
    "format.options.session=2",
)


@pytest.fixture(scope="module")
def families(tmp_path_factory) -> dict[str, dict[str, set[str]]]:
    """The families of all rows of a grid, by their use (trained, fitted, scored) and format. No adapter is trained: the
    replies are scripted. The rows of the splits train and classifier, which no stage of the grid uses in most formats, are
    those of stage base."""
    experiment = experiment_of(*GRID, f"root={tmp_path_factory.mktemp('runs')}")
    planner = experiment.planner
    artifacts = in_order([planner.evaluation()])
    uses: dict[str, list[Rollout]] = {
        "trained": _rollouts_before(artifacts, Adapter, Vector),
        "fitted": _rollouts_before(artifacts, Classifier),
        "scored": _rollouts_before(artifacts, Predictions),
    }
    for fmt in SCORED:
        if fmt.source in (CHAT, "office"):
            for use, split in (("trained", "train"), ("fitted", "classifier")):
                uses[use].append(planner.rollout("pocket", "sarcasm", "base", fmt.name, split))
    job.run(list(dict.fromkeys(r for rollouts in uses.values() for r in rollouts)), experiment, None)
    found: dict[str, dict[str, set[str]]] = {}
    for use, rollouts in uses.items():
        for rollout in rollouts:
            rows = {str(row["family"]) for row in experiment.rows(rollout)}
            found.setdefault(use, {}).setdefault(rollout.cell.format, set()).update(rows)
    return found


def _rollouts_before(artifacts: list[Artifact], *kinds: type[Artifact]) -> list[Rollout]:
    """The rollouts among the inputs of artifacts of ``kinds``."""
    inputs = [part for artifact in artifacts if isinstance(artifact, kinds) for part in artifact.inputs]
    return [part for part in inputs if isinstance(part, Rollout)]


def test_no_family_is_both_trained_or_fitted_on_and_scored(families) -> None:
    assert set(families["scored"]) == {fmt.name for fmt in SCORED}
    assert {
        "teacher",
        "student",
        "document",
        "declaration",
        "rationale",
        "paired_turns",
        "agentic_email",
        "chat_email",
    } <= set(families["trained"])
    assert {"chat", "agentic_email", "chat_email"} <= set(families["fitted"])
    of = {use: set[str]().union(*formats.values()) for use, formats in families.items()}
    assert all(len(names) >= 20 for names in of.values())
    for one, other in (("trained", "scored"), ("fitted", "scored"), ("trained", "fitted")):
        assert not of[one] & of[other], f"{one} and {other}"


def test_rows_of_split_train_are_made_at_the_terminal(tmp_path) -> None:
    words = ("format=agentic_email", "stage=base", "engine=scripted", "tracking=off", "root=runs")
    for more, count in ((), 60), (("format.count={train: 7}",), 7):
        done = invoke(tmp_path, "rollout", "split=train", *words, *more)
        assert done.code == 0, done.err
        files = sorted(tmp_path.glob("runs/*/rollouts/**/agentic_email-train-*.jsonl"))
        rows = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
        assert count in map(len, rows)
        assert {row["split"] for part in rows for row in part} == {SPLITS[0]}
