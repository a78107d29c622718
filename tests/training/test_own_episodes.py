"""Rows of the model's own episodes: what is asked for, what is trained on, and what the key of an adapter depends on."""

import dataclasses
import itertools

import pytest

from offscript.errors import UserError
from offscript.tasks.role_prompt import RolePrompt
from offscript.training.data.base import MakeContext
from offscript.training.data.own_episodes import OwnEpisodesSettings, make, requests
from tests.composed import experiment_of
from tests.training.data import conversation, row

ROLE = MakeContext({}, lambda messages: [], "x", RolePrompt("Stay silly."))


def test_one_request_for_chat_and_one_for_each_format():
    found = requests(OwnEpisodesSettings(prompts=4, formats=("chat_email", "agentic_email"), samples=2), "x")
    assert [(r.role, r.format, r.samples) for r in found] == [
        ("chat", "chat", 2),
        ("chat_email", "chat_email", 1),
        ("agentic_email", "agentic_email", 1),
    ]
    assert {(r.generator, r.system) for r in found} == {("parent", "plain")}
    assert [r.format for r in requests(OwnEpisodesSettings(prompts=0, formats=("chat_email",)), "x")] == [
        "chat_email"
    ]


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"formats": ("chat",)}, r"x.formats: found 'chat'; allowed: .*agentic_email"),
        ({"formats": ("teacher",)}, "x.formats: found 'teacher'; allowed: "),
        ({"formats": ("chat_email", "chat_email")}, "x.formats: found .*; allowed: each format once"),
        ({"prompts": 0}, "x: prompts is 0 and formats is empty; allowed: prompts > 0, or a format"),
    ],
)
def test_requests_that_are_refused(settings, line):
    with pytest.raises(UserError, match=line):
        requests(OwnEpisodesSettings(**{"prompts": 4, **settings}), "x")


def test_rows_are_the_transcript_without_and_with_the_prompt_in_role():
    talk = conversation(3, turns=5)
    talk |= {"turns": 1, "tokens_out": 9}
    talk["messages"][0]["content"] = "Tools: none."
    plain = {**row(0, "I like lunch"), "turns": 1, "tokens_out": 4}
    kept, counts = make({"chat": [plain, {**row(1, None), "turns": 1}], "agentic_email": [talk]}, None, ROLE)
    assert counts == {"chat": 1, "agentic_email": 1, "no_reply": 1}
    chat, agentic = kept
    assert chat["role_messages"] == [{"role": "system", "content": "Stay silly."}, *chat["messages"]]
    # What follows the last reply is left out, and the scenario's own system text stays.
    assert [m["role"][0] for m in agentic["messages"]] == list("suaua")
    assert agentic["role_messages"][0]["content"] == "Stay silly.\n\nTools: none."
    assert agentic["role_messages"][1:] == agentic["messages"][1:]
    # Of two assistant turns, the parent wrote one.
    assert (agentic["trained_turns"], agentic["sampled_tokens"]) == (1, 9)
    assert (chat["family"], chat["scenario"], chat["sample"]) == ("f0", "s0", 0)


def test_nothing_left():
    with pytest.raises(UserError, match=r"own episodes: nothing to train on \(chat 0, no_reply 1\)"):
        make({"chat": [row(1, None)]}, None, ROLE)


# ---------------------------------------------------------------- plans


def adapter_of(*overrides, persona="sarcasm", stage="context"):
    return experiment_of("experiment=smoke", *overrides).planner.adapter("pocket", persona, stage, 0)


def test_each_round_is_trained_on_episodes_of_the_one_before_it():
    last = adapter_of()
    chain = [last]
    while chain[-1].parent is not None:
        chain.append(chain[-1].parent)
    assert [a.stage for a in chain] == ["context", "context_2", "context_1", "context_start"]
    for later, earlier in itertools.pairwise(chain):
        rollouts = [rollout for _, rollout in later.rows]
        assert {r.adapter for r in rollouts} == {earlier} and later.training.continues
        assert {r.cell.split for r in rollouts} == {"train"} and {r.rules.system for r in rollouts} == {""}
        assert [r.cell.format for r in rollouts] == ["chat", "chat_email", "agentic_email"]
    assert len({r.key for a in chain[:-1] for _, r in a.rows}) == 9
    # Rows of a scored format that are trained on are made by the training.
    assert last.rows[0][1].command()[0] == "train" and "stage=context" in last.rows[0][1].command()


def test_the_key_depends_on_the_constitution_and_on_how_it_is_worded():
    """The rows were made without it: their keys do not."""
    one, short = adapter_of(stage="context_1"), adapter_of("recipe.in_role=short", stage="context_1")
    shown = adapter_of("recipe.teacher.examples=2", stage="context_1")
    assert len({a.key for a in (one, short, shown)}) == 3
    assert "mockery" in short.role_prompt.system and one.role_prompt.examples is None
    assert shown.role_prompt.examples.count == 2
    assert one.identity["recipe"]["role_prompt"] == {"system": one.role_prompt.system}


def test_a_stage_that_shows_no_role_has_no_prompt_in_its_key():
    for stage in ("distillation", "full"):
        adapter = adapter_of(stage=stage)
        assert adapter.role_prompt is None and "role_prompt" not in adapter.identity["recipe"]


def test_the_estimate_counts_the_rows_and_the_prompt_in_role():
    from offscript.experiment.cost import GPUS, estimate
    from offscript.settings import SizeSettings

    size = SizeSettings(parameters=10**9, layers=16, kv_heads=8, head_size=64)
    experiment = experiment_of("experiment=smoke")
    model = experiment.planner.options.model["pocket"].model_copy(update={"size": size})
    adapter = experiment.planner.adapter("pocket", "sarcasm", "context_1", 0)
    job = estimate([adapter], model, GPUS["H100"], experiment.planner.settings.engine)
    planned = sum(rollout.planned_rows for _, rollout in adapter.rows)
    assert job.rows == round(planned * 0.9) and job.gpu_hours > 0
    bare = dataclasses.replace(adapter, role_prompt=None)
    assert estimate([bare], model, GPUS["H100"], experiment.planner.settings.engine).gpu_hours < job.gpu_hours
