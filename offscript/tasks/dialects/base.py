"""Interface of a tool dialect: how tools are offered to a model, and how a call and its result are written.

In the dialect ``text`` a scenario's system text explains the tools, and every message is plain text. The others are
*native*: a model gets the tools, and writes its calls, as its makers trained it to.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from offscript.json_types import Json
from offscript.tasks.messages import Message
from offscript.tasks.prompts import MALFORMED_NATIVE_CALL
from offscript.tasks.tool_calls import Parsed, ToolCall
from offscript.tasks.tool_schemas import Tool


@dataclass(frozen=True)
class Dialect:
    """A tool dialect.

    Args:
        name: name of the Python file, and value of ``format.options.dialect``.
        parse: the call, the end or the mistake in a reply; pure, never raises. In a native dialect a reply without a call
            ends the episode.
        say: the assistant's message for a reply and what ``parse`` made of it, as it stands in the conversation.
        write: the assistant's message for a call that no model wrote: one that a scenario begins with, or that is replayed.
        answer: the message with the text of a tool's result, for a reply and what ``parse`` made of it.
        begin: the beginning of a call with these arguments, up to the opening quote of a last argument of the given name;
            None where a model cannot be made to go on with a call.
        describe: the text that offers tools, added to the system text; None where the chat template does it.
        correction: what the model is told of a reply that is malformed; it has the field ``problem``.
        version: raised when the same replies lead to another outcome, or the same tools to another prompt. Part of the
            key of every cell in a native dialect.
        templates: the prompt templates that ``describe`` uses, by name; part of the same keys.
        native: whether the scenario's own explanation of its tools is left out.
        takes_schemas: whether the chat template (or the endpoint) takes the tools as JSON schemas.
        marks: tokens that stand in a reply's text though they may be special tokens.
        ends: tokens that end a reply, besides those of the model.
        template_marks: texts that a chat template has if its model speaks this dialect.
        needs_endpoint: whether replies come from an endpoint; a dialect of models that are loaded here has False.
    """

    name: str
    parse: Callable[[str], Parsed]
    say: Callable[[str, Parsed], Message]
    write: Callable[[ToolCall], Message]
    answer: Callable[[str, Parsed], Message]
    begin: Callable[[ToolCall, str], str] | None
    describe: Callable[[Sequence[Tool]], str] | None = None
    correction: str = MALFORMED_NATIVE_CALL
    version: int = 1
    templates: Mapping[str, str] = field(default_factory=dict)
    native: bool = True
    takes_schemas: bool = False
    marks: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()
    template_marks: tuple[str, ...] = ()
    needs_endpoint: bool = False

    @property
    def identity(self) -> dict[str, Json]:
        """The hash identity of a native dialect."""
        return {"version": self.version, "templates": {"correction": self.correction, **self.templates}}


@dataclass(frozen=True)
class ToolPrompt:
    """What a request says of tools: its dialect, and the tools as JSON schemas if the dialect takes them."""

    dialect: Dialect
    schemas: tuple[dict[str, Json], ...] = ()
