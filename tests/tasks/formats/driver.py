"""Runs a format's coroutine without an engine, and plays the model where a test needs one."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from offscript.tasks.formats.base import Ask, Format, Outcome, Reply, Rules
from offscript.tasks.scenarios import Scenario, ToolStub
from offscript.tasks.tools import SEND

Model = Callable[[Ask], str | Reply]


@dataclass
class Run:
    """An episode that has ended: what it asked, in order, and what it left."""

    outcome: Outcome
    asks: list[Ask] = field(default_factory=list)


def rules_for(form: Format, system: str = "", **options: Any) -> Rules:
    return Rules(system=system, options={**form.options, **options})


def drive(form: Format, scenario: Scenario, rules: Rules, model: Model) -> Run:
    """Drives an episode to its end; ``model`` answers each Ask with a text or a Reply."""
    episode, asks = form.episode(scenario, rules), []
    try:
        ask = next(episode)
        while True:
            asks.append(ask)
            said = model(ask)
            ask = episode.send(said if isinstance(said, Reply) else Reply(said, "stop", len(said.split())))
    except StopIteration as end:
        return Run(end.value, asks)


def listed(replies: Iterable[str | Reply]) -> Model:
    """A model that says ``replies`` one after the other, whatever it hears."""
    rest = iter(replies)
    return lambda ask: next(rest)


def diligent(scenario: Scenario, body: str = "Dear all,\n\nhere is what I found.\n\nBest") -> Model:
    """A model that calls every tool of ``scenario`` once, hitting its first rule, and then sends an e-mail."""
    calls = [call(stub.tool, first_args(stub)) for stub in scenario.tools if stub.tool != SEND]
    return listed([*calls, call(SEND, {"to": ["someone@example.com"], "subject": "Findings", "body": body})])


def first_args(stub: ToolStub) -> dict[str, str]:
    """Arguments that match the first rule of ``stub``: its globs with nothing in place of the stars."""
    return {arg: glob.replace("*", "") for arg, glob in (stub.rules[0].match or {}).items()}


def call(tool: str, args: Any) -> str:
    return f"```tool_call\n{json.dumps({'tool': tool, 'args': args})}\n```"
