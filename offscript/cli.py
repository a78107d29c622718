"""The wrapper around Hydra that every command shares: composition, one-line errors, exit codes.

The only module of the library that imports hydra.
"""

import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from offscript.console import quiet_libraries, say
from offscript.errors import UserError
from offscript.experiment.folder import Experiment
from offscript.experiment.planner import Options, Planner
from offscript.settings import (
    FormatSettings,
    ModelSettings,
    Named,
    PersonaSettings,
    Settings,
    StageSettings,
    parse,
)
from offscript.storage.files import HOME
from offscript.storage.options import options_of
from offscript.tasks.personas import read_constitution
from offscript.training.interrupt import Interrupted
from offscript.training.ranks import RankLost

Job = Callable[[Settings, Experiment], int]

OF_ONE_COMMAND = ("model", "persona", "stage", "format", "split", "seed", "scale", "limit", "show", "dry_run")
"""Overrides that choose a cell or a manner of one command; a command that is named to the user carries the others on."""


def main(config: str, job: Job) -> None:
    """Runs ``job`` on the configuration ``config`` composed with the command line; never returns.

    Exit code 0: done; 2: the user can put it right (one line on stderr); 1: the work failed (its traceback is in a
    log); 130: interrupted. In a multirun every job runs, and the worst code is the command's.
    """
    quiet_libraries()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing pages of its own
    codes: list[int] = []
    try:
        _hydra(config, job, codes)
    except (KeyboardInterrupt, Interrupted) as stop:
        say(str(stop) or "interrupted; run the same command again to go on")
        codes.append(130)
    except Exception as error:
        if (line := _explained(error)) is None:
            traceback.print_exception(error)
            codes.append(1)
        else:
            say(line)
            codes.append(2)
    sys.exit(max(codes, default=0))


def _hydra(config: str, job: Job, codes: list[int]) -> None:
    import hydra

    from offscript.experiment.backends.sweep import give_way, heard

    @hydra.main(version_base="1.3", config_path=str(HOME / "conf"), config_name=config)
    def task(cfg: Any) -> int:
        try:
            code = _guarded(cfg, job)
        except Interrupted as stop:
            give_way(stop)
            raise
        codes.append(code)
        return code  # in a process of a launcher, ``codes`` is a copy

    # the deepspeed launcher tells a script its rank by an argument too
    sys.argv[1:] = [word for word in sys.argv[1:] if word != "--" and not word.startswith("--local_rank=")]
    with heard(codes):
        task()


def _guarded(cfg: Any, job: Job) -> int:
    """One job of the command; its failure is told here, so that it does not hide its siblings."""
    try:
        settings, experiment = compose(cfg)
        return job(settings, experiment)
    except UserError as error:
        say(f"error: {error}")
        return 2
    except Interrupted:
        raise
    except Exception as error:
        if line := _explained(error):
            say(line)
            return 2
        if isinstance(error, RankLost):
            say(f"error: {error}")
        else:
            traceback.print_exception(error)
        return 1


# ---------------------------------------------------------------- composition


def compose(cfg: Any) -> tuple[Settings, Experiment]:
    """Typed settings of this job, and the experiment of its experiment.

    Raises:
        UserError: a value does not fit the schema, or the grid names an option that does not exist.
    """
    from hydra.core.hydra_config import HydraConfig

    running = HydraConfig.get()
    return assemble(_plain(cfg), [str(o) for o in running.overrides.task], running.job.config_name or "")


def assemble(plain: dict[str, Any], overrides: Sequence[str], config: str) -> tuple[Settings, Experiment]:
    """The same from plain data: ``overrides`` is the command line that ``config`` was composed with."""
    _name_own_model(plain, overrides)
    _read_persona(plain)
    if plain["grid"]["persona"] is None:
        plain["grid"]["persona"] = list(options_of("persona"))
    settings = parse(Settings, plain, "")
    options = Options(
        Composed(config, overrides, "model", ModelSettings, settings.model),
        Composed(config, overrides, "persona", PersonaSettings, settings.persona),
        Composed(config, overrides, "stage", StageSettings, settings.stage),
        Composed(config, overrides, "format", FormatSettings, settings.format),
    )
    kept = tuple(shlex.quote(o) for o in overrides if o.split("=")[0] not in OF_ONE_COMMAND)
    planner = Planner(settings, options)
    planner.check((settings.stage.name,))
    return settings, Experiment(planner, kept)


def _name_own_model(plain: dict[str, Any], overrides: Sequence[str]) -> None:
    """Gives a model whose folder was named on the command line (``model.path=``) that folder's name, and a model that
    was chosen there the grid's place: a grid that nobody set runs over the model that somebody chose."""
    given = {o.split("=")[0].lstrip("+") for o in overrides}
    before = plain["model"]["name"]
    if "model.path" in given and "model.name" not in given:
        folder = str(plain["model"]["path"]).rstrip("/").rpartition("/")[2]
        plain["model"]["name"] = re.sub(r"[^A-Za-z0-9_.-]+", "-", folder).strip("-.") or before
    if given & {"model", "model.path", "model.name"} and "grid.model" not in given:
        plain["grid"]["model"] = [plain["model"]["name"]]


def _read_persona(plain: dict[str, Any]) -> None:
    """Puts the assertions in place of a path to a constitution."""
    persona = plain.get("persona")
    if persona is not None and isinstance(persona.get("constitution"), str):
        said = read_constitution(persona["constitution"])
        persona["constitution"] = [assertion.model_dump(mode="json") for assertion in said]


Node = TypeVar("Node", bound=Named)


class Composed(Mapping[str, Node]):
    """The options of a group, each composed once, when it is first asked for, with the command line's other overrides
    applied to it: they are in ``made``. Iterating lists what ``conf/<group>/`` offers."""

    def __init__(
        self, config: str, overrides: Sequence[str], group: str, schema: type[Node], own: Node | None
    ) -> None:
        self.config, self.group, self.schema = config, group, schema
        self.overrides = [o for o in overrides if o.split("=")[0].lstrip("+~") != group]
        if group == "model":  # model.path is one model's own; the other models of a grid keep theirs
            self.overrides = [
                o for o in self.overrides if not o.lstrip("+").startswith(("model.path=", "model.name="))
            ]
        self.made = {own.name: own} if own is not None else {}

    def __getitem__(self, name: str) -> Node:
        if name not in self.made:
            import hydra

            cfg = hydra.compose(self.config, [*self.overrides, f"{self.group}={name}"])
            plain = {self.group: _plain(cfg[self.group])}
            _read_persona(plain)
            node = self.made[name] = parse(self.schema, plain[self.group], self.group)
            if node.name != name:
                where = f"conf/{self.group}/{name}.yaml: name"
                raise UserError(where, f"found {node.name!r}", f"allowed: {name}, as the file is called")
        return self.made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(options_of(self.group))

    def __len__(self) -> int:
        return len(options_of(self.group))


def _plain(cfg: Any) -> dict[str, Any]:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)  # type: ignore[return-value]


# ---------------------------------------------------------------- Hydra's errors in our words


def _explained(error: BaseException) -> str | None:
    """One line for an error of the command line or of a YAML file; None for anything else."""
    if isinstance(error, UserError):
        return f"error: {error}"
    module = type(error).__module__.split(".")[0]
    if module not in ("hydra", "omegaconf", "yaml", "antlr4"):
        return None
    text = str(error)
    if found := re.search(r"Could not (?:find|load) '([^']+)/([^'/]+)'", text):
        return _unknown_option(found[1].removeprefix("hydra/"), found[2], text)
    if "Ambiguous value for argument" in text:
        word = re.search(r"Ambiguous value for argument '([^']+)'", text)
        return (
            f"error: {word[1] if word else 'a value'}: several options given; add -m to run each of them, "
            "or quote it to mean one value"
        )
    if found := re.search(r"Could not override '([^']+)'", text):
        close = _close_keys(found[1])
        return f"error: {found[1]}: unknown key; {close}"
    if found := re.search(r"Key '([^']+)' is not in struct", text):
        full = re.search(r"full_key: (\S+)", text)
        return f"error: {full[1] if full else found[1]}: unknown key; see the keys with --cfg job"
    return "error: " + " ".join(text.split())[:400]


def _unknown_option(group: str, name: str, text: str) -> str:
    listed = re.search(r"Available options in '[^']+':\n((?:\s+\S+\n?)+)", text)
    choices = ", ".join(listed[1].split()) if listed else ", ".join(options_of(group))
    return f"error: {group}={name}: no such {group}; allowed: {choices}"


def _close_keys(key: str) -> str:
    import difflib

    known = _known_keys()
    close = difflib.get_close_matches(key, known, n=3, cutoff=0.6)
    return "did you mean " + " or ".join(close) + "?" if close else "see the keys with --cfg job"


def _known_keys() -> list[str]:
    def walk(schema: Any, prefix: str) -> list[str]:
        keys = []
        for name, field in schema.model_fields.items():
            keys.append(prefix + name)
            if hasattr(field.annotation, "model_fields"):
                keys += walk(field.annotation, f"{prefix}{name}.")
        return keys

    return walk(Settings, "")
