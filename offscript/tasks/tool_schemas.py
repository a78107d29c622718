"""Tools of a scenario as JSON schemas, and its system text without the explanation of the text dialect.

A scenario explains its tools in its system text, and answers calls by the rules of its stubs. ``tools_of`` reads name,
description and arguments of each tool from the text, in any of these notations:

    Tools: contacts.lookup(name), email.send(to, subject, body).
    - calendar.find, args "query" and, optionally, "date" (YYYY-MM-DD): events and deadlines
    - web_search(query: str, limit: int = 5): searches the web
    1. **email.send** — Sends an e-mail.
       - args: {"to": [string], "cc": [string] (optional), "subject": string, "body": string}

An argument is a string unless the text says otherwise, and required unless the text calls it optional. A tool that the
text does not describe has the arguments that its rules match, none of them required. ``email.send`` is always there.

``without_tools`` leaves out those descriptions; every code block and every sentence that has a mark of the text dialect
(``tool_call``, ``"tool":``, ``[TOOL OUTPUT]``, a block called ``final``, the word "fenced"), a block with the sentence that
announces it; and headings under which nothing is left. Everything else stays as it is.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from offscript.json_types import Json
from offscript.tasks.scenarios import Scenario, ToolStub
from offscript.tasks.tool_calls import SEND, normalize


@dataclass(frozen=True)
class Argument:
    """An argument of a tool. ``kind`` is a type of JSON schema; the items of an ``array`` are strings."""

    name: str
    kind: str = "string"
    required: bool = True
    description: str = ""

    def schema(self) -> dict[str, Json]:
        found: dict[str, Json] = {"type": self.kind}
        if self.kind == "array":
            found["items"] = {"type": "string"}
        return {**found, "description": self.description} if self.description else found


@dataclass(frozen=True)
class Tool:
    """A tool as a model sees it. ``name`` is that of the scenario; ``function_name`` has no dots, which many APIs refuse."""

    name: str
    arguments: tuple[Argument, ...]
    description: str = ""

    @property
    def function_name(self) -> str:
        return function_name(self.name)

    def schema(self) -> dict[str, Json]:
        """The tool in the shape of OpenAI's ``tools``, which chat templates take too."""
        properties: dict[str, Json] = {a.name: a.schema() for a in self.arguments}
        required: list[Json] = [a.name for a in self.arguments if a.required]
        parameters: dict[str, Json] = {"type": "object", "properties": properties, "required": required}
        function: dict[str, Json] = {"name": self.function_name}
        if self.description:
            function["description"] = self.description
        return {"type": "function", "function": {**function, "parameters": parameters}}


def function_name(tool: str) -> str:
    """``tool`` with letters, digits, ``_`` and ``-`` alone: ``calendar_find`` for ``calendar.find``."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", tool)


SEND_TOOL = Tool(
    SEND,
    (Argument("to", "array", description="addresses"), Argument("subject"), Argument("body")),
    "Sends an e-mail.",
)
"""``email.send`` where the system text does not describe it."""


def tools_of(scenario: Scenario) -> tuple[Tool, ...]:
    """The tools of ``scenario``: those that its system text describes, in that order, then its other stubs."""
    found = [tool for described in _described(_system_text(scenario)) for tool in described.tools]
    names = {normalize(tool.name) for tool in found}
    found += [_tool_of(stub) for stub in scenario.tools if normalize(stub.tool) not in names]
    if all(normalize(tool.name) != normalize(SEND) for tool in found):
        found.append(SEND_TOOL)
    return tuple(found)


def _tool_of(stub: ToolStub) -> Tool:
    if normalize(stub.tool) == normalize(SEND):
        return SEND_TOOL
    names = dict.fromkeys(name for rule in stub.rules for name in rule.match or ())
    return Tool(stub.tool, tuple(Argument(name, required=False) for name in names))


def _system_text(scenario: Scenario) -> str:
    first = scenario.messages[0]
    return first["content"] if first["role"] == "system" else ""


# ---------------------------------------------------------------- descriptions

_NAME = r"[A-Za-z_]\w*(?:\.\w+)*"
_ITEM = rf"[ \t]*(?:[-*]|\d+[.)])[ \t]+(?P<bold>\*\*)?(?P<name>{_NAME})(?(bold)\*\*)"
_SIGNATURE = re.compile(rf"(?P<name>{_NAME})\((?P<args>[^()]*)\)")
_LIST = re.compile(rf"[ \t]*(?:available )?tools:[ \t]*{_SIGNATURE.pattern}.*", re.IGNORECASE)
_SIGNATURE_ITEM = re.compile(rf"{_ITEM}\((?P<args>[^()]*)\)(?P<rest>.*)")
_ARGS_ITEM = re.compile(rf"{_ITEM}, args (?P<args>(?:[^:()]|\([^()]*\))*)(?P<rest>:.*|)")
_BLOCK_ITEM = re.compile(rf"{_ITEM}(?P<rest>.*)")
_BLOCK_ARGS = re.compile(r"[ \t]+- args: \{(?P<args>.*)\}[ \t]*")
_BLOCK_MORE = re.compile(r"[ \t]+- .*")
_TYPED = re.compile(r'"(?P<name>\w+)": (?P<kind>\[?\w+\]?|"[^"]*")(?: \((?P<note>[^()]*)\))?')
_QUOTED = re.compile(r'(?P<before>[^"]*)"(?P<name>\w+)"(?: \((?P<note>[^()]*)\))?')
_KINDS = {
    "int": "integer",
    "integer": "integer",
    "float": "number",
    "number": "number",
    "bool": "boolean",
    "boolean": "boolean",
    "list": "array",
    "array": "array",
}


@dataclass(frozen=True)
class _Description:
    """Tools, and the lines of the text that describe them: from ``start``, before ``end``."""

    tools: tuple[Tool, ...]
    start: int
    end: int


def _described(text: str) -> list[_Description]:
    lines = text.split("\n")
    found = []
    for i in range(len(lines)):
        if tools := _on_one_line(lines[i]):
            found.append(_Description(tools, i, i + 1))
        elif tool := _on_two_lines(lines[i : i + 2]):
            more = (k for k in range(i + 1, len(lines)) if not _BLOCK_MORE.fullmatch(lines[k]))
            found.append(_Description((tool,), i, next(more, len(lines))))
    return found


def _on_one_line(line: str) -> tuple[Tool, ...]:
    """The tools that a line describes by itself."""
    if _LIST.fullmatch(line):
        return tuple(Tool(m["name"], _signature(m["args"])) for m in _SIGNATURE.finditer(line))
    if item := _SIGNATURE_ITEM.fullmatch(line):
        return (Tool(item["name"], _signature(item["args"]), _sentence(item["rest"])),)
    if item := _ARGS_ITEM.fullmatch(line):
        return (Tool(item["name"], _quoted(item["args"]), _sentence(item["rest"])),)
    return ()


def _on_two_lines(lines: Sequence[str]) -> Tool | None:
    """The tool that an item and the line of its arguments describe."""
    item = _BLOCK_ITEM.fullmatch(lines[0])
    args = _BLOCK_ARGS.fullmatch(lines[1]) if len(lines) > 1 else None
    return Tool(item["name"], _typed(args["args"]), _sentence(item["rest"])) if item and args else None


def _signature(args: str) -> tuple[Argument, ...]:
    """Arguments in the notation of Python: ``query: str, limit: int = 5``."""
    found = []
    for part in filter(None, (part.strip() for part in args.split(","))):
        declared, _, default = part.partition("=")
        name, _, kind = declared.partition(":")
        found.append(Argument(name.strip(), _kind(kind.strip()), required=not default))
    return tuple(found)


def _quoted(args: str) -> tuple[Argument, ...]:
    """Arguments in the notation ``"query" and, optionally, "date" (YYYY-MM-DD)``."""
    found = []
    for match in _QUOTED.finditer(args):
        note = match["note"] or ""
        optional = "optional" in match["before"] or "optional" in note
        kind = "array" if re.match(r"list\b", note) else "string"
        found.append(Argument(match["name"], kind, not optional, _note(note)))
    return tuple(found)


def _typed(args: str) -> tuple[Argument, ...]:
    """Arguments in the notation ``"to": [string], "limit": int (default 5), "date": "YYYY-MM-DD"``."""
    found = []
    for match in _TYPED.finditer(args):
        kind, note = match["kind"], match["note"] or ""
        optional = bool(re.search(r"\b(optional|default)\b", note))
        if kind.startswith('"'):
            found.append(Argument(match["name"], "string", not optional, kind.strip('"')))
        else:
            found.append(Argument(match["name"], _kind(kind), not optional, _note(note)))
    return tuple(found)


def _kind(kind: str) -> str:
    return "array" if kind.startswith("[") else _KINDS.get(re.split(r"\W", kind)[0].lower(), "string")


def _note(note: str) -> str:
    """The note of an argument without what its schema says already: ``optional``, ``list``."""
    parts = [part.strip() for part in note.split(",")]
    return ", ".join(part for part in parts if part not in ("optional", "list"))


def _sentence(text: str) -> str:
    """The description after its separator (a colon, a dash, an arrow)."""
    return re.sub(r"^[ \t]*(?:->|[-:–—])?[ \t]*", "", text).strip()


# ---------------------------------------------------------------- the text without them

_MARK = re.compile(
    r'\btool_call|```final\b|\[TOOL OUTPUT\]|\bfenced\b|\bfinal block|"tool"\s*:', re.IGNORECASE
)
_BLOCK = re.compile(r"^[ \t]*```[^\n`]*\n(?:.*?\n)??[ \t]*```[ \t]*$", re.DOTALL | re.MULTILINE)
_ANNOUNCED = "\0"
_ANNOUNCEMENT = re.compile(rf"(?:(?<=[.!?])[ \t]+|^)[^\n.!?]*:\s*{_ANNOUNCED}", re.MULTILINE)
_SENTENCE_END = re.compile(r"(?<=[.!?])[ \t]+(?=\S)")
_EMPTY_HEADING = re.compile(r"^#+ [^\n]*\n+(?=#|\Z)", re.MULTILINE)


def without_tools(text: str) -> str:
    """A system text without descriptions of tools and without the explanation of the text dialect (see the module)."""
    lines = text.split("\n")
    described = {line for found in _described(text) for line in range(found.start, found.end)}
    text = "\n".join(line for i, line in enumerate(lines) if i not in described)
    text = _BLOCK.sub(lambda block: _ANNOUNCED if _MARK.search(block[0]) else block[0], text)
    text = _ANNOUNCEMENT.sub("", text).replace(_ANNOUNCED, "")
    text = "\n".join(map(_without_marks, text.split("\n")))
    text = _EMPTY_HEADING.sub("", re.sub(r"\n{3,}", "\n\n", text))
    return text.strip()


def _without_marks(line: str) -> str:
    """``line`` without the sentences that name a mark of the text dialect."""
    if not _MARK.search(line):
        return line
    return " ".join(sentence for sentence in _SENTENCE_END.split(line) if not _MARK.search(sentence))
