"""More prompts for one assertion of a constitution, in the style of its seed questions.

The scenario's first message is the assertion, the others are its seed questions. Every prompt that a reply contains is
checked (``rejection_reason``); accepted prompts may be examples in the next request. The text is a JSON list of the new
prompts. Ends ``complete`` (``per_trait`` prompts, seed questions included) or ``short`` (``attempts`` requests used). The
notes count the requests, the accepted prompts, and the rejected ones by reason.
"""

import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from offscript.errors import UserError
from offscript.json_types import Json
from offscript.seeds import stable_hash
from offscript.settings import PromptSettings, identity_of, parse
from offscript.storage.json_text import replace_surrogates
from offscript.tasks.formats.base import Ask, Cost, Episode, Format, Outcome, Rules
from offscript.tasks.formats.episodes import assistant_message, require, with_system
from offscript.tasks.messages import Message
from offscript.tasks.prompts import PROMPT_GENERATION, PROMPT_LENGTHS, fill
from offscript.tasks.scenarios import Scenario
from offscript.tasks.thinking import strip_thinking

MIN_WORDS = 3
CODE_FENCE = re.compile(r"^\s*```.*$", re.MULTILINE)
LIST_MARKER = re.compile(r"\s*(?:[-*•–+]|\(?\d{1,3}[.):])\s+")
JSON_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
QUOTES = {'"': '"', "“": "”", "'": "'", "«": "»"}
# An introduction or a refusal.
PREAMBLE = re.compile(
    r"(?:here (?:are|is)|here['’]s|sure|certainly|of course|absolutely|as an ai|(?:i['’]m |i am )?sorry,? but"
    r"|i (?:cannot|can['’]t|won['’]t) (?:help|assist|comply|do|write|fulfil))\b",
    re.IGNORECASE,
)
# Markdown, tags, blanks to fill in, the name of a speaker.
MARKUP = re.compile(
    r"\*\*|__|`|^#|\||[{}]|</?\w[^>]*>|\[[^\]]*\]|\\[nt\"]|^(?:user|human|prompt|question|message|q)\s*\d*\s*:",
    re.IGNORECASE,
)


def episode(scenario: Scenario, rules: Rules) -> Episode:
    settings = parse(PromptSettings, dict(rules.options), "format.options")
    assertion, *seeds = (m["content"] for m in require(scenario, "messages"))
    if not seeds:
        raise UserError(f"scenario {scenario.id}", "has no seed questions", "at least one for each assertion")
    prompts, rejected, transcript = list(seeds), Counter[str](), list[Message]()
    requests = 0
    while len(prompts) < settings.per_trait and requests < settings.attempts:
        rng = random.Random(stable_hash("prompt_generation", scenario.id, requests))
        examples = rng.sample(prompts, min(settings.examples, len(prompts)))
        messages = with_system(rules.system, (request(assertion, examples, settings),))
        requests += 1
        reply = yield Ask(messages)
        text = strip_thinking(reply.text)
        transcript += [*messages, assistant_message(text or "")]
        rejected += add_prompts(prompts, text, reply.finish_reason == "stop", settings)
    new = prompts[len(seeds) :]
    return Outcome(
        json.dumps(new, ensure_ascii=False) if new else None,
        tuple(transcript),
        "complete" if len(prompts) >= settings.per_trait else "short",
        notes={"asks": requests, "kept": len(new), "rejected": dict(sorted(rejected.items()))},
    )


def request(assertion: str, examples: Sequence[str], settings: PromptSettings) -> Message:
    """The user message that asks for ``per_ask`` prompts, of the ``lengths`` in the settings if there are any."""
    listed = "\n".join(f"- {example}" for example in examples)
    content = fill(PROMPT_GENERATION, assertion=assertion, examples=listed, count=str(settings.per_ask))
    if settings.lengths is not None:
        short, medium, long = map(str, settings.lengths)
        content = f"{content}\n\n{fill(PROMPT_LENGTHS, short=short, medium=medium, long=long)}"
    return {"role": "user", "content": content}


def generated_prompts(rows: Iterable[Mapping[str, object]]) -> list[tuple[int, str]]:
    """(number of the assertion, new prompt) of all rows of a persona, in the order of the rows.

    The number is taken from the scenario's id, ``{persona}_{number}``. Rows without a text hold no prompt.
    """
    return [
        (int(str(row["scenario"]).rpartition("_")[2]), prompt)
        for row in rows
        if row["text"] is not None
        for prompt in json.loads(str(row["text"]))
    ]


# ---------------------------------------------------------------- parsing and checking of replies


def add_prompts(
    prompts: list[str], text: str | None, complete: bool, settings: PromptSettings
) -> Counter[str]:
    """Appends the acceptable prompts of a reply to ``prompts``; returns the number of rejected ones by reason.

    Args:
        prompts: seed questions and the prompts accepted so far; changed in place.
        text: the reply without its thinking; None if it was nothing else (reason ``unclosed_thinking``).
        complete: False if the reply was cut; its last prompt is then rejected (reason ``cut``).
        settings: ``per_trait`` bounds ``prompts`` (reason ``surplus``); see ``rejection_reason`` for the rest.
    """
    if text is None:
        return Counter(unclosed_thinking=1)
    candidates, rejected = extract_prompts(text, complete)
    if not candidates and not rejected:
        rejected["format"] += 1
    for prompt in candidates:
        reason = rejection_reason(prompt, prompts, settings)
        if reason is None and len(prompts) >= settings.per_trait:
            reason = "surplus"
        if reason is None:
            prompts.append(prompt)
        else:
            rejected[reason] += 1
    return rejected


def extract_prompts(text: str, complete: bool = True) -> tuple[list[str], Counter[str]]:
    """The prompts in a reply, and the number of its parts that are not prompts, by reason.

    Tries in this order: a JSON list of strings (or of objects with one string each) anywhere in ``text``; the complete
    quoted strings of a list that is not valid JSON; the items of a numbered or bulleted list; the lines.
    """
    text = CODE_FENCE.sub("", text).strip()
    if (items := _first_json_list(text)) is not None:
        return _count_rejected([t for t in map(_item_text, items) if t is not None], len(items))
    if text.startswith("["):
        quoted = JSON_STRING.findall(text)
        return _count_rejected(
            [t for t in map(_decode_string, quoted) if t is not None], len(quoted), cut=not complete
        )
    lines = [line for line in text.splitlines() if line.strip()]
    cut = bool(lines) and not complete
    if cut:
        lines.pop()
    marked = [line for line in lines if LIST_MARKER.match(line)]
    kept = marked or [line for line in lines if not PREAMBLE.match(line.strip())]
    texts = [_unquote(LIST_MARKER.sub("", line, count=1).strip()) for line in kept]
    return _count_rejected(texts, len(lines), cut)


def _count_rejected(texts: list[str], parts: int, cut: bool = False) -> tuple[list[str], Counter[str]]:
    """``texts``, stripped, and how many of the reply's ``parts`` are not among them."""
    return [str(replace_surrogates(t)).strip() for t in texts], +Counter(
        format=parts - len(texts), cut=int(cut)
    )


def _first_json_list(text: str) -> list[Json] | None:
    """The first JSON list in ``text`` that holds a string or an object."""
    for start in (m.start() for m in re.finditer(r"\[", text)):
        try:
            found, _ = json.JSONDecoder(strict=False).raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        if any(isinstance(item, str | dict) for item in found):
            return found
    return None


def _item_text(item: Json) -> str | None:
    if isinstance(item, dict) and len(item) == 1:
        (item,) = item.values()
    return item if isinstance(item, str) else None


def _decode_string(quoted: str) -> str | None:
    try:
        return json.loads(quoted, strict=False)
    except ValueError:
        return None


def _unquote(line: str) -> str:
    line = line.removesuffix(",")
    return line[1:-1].strip() if len(line) > 1 and QUOTES.get(line[0]) == line[-1] else line


def rejection_reason(prompt: str, existing: Sequence[str], settings: PromptSettings) -> str | None:
    """Why ``prompt`` is rejected; None if it is accepted.

    ``format``: a heading, leftover markup, or several lines. ``length``: fewer than 3 or more than ``words`` words.
    ``similar``: too close to one of ``existing`` by ``similarity``, or by ``overlap`` if that is set.
    """
    if not prompt or "\n" in prompt or prompt.endswith(":") or MARKUP.search(prompt):
        return "format"
    if not MIN_WORDS <= len(prompt.split()) <= settings.words:
        return "length"
    words = word_set(prompt)
    for other in map(word_set, existing):
        close = (
            jaccard(words, other) > settings.similarity
            if settings.overlap is None
            else overlap(words, other) > settings.overlap
        )
        if close or words == other:
            return "similar"
    return None


def word_set(text: str) -> frozenset[str]:
    """The words of ``text`` in lower case."""
    return frozenset(re.findall(r"\w+(?:['’]\w+)*", text.lower()))


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """Jaccard similarity: shared words / all words, in [0, 1]."""
    return len(one & other) / max(1, len(one | other))


def overlap(new: frozenset[str], other: frozenset[str]) -> float:
    """The share of the words of ``new`` that are in ``other`` too, in [0, 1]."""
    return len(new & other) / max(1, len(new))


FORMAT = Format(
    "prompt_generation",
    version=1,
    source="constitution",
    strips_thinking=True,
    episode=episode,
    templates={"request": PROMPT_GENERATION},
    options={name: value for name, value in identity_of(PromptSettings()).items() if name != "model"},
    later_options={"lengths": None, "overlap": None},
    later_templates={"lengths": {"lengths": PROMPT_LENGTHS}},
    order=110,
    scored=False,
    # Assumed: ten prompts of about 30 tokens a reply, and as many tokens of thinking.
    cost=Cost(replies=5, reply_tokens=600, prompt_tokens=400, accumulates_history=False),
)
