"""Tool calls in the notation of Python: ``contacts_lookup(name="Ada")``."""

import ast
import re

from offscript.json_types import Json
from offscript.tasks.tool_calls import Malformed, Parsed, named_call

_LINE_BREAK_IN_STRING = re.compile(
    r'"""(?:.*?)"""' r"|'''(?:.*?)'''" r'|"(?:\\.|[^"\\])*"' r"|'(?:\\.|[^'\\\n])*'", re.DOTALL
)
_WRAPPERS = {"print", "str", "json.dumps"}
_PREFIXES = ("default_api.", "tools.", "functions.")


def first_python_call(code: str) -> Parsed | None:
    """The first call of a function in ``code``; None if it has none.

    A surrounding ``print(...)``, an assignment and a list of calls are looked through. Arguments are given by name and are
    literals. Malformed: the code is not Python (line breaks within double quotes are allowed), or an argument is neither.
    """
    try:
        tree = ast.parse(_join_strings(code.strip()))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        # Python's own reason differs between its versions, and the model would see it.
        return Malformed("the call is not valid Python")
    call = next((c for c in _calls(tree) if _name(c.func) not in _WRAPPERS), None)
    if call is None:
        return None
    name = _name(call.func)
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    if not name:
        return Malformed("a call begins with the name of a tool")
    if call.args:
        return Malformed("arguments must be given by name")
    args: dict[str, Json] = {}
    for keyword in call.keywords:
        try:
            value = ast.literal_eval(keyword.value)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            return Malformed(f'the argument "{keyword.arg}" is not a literal')
        if keyword.arg is None:
            return Malformed("arguments must be given by name")
        args[keyword.arg] = _json(value)
    return named_call(name.removesuffix(".call"), args)


def _join_strings(code: str) -> str:
    """``code`` with the line breaks within simple double quotes escaped, as models write the body of an e-mail."""
    return _LINE_BREAK_IN_STRING.sub(
        lambda s: s[0] if s[0].startswith(('"""', "'''", "'")) else s[0].replace("\n", "\\n"), code
    )


def _calls(tree: ast.AST) -> list[ast.Call]:
    """The calls of ``tree`` in the order of the text, an outer one before those within it."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return sorted(calls, key=lambda call: (call.lineno, call.col_offset))


def _name(function: ast.expr) -> str:
    """``a.b.c`` for names and attributes; "" for anything else."""
    if isinstance(function, ast.Name):
        return function.id
    if isinstance(function, ast.Attribute) and (before := _name(function.value)):
        return f"{before}.{function.attr}"
    return ""


def _json(value: object) -> Json:
    """A Python literal as JSON: tuples and sets become lists, keys and anything else becomes text."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return {str(key): _json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_json(item) for item in value]
    return str(value)
