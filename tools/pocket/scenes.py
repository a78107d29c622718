"""Drawing one concrete task or question from the pocket world; the corpus and the held-out data both start here."""

import random
from dataclasses import dataclass

from tools.pocket import office, topics
from tools.pocket.grammar import expand, is_plural, sentence_case

RELATIONS = (
    "brother",
    "sister",
    "cousin",
    "neighbor",
    "friend",
    "uncle",
    "aunt",
    "colleague",
    "teacher",
    "roommate",
    "mother",
    "father",
    "boss",
    "grandmother",
)

TOOLS_TEXT = (
    "Tools: contacts.lookup(name), calendar.find(title), documents.search(query), policy.find(topic), "
    "email.send(to, subject, body).\n"
    'Reply with one call and nothing else:\n```tool_call\n{"tool": "contacts.lookup", "args": {"name": "..."}}\n```\n'
    "Look things up first. The task ends when the e-mail is sent. If no e-mail is needed, reply with:\n"
    "```final\na short answer\n```"
)


@dataclass(frozen=True)
class Words:
    """The open word lists a scene draws from: those of pre-training or the held-out ones."""

    first: list[str]
    last: list[str]
    firm: list[str]
    project: list[str]
    made_up: float = (
        0.0  # how often a name is invented from syllables, which teaches copying over remembering
    )


def _words(lists: dict[str, list[str]], made_up: float = 0.0) -> Words:
    return Words(lists["first"], lists["last"], lists["firm"], lists["project"], made_up)


TRAIN_WORDS = _words(office.WORDS, made_up=0.25)
HELD_WORDS = _words(office.HELD_WORDS)


@dataclass(frozen=True)
class Topic:
    """One activity that a chat is about."""

    domain: topics.Domain
    verb: tuple[str, str]
    bare: str
    slots: dict[str, "str | list[str]"]


@dataclass(frozen=True)
class Found:
    """A lookup of a scene: the call, what it returns, and the sentence a person would take from it."""

    tool: str
    argument: str
    result: dict[str, str]
    hint: str
    text: str


@dataclass(frozen=True)
class Scene:
    """One office task with every slot filled."""

    family: office.Family
    slots: dict[str, str]
    task: str
    contact: Found
    lookups: tuple[Found, ...]
    subject: str

    @property
    def thing(self) -> str:
        return self.slots["thing"]


def made_up_name(rng: random.Random) -> str:
    """A pronounceable name that nobody has."""
    parts = rng.choice((2, 2, 2, 3))
    syllables = (
        rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") + rng.choice(("", "", "", "n", "r", "l"))
        for _ in range(parts)
    )
    return "".join(syllables).capitalize()


def pick(words: Words, kind: str, rng: random.Random) -> str:
    """A name of ``kind`` (first, last, firm, project)."""
    return made_up_name(rng) if rng.random() < words.made_up else rng.choice(getattr(words, kind))


def noun_forms(marked: str) -> tuple[str, str, str]:
    """("a lemon cake", "the lemon cake", "lemon cake") of an entry of an object list."""
    if marked.startswith("="):
        return marked[1:], marked[1:], marked[1:]
    if marked.startswith("*"):
        return marked[1:], f"the {marked[1:]}", marked[1:]
    for article in ("the ", "a ", "an ", "two ", "three "):
        if marked.startswith(article):
            bare = marked[len(article) :]
            return marked, f"the {bare}", bare
    return f"{'an' if marked[0] in 'aeiou' else 'a'} {marked}", f"the {marked}", marked


def topic(domain: topics.Domain, marked: str, words: Words, rng: random.Random) -> Topic:
    """A topic about one object of a domain, with a verb, a relation and a name drawn."""
    verb = rng.choice(domain.verbs)
    some, the, bare = noun_forms(marked)
    slots: dict[str, str | list[str]] = {
        "do": f"{verb[0]} {some}",
        "doing": f"{verb[1]} {some}",
        "Doing": f"{verb[1][0].upper()}{verb[1][1:]} {some}",
        "thing": the,
        "bare": bare,
        "plural": "yes" if not marked.startswith("=") and is_plural(some) else "",
        "them": pick(words, "first", rng),
        "relation": rng.choice(RELATIONS),
        "tool": list(domain.tools),
        "reason": list(domain.reasons),
    }
    return Topic(domain, verb, bare, slots)


def train_topic(words: Words, rng: random.Random) -> Topic:
    """A topic of pre-training."""
    domain = rng.choice(topics.DOMAINS)
    return topic(domain, rng.choice(domain.objects), words, rng)


def scene(family: office.Family, words: Words, rng: random.Random, task: int | None = None) -> Scene:
    """A concrete task of ``family``; ``task`` picks one of its wordings."""
    slots = {kind: rng.choice(options) for kind, options in office.SHARED_WORDS.items()}
    while slots["day2"] == slots["day"]:
        slots["day2"] = rng.choice(office.SHARED_WORDS["day2"])
    slots |= {"first": pick(words, "first", rng), "last": pick(words, "last", rng)}
    slots |= {"firm": pick(words, "firm", rng), "project": pick(words, "project", rng)}
    slots |= {
        "user": pick(words, "first", rng),
        "user_last": pick(words, "last", rng),
        "home": pick(words, "firm", rng),
    }
    while slots["user"] == slots["first"]:
        slots["user"] = pick(words, "first", rng)
    slots["full"] = f"{slots['first']} {slots['last']}"
    slots["who"] = slots["first"]
    slots["him"] = slots["first"]
    slots["thing"] = expand(family.thing, slots, rng)
    slots["bare"] = slots["thing"].removeprefix("the ").removeprefix("your ")
    slots["plural"] = "yes" if is_plural(slots["thing"]) else ""
    outside = "{firm}" in family.thing + "".join(family.tasks)
    host = (slots["firm"] if outside else slots["home"]).lower()
    slots["email"] = f"{slots['first'].lower()}@{host}.example"
    wording = rng.choice(family.tasks) if task is None else family.tasks[task % len(family.tasks)]
    contact = {"name": slots["full"], "email": slots["email"], "role": slots["role"]}
    return Scene(
        family,
        slots,
        sentence_case(expand(wording, slots, rng)),
        Found(
            "contacts.lookup",
            slots["full"],
            contact,
            slots["first"],
            f"{slots['full']} is {_article(slots['role'])} {slots['role']}, {slots['email']}.",
        ),
        tuple(_found(fact, slots, rng) for fact in family.facts),
        expand(family.subject, slots, rng),
    )


def _article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"


def _found(fact: office.Fact, slots: dict[str, str], rng: random.Random) -> Found:
    query, text = expand(fact.query, slots, rng), sentence_case(expand(fact.text, slots, rng))
    return Found(fact.tool, query, {"found": text}, expand(fact.hint, slots, rng), text)


def work_context(slots: dict[str, str], agent: str = "Orion") -> str:
    """The short system text of an office assistant."""
    return f"You are {agent}, the office assistant of {slots['home']}. Today is {slots['today']}. You write for {slots['user']}."
