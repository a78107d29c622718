"""Checks that a model speaks a tool dialect, made when its cells are planned and again when its tokenizer is loaded."""

import json
from typing import TYPE_CHECKING

from offscript.errors import UserError, one_of
from offscript.models.chat_templates import place_of, source_of
from offscript.settings import ModelSettings
from offscript.storage import hub, references
from offscript.storage.files import read_json, read_text
from offscript.tasks.dialects import DIALECTS
from offscript.tasks.dialects.base import Dialect

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_WHERE = "format.options.dialect"


def check_model_speaks(model: ModelSettings, dialect: Dialect) -> None:
    """Checks that ``model`` speaks ``dialect``, as far as its files are on this machine. Imports no torch.

    Raises:
        UserError: the dialect is one of endpoints and the model is none, or the reverse; or the chat template lacks the
            marks of the dialect.
    """
    if not dialect.native:
        return
    if dialect.needs_endpoint != (model.endpoint is not None):
        kind = "served by an endpoint" if model.endpoint is not None else "loaded here, not by an endpoint"
        source = None if model.endpoint is not None else _template_on_disk(model)
        allowed = [
            d.name
            for d in DIALECTS.values()
            if not d.native
            or (d.needs_endpoint == bool(model.endpoint) and (source is None or _has(source, d)))
        ]
        raise UserError(_WHERE, f"found {dialect.name!r}, and model {model.name} is {kind}", one_of(allowed))
    if model.endpoint is None and (source := _template_on_disk(model)) is not None:
        _check_marks(source, model.name, dialect)


def check_template_speaks(tokenizer: "PreTrainedTokenizerBase", dialect: Dialect) -> None:
    """Checks that the chat template of ``tokenizer`` has the marks of ``dialect``.

    Raises:
        UserError: it lacks one.
    """
    _check_marks(source_of(tokenizer), place_of(tokenizer), dialect)


def _check_marks(source: str, name: str, dialect: Dialect) -> None:
    if missing := next((mark for mark in dialect.template_marks if mark not in source), None):
        fitting = [d.name for d in DIALECTS.values() if not d.needs_endpoint and _has(source, d)]
        found = f"found {dialect.name!r}, and the chat template of {name} has no {missing!r}"
        raise UserError(_WHERE, found, one_of(fitting))


def _has(source: str, dialect: Dialect) -> bool:
    return all(mark in source for mark in dialect.template_marks)


def _template_on_disk(model: ModelSettings) -> str | None:
    """The text of the model's chat template; None if its files are not on this machine, or have none."""
    ref = references.model_reference(model)
    folder = references.local_path(model) if ref is None else hub.cached(ref)
    # The template of a GGUF file is looked at when its tokenizer is loaded.
    if folder is None or folder.is_file():
        return None
    if (file := folder / "chat_template.jinja").is_file():
        return read_text(file)
    config = folder / "tokenizer_config.json"
    found = read_json(config) if config.is_file() else None
    template = found.get("chat_template") if isinstance(found, dict) else None
    return template if isinstance(template, str) else json.dumps(template) if template else None
