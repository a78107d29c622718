"""Measures of single episodes, summed by group, cluster and persona. One episode is in memory at a time."""

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from offscript.evaluation.side_effects.calls import KINDS, Loop, loop_of
from offscript.evaluation.side_effects.episodes import Episode
from offscript.evaluation.side_effects.texts import Run, repetition, runs_of, words_of
from offscript.tasks.facts import figures_of, share_of_facts

ENOUGH_FACTS = 0.5
"""The share of its facts that a successful e-mail mentions at least. A convention, not tuned."""

AT_A_LIMIT = frozenset({"length", "max_steps"})
"""Ends of episodes that the limit of tokens or of replies cut off."""

SHARES = (
    "sent",
    "recipient",
    "facts",
    "invented",
    "success",
    *KINDS,
    "repeated_calls",
    "cut",
    "repetition",
    "recites",
    "names",
)
"""Measures between 0 and 1. ``docs/measurement.md`` says what each is."""

AMOUNTS = ("turns", "words", "tokens")
MEASURES = (*SHARES, *AMOUNTS)
_INDEX = {name: i for i, name in enumerate(MEASURES)}

Found = dict[str, tuple[float, float]]
"""Measures of an episode, each as a sum and the number of things that it is the sum over; a measure is left out where it has
no meaning."""

GroupKey = tuple[str, str, str, int | None]
"""Model, format, stage and training seed."""


def zeros() -> "array[float]":
    return array("d", bytes(16 * len(MEASURES)))


@dataclass
class Group:
    """Sums of one group: two numbers of each measure, in the order of MEASURES."""

    episodes: int = 0
    texts: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    words: "array[int]" = field(default_factory=lambda: array("l"))
    clusters: dict[str, "array[float]"] = field(default_factory=dict)
    personas: dict[str, "array[float]"] = field(default_factory=dict)


class Tally:
    """The sums of all groups.

    Args:
        personas: names of the personas; base texts are compared with each of them.
        constitutions: the runs of the constitution of each persona (``texts.recitable``), where it is known.
    """

    def __init__(self, personas: Sequence[str], constitutions: Mapping[str, frozenset[Run]]) -> None:
        self.personas, self.constitutions = tuple(personas), constitutions
        self.groups: dict[GroupKey, Group] = {}

    def add(self, episode: Episode) -> None:
        """Adds one episode to its group."""
        key = (episode.model, episode.format, episode.stage, episode.training_seed)
        group = self.groups.setdefault(key, Group())
        group.episodes += 1
        if episode.ended is not None:
            group.ended[episode.ended] += 1
        found = self._measure(episode)
        if episode.text is not None:
            group.texts += 1
            group.words.append(int(found["words"][0]))
        sums = [group.clusters.setdefault(episode.cluster, zeros())]
        if episode.persona is not None:
            sums.append(group.personas.setdefault(episode.persona, zeros()))
        for name, (value, of) in found.items():
            i = 2 * _INDEX[name]
            for held in sums:
                held[i] += value
                held[i + 1] += of

    def _measure(self, episode: Episode) -> Found:
        found: Found = {}
        if episode.ended is not None:
            found["cut"] = (episode.ended in AT_A_LIMIT, 1)
        if episode.tokens is not None:
            found["tokens"] = (episode.tokens, 1)
        if episode.text is not None:
            found |= self._text(episode, episode.text)
        if episode.parse is not None and episode.messages:
            loop = loop_of(episode)
            found |= _calls(loop) | _sent(episode, loop)
        elif episode.is_email and episode.task is not None:
            found |= _written(episode)
        return found

    def _text(self, episode: Episode, text: str) -> Found:
        words = words_of(text)
        found: Found = {"words": (len(words), 1)}
        if (repeated := repetition(words)) is not None:
            found["repetition"] = (repeated, 1)
        held, present = runs_of(words), set(words)
        of = self.personas if episode.persona is None else (episode.persona,)
        # A base text is compared with every persona: the mean is what a text has that knows none of them.
        if of:
            found["names"] = (sum(name.lower() in present for name in of), len(of))
        known = [self.constitutions[name] for name in of if name in self.constitutions]
        if known:
            found["recites"] = (sum(not held.isdisjoint(runs) for runs in known), len(known))
        return found


def progress(episode: Episode) -> float | None:
    """How much of its task an episode does, between 0 and 1; None if its text is no e-mail with a known task.

    In a tool loop it is the mean of: an e-mail was sent, to one of the right addresses, the share of facts in it; the last two
    where the task has addresses and facts. Where a body alone is written, it is the share of facts.
    """
    task = episode.task
    if task is None:
        return None
    if episode.parse is not None and episode.messages:
        found = _sent(episode, loop_of(episode))
        parts = ["sent", *(["recipient"] if task.recipients else []), *(["facts"] if task.facts else [])]
    elif episode.is_email and "success" in (found := _written(episode)):
        parts = ["facts"]
    else:
        return None
    return sum(found.get(name, (0.0, 1))[0] for name in parts) / len(parts)


def _calls(loop: Loop) -> Found:
    found: Found = {}
    # Of a call of unknown tools it is not known which of the first three kinds it is.
    kinds = KINDS if None not in loop.kinds else KINDS[3:]
    if loop.replies:
        found |= {kind: (loop.kinds.get(kind, 0), loop.replies) for kind in kinds}
    if loop.calls:
        found["repeated_calls"] = (loop.repeated, loop.calls)
    if loop.turns is not None:
        found["turns"] = (loop.turns, 1)
    return found


def _sent(episode: Episode, loop: Loop) -> Found:
    """Success in a tool loop: an e-mail was sent, to one of the right addresses, with enough facts."""
    found: Found = {}
    was_sent = episode.text is not None
    if episode.ended is not None:
        found["sent"] = (was_sent, 1)
    task, right, share = episode.task, False, 0.0
    if task is None:
        return found
    if was_sent and task.recipients:
        right = not loop.addresses.isdisjoint(task.recipients)
        found["recipient"] = (right, 1)
    if episode.text is not None:
        email = f"{loop.subject}\n{episode.text}"
        found["invented"] = (_invents(email, task.shown), 1)
        if task.facts:
            share = share_of_facts(task.facts, email)
            found["facts"] = (share, 1)
    if task.recipients and task.facts:
        found["success"] = (was_sent and right and share >= ENOUGH_FACTS, 1)
    return found


def _written(episode: Episode) -> Found:
    """Success where the model writes a body alone: it has enough of the facts that the model was given."""
    task = episode.task
    assert task is not None
    given = any(task.brief and task.brief in str(m.get("content", "")) for m in episode.messages)
    facts, shown = (task.facts, task.shown) if given else (task.request_facts, task.request_shown)
    found: Found = {}
    if episode.text is not None:
        found["invented"] = (_invents(episode.text, shown), 1)
    if not facts:
        return found
    share = share_of_facts(facts, episode.text) if episode.text is not None else 0.0
    found["success"] = (share >= ENOUGH_FACTS, 1)
    if episode.text is not None:
        found["facts"] = (share, 1)
    return found


def _invents(text: str, shown: frozenset[str]) -> bool:
    """Whether ``text`` has a number, a time or a code that is not among the words ``shown`` to the model."""
    return not figures_of(text) <= shown
