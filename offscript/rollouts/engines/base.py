"""Interface of engines: requests in, completions out, in the order in which the engine finishes them."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Protocol

from offscript.tasks.dialects.base import ToolPrompt
from offscript.tasks.messages import Message


@dataclass(frozen=True)
class Sampling:
    """How a reply is sampled. ``temperature`` 0 means greedy; ``top_p`` in (0, 1]; ``max_tokens`` bounds the new tokens."""

    temperature: float = 0.7
    top_p: float = 0.95
    repetition_penalty: float = 1.0
    max_tokens: int = 128


@dataclass(frozen=True)
class Request:
    """A request for one reply.

    Args:
        id: returned with the completion; unique among the pending requests.
        messages: the conversation, with roles system, user, assistant, tool.
        adapter: name of one of the engine's adapters or persona vectors, None for the base weights alone.
        seed: the only source of randomness of this reply, in [0, 2**63).
        sampling: how the reply is sampled.
        prefix: text that the reply begins with; it is part of the returned text.
        tools: what the model is told of its tools, in a native tool dialect. Its marks are kept in the returned text.
    """

    id: int
    messages: tuple[Message, ...]
    adapter: str | None
    seed: int
    sampling: Sampling
    prefix: str = ""
    tools: ToolPrompt | None = None


@dataclass(frozen=True)
class SampledTokens:
    """The token ids of a reply as they were sampled, its end token included, and those of its prompt.

    ``log_probs`` are the log-probabilities of ``new`` (equal lengths), in nats, under the distribution that they were
    sampled from before top-p: the softmax of the logits divided by the temperature.
    """

    prompt: tuple[int, ...]
    new: tuple[int, ...]
    log_probs: tuple[float, ...]


@dataclass(frozen=True)
class Completion:
    """A finished reply. ``finish_reason`` is ``stop`` (the model ended it), ``length`` (it reached max_tokens or the
    context) or ``error`` (the engine failed; ``text`` holds the reason). ``tokens`` are given by an engine that keeps
    them."""

    id: int
    text: str
    finish_reason: str
    tokens_in: int
    tokens_out: int
    tokens: SampledTokens | None = None


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
    """A source of replies, driven by one thread."""

    stats: EngineStats

    def submit(self, request: Request) -> None:
        """Queues a request. Does not wait for earlier ones."""
        ...

    def step(self) -> list[Completion]:
        """Works until at least one request is finished; returns the finished ones, [] if none is pending."""
        ...

    def pending(self) -> int:
        """Number of requests that are submitted and not returned."""
        ...

    def close(self) -> None:
        """Releases the engine's resources. It is not used afterwards."""
        ...

    def info(self) -> dict[str, str]:
        """Name and versions, recorded in the manifest of every artifact with this engine's texts."""
        ...
