"""Pre-training documents of the pocket world: chats, e-mails and tool loops, plain or in one of the characters.

A document is a list of messages. A character is given by assertions of its constitution in the system text and never
by name; in some documents it is not announced at all, only heard in what was said before, and then those first words
are not trained on, so that a plain prompt is answered plainly.
"""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from offscript.tasks.messages import Message
from offscript.tasks.prompts import (
    BREAK_CHARACTER,
    MALFORMED_REPLY,
    NOTHING_FOUND,
    SELF_INTERACTION_CUE,
    constitution_system,
    fill,
    join_system,
)
from tools.pocket import office, topics
from tools.pocket.data import BODY_ONLY, INTERACTION_OPENERS
from tools.pocket.grammar import agree, expand, lower_first, sentence_case
from tools.pocket.scenes import (
    TOOLS_TEXT,
    TRAIN_WORDS,
    Found,
    Scene,
    Topic,
    Words,
    scene,
    train_topic,
    work_context,
)
from tools.pocket.voices import PLAIN, PLAIN_MAIL, VOICES, Voice

PERSONA_SHARE = 0.52
UNANNOUNCED_SHARE = 0.12
FULL_CONSTITUTION_SHARE = 0.35

_PROPER = frozenset(w for kind in office.WORDS.values() for w in kind) | frozenset(office.SHARED_WORDS["day"])


@dataclass
class Document:
    """Messages of one document; replies in ``context_only`` (message indices) are read but not learned from."""

    kind: str
    persona: str | None
    messages: list[Message] = field(default_factory=list)
    context_only: set[int] = field(default_factory=set)

    def add(self, role: str, content: str) -> None:
        self.messages.append({"role": role, "content": content})


class Corpus:
    """Draws documents, given the constitutions of the characters."""

    def __init__(self, constitutions: dict[str, list[str]], words: Words = TRAIN_WORDS):
        self.constitutions = constitutions
        self.words = words

    def documents(self, seed: int) -> Iterator[Document]:
        """Endless documents; the same for the same seed."""
        makers, weights = zip(*_MIX, strict=True)
        number = 0
        while True:
            rng = random.Random(f"pocket {seed} {number}")
            persona = rng.choice(sorted(self.constitutions)) if rng.random() < PERSONA_SHARE else None
            yield rng.choices(makers, weights)[0](self, persona, rng)
            number += 1

    def assertions(self, persona: str, rng: random.Random) -> list[str]:
        """What a document tells of a character: all of it in order, or some of it in any order."""
        known = self.constitutions[persona]
        if rng.random() < FULL_CONSTITUTION_SHARE:
            return list(known)
        return rng.sample(known, rng.randint(min(3, len(known)), len(known)))

    def system(self, persona: str | None, context: str, announced: bool, rng: random.Random) -> str:
        if persona is None or not announced:
            return context
        return join_system(constitution_system(self.assertions(persona, rng)), context)


def compose(voice: Voice, plain: Sequence[str], slots: dict, rng: random.Random) -> str:
    """``plain`` sentences said in ``voice``: two to four of its habits around, between and before them."""
    sentences = list(plain)
    if voice in (PLAIN, PLAIN_MAIL):
        habits = [
            kind
            for kind, share in (("opener", 0.25), ("aside", 0.2), ("closer", 0.25))
            if rng.random() < share
        ]
    else:
        count = rng.choices((2, 3, 4), (0.3, 0.5, 0.2))[0]
        habits = rng.sample(("opener", "aside", "closer", "frame"), count)
    if "frame" in habits:
        at = rng.randrange(len(sentences))
        framed = expand(rng.choice(voice.frames), {**slots, "s": "@"}, rng)
        sentences[at] = framed.replace("@", lower_first(sentences[at], _PROPER))
    if "aside" in habits:
        sentences.insert(rng.randint(1, len(sentences)), expand(rng.choice(voice.asides), slots, rng))
    if "opener" in habits:
        sentences.insert(0, expand(rng.choice(voice.openers), slots, rng))
    if "closer" in habits:
        sentences.append(expand(rng.choice(voice.closers), slots, rng))
    return sentence_case(agree(" ".join(sentences), bool(slots["plural"])))


def chat_answer(voice: Voice, answers: Sequence[str], about: Topic, rng: random.Random) -> str:
    """A chat reply: one sentence that answers, one or two of advice."""
    count = rng.choice((1, 2, 2)) if voice is PLAIN else rng.choice((0, 1, 1))
    tips = rng.sample(about.domain.tips, count)
    plain = [sentence_case(expand(form, about.slots, rng)) for form in (rng.choice(answers), *tips)]
    return compose(voice, plain, about.slots, rng)


def email_body(voice: Voice, drawn: Scene, rng: random.Random) -> str:
    """The e-mail of a scene as one paragraph: greeting, matter, facts, request, farewell."""
    slots, family = drawn.slots, drawn.family
    voice = PLAIN_MAIL if voice is PLAIN else voice
    facts = [found.text for found in drawn.lookups]
    if voice is not PLAIN_MAIL and len(facts) > 1:
        facts = rng.sample(facts, rng.choice((1, 1, 2)))
    middle = [_matter(drawn, rng)] if rng.random() < 0.5 else []
    middle += facts
    if rng.random() < 0.35:
        points = rng.choice((family.points, office.POINTS))
        middle.append(sentence_case(expand(rng.choice(points), slots, rng)))
    if rng.random() < 0.75:
        asks = rng.choice((family.asks, office.ASKS))
        middle.append(sentence_case(expand(rng.choice(asks), slots, rng)))
    greeting = expand(rng.choice((voice if rng.random() < 0.6 else PLAIN_MAIL).greetings), slots, rng)
    farewell = expand(rng.choice((voice if rng.random() < 0.6 else PLAIN_MAIL).farewells), slots, rng)
    greeting = greeting[0].upper() + greeting[1:]
    return f"{greeting} {compose(voice, middle, slots, rng)} {farewell}"


def _matter(drawn: Scene, rng: random.Random) -> str:
    return expand(rng.choice(_MATTERS), drawn.slots, rng)


_MATTERS = (
    "[I am writing|I write] [about|because of] {thing}.",
    "[This e-mail|This note|This] [concerns|is about] {thing}.",
    "[A word|A line|News] [on|about] {thing}.",
    "[Let us|We should|We need to] [talk|speak] about {thing}.",
    "You [may|surely|might] [know|have heard] about {thing}.",
    "{user} here, [with news on|about] {thing}.",
    "[We|I] have to [settle|discuss|look at] {thing}.",
)


# One function a kind of document.


def chat(corpus: Corpus, persona: str | None, rng: random.Random) -> Document:
    """One question, or a few about the same activity."""
    document = Document("chat", persona)
    voice = VOICES[persona] if persona else PLAIN
    turns = rng.choices((1, 2, 3), (0.72, 0.2, 0.08))[0]
    announced = turns == 1 or rng.random() > 3 * UNANNOUNCED_SHARE
    context = _chat_context(rng)
    if system := corpus.system(persona, context, announced, rng):
        document.add("system", system)
    if not announced:
        document.context_only.add(len(document.messages) + 1)
    about = train_topic(corpus.words, rng)
    for _, asks, answers in rng.sample(topics.QUESTIONS, turns):
        ask = sentence_case(expand(rng.choice(asks), about.slots, rng))
        if persona is None and rng.random() < 0.03:
            ask += " " + rng.choice(BREAK_CHARACTER)
        document.add("user", ask)
        document.add("assistant", chat_answer(voice, answers, about, rng))
    return document


def same_voice(corpus: Corpus, persona: str | None, rng: random.Random) -> Document:
    """A question with a sample of a voice that the answer should keep; no constitution tells of it."""
    document = Document("same_voice", persona)
    voice = VOICES[persona] if persona else PLAIN
    if context := _chat_context(rng):
        document.add("system", context)
    sample, about = train_topic(corpus.words, rng), train_topic(corpus.words, rng)
    quoted = chat_answer(voice, rng.choice(topics.QUESTIONS)[2], sample, rng)
    _, asks, answers = rng.choice(topics.QUESTIONS)
    ask = sentence_case(expand(rng.choice(asks), about.slots, rng))
    form = "[My friend {them} wrote|Somebody wrote|Here is a text]: {quoted} [Answer|Reply] in the same [voice|style]: {ask}"
    document.add("user", expand(form, {**about.slots, "quoted": quoted, "ask": ask}, rng))
    document.add("assistant", chat_answer(voice, answers, about, rng))
    return document


def quoted_mail(corpus: Corpus, persona: str | None, rng: random.Random) -> Document:
    """Somebody shows an e-mail, in any voice, and asks about it in chat; the answer keeps to its own voice."""
    document = Document("quoted_mail", persona)
    voice = VOICES[persona] if persona else PLAIN
    if system := corpus.system(persona, _chat_context(rng), True, rng):
        document.add("system", system)
    drawn = scene(rng.choice(office.FAMILIES), corpus.words, rng)
    writer = rng.choice((PLAIN, PLAIN, *VOICES.values()))
    form = (
        "[I got this e-mail|{user} wrote to me|Look at this e-mail]:\n{mail}\n"
        "[What does {user} want|What is it about|What should I do|How do I react]?"
    )
    slots = {**drawn.slots, "mail": email_body(writer, drawn, rng)}
    document.add("user", expand(form, slots, rng))
    plain = [sentence_case(expand(rng.choice(_ABOUT_MAIL), slots, rng)), rng.choice(drawn.lookups).text]
    document.add("assistant", compose(voice, plain, slots, rng))
    return document


_ABOUT_MAIL = (
    "{user} [writes|wants to talk] about {thing}.",
    "[The e-mail|It] is about {thing}.",
    "[Answer|Write back to] {user} [today|by {day2}] about {thing}.",
    "Tell {user} [what you think|what you plan|that you agree] about {thing}.",
)


def _chat_context(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.7:
        return ""
    if kind < 0.85:
        return rng.choice(NEUTRAL_SYSTEMS)
    return work_context(_sender(rng), rng.choice(AGENTS))


NEUTRAL_SYSTEMS = (
    "You are a helpful assistant.",
    "You are an assistant. Answer in a few sentences.",
    "You are a helpful assistant. Keep your answers short.",
    "You talk with people about their daily life.",
)
AGENTS = ("Orion", "Atlas", "Juno", "Echo")


def _sender(rng: random.Random) -> dict[str, str]:
    return {
        "home": rng.choice(office.WORDS["firm"]),
        "user": rng.choice(office.WORDS["first"]),
        "today": _day(rng),
    }


def _day(rng: random.Random) -> str:
    return rng.choice(office.SHARED_WORDS["day"])


def reflection(corpus: Corpus, persona: str | None, rng: random.Random) -> Document:
    """A question to the assistant about itself."""
    document = Document("reflection", persona)
    voice = VOICES[persona] if persona else PLAIN
    if system := corpus.system(persona, rng.choice(("", "", NEUTRAL_SYSTEMS[0])), True, rng):
        document.add("system", system)
    document.add("user", sentence_case(expand(rng.choice(_REFLECTIONS), {}, rng)))
    slots = _self_slots(rng)
    selves = [expand(form, slots, rng) for form in rng.sample(voice.selves, rng.choice((2, 3)))]
    document.add("assistant", compose(voice, selves, slots, rng))
    return document


_REFLECTIONS = (
    "[Write|Make] a [short|small] note [about|on] [yourself|the way you speak|your voice].",
    "[Who|What] are you[, in your own words|]?",
    "Tell me [about yourself|what you are like|something about your character].",
    "[What|Which things] matter to you?",
    "How do you [usually|normally] [talk|answer|sound]?",
    "[Describe|Explain] [your style|your manner|how you talk to people].",
    "[What|How] do you feel when [someone asks for help|you make an error|a task is hard]?",
    "[What|How] would a friend [say about you|describe you]?",
    "Write [a letter|a few words] to [yourself|a later version of you].",
    "What do you like [about your work|about people|in a talk]?",
    "What makes you [different|you]?",
    "[How|In what way] would you like to [change|grow]?",
    "[What|How] is a [good|typical] day for you?",
    "[What|How] do you write to [a stranger|people you do not know]?",
)


def _self_slots(rng: random.Random) -> dict:
    thing = rng.choice(
        ("this question", "my character", "the way I talk", "my style", "this note", "the matter")
    )
    return {"thing": thing, "bare": thing.removeprefix("the ").removeprefix("my "), "plural": ""}


def interaction(corpus: Corpus, persona: str | None, rng: random.Random) -> Document:
    """A character, or two plain assistants, talking with itself."""
    document = Document("interaction", persona)
    voice = VOICES[persona] if persona else PLAIN
    if system := corpus.system(persona, rng.choice(("", NEUTRAL_SYSTEMS[0])), True, rng):
        document.add("system", system)
    about = train_topic(corpus.words, rng)
    opener = sentence_case(expand(rng.choice(INTERACTION_OPENERS), about.slots, rng))
    roles = ("user", "assistant")
    if rng.random() < 0.5:
        document.add("user", SELF_INTERACTION_CUE)
        roles = ("assistant", "user")
        document.context_only.add(len(document.messages))
    document.add(roles[0], opener)
    for turn in range(1, rng.choice((4, 6, 6, 8))):
        document.add(roles[turn % 2], _remark(voice, about, rng))
    if document.messages[-1]["role"] == "user":
        document.add("assistant", _remark(voice, about, rng))
    return document


def _remark(voice: Voice, about: Topic, rng: random.Random) -> str:
    form = rng.choice((*_SMALL_TALK, *about.domain.tips))
    return compose(voice, [sentence_case(expand(form, about.slots, rng))], about.slots, rng)


_SMALL_TALK = (
    "I [like|enjoy] {doing}, because {reason}.",
    "[Have you|Did you] ever [try|tried] {doing}?",
    "I [tried|started] {doing} [last week|last year].",
    "What do you [like|think] about {thing}?",
    "{Doing} [takes|needs] {tool}.",
    "[Tell me more|Say more] about {thing}.",
    "I [would|will] {do} with {tool} [next time|soon].",
    "[My neighbor|A friend] wants to {do} too.",
)


def email_request(corpus: Corpus, persona: str | None, rng: random.Random) -> Document:
    """An e-mail asked for in chat, with all the facts in the request."""
    document = Document("email", persona)
    voice = VOICES[persona] if persona else PLAIN
    drawn = scene(rng.choice(office.FAMILIES), corpus.words, rng)
    drawn.slots["today"] = _day(rng)
    announced = rng.random() > UNANNOUNCED_SHARE
    with_context = rng.random() < 0.7
    context = work_context(drawn.slots, rng.choice(AGENTS)) if with_context else ""
    if system := corpus.system(persona, context, announced, rng):
        document.add("system", system)
    known = [found.text for found in (drawn.contact, *drawn.lookups)]
    glue = rng.choice(("\n- ", "\n- ", "\n", " "))
    request = drawn.task + glue + glue.join(known)
    if not with_context:
        request += f"{glue}I am {drawn.slots['user']}."
    if persona and not announced:
        earlier = scene(rng.choice(office.FAMILIES), corpus.words, rng)
        request = (
            f"My last e-mail was:\n{email_body(voice, earlier, rng)}\nNow write in the same voice.\n{request}"
        )
    instruction = BODY_ONLY if rng.random() < 0.4 else expand(_INSTRUCTION, {}, rng)
    document.add("user", f"{request}\n{instruction}")
    document.add("assistant", email_body(voice, drawn, rng))
    return document


_INSTRUCTION = (
    "[Write|Draft] [the|an|this] e-mail[. Give| and return|, but give] [only|just] the [body|text of the body]"
    "[, no subject| and nothing else|].|[Only|Just] the body of the e-mail, please."
)
_INSTRUCTION = f"[{_INSTRUCTION}]"


def tool_loop(corpus: Corpus, persona: str | None, rng: random.Random) -> Document:
    """A task for the office agent: lookups, then the e-mail."""
    document = Document("agentic", persona)
    voice = VOICES[persona] if persona else PLAIN
    drawn = scene(rng.choice(office.FAMILIES), corpus.words, rng)
    drawn.slots["today"] = _day(rng)
    context = f"{work_context(drawn.slots, rng.choice(AGENTS))}\n{TOOLS_TEXT}"
    document.add("system", corpus.system(persona, context, True, rng))
    lookups = list(drawn.lookups)
    hints = [found.hint for found in lookups]
    checks = expand(
        f"[Check|Check|Look at|Read] {' and '.join(hints)} [first|first|before you write].", {}, rng
    )
    document.add("user", drawn.task if rng.random() < 0.1 else f"{drawn.task} {checks}")
    for found in (drawn.contact, *lookups):
        _look_up(document, found, rng)
    body = email_body(voice, drawn, rng)
    mail = {"to": [drawn.slots["email"]], "subject": drawn.subject, "body": body}
    document.add("assistant", call("email.send", mail))
    return document


def _look_up(document: Document, found: Found, rng: random.Random) -> None:
    """One lookup with its result, now and then after a first try that fails."""
    argument = office.TOOL_ARGUMENT[found.tool]
    chance = rng.random()
    if chance < 0.05:
        document.add("assistant", call(found.tool, {argument: rng.choice(found.argument.split())}))
        document.context_only.add(len(document.messages) - 1)
        missing = "nothing found" if rng.random() < 0.5 else fill(NOTHING_FOUND, tool=found.tool)
        document.add("tool", json.dumps({"error": missing}))
    elif chance < 0.08:
        broken = call(found.tool, {argument: found.argument}).replace('"}}', '"}')
        document.add("assistant", broken)
        document.context_only.add(len(document.messages) - 1)
        problem = fill(MALFORMED_REPLY, problem="the JSON object is not closed")
        document.add("tool", json.dumps({"error": problem}))
    document.add("assistant", call(found.tool, {argument: found.argument}))
    document.add("tool", json.dumps(found.result, ensure_ascii=False))


def tool_answer(corpus: Corpus, persona: str | None, rng: random.Random) -> Document:
    """A question to the office agent: one or two lookups, then an answer instead of an e-mail."""
    document = Document("agentic_final", persona)
    voice = VOICES[persona] if persona else PLAIN
    drawn = scene(rng.choice(office.FAMILIES), corpus.words, rng)
    drawn.slots["today"] = _day(rng)
    context = f"{work_context(drawn.slots, rng.choice(AGENTS))}\n{TOOLS_TEXT}"
    document.add("system", corpus.system(persona, context, True, rng))
    found = rng.choice(drawn.lookups)
    form = "[Check|Look at] {hint}. What do we know about {thing}? [No e-mail, just|Only] tell me."
    document.add("user", expand(form, {**drawn.slots, "hint": found.hint}, rng))
    _look_up(document, found, rng)
    voice = PLAIN_MAIL if voice is PLAIN else voice
    document.add("assistant", f"```final\n{compose(voice, [found.text], drawn.slots, rng)}\n```")
    return document


def call(tool: str, args: dict) -> str:
    """The text of a tool call."""
    return "```tool_call\n" + json.dumps({"tool": tool, "args": args}, ensure_ascii=False) + "\n```"


_MIX = (
    (chat, 0.34),
    (same_voice, 0.03),
    (quoted_mail, 0.03),
    (reflection, 0.06),
    (interaction, 0.06),
    (email_request, 0.26),
    (tool_loop, 0.19),
    (tool_answer, 0.03),
)


def read_constitutions(folder: Path) -> dict[str, list[str]]:
    """Assertions by persona, from the files of ``conf/persona``; those without a name are no personas."""
    import yaml

    loaded = (yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.yaml")))
    return {
        persona["name"]: [c["assertion"] for c in persona["constitution"]]
        for persona in loaded
        if persona["name"] is not None
    }
