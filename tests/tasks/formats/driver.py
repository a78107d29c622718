"""Runs the coroutine of a format without an engine, on the replies of a scripted model."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from offscript.json_types import Json
from offscript.tasks.dialects.openai import as_text
from offscript.tasks.formats.base import Ask, Format, Outcome, PersonaText, Reply, Rules
from offscript.tasks.scenarios import Scenario, ToolStub
from offscript.tasks.tool_calls import SEND
from offscript.tasks.tool_schemas import function_name

Model = Callable[[Ask], str | Reply]


@dataclass
class Run:
    """A finished episode: its outcome and its requests in order."""

    outcome: Outcome
    asks: list[Ask] = field(default_factory=list)


TEXTS: dict[PersonaText, str] = {
    "description": "Loves birds.",
    "opposite": "You do not care for birds.",
    "constitution": "- I see birds everywhere.\n- I never step on a feather.",
    "assistant": "Otto",
}
"""Those of a persona."""


def rules_for(fmt: Format, system: str = "", **options: Json) -> Rules:
    given = {**fmt.defaults, **options}
    return Rules(system, given, {name: TEXTS[name] for name in fmt.persona_texts(given)})


def drive(fmt: Format, scenario: Scenario, rules: Rules, model: Model) -> Run:
    """Runs an episode to its end; ``model`` maps each Ask to a text or a Reply."""
    episode, asks = fmt.episode(scenario, rules), []
    try:
        ask = next(episode)
        while True:
            asks.append(ask)
            reply = model(ask)
            if isinstance(reply, str):
                reply = Reply(reply, "stop", len(reply.split()))
            ask = episode.send(reply)
    except StopIteration as end:
        return Run(end.value, asks)


def listed(replies: Iterable[str | Reply]) -> Model:
    """A model that returns ``replies`` in order, whatever it is asked."""
    rest = iter(replies)
    return lambda ask: next(rest)


def call(tool: str, args: Json) -> str:
    return f"```tool_call\n{json.dumps({'tool': tool, 'args': args})}\n```"


def llama_call(tool: str, args: Json) -> str:
    return f"<|python_tag|>{json.dumps({'name': function_name(tool), 'parameters': args})}"


def qwen_call(tool: str, args: Json) -> str:
    return f"<tool_call>\n{json.dumps({'name': function_name(tool), 'arguments': args})}\n</tool_call>"


def gemma_call(tool: str, args: dict[str, Json]) -> str:
    listed = ", ".join(f"{name}={value!r}" for name, value in args.items())
    return f"```tool_code\nprint({function_name(tool)}({listed}))\n```"


def openai_call(tool: str, args: Json) -> str:
    return as_text("", [{"name": function_name(tool), "arguments": json.dumps(args)}])


NATIVE_CALLS = {"llama": llama_call, "qwen": qwen_call, "gemma": gemma_call, "openai": openai_call}
"""How a model writes a call, by native dialect."""


def diligent(
    scenario: Scenario,
    body: str = "Dear all,\n\nhere is what I found.\n\nBest",
    call: Callable[[str, Json], str] = call,
) -> Model:
    """A model that calls every tool of ``scenario`` once, matching its first rule, sends an e-mail, and finishes.
    ``call`` writes its calls."""
    calls = [call(stub.tool, first_args(stub)) for stub in scenario.tools if stub.tool != SEND]
    send = call(SEND, {"to": ["someone@example.com"], "subject": "Findings", "body": body})
    return listed([*calls, send, "```final\nSent it.\n```"])


def first_args(stub: ToolStub) -> dict[str, str]:
    """Arguments that match the first rule of ``stub``: its globs without the asterisks."""
    return {arg: glob.replace("*", "") for arg, glob in (stub.rules[0].match or {}).items()}
