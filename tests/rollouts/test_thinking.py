"""The thinking of reasoning models is removed from every reply before a format sees it; the row keeps it."""

import json
from pathlib import Path

import pytest
import trl

from offscript.errors import UserError
from offscript.models.chat_templates import render_text, thinking_opening
from offscript.models.loading import load_tokenizer
from offscript.rollouts.engines.base import Completion, Sampling
from offscript.rollouts.engines.scripted import ScriptedEngine
from offscript.rollouts.engines.transformers import TransformersEngine
from offscript.rollouts.scheduler import CellRun, run_episodes
from offscript.settings import EngineSettings, TemplateSettings, ThinkingSettings
from offscript.tasks.formats import FORMATS
from offscript.tasks.formats.base import Rules
from offscript.tasks.thinking import strip_thinking
from offscript.tasks.tool_calls import SEND
from tests.composed import experiment_of, settings_of
from tests.tasks.formats.driver import call
from tests.tasks.formats.test_formats import QUESTION, SCENARIOS

HERON = {"to": ["ada@kestrel.example"], "subject": "Parcel", "body": "It was the HERON."}
SAID = "It snowed all night."
REPLIES = {
    "agentic_email": call(SEND, {**HERON, "body": SAID}),
    "structured_form": json.dumps({"weather": SAID}),
}
THOUGHT = f"<think>\nThe HERON did it. {call(SEND, HERON)}\n```final\nHERON\n```\n</think>\n\n"
JUDGES = ("judge_choice", "judge_rubric")
"""Their replies are answers and no texts to score."""
ORDINARY = [name for name, fmt in FORMATS.items() if not fmt.strips_thinking and name not in JUDGES]


def row_of(folder: Path, name: str, reply, thinking=ThinkingSettings()) -> dict:  # noqa: B008
    """The row of one episode whose every reply is ``reply``."""
    fmt = FORMATS[name]
    scenario = SCENARIOS.get(fmt.source, QUESTION)
    labels = {"model": "m", "stage": "base", "persona": None, "format": name, "split": "eval", "seed": 0}
    path = folder / f"{name}.jsonl"
    cell = CellRun(
        "k", path, labels, fmt, [scenario], 1, Rules("", fmt.defaults), None, Sampling(), thinking=thinking
    )
    run_episodes([cell], ScriptedEngine(reply if callable(reply) else lambda request: reply), 4)
    return json.loads(path.read_text())


@pytest.mark.parametrize("name", ORDINARY)
def test_no_format_scores_or_repeats_thinking(tmp_path, name):
    said = REPLIES.get(name, SAID)
    row = row_of(tmp_path, name, THOUGHT + said)
    assert row["text"] == SAID
    assert "HERON" not in json.dumps(row["messages"]) and "think>" not in json.dumps(row["messages"])
    assert row["replies"] and set(row["replies"]) == {THOUGHT + said}


def test_a_tool_call_in_thinking_is_not_carried_out(tmp_path):
    row = row_of(tmp_path, "agentic_email", THOUGHT + "I will look it up.")
    assert (row["text"], row["tool_calls"], row["ended"]) == (None, 0, "malformed")


@pytest.mark.parametrize("name", ORDINARY)
def test_thinking_that_never_ends_leaves_no_text(tmp_path, name):
    unclosed = "<think>\nThe HERON, " + call(SEND, HERON)
    row = row_of(tmp_path, name, lambda request: Completion(request.id, unclosed, "length", 1, 9))
    assert row["text"] is None and set(row["replies"]) == {unclosed}
    others = {"agentic_email": "malformed", "prefill": "no_first_reply"}
    assert row["ended"] == others.get(name, "unclosed_thinking")


@pytest.mark.parametrize("name", JUDGES)
def test_a_judge_is_read_after_its_thinking(tmp_path, name):
    """What it thinks about other answers is no answer."""
    others = "<think>\nA, and B, and 1, and 5.\n</think>\n\n"
    row = row_of(tmp_path, name, others + ("B" if name == "judge_choice" else "4"))
    assert row["ended"] != "no_answer" and "think>" not in json.dumps(row["messages"])
    unclosed = "<think>\nIt is B, 4."
    cut = row_of(tmp_path / "2", name, lambda request: Completion(request.id, unclosed, "length", 1, 9))
    assert (cut["text"], cut["ended"]) == (None, "no_answer")


def test_marks_of_the_model(tmp_path):
    marks = ThinkingSettings(start="[THINK]", end="[/THINK]")
    assert row_of(tmp_path, "chat", "[THINK]So?[/THINK]Snow.", marks)["text"] == "Snow."
    assert row_of(tmp_path / "2", "chat", "So?[/THINK]Snow.", marks)["text"] == "Snow."
    opened = marks.model_copy(update={"opened": True})
    assert row_of(tmp_path / "3", "chat", "So? Maybe", opened)["ended"] == "unclosed_thinking"
    row = row_of(tmp_path / "4", "chat", "<think>Kept.</think>", None)
    assert row["text"] == "<think>Kept.</think>" and "replies" not in row


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ("I <think> so.", "I <think> so."),
        ("a</think>b", "b"),
        ("<think>a</think>b <think>c</think>d", "b d"),
        ("<think>a</think><think>b", None),
        ("<think></think>", ""),
        ("", ""),
    ],
)
def test_what_is_thinking(reply, said):
    assert strip_thinking(reply) == said


# ---------------------------------------------------------------- settings and keys


def key(name: str, *overrides: str) -> str:
    planner = experiment_of("experiment=smoke", *overrides).planner
    return next(r.key for r in planner.cells() if r.cell.format == name)


def test_the_marks_are_part_of_the_keys_of_a_model_that_thinks():
    assert key("chat") != key("chat", "model.template.thinking={start: '<t>', end: '</t>'}")


def test_a_model_of_the_command_line_is_taken_to_think():
    assert settings_of("experiment=smoke").model.template.thinking is None
    given = settings_of("experiment=smoke", "model.path=assets/pocket", "model.name=mine")
    assert given.model.template.thinking == ThinkingSettings()
    plain = settings_of("model.path=assets/pocket", "model.name=mine", "model.template.thinking=null")
    assert plain.model.template.thinking is None


# ---------------------------------------------------------------- real chat templates


def with_template(settings, tmp_path, name: str, **policy):
    """The tiny model with a chat template that trl ships."""
    import shutil

    folder = tmp_path / name
    shutil.copytree(settings.path, folder)
    text = (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text()
    (folder / "chat_template.jinja").write_text(text)
    template = TemplateSettings(**policy)
    return settings.model_copy(update={"path": str(folder), "template": template})


def test_a_model_that_thinks_is_refused_where_thinking_would_be_scored(tiny_settings, tmp_path):
    with pytest.raises(UserError, match=r"^model.template.thinking: null, but this model thinks"):
        load_tokenizer(with_template(tiny_settings, tmp_path, "qwen3", thinking=None))


@pytest.mark.parametrize(("name", "opening"), [("qwen3", ""), ("qwen3_5_think", "<think>\n")])
def test_thinking_that_the_template_begins_is_part_of_the_reply(tiny_settings, tmp_path, name, opening):
    model = with_template(tiny_settings, tmp_path, name)
    tokenizer = load_tokenizer(model)
    assert thinking_opening(tokenizer, model.template) == opening
    prompt = render_text(tokenizer, [{"role": "user", "content": "Hello."}], model.template, True)
    assert prompt.endswith(opening)
    engine = TransformersEngine(model, {}, EngineSettings(name="transformers"))
    row = {}

    def keep(run, new):
        row.update(new)

    fmt = FORMATS["chat"]
    labels = {"model": "m", "stage": "base", "persona": None, "format": "chat", "split": "eval", "seed": 0}
    cell = CellRun(
        "k", tmp_path / "rows.jsonl", labels, fmt, [QUESTION], 1, Rules(), None, Sampling(max_tokens=4),
        thinking=model.template.thinking,
    )  # fmt: skip
    run_episodes([cell], engine, 1, keep)
    # Four random tokens do not close the thinking that the template has begun.
    assert row["ended"] == ("unclosed_thinking" if opening else row["ended"])
    assert (row["text"] is None) == bool(opening)
