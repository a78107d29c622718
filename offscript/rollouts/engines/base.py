"""What every engine speaks: requests in, completions out, in whatever order the engine finishes them."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Sampling:
    """How a reply is drawn. ``temperature`` 0 means greedy; ``top_p`` in (0, 1]; ``max_tokens`` bounds the new tokens."""

    temperature: float = 0.7
    top_p: float = 0.95
    repetition_penalty: float = 1.0
    max_tokens: int = 128


@dataclass(frozen=True)
class Request:
    """One reply that is wanted.

    ``messages`` are ``{"role", "content"}`` dicts with roles system, user, assistant, tool; ``prefix`` is text that
    the reply must begin with (it is part of the returned text); ``adapter`` is the key of an adapter folder that the
    engine was given, or None for the base weights; ``seed`` alone decides the randomness of this row.
    """

    id: int
    messages: tuple[dict[str, str], ...]
    adapter: str | None
    seed: int
    sampling: Sampling
    prefix: str = ""


@dataclass(frozen=True)
class Completion:
    """A finished reply. ``finish_reason``: ``stop`` (end token), ``length`` (ran into max_tokens or the context)
    or ``error`` (the engine could not answer; ``text`` holds why)."""

    id: int
    text: str
    finish_reason: str
    tokens_in: int
    tokens_out: int


@dataclass
class EngineStats:
    """Running totals for progress lines and tracking; ``by_mode`` counts completions by how they were computed."""

    completions: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    by_mode: Counter[str] = field(default_factory=Counter)

    def add(self, completion: Completion, mode: str) -> None:
        self.completions += 1
        self.tokens_in += completion.tokens_in
        self.tokens_out += completion.tokens_out
        self.by_mode[mode] += 1


class Engine(Protocol):
    """``submit`` never blocks; ``step`` works until at least one reply is finished (or nothing is pending)."""

    stats: EngineStats

    def submit(self, request: Request) -> None: ...

    def step(self) -> list[Completion]: ...

    def pending(self) -> int: ...

    def close(self) -> None:
        """Gives back what the engine holds; nothing is asked of it afterwards."""
        ...

    def info(self) -> dict[str, str]:
        """Name and versions, recorded in the manifest of every artifact that this engine's texts are in."""
        ...
