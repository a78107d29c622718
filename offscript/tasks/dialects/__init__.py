"""Tool dialects by name: how tools are offered, how calls are written, how they are read. A new one is one Python file in
this folder, with a ``DIALECT``."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from offscript.json_types import Json
from offscript.storage.plugins import choose, discover
from offscript.tasks.dialects.base import Dialect, ToolPrompt
from offscript.tasks.messages import Message
from offscript.tasks.prompts import join_system
from offscript.tasks.scenarios import Rule, Scenario, ToolStub
from offscript.tasks.tool_calls import SEND, Malformed, Parsed, ToolCall, normalize, parse_reply
from offscript.tasks.tool_schemas import function_name, tools_of, without_tools

FOLDER = Path(__file__).parent
DIALECTS: dict[str, Dialect] = discover(__name__, "DIALECT", Dialect, [FOLDER])
TEXT = DIALECTS["text"]


def get_dialect(name: str) -> Dialect:
    """The dialect called ``name``.

    Raises:
        UserError: there is none; the message lists all names.
    """
    return choose(DIALECTS, name, "format.options.dialect", "dialect", [FOLDER], "DIALECT")


def dialect_of(options: Mapping[str, Json]) -> Dialect:
    """The dialect that the options of a format name; ``text`` for a format without that option.

    Raises:
        UserError: there is none of that name.
    """
    return get_dialect(str(options.get("dialect", TEXT.name)))


@dataclass(frozen=True)
class Opening:
    """How an episode begins in a dialect.

    Args:
        messages: the first messages of the scenario.
        tools: what every request says of tools; None in the dialect ``text``.
        stubs: the simulated tools under the names by which the model knows them.
    """

    messages: tuple[Message, ...]
    tools: ToolPrompt | None
    stubs: tuple[ToolStub, ...]


def open_in(dialect: Dialect, scenario: Scenario) -> Opening:
    """The beginning of ``scenario`` in ``dialect``.

    In a native one the system text explains no tools, calls and results that the scenario begins with are written in the
    dialect, and tools have names without dots.
    """
    if not dialect.native:
        return Opening(scenario.messages, None, scenario.tools)
    tools = tools_of(scenario)
    messages = _translated(dialect, scenario)
    if dialect.describe is not None:
        messages = _with_system_text(messages, dialect.describe(tools))
    schemas = tuple(tool.schema() for tool in tools) if dialect.takes_schemas else ()
    stubs = tuple(replace(stub, tool=function_name(stub.tool)) for stub in scenario.tools)
    if all(normalize(stub.tool) != normalize(SEND) for stub in stubs):
        stubs += (ToolStub(function_name(SEND), (Rule(None, {"sent": True}),)),)
    return Opening(messages, ToolPrompt(dialect, schemas), stubs)


def _translated(dialect: Dialect, scenario: Scenario) -> tuple[Message, ...]:
    """The first messages of ``scenario`` with their calls and results in ``dialect``."""
    messages: list[Message] = []
    last: Parsed = Malformed("no call")
    for message in scenario.messages:
        if message["role"] == "system":
            text = without_tools(message["content"])
            messages += [{"role": "system", "content": text}] if text else []
        elif message["role"] == "assistant":
            last = parse_reply(message["content"])
            messages.append(dialect.write(last) if isinstance(last, ToolCall) else message)
        elif message["role"] == "tool":
            messages.append(dialect.answer(message["content"], last))
        else:
            messages.append(message)
    return tuple(messages)


def _with_system_text(messages: tuple[Message, ...], text: str) -> tuple[Message, ...]:
    """``messages`` with ``text`` at the end of their system text."""
    if messages[0]["role"] != "system":
        return ({"role": "system", "content": text}, *messages)
    return ({"role": "system", "content": join_system(messages[0]["content"], text)}, *messages[1:])
