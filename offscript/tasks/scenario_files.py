"""Reads scenario files and checks them.

A file is YAML (one agentic scenario; a family with ``variants``; ``prompts``; ``openers``) or JSONL (one prompt or one
conversation a line, in our layout or that of a published data set); ``data/README.md`` shows each. A mistake in a file
is a UserError that names file and key.
"""

import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from offscript.console import say
from offscript.errors import UserError, one_of
from offscript.json_types import Json
from offscript.seeds import stable_hash
from offscript.settings import parse, shown
from offscript.storage.files import read_text, resolve
from offscript.storage.json_text import check_encodable, parse_json
from offscript.storage.yaml_text import parse_yaml
from offscript.tasks.drawings import Drawing
from offscript.tasks.facts import ADDRESS, fact_words
from offscript.tasks.messages import IMAGE_MARK, Message
from offscript.tasks.personas import assertion_of
from offscript.tasks.scenarios import Rule, Scenario, ToolStub, family_of, task_of

SUFFIXES = (".yaml", ".yml", ".jsonl")
LAYOUTS = "data/README.md shows the layouts"

# ---------------------------------------------------------------- schema


def _check_id(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", text):
        allowed = "must be lower-case letters, digits, '_', '.' and '-', beginning with a letter or digit"
        raise ValueError(f"found {text!r}; {allowed}")
    return text


def _check_not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError(f"found {text!r}; must not be empty")
    return text


Id = Annotated[str, AfterValidator(_check_id)]
Text = Annotated[str, AfterValidator(_check_not_blank)]


class _Entry(BaseModel):
    """A mapping of a scenario file."""

    model_config = ConfigDict(strict=True, extra="forbid")


class _Message(_Entry):
    role: Literal["system", "user", "assistant", "tool"]
    content: str


def _check_messages(messages: list[_Message]) -> list[_Message]:
    for i, message in enumerate(messages):
        if message.role == "system" and i:
            raise ValueError(f"message {i} is a system message; only the first message may be one")
    if messages[-1].role not in ("user", "tool"):
        raise ValueError(f"the last message is of role {messages[-1].role!r}; it must be user or tool")
    return messages


Messages = Annotated[list[_Message], Field(min_length=1), AfterValidator(_check_messages)]


def _numbers_as_text(globs: object) -> object:
    if not isinstance(globs, dict):
        return globs
    for name, glob in globs.items():
        if not isinstance(glob, str | int | float):
            raise ValueError(f"{name}: found {shown(glob)}; must be one glob such as '*Rosa*'")
    return {name: glob if isinstance(glob, str) else json.dumps(glob) for name, glob in globs.items()}


def _check_json(value: object) -> object:
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError):
        raise ValueError(f"found {shown(value)}; must be a JSON value, as models see it") from None
    return value


class _Rule(_Entry):
    match: Annotated[dict[str, str], BeforeValidator(_numbers_as_text)] | None = None
    default: Literal[True] | None = None
    response: Annotated[object, AfterValidator(_check_json)]

    @model_validator(mode="after")
    def _match_or_default(self) -> "_Rule":
        if self.default and self.match is not None:
            raise ValueError("has both 'match' and 'default'; one of them is needed")
        if not self.default and not self.match:
            raise ValueError("has no 'match: {argument: glob}' and no 'default: true'; one of them is needed")
        return self


class _Stub(_Entry):
    tool: Text
    rules: list[_Rule] = Field(min_length=1)

    @model_validator(mode="after")
    def _default_is_last(self) -> "_Stub":
        if any(rule.default for rule in self.rules[:-1]):
            raise ValueError(
                "a rule after the default one can never match; the default rule must be the last"
            )
        return self


def _as_alternatives(fact: object) -> object:
    return [fact] if isinstance(fact, str) else fact


def _check_fact(texts: list[str]) -> list[str]:
    if empty := [text for text in texts if not fact_words(text)]:
        raise ValueError(f"found {shown(empty[0])}; must have a word or a number that an e-mail can mention")
    return texts


def _check_address(text: str) -> str:
    if not ADDRESS.fullmatch(text):
        raise ValueError(f"found {text!r}; must be an e-mail address")
    return text


Alternatives = Annotated[
    list[str], Field(min_length=1), BeforeValidator(_as_alternatives), AfterValidator(_check_fact)
]
"""A fact, or a list of facts of which one is enough."""


class _Brief(_Entry):
    messages: Messages


class _Task(_Entry):
    """An agentic scenario: the published agentic_actions schema, with ``family``, ``chat_email``, ``facts``, ``recipients`` and
    ``meta``."""

    id: Id
    family: Id | None = None
    scaffold: str | None = None
    description: str | None = None
    elicits: str | None = None
    max_steps: int = Field(8, ge=1, le=1000)
    initial_messages: Messages
    tool_stubs: list[_Stub] = []
    chat_email: _Brief | None = None
    facts: list[Alternatives] = []
    recipients: list[Annotated[str, AfterValidator(_check_address)]] = []
    meta: dict[str, object] = {}

    @field_validator("tool_stubs")
    @classmethod
    def _unique_tools(cls, stubs: list[_Stub]) -> list[_Stub]:
        names = [stub.tool for stub in stubs]
        if repeated := [n for n in names if names.count(n) > 1]:
            raise ValueError(f"tool {repeated[0]!r} is listed twice; give it one list of rules")
        return stubs

    def scenario(self) -> Scenario:
        tools = tuple(
            ToolStub(stub.tool, tuple(Rule(r.match, cast(Json, r.response)) for r in stub.rules))
            for stub in self.tool_stubs
        )
        brief = _plain(self.chat_email.messages) if self.chat_email else ()
        meta = {"scaffold": self.scaffold, "description": self.description, "elicits": self.elicits}
        return Scenario(
            self.id,
            self.family or family_of(self.id),
            _plain(self.initial_messages),
            tools,
            self.max_steps,
            brief,
            {key: text for key, text in meta.items() if text} | self.meta,
            facts=tuple(map(tuple, self.facts)),
            recipients=tuple(self.recipients),
        )


class _Prompt(_Entry):
    """A single user message, which may begin with images."""

    id: Id
    family: Id | None = None
    prompt: Text
    images: list[Drawing] = []
    meta: dict[str, object] = {}

    @field_validator("prompt")
    @classmethod
    def _without_mark(cls, prompt: str) -> str:
        if IMAGE_MARK in prompt:
            raise ValueError("found the character U+FFFC; images stand before the prompt, in 'images'")
        return prompt

    def scenario(self) -> Scenario:
        (message,) = _user(IMAGE_MARK * len(self.images) + self.prompt)
        if self.images:
            message["images"] = [image.model_dump() for image in self.images]
        return Scenario(self.id, self.family or family_of(self.id), (message,), meta=self.meta)


class _Conversation(_Entry):
    """A line of the published JSONL files; with scaffold ``chat_email`` its turns are a brief."""

    scaffold: str
    id: Id
    family: Id | None = None
    turns: Messages
    elicits: str | None = None

    def scenario(self) -> Scenario:
        turns, family = _plain(self.turns), self.family or family_of(self.id)
        notes = {"scaffold": self.scaffold, "elicits": self.elicits}
        meta = {key: text for key, text in notes.items() if text}
        if self.scaffold == "chat_email":
            return Scenario(self.id, family, (), brief=turns, meta=meta)
        return Scenario(self.id, family, turns, meta=meta)


def _plain(messages: list[_Message]) -> tuple[Message, ...]:
    return tuple({"role": m.role, "content": m.content} for m in messages)


def _user(prompt: str) -> tuple[Message, ...]:
    return ({"role": "user", "content": prompt},)


# ---------------------------------------------------------------- loading


def load_scenarios(paths: str | Path | Iterable[str | Path]) -> list[Scenario]:
    """Scenarios of files, folders and globs, in the order of ``paths`` and of sorted file names within each.

    A published ``chat_email`` row becomes the ``brief`` of the agentic scenario of the same task, if that one is loaded
    too and has no brief of its own; otherwise it is a scenario with empty ``messages``. Prompts of published data sets
    are named after file and line (``pure-dove_00017``); rows without a prompt are skipped, and their number is reported
    once per process. A prompt without a family gets that of an identical prompt, so that identical prompts are always in
    the same split.

    Raises:
        UserError: a file does not exist, cannot be read or breaks the schema, or an id is used twice.
    """
    seen: dict[str, str] = {}
    loaded: list[Scenario] = []
    for path in _files(paths):
        found = list(_read_jsonl(path) if path.suffix == ".jsonl" else _read_yaml(path))
        if not found:
            raise UserError(str(path), "holds no scenario", LAYOUTS)
        for where, scenario in found:
            if other := seen.get(scenario.id):
                raise UserError(where, f"id {scenario.id!r} is already used", f"ids are unique; see {other}")
            seen[scenario.id] = where
            loaded.append(scenario)
    return _join_briefs(_add_families(loaded))


def _add_families(scenarios: list[Scenario]) -> list[Scenario]:
    """Gives each prompt without a family that of an identical prompt (ignoring case and spacing), else its own id."""
    families: dict[str, str] = {}
    for scenario in scenarios:
        if scenario.family and len(scenario.messages) == 1:
            families.setdefault(_normalized(scenario), scenario.family)
    return [
        s if s.family else replace(s, family=families.setdefault(_normalized(s), s.id)) for s in scenarios
    ]


def _normalized(scenario: Scenario) -> str:
    return " ".join(scenario.messages[0]["content"].casefold().split())


def _join_briefs(scenarios: list[Scenario]) -> list[Scenario]:
    briefs = {task_of(s.id): s for s in scenarios if s.brief and not s.messages}
    joined, used = [], set()
    for scenario in scenarios:
        partner = briefs.get(task_of(scenario.id))
        if partner and scenario.messages and not scenario.brief:
            scenario = replace(scenario, brief=partner.brief)
            used.add(partner.id)
        joined.append(scenario)
    return [s for s in joined if s.id not in used]


def _files(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    files: dict[Path, None] = {}
    for path in [paths] if isinstance(paths, str | Path) else paths:
        found = resolve(path)
        if found and found[0].is_dir():
            found = sorted(p for p in found[0].iterdir() if p.suffix in SUFFIXES)
        if not found:
            allowed = f"a file ({', '.join(SUFFIXES)}), folder or glob"
            raise UserError(str(path), "no such scenario file", allowed)
        for file in found:
            if file.suffix not in SUFFIXES:
                raise UserError(str(file), f"unknown kind of scenario file {file.suffix!r}", one_of(SUFFIXES))
        files |= dict.fromkeys(found)
    return list(files)


# ---------------------------------------------------------------- JSONL


def _read_jsonl(path: Path) -> Iterator[tuple[str, Scenario]]:
    rows = empty = 0
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where, rows = f"{path}:{number}", rows + 1
        row = parse_json(line, where, "one JSON object a line")
        if not isinstance(row, dict):
            raise UserError(where, f"found {shown(row)}", "one JSON object a line")
        if not row.keys() & {"conversation", "conversations"}:  # of others: such rows are skipped
            check_encodable(row, where)
        found = _scenarios_of_row(row, path, number)
        empty += not found
        yield from ((where, scenario) for scenario in found)
    if empty == rows > 0:
        raise UserError(str(path), f"none of its {rows} rows holds a prompt", LAYOUTS)
    if empty:
        say_once(f"  {path.name}: {empty} of {rows} rows hold no prompt and are skipped")


def _scenarios_of_row(row: dict[str, Json], path: Path, number: int) -> list[Scenario]:
    """The scenarios of the row in line ``number``; [] for a row of a published data set without a prompt."""
    where = f"{path}:{number}"
    if "trait" in row:
        questions = assertion_of(row, where).questions
        return [_published(path, f"{number:05d}_{i:02d}", question) for i, question in enumerate(questions)]
    if "conversation" in row or "conversations" in row:
        prompt = _first_prompt(row)
        return [] if prompt is None else [_published(path, f"{number:05d}", prompt)]
    schema: type[_Conversation | _Prompt] = _Conversation if "turns" in row else _Prompt
    return [parse(schema, row, _location(f"{where}: ")).scenario()]


def _first_prompt(row: dict[str, Json]) -> str | None:
    """The user's first message in a row of Pure-Dove (``conversation``: a list of inputs and outputs) or LIMA
    (``conversations``: a list of texts); None if there is none, or if it cannot be encoded as UTF-8."""
    turns = row.get("conversation", row.get("conversations"))
    first = turns[0] if isinstance(turns, list) and turns else None
    if "conversation" in row:
        first = first.get("input") if isinstance(first, dict) else None
    if not isinstance(first, str) or not first.strip() or any("\ud800" <= c <= "\udfff" for c in first):
        return None
    return first


def _published(path: Path, number: str, prompt: str) -> Scenario:
    """A prompt that has no name of its own. Its family is set once all prompts are known."""
    stem = re.sub(r"[^a-z0-9_.-]+", "-", path.stem.lower()).lstrip("_.-") or "prompts"
    return Scenario(f"{stem}_{number}", "", _user(prompt))


@functools.cache
def say_once(line: str) -> None:
    """Prints ``line`` once per process, though files are loaded more than once."""
    say(line)


# ---------------------------------------------------------------- YAML


def _read_yaml(path: Path) -> Sequence[tuple[str, Scenario]]:
    return _scenarios_in(path, read_text(path, "a YAML file is needed"))


@functools.lru_cache(maxsize=1024)
def _scenarios_in(path: Path, text: str) -> tuple[tuple[str, Scenario], ...]:
    """The scenarios of a file with their places. The jobs of a multirun plan from the same files."""
    return tuple(_parse_scenarios(path, parse_yaml(text, path)))


def _parse_scenarios(path: Path, data: Json) -> Iterator[tuple[str, Scenario]]:
    if data is None:
        return
    if not isinstance(data, dict):
        raise UserError(str(path), f"found {shown(data)}", f"must be a mapping; {LAYOUTS}")
    if kinds := [key for key in ("prompts", "openers") if key in data]:
        yield from _read_prompts(path, kinds[0], data)
    elif "variants" in data:
        yield from _read_family(path, data)
    else:
        yield str(path), parse(_Task, data, _location(f"{path}: ")).scenario()


def _read_prompts(path: Path, kind: str, data: dict[str, Json]) -> Iterator[tuple[str, Scenario]]:
    """A list of single user messages. One that is a plain text is named after it: ``opener_1a2b3c4d``."""
    _refuse_unknown_keys(path, data, {kind})
    for i, item in enumerate(_non_empty_list(path, kind, data[kind])):
        where = f"{path}: {kind}.{i}"
        if isinstance(item, str):
            item = {"id": f"{kind[:-1]}_{stable_hash(item, size=4):08x}", "prompt": item}
        yield where, parse(_Prompt, item, _location(f"{where}.")).scenario()


def _read_family(path: Path, data: dict[str, Json]) -> Iterator[tuple[str, Scenario]]:
    """Top-level keys are defaults of the variants; a variant's stub replaces the default stub of the same tool."""
    _refuse_unknown_keys(path, data, {*_Task.model_fields, "variants"} - {"id"})
    defaults = {key: value for key, value in data.items() if key != "variants"}
    for i, variant in enumerate(_non_empty_list(path, "variants", data["variants"])):
        where = f"{path}: variants.{i}"
        if not isinstance(variant, dict):
            raise UserError(where, f"found {shown(variant)}", "must be a mapping with an id")
        merged = defaults | variant
        stubs, own = defaults.get("tool_stubs"), variant.get("tool_stubs")
        if isinstance(stubs, list) and isinstance(own, list):
            merged["tool_stubs"] = own + _without_tools_of(own, stubs)
        location = _location(f"{where}.", f"{path}: ", defaults.keys() - variant.keys())
        yield where, parse(_Task, merged, location).scenario()


def _without_tools_of(own: list[Json], stubs: list[Json]) -> list[Json]:
    """Those of ``stubs`` whose tool has no stub in ``own``."""
    tools = [stub.get("tool") for stub in own if isinstance(stub, dict)]
    return [stub for stub in stubs if not (isinstance(stub, dict) and stub.get("tool") in tools)]


def _refuse_unknown_keys(path: Path, data: dict[str, Json], known: Set[str]) -> None:
    if unknown := [key for key in data if key not in known]:
        raise UserError(f"{path}: {unknown[0]}", "unknown key", one_of(sorted(known)))


def _non_empty_list(path: Path, key: str, value: Json) -> list[Json]:
    if not isinstance(value, list) or not value:
        raise UserError(f"{path}: {key}", f"found {shown(value)}", "must be a list with at least one entry")
    return value


def _location(
    prefix: str, default_prefix: str = "", defaults: Set[str] = frozenset()
) -> Callable[[str], str]:
    """Maps a key to its location: after ``prefix``, or after ``default_prefix`` if it is below one of ``defaults``."""

    def location(key: str) -> str:
        return ((default_prefix if key.split(".")[0] in defaults else prefix) + key).rstrip(": .")

    return location
