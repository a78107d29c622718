"""The words of a command line, checked before Hydra composes the configuration, so that a message names the word.

Hydra changes a key that a YAML file lists, and wants a ``+`` before any other. Here every key of the schema in
``offscript/settings.py`` is taken without it.
"""

import argparse
import difflib
import re
import shlex
import types
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, Union, get_args, get_origin

from pydantic import BaseModel

from offscript.errors import UserError, one_of
from offscript.settings import Section, Settings
from offscript.storage.files import HOME, expand_home
from offscript.storage.options import choices_of
from offscript.tasks.formats import FORMATS
from offscript.training.data import data_kinds
from offscript.training.methods import methods

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

OPTIONAL_GROUPS = ("persona", "experiment")
"""Groups without an option unless one is chosen."""

HYDRA_KEYS = ("hydra/launcher", "hydra.launcher.", "hydra.sweeper.")
"""What can be changed of Hydra's own settings. The others say where it writes files, which the experiment decides."""

HYPER_PARAMETERS = (
    *(f"recipe.{section}" for section in get_args(Section)),
    "stage.training.hyper_parameters",
)


def checked(words: Sequence[str]) -> list[str]:
    """``words`` as Hydra takes them.

    Raises:
        UserError: a word is neither an option of Hydra nor a group or key with a value that it can have.
    """
    # The deepspeed launcher adds the rank to the arguments; ranks.py reads it from the environment.
    words = [word for word in words if word != "--" and not word.startswith("--local_rank=")]
    words = [_with_quotes(_with_home(word)) for word in words]
    for word in words:
        if any("\ud800" <= character <= "\udfff" for character in word):
            raise UserError(word, "is not UTF-8", "write it in UTF-8")
    given = _options(words)
    options = list(words)
    for override in given.overrides:
        options.remove(override)
    parsed = [_parsed(word) for word in given.overrides]
    for override in parsed:
        _check(override, given.multirun)
    return [*options, *(composable(str(override.input_line)) for override in parsed)]


def _with_home(word: str) -> str:
    """``root=~/runs`` with the home folder in place of ``~``, which a shell leaves and Hydra does not read."""
    found = re.fullmatch(r"([\w.+/@]+=)(~[\w.-]*(?:/.*)?)", word)
    return f"{found[1]}{expand_home(found[2])}" if found else word


def _with_quotes(word: str) -> str:
    """``beside=a=1 b=2`` with its value in quotes, which a shell removes and Hydra needs, since options are in it."""
    key, _, value = word.partition("=")
    if key.lstrip("+") != "beside" or "=" not in value or value[0] in "'\"":
        return word
    return key + '="' + value.replace('"', '\\"') + '"'


def key_of(override: str) -> str:
    """``seed`` for ``++seed=1``, ``~seed`` and ``seed=1``."""
    return override.partition("=")[0].lstrip("+~")


def composable(override: str) -> str:
    """``override`` so that Hydra takes it whether or not a YAML file lists its key, if the schema does."""
    plain = _with_quotes(override.lstrip("+"))
    key, equals, _ = plain.partition("=")
    if is_group(key):
        return plain
    return f"++{plain}" if equals and _annotations(key) else override


# ---------------------------------------------------------------- options of Hydra


def _options(words: Sequence[str]) -> argparse.Namespace:
    """``words`` as Hydra's own parser understands them, options and overrides in any order."""
    from hydra._internal.utils import get_args_parser

    def refuse(message: str) -> NoReturn:
        raise UserError("command line", message, "see --help")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    given = parser.parse_intermixed_args(list(words))
    for name in ("config_path", "config_name", "config_dir", "experimental_rerun"):
        if getattr(given, name) is not None:
            option = "--" + name.replace("_", "-")
            raise UserError(option, "cannot be chosen", "every command has its configuration in conf/")
    if given.resolve and given.cfg is None and not given.help:
        raise UserError("--resolve", "is for --cfg only", "for example --cfg job --resolve")
    if sum((given.run, given.multirun, given.cfg is not None, given.info is not None)) > 1:
        raise UserError("command line", "--multirun, --cfg and --info exclude each other", "give one of them")
    return given


# ---------------------------------------------------------------- overrides


def _parsed(word: str) -> "Override":
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    if not key_of(word):
        raise UserError(word, "no key in it", "write group=option or key=value")
    if not word.startswith("~") and "=" not in word:
        raise UserError(word, "no '=' in it", "write group=option or key=value")
    try:
        (override,) = OverridesParser.create().parse_overrides([word])
    except RecursionError:
        raise UserError(_cut(word), "is nested too deeply", "put it into a YAML file") from None
    except (HydraException, ValueError) as error:
        raise UserError(_cut(word), *_reading_problem(word, error)) from None
    return override


def _reading_problem(word: str, error: Exception) -> tuple[str, str]:
    """Why Hydra cannot read ``word``, and what to write."""
    key, _, value = word.partition("=")
    if "digits" in str(error):
        return "the number has too many digits", "write a smaller one"
    if not _is_readable(f"{key}=1"):
        return f"{key!r} cannot be a key", "a key has letters, digits, '_' and '.'"
    if "while evaluating" in str(error):
        reason = str(error).partition("while evaluating")[2].partition("\n")[0]
        return f"cannot evaluate {reason.strip()}", "a text with '(' needs quotes" + _quoted(key, value)
    return (
        "its value cannot be read",
        "close every bracket and quote; a text with special characters needs quotes" + _quoted(key, value),
    )


def _quoted(key: str, value: str) -> str:
    """``: 'key="value"'``, as a shell takes it; empty if quotes do not make it readable."""
    word = f"""{key}="{value.replace('"', chr(92) + '"')}\""""
    return f": {shlex.quote(word)}" if len(word) <= 100 and _is_readable(word) else ""


def _is_readable(word: str) -> bool:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        OverridesParser.create().parse_overrides([word])
    except (HydraException, ValueError, RecursionError):
        return False
    return True


def _cut(word: str) -> str:
    return word if len(word) <= 100 else word[:97] + "..."


def _check(override: "Override", multirun: bool) -> None:
    key, word = override.key_or_group, _cut(str(override.input_line))
    if override.package is not None:
        raise UserError(word, f"@{override.package} is not known here", "write group=option")
    if key.partition(".")[0].partition("/")[0] == "hydra":
        _check_hydra(key, word, multirun)
    elif is_group(key):
        _check_option(key, override, word)
    elif not _annotations(key):
        raise UserError(key, "unknown key", _suggestion(key))
    if override.is_sweep_override() and not multirun:
        remedy = "add -m to run each of them, or quote it to mean one value"
        raise UserError(word, "several options given", remedy)


def _check_hydra(key: str, word: str, multirun: bool) -> None:
    if not any(
        key == allowed or (key.startswith(allowed) and allowed.endswith(".")) for allowed in HYDRA_KEYS
    ):
        raise UserError(
            word, "cannot be changed", one_of(k + ("*" if k.endswith(".") else "") for k in HYDRA_KEYS)
        )
    if key == "hydra/launcher" and not multirun:
        raise UserError(word, "only a multirun has a launcher", "add -m")


def is_group(key: str) -> bool:
    """Whether ``key`` names a folder of ``conf/``, of which a file is chosen."""
    return bool(key) and "." not in key and (HOME / "conf" / key).is_dir()


def _check_option(group: str, override: "Override", word: str) -> None:
    """Checks that each chosen option of ``group`` is a file of it."""
    needed = group not in OPTIONAL_GROUPS
    if override.is_delete():
        if needed:
            raise UserError(word, "every run has one", _options_text(group))
        return
    for name in _chosen(group, override):
        if name is None and not needed:
            continue
        if name is None or str(name) not in choices_of(group):
            written = "null" if name is None else str(name)
            raise UserError(f"{group}={_cut(written)}", f"no such {group}", _options_text(group))


def _chosen(group: str, override: "Override") -> list[Any]:
    """The options that ``override`` chooses: several in a multirun, and of experiments. A glob matches what exists."""
    from hydra.core.override_parser.types import ChoiceSweep, Glob, QuotedString

    value = override.value()
    if isinstance(value, ChoiceSweep):
        found: list[Any] = list(value.list)
    else:
        found = value if group == "experiment" and isinstance(value, list) else [value]
    return [one.text if isinstance(one, QuotedString) else one for one in found if not isinstance(one, Glob)]


def _options_text(group: str) -> str:
    return one_of(choices_of(group)) if choices_of(group) else f"conf/{group} has no YAML file"


# ---------------------------------------------------------------- keys of the schema


def _annotations(key: str) -> list[Any]:
    """The types that the schema has for the dotted ``key``; empty if it does not know the key.

    The schema leaves hyper-parameters and the options of a format open: their keys are those of all methods, kinds of
    data and formats.
    """
    current: list[Any] = [Settings]
    parts = key.split(".")
    for position, part in enumerate(parts):
        above = ".".join(parts[:position])
        if above in HYPER_PARAMETERS:
            current = _hyper_parameters()
        elif above == "format.options":
            return [Any] if any(part in form.defaults for form in FORMATS.values()) else []
        current = [inner for one in current for inner in _inside(one, part)]
    return current


def _inside(annotation: Any, part: str) -> list[Any]:
    """The types that ``part`` of a value of this type can have."""
    if annotation is Any:
        return [Any]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        fields = {field.alias or name: field for name, field in annotation.model_fields.items()}
        return _members(fields[part].annotation) if part in fields else []
    if get_origin(annotation) is dict:
        return _members(get_args(annotation)[1])
    return []


def _members(annotation: Any) -> list[Any]:
    """The members of a union, itself for any other type."""
    if get_origin(annotation) in (Union, types.UnionType):
        return [inner for member in get_args(annotation) for inner in _members(member)]
    return [get_args(annotation)[0] if hasattr(annotation, "__metadata__") else annotation]


def _hyper_parameters() -> list[Any]:
    """The schemas that the hyper-parameters of a stage can have."""
    return [m.settings for m in methods().values()] + [kind.settings for kind in data_kinds().values()]


def keys() -> list[str]:
    """Every key that a command line can set, dotted; what the user names (a stage, a split) is left out."""
    found = dict.fromkeys(_keys_of(Settings, ""))
    for section in HYPER_PARAMETERS:
        for schema in _hyper_parameters():
            found |= dict.fromkeys(_keys_of(schema, f"{section}."))
    for form in FORMATS.values():
        found |= dict.fromkeys(f"format.options.{name}" for name in form.defaults)
    return list(found)


def _keys_of(schema: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in schema.model_fields.items():
        key = prefix + (field.alias or name)
        yield key
        for inner in _members(field.annotation):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from _keys_of(inner, f"{key}.")


def _suggestion(key: str) -> str:
    known = keys()
    if close := difflib.get_close_matches(key, known, n=3, cutoff=0.6):
        return "did you mean " + " or ".join(close) + "?"
    beside = sorted(k.rpartition(".")[2] for k in known if k.rpartition(".")[0] == key.rpartition(".")[0])
    return one_of(beside) if beside else "see the keys with --cfg job"
