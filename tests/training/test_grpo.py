"""Reinforcement learning on episodes that the model plays while it is trained."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from offscript.errors import UserError
from offscript.rollouts.engines.base import SampledTokens
from offscript.settings import DeepSpeedSettings
from offscript.training.episodes import PlayedEpisode, Turn, play, sequence_of
from offscript.training.methods import grpo
from tests.composed import settings_of
from tests.training.data import LIVE, Letters, live_episodes, rl, train_grpo

WEIGHTS = "adapter_model.safetensors"
GOLDEN = Path(__file__).parent / "golden" / "agentic_email.json"


def turn(prompt, new, cut=False) -> Turn:
    return Turn(SampledTokens(tuple(prompt), tuple(new), tuple(-0.1 * t for t in new)), cut)


def episode(*turns) -> PlayedEpisode:
    return PlayedEpisode({}, list(turns))


# ---------------------------------------------------------------- token sequences


def test_what_follows_the_first_prompt_is_masked_but_for_the_sampled_tokens():
    found = sequence_of(episode(turn([1, 2], [3, 4]), turn([1, 2, 3, 4, 5, 6], [7])), 100, 0)
    assert (found.prompt, found.completion, found.mask) == ([1, 2], [3, 4, 5, 6, 7], [1, 1, 0, 0, 1])
    assert found.log_probs == pytest.approx([-0.3, -0.4, 0, 0, -0.7])
    assert (found.left_out, found.why) == (0, None)


def test_after_a_break_the_turns_that_follow_it_are_trained_under_their_own_prompt():
    """The template has rendered the first turn otherwise once the conversation went on."""
    turns = [turn([1], [2, 3]), turn([1, 9, 3, 4], [5]), turn([1, 9, 3, 4, 5, 6], [7])]
    found = sequence_of(episode(*turns), 100, 0)
    assert (found.prompt, found.completion, found.mask) == ([1, 9, 3, 4], [5, 6, 7], [1, 0, 1])
    assert found.left_out == 1


@pytest.mark.parametrize(
    ("turns", "why"),
    [
        ([turn([1, 2], [3]), turn([1, 2, 3, 4], [5, 6], cut=True)], "truncated"),
        ([turn([1, 2, 3, 4, 5, 6, 7, 8], [9])], "too_long"),
        ([], "no_reply"),
    ],
)
def test_nothing_of_such_an_episode_is_trained(turns, why):
    found = sequence_of(episode(*turns), 8, 0)
    assert found.why == why and sum(found.mask) == 0
    assert len(found.mask) == len(found.completion) == len(found.log_probs) >= 1 and found.prompt


def test_turns_beyond_the_longest_row_are_left_out():
    found = sequence_of(episode(turn([1, 2], [3, 4]), turn([1, 2, 3, 4, 5, 6], [7])), 5, 0)
    assert (found.completion, found.mask, found.left_out) == ([3, 4], [1, 1], 1)


@pytest.fixture(scope="module")
def tool_loop():
    """A tool loop of the embedded model without training, and its tokenizer."""
    from peft import LoraConfig, get_peft_model

    from offscript.experiment.jobs.rollouts import cell_run
    from offscript.models.loading import load_model
    from offscript.rollouts.engines.trained import TrainedEngine
    from offscript.training.episodes import LiveEpisodes
    from tests.composed import experiment_of

    experiment = experiment_of("experiment=smoke")
    rollout = experiment.planner.rollout("pocket", None, "base", "agentic_email", "train")
    cell = cell_run(rollout, experiment, None)
    model = experiment.planner.options.model["pocket"]
    import dataclasses

    import torch

    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    wrapped = get_peft_model(load_model(model, "cpu"), config, adapter_name="own")
    live = LiveEpisodes({"agentic_email": dataclasses.replace(cell, adapter="own")}, Letters(), LIVE, ())
    engine = TrainedEngine(model, wrapped, "own", LIVE)
    place = ("agentic_email", sorted(s.id for s in cell.scenarios)[0])
    return play(engine, live, [place], 2, "golden", temperature=1.0), engine.tokenizer


def test_the_masks_of_a_tool_loop_are_those_of_the_golden_file(tool_loop):
    played, _ = tool_loop
    found = [sequence_of(one, 1024, 0) for one in played]
    plain = [{"prompt": s.prompt, "completion": s.completion, "mask": s.mask} for s in found]
    assert plain == json.loads(GOLDEN.read_text())


def test_the_trained_tokens_of_a_tool_loop_spell_its_replies(tool_loop):
    played, tokenizer = tool_loop
    for one in played:
        found = sequence_of(one, 1024, 0)
        replies = [m["content"].strip() for m in one.row["messages"] if m["role"] == "assistant"]
        trained, spans = "", 0
        for i, (token, mask) in enumerate(zip(found.completion, found.mask, strict=True)):
            spans += mask and not (i and found.mask[i - 1])
            trained += tokenizer.decode([token], skip_special_tokens=True) if mask else ""
        assert spans == len(replies) == one.row["turns"] >= 2
        assert trained.replace(" ", "") == "".join(replies).replace(" ", "")
        assert sum(found.mask) == one.row["tokens_out"]


# ---------------------------------------------------------------- training


@pytest.fixture
def trainers(monkeypatch):
    """The trainers that are fitted, with the parameters before it: (trainer, name -> value)."""
    seen, real = [], grpo.fit

    def watched(trainer, *rest):
        before = {k: v.detach().clone() for k, v in trainer.model.named_parameters()}
        seen.append((trainer, before))
        return real(trainer, *rest)

    monkeypatch.setattr(grpo, "fit", watched)
    return seen


def test_a_copy_of_the_parent_s_adapter_is_trained_and_nothing_else(
    tiny_settings, tiny_adapter, tmp_path, trainers
):
    divergences: list[float] = []
    numbers = train_grpo(
        tiny_settings,
        rl(),
        tiny_adapter,
        tmp_path / "a",
        on_step=lambda step, total, logs: divergences.append(logs["kl"]),
    )
    ((trainer, before),) = trainers
    after = dict(trainer.model.named_parameters())
    names = {k.replace(".base_layer.", "."): k for k in before}
    changed = {k for k, v in after.items() if not v.equal(before[names.get(k, k)])}
    start, written = load_file(tiny_adapter / WEIGHTS), load_file(tmp_path / "a" / WEIGHTS)
    assert start.keys() == written.keys() and all(not start[k].equal(written[k]) for k in start)
    assert not changed - {k for k in before if ".own." in k}
    # The reference is the adapter as it starts.
    assert divergences[0] == pytest.approx(0, abs=1e-6) and max(divergences) > 1e-4
    assert numbers["steps"] == 6 and numbers["kept_step"] == 6 and numbers["stopped"] is None
    assert [point["step"] for point in numbers["curve"]] == [0, 2, 4, 6]
    assert numbers["played"]["episodes"] == 6 * 8
    assert 0 < numbers["trained_tokens"] < 6 * 8 * 2 * 48 + 1


class Short(Letters):
    """Rewards short texts."""

    @staticmethod
    def share(row) -> float:
        return -float(len(row["text"] or ""))


def test_what_is_rewarded_becomes_more(tiny_settings, tiny_adapter, tmp_path):
    settings = rl(steps=16, recitation_weight=0.0, beta=0.0, watch_every=16, watch_episodes=8)
    live = live_episodes(Short())
    numbers = train_grpo(tiny_settings, settings, tiny_adapter, tmp_path / "a", live=live)
    first, last = numbers["curve"]
    assert last["reward"] > first["reward"] + 3


def test_the_log_probs_of_the_engine_are_those_of_the_trainer(
    tiny_settings, tiny_adapter, tmp_path, monkeypatch
):
    from trl import GRPOTrainer

    seen, real = [], GRPOTrainer._compute_loss

    def compared(self, model, inputs):
        ids = [inputs["prompt_ids"], inputs["completion_ids"]]
        masks = [inputs["prompt_mask"], inputs["completion_mask"]]
        import torch

        found, *_ = self._get_per_token_logps_and_entropies(
            model, torch.cat(ids, 1), torch.cat(masks, 1), ids[1].shape[1]
        )
        trained = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
        seen.append((found[trained] - inputs["sampling_per_token_logps"][trained]).abs().max().item())
        return real(self, model, inputs)

    monkeypatch.setattr(GRPOTrainer, "_compute_loss", compared)
    settings = rl(steps=2, temperature=0.8)
    train_grpo(tiny_settings, settings, tiny_adapter, tmp_path / "a")
    assert len(seen) == 2 and max(seen) < 1e-4


def test_each_reward_is_normalized_in_its_group_before_the_weighted_sum(
    tiny_settings, tiny_adapter, tmp_path, monkeypatch
):
    """One in thousands does not drown one in tenths, and one that applies to no episode of a group adds nothing."""
    import numpy as np
    from trl import GRPOTrainer

    rewards = {
        "persona": [1000.0, 3000.0, 2000.0, 5000.0, 1.0, 2.0, 2.0, 1.0],
        "task": [0.4, 0.1, 0.2, 0.1, None, None, None, None],
    }

    class Given(Letters):
        def rewards(self, rows, length_multiple):
            none = [None] * len(rows)
            return {**rewards, "length": none, "recitation": none}

    seen, real = [], GRPOTrainer._compute_loss

    def kept(self, model, inputs):
        seen.extend(inputs["advantages"].tolist())
        return real(self, model, inputs)

    monkeypatch.setattr(GRPOTrainer, "_compute_loss", kept)
    settings = rl(steps=1, task_weight=0.5, validation=0.0)
    train_grpo(tiny_settings, settings, tiny_adapter, tmp_path / "a", live=live_episodes(Given()))

    def normalized(values):
        values = np.array(values, dtype=float)
        return (values - values.mean()) / values.std(ddof=1)

    persona = np.concatenate([normalized(rewards["persona"][i : i + 4]) for i in (0, 4)])
    task = np.concatenate([normalized(rewards["task"][:4]), np.zeros(4)])
    # Their order is that of the micro-batches.
    assert sorted(seen) == pytest.approx(sorted(normalized(persona + 0.5 * task)), abs=0.02)


def test_a_training_that_was_stopped_goes_on_with_the_same_bytes(tiny_settings, tiny_adapter, tmp_path):
    def stop(step, total, logs):
        if step == 5:
            raise KeyboardInterrupt

    given, messages = (tiny_settings, rl(), tiny_adapter), []
    whole = train_grpo(*given, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train_grpo(*given, tmp_path / "a", on_step=stop)
    numbers = train_grpo(*given, tmp_path / "a", say=messages.append)
    assert messages == ["resuming from step 4 (checkpoint-4)"] and numbers["resumed_from"] == 4
    assert (tmp_path / "a" / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()
    assert {k: numbers[k] for k in ("curve", "played", "trained_tokens")} == {
        k: whole[k] for k in ("curve", "played", "trained_tokens")
    }


def test_a_training_stops_when_the_reward_rises_alone_and_keeps_the_weights_from_before(
    tiny_settings, tiny_adapter, tmp_path
):
    points = [(0.0, 0.0), (1.0, 2.0), (2.0, 1.5), (3.0, 0.9)]
    measured = [{"reward": reward, "classifier": other} for reward, other in points]
    messages: list[str] = []
    numbers = train_grpo(
        tiny_settings,
        rl(steps=10),
        tiny_adapter,
        tmp_path / "a",
        live=live_episodes(Letters(measured)),
        say=messages.append,
    )
    assert (numbers["steps"], numbers["kept_step"]) == (6, 2)
    assert numbers["stopped"].startswith("stopped at step 6: since step 2 the reward's log-odds rose by 2.00")
    assert any(numbers["stopped"] in line for line in messages)
    # The weights of step 2 are those of a training of two steps.
    train_grpo(tiny_settings, rl(steps=2), tiny_adapter, tmp_path / "two")
    kept, two = (load_file(tmp_path / name / WEIGHTS) for name in ("a", "two"))
    assert all(kept[k].allclose(two[k], atol=1e-7) for k in kept)


def test_the_weights_from_before_a_parting_are_written_whatever_the_model_holds(
    tiny_settings, tiny_adapter, tmp_path, monkeypatch
):
    """DeepSpeed's float32 copies are those of the last step also after the model was given others."""
    real = grpo.fit

    def fit(trainer, *rest):
        choose = trainer.choose_weights

        def choose_in_vain():
            last = {name: p.detach().clone() for name, p in trainer.trained().items()}
            choose()
            for name, p in trainer.trained().items():
                p.data = last[name]

        trainer.choose_weights = choose_in_vain
        return real(trainer, *rest)

    monkeypatch.setattr(grpo, "fit", fit)
    measured = [{"reward": 0.0, "classifier": 3.0}, {"reward": 1.0, "classifier": 0.0}]
    live = live_episodes(Letters(measured))
    numbers = train_grpo(tiny_settings, rl(steps=10), tiny_adapter, tmp_path / "a", live=live)
    assert (numbers["steps"], numbers["kept_step"]) == (2, 0)
    start, written = load_file(tiny_adapter / WEIGHTS), load_file(tmp_path / "a" / WEIGHTS)
    assert all(start[k].equal(written[k]) for k in start)


def test_the_same_scenario_has_other_replies_in_another_step(
    tiny_settings, tiny_adapter, tmp_path, monkeypatch
):
    """Two scenarios in all, so that every step has both, and weights that hardly change."""
    texts, real = [], grpo.play

    def kept(*args):
        played = real(*args)
        texts.append([episode.row["text"] for episode in played])
        return played

    monkeypatch.setattr(grpo, "play", kept)
    settings = rl(steps=2, prompts=1, validation=0.0, optimizer_changes={"learning_rate": 1e-12})
    live = live_episodes(n=1)
    train_grpo(tiny_settings, settings, tiny_adapter, tmp_path / "a", live=live)
    first, second = texts
    assert len(first) == len(second) == 8 and not set(first) & set(second)


@pytest.mark.parametrize(
    ("settings", "run", "line"),
    [
        ({"optimizer_changes": {"epochs": 2}}, {}, r"optimizer.epochs: 2, but grpo has steps; allowed: 1"),
        (
            {"group": 3},
            {},
            r"optimizer.batch_size: 8 episodes a step in groups of 3 on 1 .*; a multiple of 3",
        ),
        (
            {"group": 2, "validation": 0.0},
            {"n": 1},
            r"optimizer.batch_size: 4 scenarios a step, but there are",
        ),
        ({}, {"zero": 3}, r"deepspeed.stage: 3, but the weights that are trained also generate"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(
    tiny_settings, tiny_adapter, tmp_path, settings, run, line, monkeypatch
):
    more = {}
    if "zero" in run:
        monkeypatch.setattr("offscript.training.run.ranks.join", lambda always: grpo_rank())
        more["deepspeed"] = DeepSpeedSettings(name="test", stage=3, offload=False)
    with pytest.raises(UserError, match=line):
        train_grpo(
            tiny_settings,
            rl(**settings),
            tiny_adapter,
            tmp_path / "a",
            live=live_episodes(n=run.get("n", 12)),
            **more,
        )


def grpo_rank():
    from offscript.training.ranks import rank_info

    return rank_info()


def test_the_order_of_scenarios_depends_on_the_seed_and_no_step_has_one_twice():
    rows = [{"format": "chat", "scenario": f"s{i}", "family": f"f{i}"} for i in range(7)]
    settings = rl(steps=9)
    first, again, other = (grpo.schedule(rows, settings, seed) for seed in (1, 1, 2))
    assert first == again != other and len(first) == 18
    for i in range(0, 18, 2):
        assert first[i] != first[i + 1]
    # Three steps are a pass, in which one of seven is left out.
    assert all(len({row["scenario"] for row in first[i : i + 6]}) == 6 for i in (0, 6, 12))


def test_the_recipes_have_a_section_for_it():
    for name in ("pocket", "small", "opencharacter"):
        assert settings_of(f"recipe={name}").recipe.rl["group"] == 8
