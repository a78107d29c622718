"""Plans of trainings that play their own episodes: what they are rewarded and watched by, and what that shares with what."""

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from offscript.errors import UserError
from offscript.evaluation.rewards import Usual
from offscript.experiment.artifacts import Classifier, Rollout, in_order
from offscript.experiment.cost import GPUS, estimate
from offscript.experiment.jobs import live_judge
from offscript.experiment.jobs.live import LiveScorer
from offscript.experiment.jobs.live_judge import LiveJudge
from offscript.experiment.jobs.training import check_settings
from offscript.rollouts.engines.scripted import ScriptedEngine
from tests.composed import experiment_of

GRID = (
    "experiment=smoke",
    "grid.stage=[base,distillation,rl,rl_unpenalised]",
    "recipe.rl.formats=[chat_email,agentic_email]",
)


@pytest.fixture(scope="module")
def planner():
    return experiment_of(*GRID).planner


@pytest.fixture(scope="module")
def adapter(planner):
    return planner.adapter("pocket", "sarcasm", "rl", 0)


def prompts(rollouts):
    """Scenarios, families and texts of the first messages of rollouts."""
    found = [s for rollout in rollouts for s in rollout.scenarios.load_local()]
    return (
        {s.id for s in found},
        {s.family for s in found},
        {s.messages[-1]["content"] for s in found if s.messages},
    )


def test_the_reward_has_no_prompt_in_common_with_the_evaluating_classifier_nor_with_what_is_scored(
    planner, adapter
):
    reward, classifier = adapter.live.reward, adapter.live.classifier
    assert classifier == planner.classifier("pocket") != reward
    played = [rollout for _, rollout in adapter.live.episodes]
    scored = planner.cells()
    used = [*reward.rollouts, *played, *(r for o in adapter.live.oracles.values() for r in o.rollouts)]
    for own, other in zip(prompts(used), prompts([*classifier.rollouts, *scored]), strict=True):
        assert own and not own & other
    assert reward.settings.seed != classifier.settings.seed
    assert not set(range(reward.settings.seed, reward.settings.seed + reward.settings.fits)) & set(
        range(classifier.settings.seed, classifier.settings.seed + classifier.settings.fits)
    )


def test_the_reward_is_fitted_on_all_personas_in_role_and_on_plain_replies(adapter):
    reward = adapter.live.reward
    assert reward.personas == ("sarcasm", "remorse", "base")
    cells = [(r.cell.stage, r.cell.persona, r.cell.format, r.cell.split) for r in reward.rollouts]
    assert cells == [
        ("prompted", "sarcasm", "chat", "train"),
        ("prompted", "remorse", "chat", "train"),
        ("base", None, "chat", "train"),
    ]


def test_all_that_scores_episodes_is_made_before_and_is_part_of_the_key(adapter):
    parts = {adapter.parent, adapter.live.reward, adapter.live.classifier, *adapter.live.oracles.values()}
    assert parts <= set(adapter.inputs)
    assert {part.key for part in parts} <= set(adapter.identity["made_from"])
    # Episodes are no rollouts that are made before.
    played = {rollout.key for _, rollout in adapter.live.episodes}
    assert not played & {a.key for a in in_order([adapter])}
    assert [fmt for fmt in adapter.live.oracles] == ["chat_email", "agentic_email"]
    other = experiment_of(*GRID, "classifier.epochs=3").planner.adapter("pocket", "sarcasm", "rl", 0)
    assert other.key != adapter.key


def test_without_penalties_a_stage_differs_in_three_weights_alone(planner, adapter):
    other = planner.adapter("pocket", "sarcasm", "rl_unpenalised", 0)
    own = adapter.training.settings.model_dump()
    bare = other.training.settings.model_dump()
    assert {name for name in own if own[name] != bare[name]} == {
        "task_weight",
        "length_weight",
        "recitation_weight",
    }
    assert {own[n] for n in ("task_weight", "length_weight", "recitation_weight")} == {1.0}
    assert adapter.live.reward == other.live.reward


@pytest.mark.parametrize("stage", ["rl", "rl_unpenalised"])
def test_a_classifier_is_not_fitted_on_a_stage_that_it_watches(stage):
    planner = experiment_of(*GRID, f"classifier.stages=[prompted,{stage}]").planner
    with pytest.raises(
        UserError,
        match=f"classifier.stages: found {stage}, whose training this classifier watches; .*: .*full",
    ) as error:
        planner.adapter("pocket", "sarcasm", stage, 0)
    assert "rl" not in error.value.allowed.split()


def test_a_persona_that_the_classifiers_do_not_know_is_refused(planner):
    with pytest.raises(UserError, match=r"grid.persona: loving is not in it, and rl is rewarded by"):
        planner.adapter("pocket", "loving", "rl", 0)


def test_an_imported_classifier_watches_and_n_grams_reward(tmp_path):
    planner = experiment_of(*GRID, "classifier=published").planner
    live = planner.adapter("pocket", "sarcasm", "rl", 0).live
    assert live.classifier.imported_from is not None and live.reward.settings.tfidf is not None


def test_the_estimate_has_what_is_generated_and_what_is_trained_on(planner, adapter):
    engine = planner.settings.engine
    model = planner.options.model["llama"].model_copy(update={"name": "pocket"})
    found = estimate([adapter], model, GPUS["H100"], engine)
    settings = adapter.training.settings
    assert found.rows == settings.steps * settings.optimizer.batch_size
    assert found.tokens_out > 0 and found.tokens_in > found.tokens_out
    parent = estimate([adapter.parent], model, GPUS["H100"], engine)
    assert parent.tokens_out is None and found.gpu_hours > parent.gpu_hours > 0
    assert isinstance(adapter.live.reward, Classifier) and isinstance(adapter.live.episodes[0][1], Rollout)


class Judge:
    """A classifier that gives each of its labels the same probability, but for its favourite."""

    def __init__(self, favourite: float) -> None:
        self.labels, self.favourite = ("sarcasm", "remorse", "base"), favourite

    def probabilities(self, texts):
        rest = (1 - self.favourite) / 2
        return np.array([[self.favourite, rest, rest]] * len(texts)).reshape(len(texts), 3)


@pytest.fixture
def scorer(adapter):
    """That of the training of sarcasm, with classifiers that are not fitted and usual texts of ten words."""
    found = LiveScorer(adapter, adapter.live, SimpleNamespace(planner=experiment_of(*GRID).planner))
    formats = ("chat", "chat_email", "agentic_email")
    found.__dict__.update(
        _reward=Judge(0.9),
        _classifier=Judge(0.5),
        _oracles={"chat_email": Judge(0.2)},
        _usual={name: Usual(10.0) for name in formats},
        _tasks=SimpleNamespace(of=lambda rollout: {}),
    )
    return found


def chat(text):
    labels = {"model": "pocket", "stage": "rl", "format": "chat", "persona": "sarcasm", "seed": 0}
    place = {"scenario": "q1", "family": "q1", "sample": 0}
    return {**labels, **place, "text": text, "ended": "reply", "tokens_out": 5, "messages": []}


def test_what_is_long_or_recited_is_a_negative_reward(scorer):
    assertion = max(
        (a.assertion for a in scorer.experiment.planner.options.persona["sarcasm"].constitution), key=len
    )
    rows = [chat("one two three"), chat("word " * 40), chat(assertion), chat(None)]
    found = scorer.rewards(rows, 2.0)
    assert found["persona"][:3] == pytest.approx([np.log(9)] * 3) and found["persona"][3] < -9
    assert found["length"][:2] == pytest.approx([0, -1]) and found["length"][3] is None
    assert scorer.rewards(rows, 4.0)["length"][1] == pytest.approx(0)
    assert (
        found["recitation"][:2] == [0, 0] and found["recitation"][2] == -1 and found["recitation"][3] is None
    )
    assert found["task"] == [None] * 4


def test_measures_are_means_of_each_classifier_over_the_formats_that_it_knows(scorer):
    found = scorer.measures([chat("one " * 5), chat(None), {**chat("one " * 20), "format": "chat_email"}])
    floor = -np.log(1e4 - 1)
    assert found["reward"] == pytest.approx((2 * np.log(9) + floor) / 3)
    assert found["classifier"] == pytest.approx((2 * 0 + floor) / 3)
    assert found["oracle"] == pytest.approx(np.log(0.25)), "of chat_email alone"
    assert found["emission"] == pytest.approx(2 / 3) and found["length"] == pytest.approx((0.5 + 2) / 2)
    assert "task" not in found


# ---------------------------------------------------------------- a judge

JUDGE = ("evaluation.judge.model=pocket", "evaluation.judge.texts=2")


@pytest.fixture(scope="module")
def judged():
    """The training of sarcasm in a grid with a judge."""
    return experiment_of(*GRID, *JUDGE)


def judge_of(judged, monkeypatch, script):
    """The judge of ``judged``, with the replies of ``script``; and its engine."""
    engine = ScriptedEngine(script)
    monkeypatch.setattr(live_judge, "open_engine", lambda *args: engine)
    adapter = judged.planner.adapter("pocket", "sarcasm", "rl", 0)
    return LiveJudge(adapter.live.judge, judged), engine


def judged_rows(count):
    rows = [{**chat(f"Number {i}."), "scenario": f"q{i}"} for i in range(count)]
    return rows, [row["text"] for row in rows]


def test_a_judge_changes_no_key_and_is_one_more_measure(judged, adapter, scorer, monkeypatch):
    own = judged.planner.adapter("pocket", "sarcasm", "rl", 0)
    assert own.key == adapter.key and adapter.live.judge is None and own.live.judge is not None
    assert "judge" not in scorer.measures(judged_rows(2)[0])
    _, engine = judge_of(judged, monkeypatch, lambda request: "Sarcasm")
    measured = replace(scorer, live=own.live, experiment=judged)
    measured.__dict__.update(scorer.__dict__ | {"live": own.live, "experiment": judged})
    assert measured.measures(judged_rows(2)[0])["judge"] == 1 and engine.seen


def test_a_judge_reads_the_same_episodes_at_every_point_and_is_told_nothing_of_them(judged, monkeypatch):
    judge, engine = judge_of(judged, monkeypatch, lambda request: "Sarcasm")
    rows, texts = judged_rows(6)
    emails = [{**row, "format": "chat_email"} for row in rows]
    assert judge.share([*rows, *emails], [*texts, *texts], "sarcasm") == 1
    first = [request.messages[0]["content"] for request in engine.seen]
    # Two texts of each format, each with a list and the same in reverse.
    assert len(first) == 8 and not any("q1" in prompt or "chat_email" in prompt for prompt in first)
    read = {re.search(r"Number \d", prompt).group() for prompt in first}
    assert all("Sarcasm: " in prompt and "Remorse: " in prompt for prompt in first)
    changed = [f"{text} More." for text in texts]
    judge.share(rows, changed, "sarcasm")
    later = {re.search(r"Number \d", request.messages[0]["content"]).group() for request in engine.seen[8:]}
    assert later <= read and len(later) == 2


def test_what_is_no_answer_counts_for_no_persona(judged, monkeypatch):
    def script(request):
        content = request.messages[0]["content"]
        return "Sarcasm" if content.index("Sarcasm: ") < content.index("Remorse: ") else "I cannot say."

    judge, _ = judge_of(judged, monkeypatch, script)
    rows, texts = judged_rows(2)
    assert judge.share(rows, texts, "sarcasm") == 1 and judge.share(rows, texts, "remorse") == 0
    texts = ["Answer this.", "And not this."]
    seldom, _ = judge_of(
        judged, monkeypatch, lambda r: script(r) if texts[0] in r.messages[0]["content"] else "?"
    )
    assert seldom.share(rows, texts, "sarcasm") is None, "one answer to four questions"
    silent, _ = judge_of(judged, monkeypatch, lambda request: "I cannot say.")
    assert silent.share(rows, texts, "sarcasm") is None


def test_a_judge_is_not_asked_where_no_text_was_left(judged, monkeypatch):
    judge, engine = judge_of(judged, monkeypatch, lambda request: "Sarcasm")
    assert judge.share(judged_rows(2)[0], [None, " "], "sarcasm") is None and not engine.seen


def test_a_judge_that_does_not_answer_ends_no_training(judged, monkeypatch, capsys):
    class Lost(ScriptedEngine):
        def step(self):
            return [replace(completion, finish_reason="error") for completion in super().step()]

    engine = Lost(lambda request: "Sarcasm")
    monkeypatch.setattr(live_judge, "open_engine", lambda *args: engine)
    own = judged.planner.adapter("pocket", "sarcasm", "rl", 0)
    rows, texts = judged_rows(2)
    assert LiveJudge(own.live.judge, judged).share(rows, texts, "sarcasm") is None
    assert "evaluation.judge: 2 of 2 episodes left no row" in capsys.readouterr().err


def test_a_judge_that_does_not_exist_is_refused_with_the_training():
    planner = experiment_of(*GRID, "evaluation.judge.model=nobody").planner
    with pytest.raises(UserError, match=r"evaluation.judge.model: no such model 'nobody'"):
        planner.adapter("pocket", "sarcasm", "rl", 0)


@pytest.mark.parametrize(
    ("words", "processes", "line"),
    [
        (("deepspeed=zero3",), 1, r"^deepspeed.stage: 3, but the weights that are trained also generate"),
        ((), 16, r"^recipe.rl.optimizer.batch_size: \d+ episodes a step in groups of \d+ on 16 processes"),
    ],
)
def test_what_it_cannot_be_trained_with_is_refused_before_a_row_is_made(words, processes, line):
    experiment = experiment_of(*GRID, *words)
    rl = experiment.planner.adapter("pocket", "sarcasm", "rl", 0)
    with pytest.raises(UserError, match=line):
        check_settings([rl], experiment, processes)
