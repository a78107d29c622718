"""Chat templates: the roles that a model has, and the token ids of a conversation.

``TemplateSettings`` holds a model's policy: which roles its chat template lacks, its default system text, its date.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from offscript.errors import UserError
from offscript.json_types import Json
from offscript.settings import TemplateSettings, ThinkingSettings
from offscript.tasks.messages import IMAGE_MARK, Message, images_of

Schemas = Sequence[dict[str, Json]]

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOOL_OUTPUT = "[TOOL OUTPUT]"
"""First line of a tool message that is sent in the user role."""

_NO_DATE = "the current date, with which every text would change from day to day"


def render(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Message],
    template: TemplateSettings,
    *,
    prefix: str = "",
    generation: bool = True,
    tools: Schemas = (),
) -> list[int]:
    """Token ids of a conversation under the policy ``template``.

    With ``tools`` (JSON schemas) the chat template is given them, and its own role for their results is used, whatever
    ``template.tool_role`` is. With ``generation`` the ids end where the assistant's reply begins, after ``prefix``.
    Special tokens come from the chat template alone, so the beginning-of-text token is not doubled.

    Raises:
        UserError: the chat template refuses the conversation.
    """
    if prefix and not generation:
        raise ValueError("a prefix begins a reply: it needs generation=True")
    return tokenize(tokenizer, render_text(tokenizer, messages, template, generation, tools) + prefix)


def render_prompt(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Message],
    template: TemplateSettings,
    prefix: str = "",
    tools: Schemas = (),
) -> list[int]:
    """Token ids that a reply is generated from: those of ``render``, with ``template.double_bos`` a second
    beginning-of-text token before the one that the chat template writes, if it writes one.

    Raises:
        UserError: the chat template refuses the conversation.
    """
    ids, bos = render(tokenizer, messages, template, prefix=prefix, tools=tools), tokenizer.bos_token_id
    return [bos, *ids] if template.double_bos and bos is not None and ids[:1] == [bos] else ids


def render_text(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Message],
    template: TemplateSettings,
    generation: bool,
    tools: Schemas = (),
) -> str:
    """The text whose tokens ``render`` returns.

    Raises:
        UserError: the chat template refuses the conversation.
    """
    if tools:
        template = with_native_tools(template)
    return _render_mapped(tokenizer, map_roles(messages, template), template, generation, tools)


def with_native_tools(template: TemplateSettings) -> TemplateSettings:
    """``template`` for a request with tools, whose results are in the role ``tool``."""
    return template.model_copy(update={"tool_role": "native"})


def tokenize(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Token ids of ``text`` alone: no special token is added."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def thinking_opening(tokenizer: "PreTrainedTokenizerBase", template: TemplateSettings) -> str:
    """What the chat template itself writes of a reply's thinking: the end of a prompt from ``thinking.start`` on, or ""."""
    if template.thinking is None:
        return ""
    prompt = render_text(tokenizer, [{"role": "user", "content": "Hello."}], template, generation=True)
    start = template.thinking.start
    return prompt[prompt.rindex(start) :] if prompt.rstrip().endswith(start) else ""


def check_thinking(tokenizer: "PreTrainedTokenizerBase", template: TemplateSettings) -> None:
    """Checks that the replies of a reasoning model are not used with their thinking.

    Raises:
        UserError: ``template.thinking`` is null, and the chat template or the vocabulary has the usual marks.
    """
    marks = ThinkingSettings()
    if template.thinking is None and (
        marks.end in str(tokenizer.chat_template) or marks.end in tokenizer.get_added_vocab()
    ):
        raise UserError(
            "model.template.thinking",
            f"null, but this model thinks (its tokenizer or chat template has {marks.end})",
            f"{{start: {marks.start}, end: {marks.end}}} in the model's YAML",
        )


def map_roles(messages: Sequence[Message], template: TemplateSettings) -> list[Message]:
    """``messages`` with roles that the model lacks mapped to ``user``, and its default system text made explicit."""
    mapped = [m.copy() for m in messages]
    if template.default_system is not None and all(m["role"] != "system" for m in mapped):
        mapped.insert(0, {"role": "system", "content": template.default_system})
    if template.tool_role == "user":
        mapped = [_tool_as_user(m) if m["role"] == "tool" else m for m in mapped]
    return _system_as_user(mapped) if template.system_role == "user" else mapped


def join_consecutive(messages: Sequence[Message]) -> list[Message]:
    """``messages`` with consecutive turns of one role joined by a blank line, with the images of both; a message with a tool
    call stays alone."""
    joined: list[Message] = []
    for message in messages:
        calls = "tool_calls" in message or (joined and "tool_calls" in joined[-1])
        if joined and joined[-1]["role"] == message["role"] and not calls:
            images = images_of([joined[-1], message])
            joined[-1] = {**joined[-1], "content": _paragraphs(joined[-1]["content"], message["content"])}
            if images:
                joined[-1]["images"] = images
        else:
            joined.append(message.copy())
    return joined


# ---------------------------------------------------------------- the template


def source_of(tokenizer: "PreTrainedTokenizerBase") -> str:
    """The text of the chat template; of several, that of the one called default.

    Raises:
        UserError: there is no such template.
    """
    found: object = tokenizer.chat_template
    if isinstance(found, dict):
        if "default" not in found:
            names = ", ".join(map(str, found))
            raise UserError(
                place_of(tokenizer), f"its chat templates are called {names}", "call one of them default"
            )
        found = found["default"]
    if not isinstance(found, str):
        raise UserError(place_of(tokenizer), f"chat_template is {found!r}", "a Jinja template is needed")
    return found


def place_of(tokenizer: "PreTrainedTokenizerBase") -> str:
    """The file that the chat template was read from."""
    folder = Path(tokenizer.name_or_path)
    file = folder / "chat_template.jinja"
    return str(file if file.is_file() else folder / "tokenizer_config.json")


def _render_mapped(
    tokenizer: "PreTrainedTokenizerBase",
    messages: list[Message],
    template: TemplateSettings,
    generation: bool,
    tools: Schemas,
) -> str:
    # Some templates (Gemma) refuse consecutive turns of one role: join them then. Templates fail with errors of any type.
    with contextlib.suppress(Exception):
        return apply(tokenizer, messages, template, generation, tools)
    try:
        return apply(tokenizer, join_consecutive(messages), template, generation, tools)
    except Exception as error:
        raise _explain(error, tokenizer, messages, template, generation) from None


def apply(
    tokenizer: "PreTrainedTokenizerBase",
    messages: list[Message],
    template: TemplateSettings,
    generation: bool,
    tools: Schemas = (),
) -> str:
    """What the chat template makes of ``messages``, whose roles are mapped. Each image is as many image tokens as the model
    reads it as.

    Raises:
        Exception: of any type, where the template fails.
    """
    images = len(images_of(messages))
    date = {} if template.date_string is None else {"date_string": template.date_string}
    text = tokenizer.apply_chat_template(
        cast(list[dict[str, str]], [_in_parts(m) for m in messages] if images else messages),
        tools=cast(Any, list(tools)) or None,
        chat_template=_with_fixed_date(source_of(tokenizer), template),
        tokenize=False,
        add_generation_prompt=generation,
        **date,  # type: ignore[arg-type]
    )
    assert isinstance(text, str)
    return _with_image_tokens(tokenizer, text, images, template) if images else text


def _in_parts(message: Message) -> dict[str, object]:
    """``message`` as chat templates take one with images: its content is a list of images and texts."""
    if "images" not in message:
        return {**message}
    parts: list[dict[str, str]] = []
    for number, text in enumerate(message["content"].split(IMAGE_MARK)):
        if number:
            parts.append({"type": "image"})
        if text.strip():
            parts.append({"type": "text", "text": text})
    return {"role": message["role"], "content": parts}


def _with_image_tokens(
    tokenizer: "PreTrainedTokenizerBase", text: str, images: int, template: TemplateSettings
) -> str:
    """``text`` with the tokens of an image in place of each token that begins one, as the processor of Gemma-3 has it.

    Raises:
        UserError: the model reads no images, its tokenizer names no tokens for them, or the template has left one out.
    """
    if not template.image_tokens:
        raise UserError(
            "model.template.image_tokens", "0, and a prompt has an image", "a model that reads images"
        )
    begin, soft, end = (getattr(tokenizer, name, None) for name in ("boi_token", "image_token", "eoi_token"))
    if not (begin and soft and end):
        raise UserError(
            tokenizer.name_or_path,
            "its tokenizer has no boi_token, image_token and eoi_token",
            "those of Gemma-3",
        )
    if text.count(begin) != images:
        found = f"the chat template renders {text.count(begin)} of {images} images"
        raise UserError(
            place_of(tokenizer), found, "a chat template with images, and texts that do not name their tokens"
        )
    return text.replace(begin, f"\n\n{begin}{soft * template.image_tokens}{end}\n\n")


def _with_fixed_date(source: str, template: TemplateSettings) -> str:
    """``source`` with a macro in place of ``strftime_now``, which transformers gives to templates: it returns
    ``date_string``, and without one it fails."""
    if "strftime_now" not in source:
        return source
    date = f"raise_exception('{_NO_DATE}')" if template.date_string is None else "date_string"
    # The line feed belongs to the last tag (trim_blocks), so that the template begins at the beginning of a line.
    return f"{{% macro strftime_now(format) %}}{{{{ {date} }}}}{{% endmacro %}}\n{source}"


def _explain(
    error: Exception,
    tokenizer: "PreTrainedTokenizerBase",
    messages: list[Message],
    template: TemplateSettings,
    generation: bool,
) -> UserError:
    """The error of a user whose chat template raised ``error``."""
    from jinja2.exceptions import TemplateError, TemplateSyntaxError

    if isinstance(error, UserError):
        return error
    reason = str(error)[:200]
    if reason == _NO_DATE:
        return UserError(
            place_of(tokenizer), f"the chat template inserts {reason}", "set model.template.date_string"
        )
    roles = ", ".join(m["role"] for m in messages)
    remedy = _remedy(tokenizer, messages, template, generation)
    # What a template raises itself (raise_exception) is of this very type.
    if type(error) is TemplateError:
        return UserError(
            "model.template",
            f"the chat template refuses a conversation of roles {roles} ({reason})",
            remedy or "a conversation begins with system or user, then user and assistant take turns",
        )
    line = f" in line {error.lineno}" if isinstance(error, TemplateSyntaxError) else ""
    return UserError(
        place_of(tokenizer),
        f"the chat template fails{line} for the roles {roles} ({type(error).__name__}: {reason})",
        remedy or "correct the template",
    )


def _remedy(
    tokenizer: "PreTrainedTokenizerBase",
    messages: list[Message],
    template: TemplateSettings,
    generation: bool,
) -> str | None:
    """Settings under which the chat template accepts ``messages``, found by trying; None if there are none."""
    for fields in (["system_role"], ["tool_role"], ["system_role", "tool_role"]):
        policy = TemplateSettings(tool_role="native").model_copy(update=dict.fromkeys(fields, "user"))
        with contextlib.suppress(Exception):
            apply(tokenizer, join_consecutive(map_roles(messages, policy)), template, generation)
            return "set " + " and ".join(f"model.template.{field}=user" for field in fields)
    return None


def _system_as_user(messages: list[Message]) -> list[Message]:
    """Puts all system texts before the first user turn."""
    system = _paragraphs(*(m["content"] for m in messages if m["role"] == "system"))
    rest = [m for m in messages if m["role"] != "system"]
    if not system:
        return rest
    if rest and rest[0]["role"] == "user":
        return [{**rest[0], "content": _paragraphs(system, rest[0]["content"])}, *rest[1:]]
    return [{"role": "user", "content": system}, *rest]


def _tool_as_user(message: Message) -> Message:
    return {"role": "user", "content": f"{TOOL_OUTPUT}\n{message['content']}"}


def _paragraphs(*texts: str) -> str:
    return "\n\n".join(t for t in texts if t)
