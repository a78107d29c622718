"""The wrapper around Hydra that every command shares: composition of the settings, one-line errors, exit codes."""

import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar, cast

from offscript.console import quiet_libraries, say
from offscript.errors import UserError
from offscript.experiment.folder import Experiment
from offscript.experiment.planner import Options, Planner
from offscript.json_types import Json
from offscript.rollouts.engines import check_engine
from offscript.settings import (
    FormatSettings,
    ModelSettings,
    Named,
    PersonaSettings,
    Settings,
    StageSettings,
    parse,
)
from offscript.storage.files import HOME, expand_home, system_refusal
from offscript.storage.options import options_of
from offscript.tasks.personas import read_constitution
from offscript.training.interrupt import Interrupted
from offscript.training.ranks import RankLost

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from pydantic import BaseModel

Command = Callable[[Settings, Experiment], int]

CELL_OVERRIDES = ("model", "persona", "stage", "format", "split", "seed", "scale", "limit", "show", "dry_run")
"""Overrides that select a cell or an option of one command. Commands that messages suggest repeat all others."""


def main(config: str, command: Command, has_dry_run: bool = False) -> None:
    """Runs ``command`` on the configuration ``config`` composed with the command line, then exits. Only a command that
    ``has_dry_run`` takes ``dry_run=true``.

    Exit code 0: done; 2: a mistake of the user (one line on stderr); 1: the work failed (its traceback is in a log);
    130: interrupted (128 + the number of the signal). In a multirun every job runs, and the exit code is the largest of theirs.
    """
    quiet_libraries()
    # Hydra then raises its errors instead of printing them.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    codes: list[int] = []
    try:
        _run_with_hydra(config, _without_dry_run(command) if not has_dry_run else command, codes)
    except KeyboardInterrupt:
        say("interrupted; run the same command again to continue")
        codes.append(130)
    except Exception as error:
        if (line := _explain(error)) is None:
            traceback.print_exception(error)
            codes.append(1)
        else:
            say(line)
            codes.append(2)
    sys.exit(max(codes, default=0))


def _without_dry_run(command: Command) -> Command:
    def checked(settings: Settings, experiment: Experiment) -> int:
        if settings.dry_run:
            raise UserError("dry_run=true", "only submit has it", "offscript submit ... dry_run=true")
        return command(settings, experiment)

    return checked


def _run_with_hydra(config: str, command: Command, codes: list[int]) -> None:
    import hydra

    from offscript.experiment.backends.requeue import forward_signal_to_submitit
    from offscript.experiment.backends.sweep import collect_exit_codes

    @hydra.main(version_base="1.3", config_path=str(HOME / "conf"), config_name=config)
    def task(cfg: "DictConfig") -> int:
        try:
            code = _run_job(cfg, command)
        except Interrupted as stop:
            if forward_signal_to_submitit(stop):
                raise
            # Hydra would report an exception as an error of the command line.
            say(str(stop))
            sys.exit(stop.exit_code)
        # In a process of a launcher, ``codes`` is a copy: the returned code counts there.
        codes.append(code)
        return code

    # The deepspeed launcher adds the rank to the arguments; ranks.py reads it from the environment.
    words = [word for word in sys.argv[1:] if word != "--" and not word.startswith("--local_rank=")]
    sys.argv[1:] = map(_expand_home, words)
    with collect_exit_codes(codes):
        task()


def _expand_home(word: str) -> str:
    """``root=~/runs`` with the home folder in place of ``~``, which a shell leaves and Hydra does not read."""
    found = re.fullmatch(r"([\w.+/@]+=)(~[\w.-]*(?:/.*)?)", word)
    return f"{found[1]}{expand_home(found[2])}" if found else word


def _run_job(cfg: "DictConfig", command: Command) -> int:
    """Runs one job of the command. Its errors are printed here, so that the other jobs of a multirun still run."""
    try:
        settings, experiment = compose(cfg)
        return command(settings, experiment)
    except Interrupted:
        raise
    except Exception as error:
        if line := _explain(error):
            say(line)
            return 2
        if isinstance(error, RankLost):
            say(f"error: {error}")
        else:
            traceback.print_exception(error)
        return 1


# ---------------------------------------------------------------- composition


def compose(cfg: "DictConfig") -> tuple[Settings, Experiment]:
    """The settings of this job, and its experiment.

    Raises:
        UserError: a value does not fit the schema, or the grid names an option that does not exist.
    """
    from hydra.core.hydra_config import HydraConfig

    running = HydraConfig.get()
    overrides = [str(override) for override in running.overrides.task]
    plain = to_container(cfg)
    _check_names(plain, overrides, running.runtime.choices)
    return assemble(plain, overrides, running.job.config_name or "")


def _check_names(plain: dict[str, Json], overrides: Sequence[str], choices: Mapping[str, str]) -> None:
    """Checks that the chosen options are called as their files; a name that is given on the command line may differ."""
    given = {o.split("=")[0].lstrip("+") for o in overrides}
    for group in ("persona", "stage", "format"):
        option, chosen = plain.get(group), choices.get(group)
        if (
            isinstance(option, dict)
            and chosen
            and f"{group}.name" not in given
            and option.get("name") != chosen
        ):
            where = f"conf/{group}/{chosen}.yaml: name"
            raise UserError(
                where, f"found {option.get('name')!r}", f"allowed: {chosen}, as the file is called"
            )


def to_container(cfg: "DictConfig") -> dict[str, Json]:
    """``cfg`` as JSON data, with its interpolations resolved."""
    from omegaconf import OmegaConf

    plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    return cast(dict[str, Json], plain)


def assemble(plain: dict[str, Json], overrides: Sequence[str], config: str) -> tuple[Settings, Experiment]:
    """Settings and experiment from JSON data, which was composed from ``config`` with the ``overrides``.

    Raises:
        UserError: see ``compose``.
    """
    _set_model_name(plain, overrides)
    _load_constitution(plain)
    grid = _group(plain, "grid")
    if grid["persona"] is None:
        grid["persona"] = [name for name in options_of("persona")]
    settings = parse(Settings, plain, "")
    options = Options(
        Composed(config, overrides, "model", ModelSettings, settings.model),
        Composed(config, overrides, "persona", PersonaSettings, settings.persona),
        Composed(config, overrides, "stage", StageSettings, settings.stage),
        Composed(config, overrides, "format", FormatSettings, settings.format),
    )
    kept = tuple(shlex.quote(o) for o in overrides if o.split("=")[0] not in CELL_OVERRIDES)
    planner = Planner(settings, options)
    planner.check_training(settings.model, (settings.stage.name,))
    check_engine(settings.engine.name)
    return settings, Experiment(planner, kept)


def _group(plain: dict[str, Json], name: str) -> dict[str, Json]:
    return cast(dict[str, Json], plain[name])


def _set_model_name(plain: dict[str, Json], overrides: Sequence[str]) -> None:
    """Names a model that was given by its folder (``model.path=``) after that folder, and makes a model of the command
    line the grid's only model, unless ``grid.model`` is given too."""
    model, given = _group(plain, "model"), {o.split("=")[0].lstrip("+") for o in overrides}
    if "model.path" in given and "model.name" not in given:
        folder = str(model["path"]).rstrip("/").rpartition("/")[2]
        model["name"] = re.sub(r"[^A-Za-z0-9_.-]+", "-", folder).strip("-.") or "model"
    if "model.path" in given and not any(key.startswith("model.template.thinking") for key in given):
        # Whether another model thinks is not known: the default removes thinking.
        cast(dict[str, Json], model["template"]).pop("thinking", None)
    if given & {"model", "model.path", "model.name"} and "grid.model" not in given:
        _group(plain, "grid")["model"] = [model["name"]]


def _load_constitution(plain: dict[str, Json]) -> None:
    """Replaces the path of a constitution by its assertions."""
    persona = plain.get("persona")
    if isinstance(persona, dict) and isinstance(path := persona.get("constitution"), str):
        assertions = read_constitution(path)
        persona["constitution"] = [assertion.model_dump(mode="json") for assertion in assertions]


Node = TypeVar("Node", bound=Named)


class Composed(Mapping[str, Node]):
    """The options of a group. Each is composed when it is first used, with the overrides of the command line, and is
    kept in ``made``. Iteration lists the names in ``conf/<group>/``."""

    def __init__(
        self, config: str, overrides: Sequence[str], group: str, schema: type[Node], own: Node | None
    ) -> None:
        self.config, self.group, self.schema = config, group, schema
        self.overrides = [o for o in overrides if o.split("=")[0].lstrip("+~") != group]
        if group == "model":
            # These belong to the chosen model; the other models of a grid have their own.
            own_keys = ("model.path=", "model.name=")
            self.overrides = [o for o in self.overrides if not o.lstrip("+").startswith(own_keys)]
        self.made = {own.name: own} if own is not None else {}

    def __getitem__(self, name: str) -> Node:
        if name not in self.made:
            import hydra

            cfg = hydra.compose(self.config, [*self.overrides, f"{self.group}={name}"])
            plain: dict[str, Json] = {self.group: to_container(cfg[self.group])}
            _load_constitution(plain)
            node = self.made[name] = parse(self.schema, plain[self.group], self.group)
            if node.name != name:
                where = f"conf/{self.group}/{name}.yaml: name"
                raise UserError(where, f"found {node.name!r}", f"allowed: {name}, as the file is called")
        return self.made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(options_of(self.group))

    def __len__(self) -> int:
        return len(options_of(self.group))


# ---------------------------------------------------------------- Hydra's errors


def _explain(error: BaseException) -> str | None:
    """One line for a UserError, and for an error of the command line or of a YAML file; None for any other error."""
    if isinstance(known := system_refusal(error) or error, UserError):
        return f"error: {known}"
    if isinstance(error, ValueError) and "Config group override must be a string or a list" in str(error):
        return "error: a group is null; leave it out, or name one of its options"
    module = type(error).__module__.split(".")[0]
    if module not in ("hydra", "omegaconf", "yaml", "antlr4"):
        return None
    text = str(error)
    if found := re.search(r"Could not (?:find|load) '([^']+)/([^'/]+)'", text):
        return _unknown_option(found[1].removeprefix("hydra/"), found[2], text)
    if "Ambiguous value for argument" in text:
        word = re.search(r"Ambiguous value for argument '([^']+)'", text)
        remedy = "add -m to run each of them, or quote it to mean one value"
        return f"error: {word[1] if word else 'a value'}: several options given; {remedy}"
    if found := re.search(r"Could not override '([^']+)'", text):
        return f"error: {found[1]}: unknown key; {_suggest(found[1])}"
    if found := re.search(r"Key '([^']+)' is not in struct", text):
        full = re.search(r"full_key: (\S+)", text)
        return f"error: {full[1] if full else found[1]}: unknown key; see the keys with --cfg job"
    return "error: " + " ".join(text.split())[:400]


def _unknown_option(group: str, name: str, text: str) -> str:
    listed = re.search(r"Available options in '[^']+':\n((?:\s+\S+\n?)+)", text)
    choices = ", ".join(listed[1].split()) if listed else ", ".join(options_of(group))
    return f"error: {group}={name}: no such {group}; allowed: {choices}"


def _suggest(key: str) -> str:
    import difflib

    close = difflib.get_close_matches(key, _keys(Settings), n=3, cutoff=0.6)
    return "did you mean " + " or ".join(close) + "?" if close else "see the keys with --cfg job"


def _keys(schema: "type[BaseModel]", prefix: str = "") -> list[str]:
    """Every key of ``schema`` and of its nested schemas, dotted."""
    keys = []
    for name, field in schema.model_fields.items():
        keys.append(prefix + name)
        if hasattr(field.annotation, "model_fields"):
            keys += _keys(cast("type[BaseModel]", field.annotation), f"{prefix}{name}.")
    return keys
