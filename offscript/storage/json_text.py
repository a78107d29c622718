"""JSON that others wrote: whatever stands in it, it is read or refused with one line."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import cast

from offscript.errors import UserError
from offscript.json_types import Json
from offscript.settings import shown

MAX_DEPTH = 100
"""Nested lists and objects that are accepted. Code that walks through a value recursively stops at Python's limit."""


class _RepeatedKey(ValueError):
    """An object has one key twice."""


def parse_json(text: str, where: str, allowed: str, unique_keys: bool = True) -> Json:
    """The JSON value in ``text``. ``where`` and ``allowed`` are parts of the message.

    As in Python's parser, NaN and infinities are accepted; they are floats, which the checks of a field refuse.

    Raises:
        UserError: not JSON, nested deeper than MAX_DEPTH, an integer with more digits than Python reads, or, with
            ``unique_keys``, an object with the same key twice.
    """
    if not text.strip():
        raise UserError(where, "is empty", allowed)
    try:
        value = cast(Json, json.loads(text, object_pairs_hook=_unique if unique_keys else None))
        deep = _is_deep(text, value)
    except RecursionError:
        deep = True
    except _RepeatedKey as error:
        raise UserError(where, str(error), allowed) from None
    except ValueError as error:
        reason = str(error)
        if "integer string conversion" in reason:
            reason = "an integer of thousands of digits"
        raise UserError(where, f"not JSON: {reason}", allowed) from None
    if deep:
        raise UserError(where, f"nested more than {MAX_DEPTH} levels deep", allowed)
    return value


def parse_object(text: str, where: str, allowed: str) -> dict[str, Json]:
    """The JSON object in ``text``, which can be written as UTF-8 again.

    Raises:
        UserError: see ``parse_json``; or another value than an object, or half of a surrogate pair in a text.
    """
    value = parse_json(text, where, allowed)
    if not isinstance(value, dict):
        raise UserError(where, f"found {shown(value)}", allowed)
    check_encodable(value, where)
    return value


def check_encodable(value: object, where: str) -> None:
    r"""Refuses a value of JSON or YAML whose texts cannot be written as UTF-8: both can escape half of a surrogate pair,
    ``\ud800``.

    Raises:
        UserError: ``value`` holds one.
    """
    try:
        # Values that only YAML has, such as sets, are no reason to refuse the text.
        json.dumps(value, ensure_ascii=False, default=str, skipkeys=True).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        found = f"{half!r} is half of a surrogate pair, not a character"
        raise UserError(where, found, "write the character itself, or both halves") from None


def replace_surrogates(value: Json) -> Json:
    """Replaces lone surrogates (``\\ud800``), which are valid in JSON but cannot be encoded as UTF-8."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, list):
        return [replace_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {str(replace_surrogates(key)): replace_surrogates(item) for key, item in value.items()}
    return value


def _unique(pairs: Sequence[tuple[str, Json]]) -> dict[str, Json]:
    found = dict(pairs)
    if len(found) < len(pairs):
        repeated = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise _RepeatedKey(f"key {repeated!r} occurs twice")
    return found


def _is_deep(text: str, value: Json) -> bool:
    """Whether ``value`` is nested deeper than MAX_DEPTH. ``text`` shows without a walk that most are not."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return False
    layer = [value]
    for _ in range(MAX_DEPTH + 1):
        parents, layer = layer, []
        for parent in parents:
            if isinstance(parent, dict):
                layer += parent.values()
            elif isinstance(parent, list):
                layer += parent
    return any(isinstance(item, dict | list) for item in layer)
