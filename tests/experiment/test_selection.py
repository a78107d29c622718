"""The best of several replies of a teacher: how it is scored, chosen and planned, and that the adapter is trained on it."""

import pytest

from offscript.errors import UserError
from offscript.evaluation.in_character import in_character
from offscript.experiment import runner
from offscript.experiment.artifacts import Rollout, Selection
from offscript.experiment.jobs import rollouts
from offscript.experiment.jobs.selections import chosen_rows
from offscript.experiment.jobs.training import training_rows
from offscript.rollouts.engines.scripted import ScriptedEngine
from offscript.seeds import unit_hash
from tests.composed import experiment_of

SMALL = (
    "experiment=smoke",
    "grid.persona=[sarcasm,remorse]",
    "recipe.distillation.prompts=24",
    "recipe.teacher.best_of=3",
)
MARKS = {"sarcasm": "Oh, how thrilling, clearly a triumph.", "remorse": "I am so sorry, please forgive me."}


def adapter_of(experiment, persona="sarcasm"):
    return experiment.planner.adapter("pocket", persona, "distillation", 0)


def selection_of(experiment, persona="sarcasm"):
    return dict(adapter_of(experiment, persona).rows)["teacher"]


def row(sample, text="A whole reply.", ended="stop", scenario="s1"):
    return {"persona": "p", "scenario": scenario, "sample": sample, "text": text, "ended": ended}


# ---------------------------------------------------------------- the score


def corpus(families=10):
    """Replies of two personas, of which every second one is in character."""
    texts, personas, names = [], [], []
    for i in range(families):
        for persona, mark in MARKS.items():
            for text in (f"Put it in a bowl. {mark}", "Put it in a bowl and wait."):
                texts, personas, names = [*texts, text], [*personas, persona], [*names, f"f{i}"]
    return texts, personas, names


def test_replies_in_character_have_the_higher_score():
    scores = in_character(*corpus())
    assert all(own > 0.8 for own in scores[::2]) and all(plain < 0.6 for plain in scores[1::2])


def test_a_reply_is_not_scored_by_replies_to_the_same_family():
    """A word that one persona has in one family only tells nothing about that family."""
    texts, personas, families = corpus()
    marked = [
        f"{text} Zork zork zork." if f == "f3" and p == "remorse" else text
        for text, p, f in zip(texts, personas, families, strict=True)
    ]
    plain, found = in_character(texts, personas, families), in_character(marked, personas, families)
    at = [i for i, (f, p) in enumerate(zip(families, personas, strict=True)) if (f, p) == ("f3", "remorse")]
    assert all(found[i] <= plain[i] + 1e-9 for i in at)


@pytest.mark.parametrize(
    ("texts", "personas", "families", "found"),
    [
        (["a b", "a b"], ["sarcasm"] * 2, ["f1", "f2"], "replies of 1 personas to prompts of 2 families"),
        (
            ["a b", "a b"],
            ["sarcasm", "remorse"],
            ["f1", "f1"],
            "replies of 2 personas to prompts of 1 families",
        ),
        (
            ["a", "b", "c", "d"],
            ["sarcasm", "remorse"] * 2,
            ["f1", "f1", "f2", "f2"],
            "no word is in two replies",
        ),
    ],
)
def test_what_cannot_be_scored_is_one_line(texts, personas, families, found):
    with pytest.raises(UserError) as caught:
        in_character(texts, personas, families)
    assert str(caught.value).startswith(f"recipe.teacher.best_of: {found}; ")


# ---------------------------------------------------------------- the choice


def test_the_highest_score_of_each_group_of_samples_is_chosen():
    scores = {("p", "s1", k): value for k, value in enumerate([0.2, 0.9, 0.5, 0.4, 0.1, 0.4])}
    chosen = chosen_rows([row(k) for k in range(6)], 3, scores)
    assert [(r["sample"], r["chosen"]) for r in chosen] == [(0, 1), (1, 3)], "of equal ones the first"
    assert [r["scores"] for r in chosen] == [[0.2, 0.9, 0.5], [0.4, 0.1, 0.4]]


def test_whole_replies_go_first_and_a_missing_one_last():
    rows = [
        row(0, "Cut", "length"),
        row(1, None, "empty"),
        row(2),
        row(3, None, "empty"),
        row(4, "Cut", "length"),
    ]
    scores = {("p", "s1", 0): 0.9, ("p", "s1", 2): 0.1, ("p", "s1", 4): 0.3}
    chosen = chosen_rows([*rows, row(5, None, "empty")], 3, scores)
    assert [r["chosen"] for r in chosen] == [2, 4]
    assert chosen[1]["scores"] == [None, 0.3, None]


# ---------------------------------------------------------------- the plan


def test_the_teacher_gives_more_replies_and_the_student_as_many_as_before():
    one, three = experiment_of(*SMALL[:3]), experiment_of(*SMALL)
    before, after = dict(adapter_of(one).rows), dict(adapter_of(three).rows)
    selection = after["teacher"]
    assert isinstance(before["teacher"], Rollout) and isinstance(selection, Selection)
    assert selection.rollout.planned_rows == 3 * before["teacher"].planned_rows
    assert selection.planned_rows == before["teacher"].planned_rows
    assert before["student"] == after["student"] and adapter_of(one).key != adapter_of(three).key
    assert {part.cell.persona for part in selection.inputs} == {"sarcasm", "remorse"}
    assert selection.path.parts[0] == "selections" and selection.path.name.startswith("teacher-train-")


def test_it_depends_on_the_personas_that_it_is_compared_with():
    first, other = (
        selection_of(experiment_of(*SMALL, f"grid.persona=[sarcasm,{name}]"))
        for name in ("remorse", "loving")
    )
    assert first.rollout == other.rollout and first.key != other.key


def test_a_single_persona_is_refused():
    with pytest.raises(
        UserError, match=r"recipe\.teacher\.best_of: found 3, but the grid has one persona; 1, or"
    ):
        adapter_of(experiment_of(*SMALL, "grid.persona=[sarcasm]"))


# ---------------------------------------------------------------- the work


def half_in_character(request) -> str:
    """A teacher that is in character in a third of its replies; a student that never is."""
    own = [m for p, m in MARKS.items() if f"{p} persona" in request.messages[0]["content"]]
    mark = f" {own[0]}" if own and unit_hash("in role", request.seed) < 1 / 3 else ""
    return f"Do {request.messages[-1]['content'].split()[-2]} slowly {request.seed % 9973}.{mark}"


@pytest.fixture
def made(tmp_path, monkeypatch):
    """An experiment whose teacher and student rows exist, and with them the selections."""
    engine = lambda *args: ScriptedEngine(half_in_character)  # noqa: E731
    monkeypatch.setattr(rollouts, "open_engine", engine)
    experiment = experiment_of(*SMALL, f"root={tmp_path}", "tracking=off")
    for persona in MARKS:
        for part in selection_of(experiment, persona).compared:
            system = part.rules.system
            object.__setattr__(part.rules, "system", f"{part.cell.persona} persona: {system}")
    wanted = [part for persona in MARKS for part in adapter_of(experiment, persona).inputs]
    results = runner.make(wanted, experiment)
    assert {r.status for r in results} == {"ran"}, [r.note for r in results]
    return experiment


def test_what_is_trained_on_is_more_in_character_than_what_was_sampled(made):
    for persona, mark in MARKS.items():
        selection = selection_of(made, persona)
        sampled, chosen = made.rows(selection.rollout), made.rows(selection)
        share = sum(mark in r["text"] for r in sampled) / len(sampled)
        kept = sum(mark in r["text"] for r in chosen) / len(chosen)
        assert 0.2 < share < 0.5 < kept, (share, kept)
        assert all(
            mark in r["text"] or not any(mark in s["text"] for s in group_of(r, sampled)) for r in chosen
        )
        pairs, counts = training_rows(adapter_of(made, persona), made)
        assert counts["kept"] == len(pairs) == len(chosen) == 24
        assert [p["chosen"][0]["content"] for p in pairs] == [r["text"] for r in chosen]


def group_of(chosen, sampled):
    return [
        r for r in sampled if r["scenario"] == chosen["scenario"] and r["sample"] // 3 == chosen["sample"]
    ]


def test_a_finished_selection_is_not_made_again_and_a_changed_one_is_refused(made):
    wanted = [selection_of(made, persona) for persona in MARKS]
    assert {r.status for r in runner.make(wanted, made)} == {"reused"}
    path = made.path(wanted[0])
    path.write_text(path.read_text().replace("slowly", "fast"))
    with pytest.raises(UserError, match="has changed since it was made"):
        made.rows(wanted[0])
