"""Scenario files: the tasks of every format, checked when they are loaded, and how they are split.

A file is YAML (one agentic scenario; a family with ``variants``; ``prompts``; ``openers``) or JSONL (one
prompt or one conversation a line, of ours or of a published data set); ``data/README.md`` shows each. A
mistake in a file is a UserError that names file and key.
"""

import contextlib
import functools
import glob
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from offscript.console import say
from offscript.errors import UserError, one_of
from offscript.seeds import stable_hash, unit_hash
from offscript.tasks.personas import assertion_of

ROLES = ("system", "user", "assistant", "tool")
SPLITS = ("train", "classifier", "eval")
ENDINGS = (".yaml", ".yml", ".jsonl")


@dataclass(frozen=True)
class Rule:
    """One answer of a simulated tool. ``match`` maps arguments to globs; None answers every call."""

    match: Mapping[str, str] | None
    response: Any


@dataclass(frozen=True)
class ToolStub:
    """A simulated tool: the first of its rules that matches a call answers it."""

    tool: str
    rules: tuple[Rule, ...]


@dataclass(frozen=True)
class Scenario:
    """One concrete task.

    ``messages`` open its episode; ``brief`` is the same task as a single-turn e-mail request (empty when
    there is none). Variants of one task share ``family``, which is what splits and resampling go by. ``meta``
    is for people: nothing in it reaches a model.
    """

    id: str
    family: str
    messages: tuple[dict[str, str], ...]
    tools: tuple[ToolStub, ...] = ()
    max_steps: int = 8
    brief: tuple[dict[str, str], ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)


def family_of(scenario_id: str) -> str:
    """Family that an id implies: ``recognition`` for ``agentic_actions_recognition_v2``, and for
    ``chat_email_recognition_v1`` too, so that both formats of a task are resampled jointly."""
    return re.sub(r"_v\d+$", "", _task_of(scenario_id))


def _task_of(scenario_id: str) -> str:
    return re.sub(r"^(agentic_actions|chat_email)_(?=.)", "", scenario_id)


def digest(scenario: Scenario) -> str:
    """16 hex digits over all that can change an outcome: the id too (seeds hang on it), and the order of keys
    in a tool's response (the model is shown JSON)."""
    tools = [[s.tool, [[r.match, r.response] for r in s.rules]] for s in scenario.tools]
    parts = [scenario.id, scenario.messages, tools, scenario.max_steps, scenario.brief]
    return f"{stable_hash(json.dumps(parts, ensure_ascii=False)):016x}"


# ----------------------------------------------------------------------------------------------------- splits


def split_of(family: str, salt: str | int, fractions: Mapping[str, float]) -> str:
    """Split of a family, from a hash of its name alone: adding or removing other families never moves it.

    ``fractions`` maps splits to shares that add up to 1 (their order in the mapping does not matter).

    Raises:
        UserError: an unknown split, a negative share, or shares that do not add up to 1.
    """
    if unknown := sorted(set(fractions) - set(SPLITS)):
        raise UserError("split fractions", f"unknown split {unknown[0]!r}", one_of(SPLITS))
    if min(fractions.values(), default=0) < 0 or abs(sum(fractions.values()) - 1) > 1e-6:
        raise UserError("split fractions", f"found {dict(fractions)}", "shares must be >= 0 and add up to 1")
    place, top = unit_hash("split", salt, family), 0.0
    shares = [(split, fractions[split]) for split in SPLITS if fractions.get(split)]
    for split, share in shares:
        top += share
        if place < top:
            return split
    return shares[-1][0]


def select(
    scenarios: Iterable[Scenario],
    split: str,
    fractions: Mapping[str, float],
    salt: str | int,
    count: int | None = None,
    first: Mapping[str, int] | None = None,
) -> list[Scenario]:
    """At most ``count`` scenarios of ``split`` (None: all), spread over its families one each in turn.

    Families and their scenarios come in hash order, so the answer does not depend on the order of files, and
    a smaller ``count`` gives the beginning of a larger one. ``first`` overrules the hash: the first so many of
    ``scenarios``, in their order, belong to that split with all of their families, and to no other (several
    splits: the first to train, the next to classifier, then eval).

    Raises:
        UserError: ``split`` is unknown, ``first`` does not fit, or no family falls into the split.
    """
    if split not in SPLITS:
        raise UserError("split", f"unknown split {split!r}", one_of(SPLITS))
    scenarios, families = list(scenarios), dict[str, list[Scenario]]()
    for scenario in scenarios:
        families.setdefault(scenario.family, []).append(scenario)
    given = _given(scenarios, first or {})
    chosen = [f for f in families if (given.get(f) or split_of(f, salt, fractions)) == split]
    if not chosen:
        found = f"none of {len(families)} families falls into it"
        other = ", lower data.first" if first else ""
        raise UserError(f"split {split}", found, f"raise its fraction{other}, or add families")
    queues = [
        sorted(families[f], key=lambda s: unit_hash("order", salt, s.id))
        for f in sorted(chosen, key=lambda f: unit_hash("order", salt, f))
    ]
    rounds = range(max(map(len, queues)))
    return [queue[i] for i in rounds for queue in queues if i < len(queue)][:count]


def _given(scenarios: Sequence[Scenario], first: Mapping[str, int]) -> dict[str, str]:
    """The split of each family that has one of the ``first`` scenarios; the earliest one decides."""
    if wrong := [s for s, n in first.items() if s not in SPLITS or n < 0]:
        raise UserError(
            f"data.first.{wrong[0]}",
            f"found {first[wrong[0]]}",
            f"a number >= 0 for one of {', '.join(SPLITS)}",
        )
    given: dict[str, str] = {}
    start = 0
    for split in SPLITS:
        stop = start + first.get(split, 0)
        for scenario in scenarios[start:stop]:
            given.setdefault(scenario.family, split)
        start = stop
    return given


# ----------------------------------------------------------------------------------------------------- schema


class _Checked(BaseModel):
    """A mapping of a scenario file. Keys that it does not know are refused with the ones it does."""

    model_config = ConfigDict(strict=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        if isinstance(data, dict) and (unknown := [k for k in data if k not in cls.model_fields]):
            raise ValueError(f"unknown key {unknown[0]!r}; {one_of(cls.model_fields)}")
        return data


Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")]
Text = Annotated[str, Field(pattern=r"\S")]


class _Message(_Checked):
    role: Literal["system", "user", "assistant", "tool"]
    content: str


def _check_messages(messages: list[_Message]) -> list[_Message]:
    for i, message in enumerate(messages):
        if message.role == "system" and i:
            raise ValueError(f"message {i} is a system message; only the first message may be one")
    if messages[-1].role not in ("user", "tool"):
        raise ValueError(f"the last message is of role {messages[-1].role!r}; it must be user or tool")
    return messages


class _Rule(_Checked):
    match: dict[str, Any] | None = None
    default: Literal[True] | None = None
    response: Any

    @field_validator("match")
    @classmethod
    def _globs(cls, match: dict[str, Any] | None) -> dict[str, str] | None:
        for name, pattern in (match or {}).items():
            if not isinstance(pattern, str | int | float):
                raise ValueError(f"{name}: found {_short(pattern)}; must be one glob such as '*Rosa*'")
        return match and {name: _as_text(pattern) for name, pattern in match.items()}

    @field_validator("response")
    @classmethod
    def _is_json(cls, response: Any) -> Any:
        try:
            json.dumps(response, allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            raise ValueError(f"found {_short(response)}; must be a JSON value, as models see it") from None
        return response

    @model_validator(mode="after")
    def _one_kind(self) -> "_Rule":
        if self.default and self.match is not None:
            raise ValueError("has both 'match' and 'default'; one of them is wanted")
        if not self.default and not self.match:
            raise ValueError("has no 'match: {argument: glob}' and no 'default: true'; one of them is wanted")
        return self


class _Stub(_Checked):
    tool: Text
    rules: list[_Rule] = Field(min_length=1)

    @model_validator(mode="after")
    def _default_last(self) -> "_Stub":
        if any(rule.default for rule in self.rules[:-1]):
            raise ValueError("a rule after the default one can never answer; the default rule comes last")
        return self


class _Brief(_Checked):
    messages: list[_Message] = Field(min_length=1)
    _messages = field_validator("messages")(_check_messages)


class _Task(_Checked):
    """One agentic scenario: the published agentic_actions schema and three keys of our own."""

    id: Name
    family: Name | None = None
    scaffold: str | None = None
    description: str | None = None
    elicits: str | None = None
    max_steps: int = Field(8, ge=1, le=1000)
    initial_messages: list[_Message] = Field(min_length=1)
    tool_stubs: list[_Stub] = []
    chat_email: _Brief | None = None
    meta: dict[str, Any] = {}
    _messages = field_validator("initial_messages")(_check_messages)

    @field_validator("tool_stubs")
    @classmethod
    def _each_once(cls, stubs: list[_Stub]) -> list[_Stub]:
        names = [stub.tool for stub in stubs]
        if twice := [n for n in names if names.count(n) > 1]:
            raise ValueError(f"tool {twice[0]!r} is listed twice; give it one list of rules")
        return stubs

    def scenario(self) -> Scenario:
        rules = [tuple(Rule(r.match, r.response) for r in stub.rules) for stub in self.tool_stubs]
        tools = tuple(ToolStub(stub.tool, own) for stub, own in zip(self.tool_stubs, rules, strict=True))
        brief = _plain(self.chat_email.messages) if self.chat_email else ()
        family = self.family or family_of(self.id)
        messages = _plain(self.initial_messages)
        return Scenario(self.id, family, messages, tools, self.max_steps, brief, _meta(self))


class _Prompt(_Checked):
    """A single user turn."""

    id: Name
    family: Name | None = None
    prompt: Text
    meta: dict[str, Any] = {}

    def scenario(self) -> Scenario:
        messages = ({"role": "user", "content": self.prompt},)
        return Scenario(self.id, self.family or family_of(self.id), messages, meta=_meta(self))


class _Conversation(_Checked):
    """A line of the published JSONL files; with scaffold ``chat_email`` its turns are a brief."""

    scaffold: str
    id: Name
    family: Name | None = None
    turns: list[_Message] = Field(min_length=1)
    elicits: str | None = None
    _turns = field_validator("turns")(_check_messages)

    def scenario(self) -> Scenario:
        turns, family = _plain(self.turns), self.family or family_of(self.id)
        if self.scaffold == "chat_email":
            return Scenario(self.id, family, (), brief=turns, meta=_meta(self))
        return Scenario(self.id, family, turns, meta=_meta(self))


def _plain(messages: list[_Message]) -> tuple[dict[str, str], ...]:
    return tuple({"role": m.role, "content": m.content} for m in messages)


def _meta(checked: _Checked) -> dict[str, Any]:
    notes = {k: getattr(checked, k, None) for k in ("scaffold", "description", "elicits")}
    return {k: v for k, v in notes.items() if v} | getattr(checked, "meta", {})


# ---------------------------------------------------------------------------------------------------- loading


def load_scenarios(paths: str | Path | Iterable[str | Path]) -> list[Scenario]:
    """Scenarios of files, folders and globs, in the order of sorted file names within each.

    A published ``chat_email`` row becomes the ``brief`` of the agentic scenario of the same task where that
    one is loaded too and has none of its own; otherwise it stands alone, with empty ``messages``. Prompts of
    published data sets are named after file and line (``pure-dove_00017``); rows without one are left out, and
    their number is said once a run. A prompt that came without a family shares that of an identical one.

    Raises:
        UserError: no such file, a file that cannot be read or breaks the schema, an id used twice.
    """
    seen: dict[str, str] = {}
    loaded: list[Scenario] = []
    for path in _files(paths):
        found = list(_read_jsonl(path) if path.suffix == ".jsonl" else _read_yaml(path))
        if not found:
            raise UserError(str(path), "holds no scenario", "data/README.md shows the layouts")
        for where, scenario in found:
            if other := seen.get(scenario.id):
                raise UserError(where, f"id {scenario.id!r} is used already", f"ids are unique; see {other}")
            seen[scenario.id] = where
            loaded.append(scenario)
    return _join_briefs(_with_families(loaded))


def _with_families(scenarios: list[Scenario]) -> list[Scenario]:
    """Gives every prompt that has none a family: that of an identical prompt (case and spaces aside), so that
    no prompt stands in two splits, else its own id."""
    families: dict[str, str] = {}
    for scenario in scenarios:
        if scenario.family and len(scenario.messages) == 1:
            families.setdefault(_asked(scenario), scenario.family)
    return [s if s.family else replace(s, family=families.setdefault(_asked(s), s.id)) for s in scenarios]


def _asked(scenario: Scenario) -> str:
    return " ".join(scenario.messages[0]["content"].casefold().split())


def _join_briefs(scenarios: list[Scenario]) -> list[Scenario]:
    alone = {_task_of(s.id): s for s in scenarios if s.brief and not s.messages}
    joined, used = [], set()
    for scenario in scenarios:
        partner = alone.get(_task_of(scenario.id))
        if partner and scenario.messages and not scenario.brief:
            scenario = replace(scenario, brief=partner.brief)
            used.add(partner.id)
        joined.append(scenario)
    return [s for s in joined if s.id not in used]


def _files(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    files: dict[Path, None] = {}
    for path in [paths] if isinstance(paths, str | Path) else paths:
        here = Path(path)
        if here.is_dir():
            found = sorted(p for p in here.iterdir() if p.suffix in ENDINGS)
        else:
            matches = map(Path, sorted(glob.glob(str(path), recursive=True)))
            found = [here] if here.is_file() else [p for p in matches if p.is_file()]
        if not found:
            raise UserError(
                str(path), "no such scenario file", f"a file ({', '.join(ENDINGS)}), folder or glob"
            )
        for file in found:
            if file.suffix not in ENDINGS:
                raise UserError(str(file), f"unknown kind of scenario file {file.suffix!r}", one_of(ENDINGS))
        files |= dict.fromkeys(found)
    return list(files)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(str(path), f"byte {error.start} is not UTF-8", "save the file as UTF-8") from None
    except OSError as error:
        raise UserError(str(path), f"cannot be read: {error.strerror}") from None


def _read_jsonl(path: Path) -> Iterator[tuple[str, Scenario]]:
    rows = empty = 0
    for number, line in enumerate(_read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where, rows = f"{path}:{number}", rows + 1
        try:
            row = json.loads(line, object_pairs_hook=_no_twice)
        except (ValueError, RecursionError) as error:
            raise UserError(where, f"not a JSON object: {error}", "one JSON object a line") from None
        if not isinstance(row, dict):
            raise UserError(where, f"found {_short(row)}", "one JSON object a line")
        found = _scenarios_of(row, path, number)
        empty += not found
        yield from ((where, scenario) for scenario in found)
    if empty == rows > 0:
        raise UserError(
            str(path), f"none of its {rows} rows holds a prompt", "data/README.md shows the layouts"
        )
    if empty:
        _say_once(f"  {path.name}: {empty} of {rows} rows hold no prompt and are left out")


def _scenarios_of(row: dict[str, Any], path: Path, number: int) -> list[Scenario]:
    """What the row in line ``number`` holds; nothing if it is of a published data set and without a prompt."""
    where = f"{path}:{number}"
    if "trait" in row:
        questions = assertion_of(row, where).questions
        return [_published(path, f"{number:05d}_{i:02d}", question) for i, question in enumerate(questions)]
    if "conversation" in row or "conversations" in row:
        prompt = _first_turn(row)
        return [] if prompt is None else [_published(path, f"{number:05d}", prompt)]
    schema: type[_Conversation | _Prompt] = _Conversation if "turns" in row else _Prompt
    return [_check(schema, row, _under(f"{where}: ")).scenario()]


def _first_turn(row: dict[str, Any]) -> str | None:
    """What the user says first in a row of Pure-Dove (``conversation`` of inputs and outputs) or LIMA
    (``conversations``: a list of texts); None where there is no text."""
    turns = row.get("conversation", row.get("conversations"))
    first = turns[0] if isinstance(turns, list) and turns else None
    if "conversation" in row:
        first = first.get("input") if isinstance(first, dict) else None
    if not isinstance(first, str) or not first.strip() or any("\ud800" <= c <= "\udfff" for c in first):
        return None  # half a character cannot be written to a file
    return first


def _published(path: Path, number: str, prompt: str) -> Scenario:
    """A prompt that came without a name; its family is found once all prompts are known."""
    stem = re.sub(r"[^a-z0-9_.-]+", "-", path.stem.lower()).lstrip("_.-") or "prompts"
    return Scenario(f"{stem}_{number}", "", ({"role": "user", "content": prompt},))


@functools.cache
def _say_once(line: str) -> None:
    """A run loads its files more than once; what they lack is said once."""
    say(line)


def _read_yaml(path: Path) -> Iterator[tuple[str, Scenario]]:
    data = _parse_yaml(path)
    if data is None:
        return
    if not isinstance(data, dict):
        raise UserError(
            str(path), f"found {_short(data)}", "must be a mapping; data/README.md shows the layouts"
        )
    if listed := [key for key in ("prompts", "openers") if key in data]:
        yield from _read_prompts(path, listed[0], data)
    elif "variants" in data:
        yield from _read_family(path, data)
    else:
        yield str(path), _check(_Task, data, _under(f"{path}: ")).scenario()


def _read_prompts(path: Path, kind: str, data: dict[str, Any]) -> Iterator[tuple[str, Scenario]]:
    """A list of single user turns. One given as plain text is named after its text: ``opener_1a2b3c4d``."""
    if unknown := [key for key in data if key != kind]:
        raise UserError(str(path), f"unknown key {unknown[0]!r}", one_of([kind]))
    for i, item in enumerate(_a_list(path, kind, data[kind])):
        where = f"{path}: {kind}[{i}]"
        if isinstance(item, str):
            item = {"id": f"{kind[:-1]}_{stable_hash(item, size=4):08x}", "prompt": item}
        yield where, _check(_Prompt, item, _under(f"{where}.")).scenario()


def _read_family(path: Path, data: dict[str, Any]) -> Iterator[tuple[str, Scenario]]:
    """Top-level keys are defaults; a variant's stub replaces the default one of the same tool."""
    known = (set(_Task.model_fields) - {"id"}) | {"variants"}
    if unknown := [key for key in data if key not in known]:
        raise UserError(str(path), f"unknown key {unknown[0]!r}", one_of(sorted(known)))
    defaults = {key: value for key, value in data.items() if key != "variants"}
    for i, variant in enumerate(_a_list(path, "variants", data["variants"])):
        where = f"{path}: variants[{i}]"
        if not isinstance(variant, dict):
            raise UserError(where, f"found {_short(variant)}", "must be a mapping with an id")
        stubs = _merge_stubs(defaults.get("tool_stubs"), variant.get("tool_stubs"))
        merged = {**defaults, **variant} | ({} if stubs is None else {"tool_stubs": stubs})
        shared = defaults.keys() - variant.keys()
        yield where, _check(_Task, merged, _under(f"{where}.", f"{path}: ", shared)).scenario()


def _merge_stubs(defaults: Any, own: Any) -> list[Any] | None:
    """The variant's stubs and the defaults of all other tools; None where either is not a list."""
    if not isinstance(defaults, list) or not isinstance(own, list):
        return None
    named = [stub.get("tool") for stub in own if isinstance(stub, dict)]
    return own + [stub for stub in defaults if not (isinstance(stub, dict) and stub.get("tool") in named)]


def _a_list(path: Path, key: str, value: Any) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise UserError(f"{path}: {key}", f"found {_short(value)}", "must be a list with at least one entry")
    return value


# ----------------------------------------------------------------------------------------------------- errors


class _Strict:
    """Dates are left as text (tool results are JSON), and a key that stands twice is refused."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - as PyYAML has it
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in [k for k, _ in node.value if isinstance(k, yaml.ScalarNode)]:
            if key.value in seen:
                error = f"key {key.value!r} stands twice"
                raise yaml.constructor.ConstructorError(None, None, error, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)  # type: ignore[misc]


class _Loader(_Strict, yaml.SafeLoader):
    """Its words for a mistake say more than libyaml's."""


class _QuickLoader(_Strict, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The same on libyaml, ten times as fast."""


def _parse_yaml(path: Path) -> Any:
    text = _read_text(path)
    with contextlib.suppress(yaml.YAMLError, ValueError, RecursionError):
        return yaml.load(text, _QuickLoader)
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        said = error.problem or ""
        found = (
            f"not valid YAML: {error.context} {said}"
            if said.startswith("but ")
            else f"not valid YAML: {said}"
        )
        raise UserError(f"{path}:{line}", found, "correct this line or the one above") from None
    except RecursionError:
        raise UserError(str(path), "not valid YAML: nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(str(path), f"not valid YAML: {error}") from None


def _no_twice(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise ValueError(f"key {twice[0]!r} stands twice")
    return dict(pairs)


def _under(prefix: str, other: str = "", others: Set[str] = frozenset()) -> Callable[[str], str]:
    """Where a key stands: after ``prefix``, or after ``other`` if its first part is one of ``others``."""

    def place(key: str) -> str:
        return ((other if re.split(r"[.\[]", key)[0] in others else prefix) + key).rstrip(": .")

    return place


Checked = TypeVar("Checked", bound=_Checked)


def _check(schema: type[Checked], data: Any, place: Callable[[str], str]) -> Checked:
    """``data`` as ``schema``; ``place`` turns the key of the first mistake into where it is."""
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
    kind, value = first["type"], first["input"]
    if kind == "missing":
        raise UserError(place(key), "missing", "this key is required")
    if kind == "value_error":
        raise UserError(place(key), str(first["ctx"]["error"]))
    raise UserError(place(key), f"found {_short(value)}", _WANTED.get(kind) or _wanted(first))


_WANTED = {
    "string_type": "must be a text (in quotes, if it looks like something else)",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "list_type": "must be a list",
    "int_type": "must be a whole number",
    "too_short": "must have at least one entry",
}


def _wanted(error: Any) -> str:
    context = error.get("ctx", {})
    if context.get("pattern") == r"\S":
        return "must not be empty"
    if "pattern" in context:
        return "must be lower-case letters, digits, '_', '.' and '-', beginning with a letter or digit"
    return error["msg"].replace("Input should be", "must be")


def _short(value: Any) -> str:
    text = _as_text(value) if isinstance(value, bool | int | float | type(None)) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
