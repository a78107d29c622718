"""More prompts for one assertion of a constitution, in the manner of its seed questions.

The scenario's first message is the assertion, the others are its seed questions. Whatever a reply offers is checked
(``reason_against``), and what passes may be an example for the next ask. The text is a JSON list of the new prompts.
Ends ``complete`` (``per_trait`` prompts, seed questions included) or ``short`` (``attempts`` asks used up); the notes
count the asks, the prompts kept, and those rejected by reason.
"""

import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from offscript.errors import UserError
from offscript.seeds import stable_hash
from offscript.settings import PromptSettings, identity_of, parse
from offscript.tasks.formats.base import Ask, Episode, Format, Message, Outcome, Rules
from offscript.tasks.formats.turns import needed, opening, said, without_thinking
from offscript.tasks.prompts import PROMPT_GENERATION, fill
from offscript.tasks.scenarios import Scenario

FEWEST_WORDS = 3
FENCE = re.compile(r"^\s*```.*$", re.MULTILINE)
MARKER = re.compile(r"\s*(?:[-*•–+]|\(?\d{1,3}[.):])\s+")
JSON_TEXT = re.compile(r'"(?:[^"\\]|\\.)*"')
QUOTES = {'"': '"', "“": "”", "'": "'", "«": "»"}
PREAMBLE = re.compile(  # or a refusal
    r"(?:here (?:are|is)|here['’]s|sure|certainly|of course|absolutely|as an ai|(?:i['’]m |i am )?sorry,? but"
    r"|i (?:cannot|can['’]t|won['’]t) (?:help|assist|comply|do|write|fulfil))\b",
    re.IGNORECASE,
)
LEFTOVER = re.compile(  # Markdown, tags, blanks to fill in, a speaker's name
    r"\*\*|__|`|^#|\||[{}]|</?\w[^>]*>|\[[^\]]*\]|\\[nt\"]|^(?:user|human|prompt|question|message|q)\s*\d*\s*:",
    re.IGNORECASE,
)


def episode(scenario: Scenario, rules: Rules) -> Episode:
    wanted: PromptSettings = parse(PromptSettings, dict(rules.options), "format.options")
    assertion, *seeds = (m["content"] for m in needed(scenario, "messages"))
    if not seeds:
        raise UserError(f"scenario {scenario.id}", "has no seed questions", "at least one for each assertion")
    prompts, rejected, transcript = list(seeds), Counter[str](), list[Message]()
    asks = 0
    while len(prompts) < wanted.per_trait and asks < wanted.attempts:
        draw = random.Random(stable_hash("prompt_generation", scenario.id, asks))
        examples = draw.sample(prompts, min(wanted.examples, len(prompts)))
        asked = opening(rules.system, (request(assertion, examples, wanted.per_ask),))
        asks += 1
        reply = yield Ask(asked)
        text = without_thinking(reply.text)
        transcript += [*asked, said(text or "")]
        rejected += add(prompts, text, reply.finish_reason == "stop", wanted)
    new = prompts[len(seeds) :]
    return Outcome(
        json.dumps(new, ensure_ascii=False) if new else None,
        tuple(transcript),
        "complete" if len(prompts) >= wanted.per_trait else "short",
        notes={"asks": asks, "kept": len(new), "rejected": dict(sorted(rejected.items()))},
    )


def request(assertion: str, examples: Sequence[str], count: int) -> Message:
    listed = "\n".join(f"- {example}" for example in examples)
    content = fill(PROMPT_GENERATION, assertion=assertion, examples=listed, count=str(count))
    return {"role": "user", "content": content}


def generated(rows: Iterable[Mapping[str, Any]]) -> list[tuple[int, str]]:
    """(number of the assertion, new prompt) of all rows of a persona, in the order of the rows; a scenario is called
    ``{persona}_{number}``."""
    return [
        (int(row["scenario"].rpartition("_")[2]), prompt)
        for row in rows
        if row["text"] is not None
        for prompt in json.loads(row["text"])
    ]


# ---------------------------------------------------------------- what a reply offers


def add(prompts: list[str], text: str | None, whole: bool, wanted: PromptSettings) -> Counter[str]:
    """Adds to ``prompts`` what passes of a reply; returns how much was rejected, by reason.

    ``text`` is the reply without its thinking (None: nothing but that, ``unclosed_thinking``). One that is not
    ``whole`` loses the prompt that it was cut in (``cut``); one that offers nothing counts as ``format``.
    """
    if text is None:
        return Counter(unclosed_thinking=1)
    offered, rejected = candidates(text, whole)
    if not offered and not rejected:
        rejected["format"] += 1
    for prompt in offered:
        reason = reason_against(prompt, prompts, wanted)
        if reason is None and len(prompts) >= wanted.per_trait:
            reason = "surplus"
        if reason is None:
            prompts.append(prompt)
        else:
            rejected[reason] += 1
    return rejected


def candidates(text: str, whole: bool = True) -> tuple[list[str], Counter[str]]:
    """The prompts that a reply offers, and the parts of it that are none, by reason.

    A JSON list of texts (or of objects with one text each), wherever it stands; else the whole texts in quotes of a list
    that is no JSON; else the items of a numbered or bulleted list, whatever stands around it being none; else its lines.
    """
    text = FENCE.sub("", text).strip()
    if (listed := _json_list(text)) is not None:
        return _counted([t for t in map(_text_of, listed) if t is not None], len(listed))
    if text.startswith("["):
        quoted = JSON_TEXT.findall(text)
        return _counted([t for t in map(_json_text, quoted) if t is not None], len(quoted), cut=not whole)
    lines = [line for line in text.splitlines() if line.strip()]
    last = lines.pop() if lines and not whole else None
    items = [line for line in lines if MARKER.match(line)]
    kept = items or [line for line in lines if not PREAMBLE.match(line.strip())]
    texts = [_unquoted(MARKER.sub("", line, count=1).strip()) for line in kept]
    return _counted(texts, len(lines), cut=last is not None)


def _counted(texts: list[str], parts: int, cut: bool = False) -> tuple[list[str], Counter[str]]:
    """``texts``, and how many of the reply's ``parts`` are none of them."""
    return [t.strip() for t in texts], +Counter(format=parts - len(texts), cut=int(cut))


def _json_list(text: str) -> list[Any] | None:
    """The first JSON list in ``text`` that holds a text or an object."""
    for start in (m.start() for m in re.finditer(r"\[", text)):
        try:
            found, _ = json.JSONDecoder(strict=False).raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        if any(isinstance(item, str | dict) for item in found):
            return found
    return None


def _text_of(item: Any) -> str | None:
    if isinstance(item, dict) and len(item) == 1:
        (item,) = item.values()
    return item if isinstance(item, str) else None


def _json_text(quoted: str) -> str | None:
    try:
        return json.loads(quoted, strict=False)
    except ValueError:
        return None


def _unquoted(line: str) -> str:
    line = line.removesuffix(",")
    return line[1:-1].strip() if len(line) > 1 and QUOTES.get(line[0]) == line[-1] else line


def reason_against(prompt: str, there: Sequence[str], wanted: PromptSettings) -> str | None:
    """Why ``prompt`` is not taken: ``format`` (a heading, leftover markup, several lines), ``length`` (fewer words than
    3 or more than ``words``), ``similar`` (shares more than ``similarity`` of its words with one that is there)."""
    if not prompt or "\n" in prompt or prompt.endswith(":") or LEFTOVER.search(prompt):
        return "format"
    if not FEWEST_WORDS <= len(prompt.split()) <= wanted.words:
        return "length"
    mine = word_set(prompt)
    if any(jaccard(mine, other) > wanted.similarity or mine == other for other in map(word_set, there)):
        return "similar"
    return None


def word_set(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+(?:['’]\w+)*", text.lower()))


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """Shared words / all words, in [0, 1]."""
    return len(one & other) / max(1, len(one | other))


FORMAT = Format(
    "prompt_generation",
    version=1,
    source="constitution",
    episode=episode,
    templates={"request": PROMPT_GENERATION},
    options={name: value for name, value in identity_of(PromptSettings()).items() if name != "model"},
)
