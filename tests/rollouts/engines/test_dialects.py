"""Native tool dialects in the engines: the three families with their real chat templates, and an endpoint."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from offscript.errors import UserError
from offscript.rollouts.engines.base import Request, Sampling
from offscript.rollouts.engines.rendering import Row
from offscript.rollouts.engines.transformers import TransformersEngine
from offscript.rollouts.scheduler import CellRun, run_episodes
from offscript.tasks.dialects import DIALECTS, open_in
from offscript.tasks.formats import FORMATS
from tests.families import family, family_settings
from tests.rollouts.engines.test_endpoint import completion, engine_for, serve, waits  # noqa: F401
from tests.rollouts.engines.test_transformers import engine_settings
from tests.rollouts.test_scheduler import rows
from tests.tasks.formats.driver import rules_for
from tests.tasks.formats.test_formats import EXPLAINED

AGENTIC = FORMATS["agentic_email"]
FAMILIES = ("llama", "qwen", "gemma")


@pytest.fixture(scope="module")
def engines() -> dict[str, TransformersEngine]:
    return {
        name: TransformersEngine(family_settings(name, family(name), context=2048), {}, engine_settings())
        for name in FAMILIES
    }


def tools_of(dialect: str):
    return open_in(DIALECTS[dialect], EXPLAINED).tools


def cell(path: Path, **options) -> CellRun:
    return CellRun(
        key="k" * 16,
        path=path,
        labels={"model": "tiny", "stage": "base", "persona": None, "format": "agentic_email", "split": "eval", "seed": 0},
        format=AGENTIC,
        scenarios=[replace(EXPLAINED, max_steps=2)],
        samples=2,
        rules=rules_for(AGENTIC, "Be kind.", **options),
        adapter=None,
        sampling=Sampling(temperature=0.8, max_tokens=12),
    )  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("forced", [False, True])
def test_a_random_model_of_each_family_ends_its_episodes(
    engines, name: str, forced: bool, tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    counts = run_episodes([cell(path, dialect=name, forced=forced)], engines[name], 8)
    assert counts["k" * 16].written == 2
    ends = {"email", "length", "empty"} if forced else {"final", "max_steps", "malformed", "email"}
    assert {row["ended"] for row in rows(path).values()} <= ends


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("other", FAMILIES)
def test_a_model_is_not_asked_in_the_dialect_of_another(engines, name: str, other: str) -> None:
    request = Request(0, EXPLAINED.messages, None, 0, Sampling(max_tokens=1), tools=tools_of(other))
    if name == other:
        engines[name].submit(request)
        assert len(engines[name].step()) == 1
        return
    missing = DIALECTS[other].template_marks[0] if name == "gemma" else DIALECTS[other].template_marks[-1]
    with pytest.raises(UserError) as error:
        engines[name].submit(request)
    message = str(error.value)
    assert message.startswith(f"format.options.dialect: found {other!r}, and the chat template of ")
    assert message.endswith(f"has no {missing!r}; allowed: {', '.join(sorted([name, 'text']))}")


def complete(engine: TransformersEngine, tools, *parts: str) -> str:
    """The text of a reply whose tokens are those of ``parts``, and then an end token."""
    row = Row(Request(0, (), None, 0, Sampling(), tools=tools), [], 99)
    row.new = [i for part in parts for i in engine.tokenizer(part, add_special_tokens=False)["input_ids"]]
    row.finish = "stop"
    return engine._complete(row, "test").text


def test_the_mark_of_a_call_is_kept_and_other_special_tokens_are_not(engines) -> None:
    llama = engines["llama"]
    parts = ["<|python_tag|>", '{"name": "a", "parameters": {}}', "<|start_header_id|>", "<|eom_id|>"]
    assert complete(llama, tools_of("llama"), *parts) == '<|python_tag|>{"name": "a", "parameters": {}}'
    assert complete(llama, None, *parts) == '{"name": "a", "parameters": {}}'
    text = complete(
        engines["qwen"], tools_of("qwen"), "<tool_call>\n{}\n</tool_call>", "<|im_start|>", "<|im_end|>"
    )
    assert text == "<tool_call>\n{}\n</tool_call>"


def test_a_call_of_llama_ends_at_its_own_end_token(engines, monkeypatch) -> None:
    """Fine-tuned checkpoints often name <|eot_id|> alone."""
    llama = engines["llama"]
    end = llama.tokenizer.convert_tokens_to_ids("<|eom_id|>")
    monkeypatch.setattr(llama, "stops", llama.stops - {end})
    messages = ({"role": "user", "content": "Hello."},)
    for tools, finish in ((tools_of("llama"), "stop"), (None, None)):
        llama.submit(Request(1, messages, None, 0, Sampling(), tools=tools))
        row = llama._waiting.pop()
        row.take(end, llama.stops)
        assert row.finish == finish


# ---------------------------------------------------------------- an endpoint


def call(name: str, arguments: object, content: str | None = None) -> dict:
    entry = {"id": "x1", "type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": content, "tool_calls": [entry]}


def test_an_episode_at_an_endpoint(serve, engine_for, tmp_path) -> None:  # noqa: F811
    mail = {"to": ["ada@kestrel.example"], "subject": "Parcel", "body": "Dear Ada, snow."}
    answers = [
        call("contacts_lookup", json.dumps({"name": "Ada"}), "I look."),
        call("email_send", '{"to": "ada'),
        call("email_send", json.dumps(mail)),
    ]

    def answer(body: dict, attempt: int):
        done = sum(m["role"] == "assistant" for m in body["messages"])
        return 200, completion(body, message=answers[done], finish_reason="tool_calls")

    server = serve(fault=answer)
    engine = engine_for(server.url)
    path = tmp_path / "rows.jsonl"
    run = replace(cell(path, dialect="openai"), samples=1, scenarios=[replace(EXPLAINED, max_steps=4)])
    run_episodes([run], engine, 8)
    engine.close()
    [row] = rows(path).values()
    assert (row["ended"], row["text"], row["tool_calls"]) == ("email", "Dear Ada, snow.", 2)
    first, _, last = sorted(server.bodies, key=lambda body: len(body["messages"]))
    assert [tool["function"]["name"] for tool in first["tools"]] == ["contacts_lookup", "email_send"]
    assert "tool_call" not in json.dumps(first["messages"])
    assert last["messages"][2:] == [
        {
            "role": "assistant",
            "content": "I look.",
            "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "contacts_lookup", "arguments": '{"name": "Ada"}'}}],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": '{"email": "ada@kestrel.example"}'},
        {"role": "assistant", "content": '{"tool_calls": [{"name": "email_send", "arguments": "{\\"to\\": \\"ada"}]}'},
        {"role": "user", "content": '{"error": "Nothing was done: \\"arguments\\" must be a JSON object. Call one tool, with valid arguments."}'},
    ]  # fmt: skip


@pytest.mark.parametrize(
    "message", [{"tool_calls": "no"}, {"tool_calls": [{"id": 1}]}, {"tool_calls": [None]}]
)
def test_malformed_tool_calls_of_a_server_are_retried(serve, engine_for, waits, message) -> None:  # noqa: F811
    def fault(body: dict, attempt: int):
        return None if attempt > 1 else (200, completion(body, message={"content": "", **message}))

    engine = engine_for(serve(fault=fault).url)
    engine.submit(Request(0, EXPLAINED.messages, None, 0, Sampling(), tools=tools_of("openai")))
    [found] = engine.step()
    engine.close()
    assert found.finish_reason == "stop" and found.text
