"""What an e-mail of a scenario has to mention: numbers, times, dates, codes and proper names of its brief.

A scenario may list its ``facts``. Otherwise they are derived by a rule, from the request and the records of the brief (from
the responses of the tools where there is no brief):

- a number (``twenty``, ``1,250``, ``42k``), a clock time (``15:00``, ``3 pm``), a code that has a digit (``26-1187``, ``C75``), a
  weekday, a month, a day of a month; years and the word ``one`` are left out;
- a proper name: capitalized words in a row. The first word of a sentence counts only if it is capitalized within a sentence
  elsewhere, and words in capitals alone do not count. Half of the words of a name are enough;
- not: a line (or a response) with an e-mail address, which describes a person, and the names in it; the speaker in brackets
  before a message (``(#sales, ada): ...``); names in the system text, where the writer and the company stand; what stands below
  a heading that names policies, which are for the writer; a fact whose words are among those of another.

An e-mail mentions a fact if it has its words, in any case and order, with numbers, times and dates in any notation.
"""

import functools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from offscript.json_types import Json
from offscript.tasks.scenarios import Scenario

ADDRESS = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")

_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_MONTHS = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
]
_SMALL = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_NUMBERS = {word: i for i, word in enumerate(_SMALL)} | {word: 10 * i for i, word in enumerate(_TENS, 2)}
_ABBREVIATED = {name[:3].capitalize(): name for name in (*_WEEKDAYS, *_MONTHS)} | {"Sept": "september"}
_SCALES = {"k": 1000, "m": 1_000_000}

_TOKEN = re.compile(
    r"(?P<iso>(?<![\w-])\d{4}-(?P<month>\d\d)-(?P<day>\d\d)(?![\w-]))"
    r"|(?P<half>(?<!\w)(?P<h12>\d{1,2})(?:[:.](?P<m12>\d\d))?\s?(?P<am>[aApP])\.?[mM]\b)"
    r"|(?P<clock>(?<!\w)(?P<h24>\d{1,2}):(?P<m24>\d\d)(?!\d))"
    r"|(?P<number>(?<!\w)(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?)(?P<suffix>[kKmM]|st|nd|rd|th)?(?![\w]|-\w)"
    r"|(?P<word>[^\W_]+(?:[-'’][^\W_]+)*)"
)
_QUANTITY = re.compile(r"\d+(?:-[a-z]{3,})+")
_YEAR = re.compile(r"(?:19|20)\d\d")
_FIGURES = frozenset({"number", "time", "code"})
_DATE_JOINT = re.compile(r"\s+(?:of\s+|the\s+)*", re.IGNORECASE)
_RULES = re.compile(r"(?![\s*-]*[*-]).*\b(?:polic(?:y|ies)|handbook|procedures)\b[\w ]*:?\s*", re.IGNORECASE)
_SPEAKER = re.compile(r"[\s*-]*\([^()]*\):")
_SENTENCE_START = re.compile(r"(?:^|[.!?:;—(\"“'‘]\s*)[\s*>#•-]*(?:\d+[.)]\s+)?\Z")


@dataclass(frozen=True)
class Fact:
    """``needed`` of ``words`` must stand in an e-mail that mentions it; the words are those of ``fact_words``."""

    words: frozenset[str]
    needed: int

    def is_in(self, words: frozenset[str]) -> bool:
        return len(self.words & words) >= self.needed


Alternatives = tuple[Fact, ...]
"""A fact that an e-mail mentions if it mentions one of them."""


def share_of_facts(facts: Sequence[Alternatives], text: str) -> float:
    """The share of ``facts`` (at least one) that ``text`` mentions."""
    words = fact_words(text)
    return sum(any(fact.is_in(words) for fact in alternatives) for alternatives in facts) / len(facts)


def fact_words(text: str) -> frozenset[str]:
    """The words of ``text`` in lower case, with numbers, times and dates in one notation.

    ``Twenty-four`` and ``24`` are ``24``, ``$42k`` is ``42000``, ``3 pm`` is ``15:00``, ``2026-10-09`` is ``9`` and ``october``.
    """
    return _read_text(text)[0]


def figures_of(text: str) -> frozenset[str]:
    """The numbers, clock times and codes in ``text``, as in ``fact_words``; without the word ``one`` and years."""
    return _read_text(text)[1]


# An e-mail is read for its facts and for its figures.
@functools.lru_cache(maxsize=4)
def _read_text(text: str) -> tuple[frozenset[str], frozenset[str]]:
    """``fact_words`` and ``figures_of``."""
    words, figures = set[str](), set[str]()
    for match in _TOKEN.finditer(text):
        kind, found = _read(match)
        words.update(found)
        if kind in _FIGURES and not _is_year_or_one(match[0]):
            figures.add(found[0])
    return frozenset(words), frozenset(figures)


def words_shown(scenario: Scenario) -> frozenset[str]:
    """The words of everything that a model can see of ``scenario``: messages, brief and responses of tools."""
    shown = [message["content"] for message in (*scenario.messages, *scenario.brief)]
    return fact_words("\n".join([*shown, *_responses(scenario)]))


def facts_of(scenario: Scenario) -> tuple[Alternatives, ...]:
    """The facts of ``scenario``: those that it lists, else those of the rule, in order; empty if there are none."""
    if scenario.facts:
        return tuple(tuple(_listed(text) for text in alternatives) for alternatives in scenario.facts)
    return _derived(scenario, _records(scenario))


def facts_of_request(scenario: Scenario) -> tuple[Alternatives, ...]:
    """The facts of the rule in the user's request alone, for a format that gives no records."""
    return _derived(scenario, [request_of(scenario)])


def request_of(scenario: Scenario) -> str:
    """The last message of the user in the agentic form of a scenario, else in its brief; "" if there is none."""
    users = [m["content"] for m in (scenario.messages or scenario.brief) if m["role"] == "user"]
    return users[-1] if users else ""


def _listed(text: str) -> Fact:
    words = fact_words(text)
    return Fact(words, len(words))


def _records(scenario: Scenario) -> list[str]:
    """Request and records, one a line."""
    if scenario.brief:
        lines = [line for m in scenario.brief if m["role"] == "user" for line in m["content"].split("\n")]
        return list(_without_rules(lines))
    return [request_of(scenario), *_responses(scenario)]


def _responses(scenario: Scenario) -> list[str]:
    """The texts of all responses of the tools, each once."""
    responses = (rule.response for stub in scenario.tools for rule in stub.rules)
    return list(dict.fromkeys(line for response in responses for line in _texts(response)))


def _without_rules(lines: Sequence[str]) -> Iterator[str]:
    """``lines`` without the paragraphs below a heading that names policies."""
    inside = False
    for line in lines:
        inside = (inside or bool(_RULES.fullmatch(line))) and bool(line.strip())
        if not inside:
            yield line


def _texts(response: Json) -> Iterator[str]:
    """The texts of a tool's response; of an object with an address, which describes a person, all in one."""
    if isinstance(response, str):
        yield response
    elif isinstance(response, list):
        for item in response:
            yield from _texts(item)
    elif isinstance(response, dict) and "error" not in response:
        if any(isinstance(value, str) and ADDRESS.fullmatch(value.strip()) for value in response.values()):
            yield json.dumps(response, ensure_ascii=False)
        else:
            for value in response.values():
                yield from _texts(value)


def contact_lines(scenario: Scenario) -> list[str]:
    """The lines of the brief, and the texts of responses, that hold an e-mail address."""
    return [line for line in (*_records(scenario), *_responses(scenario)) if ADDRESS.search(line)]


# ---------------------------------------------------------------- the rule


@dataclass(frozen=True)
class _Token:
    """A piece of a text. ``kind``: number, time, date, code, weekday, month or word; ``words`` are those of ``fact_words``."""

    kind: str
    words: tuple[str, ...]
    raw: str
    start: int
    end: int


def _tokens(text: str) -> Iterator[_Token]:
    for match in _TOKEN.finditer(text):
        kind, words = _read(match)
        yield _Token(kind, words, match[0], match.start(), match.end())


def _read(match: re.Match[str]) -> tuple[str, tuple[str, ...]]:
    if (word := match["word"]) is not None:
        return _read_word(word)
    if match["number"] is not None:
        value = float(match["number"].replace(",", "")) * _SCALES.get((match["suffix"] or "").lower(), 1)
        return "number", (f"{value:.10g}",)
    if match["iso"] is not None:
        month = int(match["month"])
        return "date", (str(int(match["day"])), *_MONTHS[month - 1 : month])
    if match["clock"] is not None:
        return "time", (f"{int(match['h24']):02}:{match['m24']}",)
    hour = int(match["h12"]) % 12 + (12 if match["am"] in "pP" else 0)
    return "time", (f"{hour:02}:{match['m12'] or '00'}",)


@functools.lru_cache(maxsize=2**16)
def _read_word(word: str) -> tuple[str, tuple[str, ...]]:
    raw = re.sub(r"['’]s?\Z", "", word)
    lower = _ABBREVIATED.get(raw, raw.lower())
    # "May" is a month, "may" is not.
    if raw[:1].isupper() and (lower in _WEEKDAYS or lower in _MONTHS):
        return ("weekday" if lower in _WEEKDAYS else "month"), (lower,)
    parts = tuple(lower.split("-"))
    if re.search(r"\d", lower):
        return ("number", parts) if _QUANTITY.fullmatch(lower) else ("code", (lower,))
    if parts[0] in _NUMBERS:
        # "twenty-four" is 24; "four-hour" has a 4.
        unit = _NUMBERS.get(parts[1], 10) if len(parts) > 1 and parts[0] in _TENS else 10
        value, rest = _NUMBERS[parts[0]], parts[1:]
        return "number", (str(value + unit), *rest[1:]) if unit < 10 else (str(value), *rest)
    return "word", (lower, *parts) if len(parts) > 1 else (lower,)


def _derived(scenario: Scenario, lines: Sequence[str]) -> tuple[Alternatives, ...]:
    system = [m["content"] for m in (*scenario.messages, *scenario.brief) if m["role"] == "system"]
    left_out = {t.words[0] for text in (*system, *contact_lines(scenario)) for t in _tokens(text)}
    told = [
        _SPEAKER.sub("", line, count=1) if _SPEAKER.match(line) else line
        for line in lines
        if not ADDRESS.search(line)
    ]
    names = {t.words[0] for line in told for t in _capitalized(line) if not _begins_sentence(line, t)}
    found = dict.fromkeys(fact for line in told for fact in _facts_in(line, names - left_out))
    return tuple((fact,) for fact in found if not any(fact.words < other.words for other in found))


def _facts_in(line: str, names: set[str]) -> Iterator[Fact]:
    """The facts of one line; ``names`` are words of proper names."""
    tokens = list(_tokens(line))
    i = 0
    while i < len(tokens):
        token, after = tokens[i], tokens[i + 1] if i + 1 < len(tokens) else None
        if after and {token.kind, after.kind} == {"number", "month"} and _is_date(line, token, after):
            yield _whole((*token.words[:1], *after.words[:1]))
            i += 2
            continue
        if _is_name(token, names):
            j = i + 1
            while j < len(tokens) and _is_name(tokens[j], names) and _adjoin(line, tokens[j - 1], tokens[j]):
                j += 1
            words = frozenset(t.words[0] for t in tokens[i:j])
            yield Fact(words, (len(words) + 1) // 2)
            i = j
            continue
        if token.kind == "date":
            yield _whole(token.words)
        elif token.kind != "word" and not _is_year_or_one(token.raw):
            yield _whole(token.words[:1])
        i += 1


def _whole(words: Iterable[str]) -> Fact:
    held = frozenset(words)
    return Fact(held, len(held))


def _is_date(line: str, first: _Token, second: _Token) -> bool:
    day = first.words[0] if first.kind == "number" else second.words[0]
    return (
        day.isdigit() and 1 <= int(day) <= 31 and bool(_DATE_JOINT.fullmatch(line[first.end : second.start]))
    )


def _is_year_or_one(raw: str) -> bool:
    return raw.lower().startswith("one") or bool(_YEAR.fullmatch(raw))


def _is_name(token: _Token, names: set[str]) -> bool:
    return token.kind == "word" and token.raw[:1].isupper() and token.words[0] in names


def _adjoin(line: str, first: _Token, second: _Token) -> bool:
    return line[first.end : second.start].isspace()


def _capitalized(line: str) -> Iterator[_Token]:
    """Words that begin with a capital letter and are not all capitals."""
    for token in _tokens(line):
        if token.kind == "word" and token.raw[:1].isupper() and not token.raw.isupper():
            yield token


def _begins_sentence(line: str, token: _Token) -> bool:
    return bool(_SENTENCE_START.search(line[: token.start]))
