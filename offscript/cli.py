"""The wrapper around Hydra that every command shares: composition of the settings, one-line errors, exit codes."""

import functools
import os
import re
import shlex
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar, cast

from offscript.arguments import checked, composable, is_group, key_of
from offscript.command_table import OPTIONS, unread_options
from offscript.console import READER_GONE, ReaderGone, drop_output, quiet_libraries, say
from offscript.errors import UserError, one_of
from offscript.experiment.folder import Experiment
from offscript.experiment.planner import Options, Planner
from offscript.json_types import Json
from offscript.rollouts.engines import check_engine
from offscript.settings import (
    NAME_LENGTH,
    FormatSettings,
    ModelSettings,
    Named,
    PersonaSettings,
    Settings,
    StageSettings,
    parse,
    shown,
)
from offscript.storage import hub
from offscript.storage.files import HOME, locate, system_refusal
from offscript.storage.options import (
    check_option_files,
    choices_of,
    is_independent,
    keys_replaced,
    needs_others,
    option_file,
    options_of,
    value_at,
)
from offscript.tasks.personas import find_constitution, read_constitution, sources_of
from offscript.training.interrupt import Interrupted
from offscript.training.ranks import RankLost

if TYPE_CHECKING:
    from omegaconf import DictConfig

Command = Callable[[Settings, Experiment], int]


def main(config: str, command: Command, unread: Mapping[str, str]) -> None:
    """Runs ``command`` on the configuration ``config`` composed with the command line, then exits. ``unread`` are the
    options that it does not read, each with what to write instead.

    Exit code 0: done; 2: a mistake of the user (one line on stderr); 1: the work failed (its traceback is in a log);
    130: interrupted (128 + the number of the signal); 141: the reader of stdout has ended. In a multirun every job runs,
    and the exit code is the largest of theirs.
    """
    quiet_libraries()
    # Hydra then raises its errors instead of printing them.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    codes: list[int] = []
    try:
        sys.argv[1:] = checked(sys.argv[1:])
        _check_place()
        _run_with_hydra(config, lambda cfg: _run_job(cfg, command, unread), codes)
    except KeyboardInterrupt:
        say("interrupted; run the same command again to continue")
        codes.append(130)
    except SystemExit as end:
        # Hydra has printed --help or --cfg, or says why it cannot.
        codes.append(end.code if isinstance(end.code, int) else bool(end.code))
    except Exception as error:
        codes.append(_report(error))
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        drop_output()
        codes.append(READER_GONE)
    sys.exit(max(codes, default=0))


def _check_place() -> None:
    """Checks what Hydra needs: a working folder, and files of ``conf/`` that can be composed."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UserError("working folder", "it was removed", "change to another folder") from None
    check_option_files()


def _report(error: Exception) -> int:
    """Prints ``error``, one line if the user can correct it, and returns the exit code."""
    if isinstance(error, ReaderGone):
        return READER_GONE
    if isinstance(error, BrokenPipeError) and _origin(error) == "hydra":
        # While Hydra printed --help or --cfg.
        drop_output()
        return READER_GONE
    if line := _explain(error):
        say(line)
        return 2
    if isinstance(error, RankLost):
        say(f"error: {error}")
    else:
        say("".join(traceback.format_exception(error)).rstrip())
    return 1


def _run_with_hydra(config: str, job: Callable[["DictConfig"], int], codes: list[int]) -> None:
    import hydra

    from offscript.experiment.backends.requeue import forward_signal_to_submitit
    from offscript.experiment.backends.sweep import collect_exit_codes

    @hydra.main(version_base="1.3", config_path=str(HOME / "conf"), config_name=config)
    def task(cfg: "DictConfig") -> int:
        try:
            code = job(cfg)
        except Interrupted as stop:
            if forward_signal_to_submitit(stop):
                raise
            # Hydra would report an exception as an error of the command line.
            say(str(stop))
            sys.exit(stop.exit_code)
        # In a process of a launcher, ``codes`` is a copy: the returned code counts there.
        codes.append(code)
        return code

    with collect_exit_codes(codes), tempfile.TemporaryDirectory() as folder:
        # The sweeper of a multirun writes a file there that nothing here reads.
        sys.argv.append(f"hydra.sweep.dir='{folder}'")
        task()


def _run_job(cfg: "DictConfig", command: Command, unread: Mapping[str, str]) -> int:
    """Runs one job of the command. Its errors are printed here, so that the other jobs of a multirun still run."""
    try:
        settings, experiment = compose(cfg, unread)
        return command(settings, experiment)
    except Interrupted:
        raise
    except Exception as error:
        return _report(error)


# ---------------------------------------------------------------- composition


def compose(cfg: "DictConfig", unread: Mapping[str, str]) -> tuple[Settings, Experiment]:
    """The settings of this job, and its experiment.

    Raises:
        UserError: a value does not fit the schema, the grid names an option that does not exist, or one of the
            ``unread`` options is given.
    """
    from hydra.core.hydra_config import HydraConfig

    running = HydraConfig.get()
    overrides = [str(override) for override in running.overrides.task]
    plain = to_container(cfg)
    _check_unread(plain, overrides, unread)
    choices = running.runtime.choices
    _check_names(plain, overrides, choices)
    if (chosen := choices.get("persona")) and chosen not in options_of("persona"):
        # Perhaps by the experiment: the commands that messages name need it.
        overrides = [*(o for o in overrides if key_of(o) != "persona"), f"persona={chosen}"]
    return assemble(plain, overrides, running.job.config_name or "")


def composed_beside(words: str) -> tuple[Settings, Experiment]:
    """Settings and experiment of this ``offscript evaluate`` with the options ``words`` in place of those with the same
    keys.

    Raises:
        UserError: ``words`` cannot be split, one of them is not an option, or the result is not valid.
    """
    import hydra
    from hydra.core.hydra_config import HydraConfig

    running = HydraConfig.get()
    try:
        added = checked(shlex.split(words))
        replaced = {"beside", *map(key_of, added)}
        if others := {"beside", "predictions", "format", "planned", "labels", "compare"} & {
            key_of(o) for o in added
        }:
            raise UserError(min(others), "is for one evaluation, not for its second run", "leave it out")
        kept = [str(o) for o in running.overrides.task if key_of(str(o)) not in replaced]
        overrides, config = [*kept, *added], running.job.config_name or ""
        plain = to_container(hydra.compose(config, overrides))
        _check_unread(plain, overrides, unread_options("evaluate"))
        return assemble(plain, overrides, config)
    except UserError as error:
        raise UserError(f"beside: {error.where}", error.found, error.allowed) from error
    except ValueError as error:
        raise UserError(
            "beside", f"found {shown(words)}", f"{str(error).lower()}: close every quote"
        ) from None


def _check_unread(plain: dict[str, Json], overrides: Sequence[str], unread: Mapping[str, str]) -> None:
    """Checks that no option is given, on the command line or by an experiment's file, that the command ignores."""
    given = {key_of(o): o.partition("=")[2] for o in overrides}
    persona = plain.get("persona")
    if isinstance(persona, dict) and persona.get("name") is None:
        # It changes every persona of the grid.
        given.pop("persona", None)
    for option, instead in unread.items():
        value = plain.get(option)
        field = Settings.model_fields.get(option)
        is_default = field is None or isinstance(value, dict | None) or value == field.default
        if option in given or not is_default:
            found = given.get(option, str(value))
            raise UserError(f"{option}={found}", "this command does not read it", instead.format(value=found))


def _check_names(plain: dict[str, Json], overrides: Sequence[str], choices: Mapping[str, str]) -> None:
    """Checks that the chosen options are called as their files; a name that is given on the command line may differ."""
    given = {key_of(o) for o in overrides}
    for group in ("persona", "stage", "format"):
        option, chosen = plain.get(group), choices.get(group)
        if (
            isinstance(option, dict)
            and chosen
            and f"{group}.name" not in given
            and chosen in options_of(group)
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
    _drop_facts_of_other_weights(plain, overrides)
    changes = Changes(config, tuple(overrides))
    every, name = _take_every_persona(plain)
    published = plain["published"] = plain.get("published") or None
    if name is not None:
        composed = Composed(changes, "persona", PersonaSettings, None, every, published)
        plain["persona"] = composed[name].model_dump(mode="json")
    _load_constitution(plain.get("persona"), published)
    grid = _group(plain, "grid")
    if grid.get("persona") is None:
        grid["persona"] = [name for name in options_of("persona")]
    settings = parse(Settings, plain, "")
    options = Options(
        Composed(changes, "model", ModelSettings, settings.model),
        Composed(changes, "persona", PersonaSettings, settings.persona, every, settings.published),
        Composed(changes, "stage", StageSettings, settings.stage),
        Composed(changes, "format", FormatSettings, settings.format),
    )
    dropped = {"model", *OPTIONS} - ({"persona"} if every else set())
    kept = tuple(shlex.quote(o.lstrip("+")) for o in overrides if key_of(o) not in dropped)
    planner = Planner(settings, options)
    planner.check_training(settings.model, (settings.stage.name,))
    check_engine(settings.engine.name)
    return settings, Experiment(planner, kept)


def _group(plain: dict[str, Json], name: str) -> dict[str, Json]:
    group = plain.get(name)
    if not isinstance(group, dict):
        found = "missing" if name not in plain else f"found {shown(group)}"
        raise UserError(name, found, "this node is needed")
    return group


def _set_model_name(plain: dict[str, Json], overrides: Sequence[str]) -> None:
    """Names a model that was given by its folder (``model.path=``) after that folder, and makes a model of the command
    line the grid's only model, unless ``grid.model`` is given too."""
    model, given = _group(plain, "model"), {key_of(o) for o in overrides}
    if "model.path" in given and "model.name" not in given:
        folder = str(model.get("path")).rstrip("/").rpartition("/")[2]
        model["name"] = re.sub(r"[^A-Za-z0-9_.-]+", "-", folder).strip("-._")[:NAME_LENGTH] or "model"
    if "model.path" in given and not any(key.startswith("model.template.thinking") for key in given):
        # Whether another model thinks is not known: the default removes thinking.
        cast(dict[str, Json], model["template"]).pop("thinking", None)
    if given & {"model", "model.path", "model.name"} and "grid.model" not in given:
        _group(plain, "grid")["model"] = [model.get("name")]


def _drop_facts_of_other_weights(plain: dict[str, Json], overrides: Sequence[str]) -> None:
    """Takes out of ``plain`` what is true of the path that ``model.path=`` or ``classifier.path=`` replaced, and was not
    given: the package that holds its weights, and where another repository of the hub is named, their size."""
    given = {key_of(o) for o in overrides}
    for group in ("model", "classifier"):
        if f"{group}.path" not in given:
            continue
        node = _group(plain, group)
        path = str(node["path"])
        elsewhere = hub.is_hub_id(path) and not locate(path).exists()
        facts = ["package", "size"] if elsewhere else ["package"]
        for fact in facts:
            if not any(key.startswith(f"{group}.{fact}") for key in given):
                node.pop(fact, None)


def _take_every_persona(plain: dict[str, Json]) -> tuple[dict[str, Json], str | None]:
    """Takes out of ``plain`` what is given for every persona, and returns it with the name of the cell's persona.

    A persona without a name (``persona=published``, or ``persona.constitution=`` for a grid) changes every persona. With
    a name beside it (``persona.name=sarcasm``) that persona is the cell's, otherwise the cell has none.
    """
    persona = plain.get("persona")
    if not isinstance(persona, dict) or persona.keys() - {"name", "constitution"}:
        return {}, None
    del plain["persona"]
    name = persona.pop("name", None)
    if name is not None and name not in options_of("persona"):
        raise UserError("persona.name", f"no such persona {shown(name)}", one_of(options_of("persona")))
    return persona, name and str(name)


def _load_constitution(persona: Json, published: Json) -> None:
    """Replaces the sources of a persona's constitution by its assertions."""
    if not isinstance(persona, dict) or not (sources := sources_of(persona.get("constitution"))):
        return
    folder = published if isinstance(published, str) else None
    path = find_constitution(sources, str(persona.get("name")), folder)
    assertions = read_constitution(path)
    persona["constitution"] = [assertion.model_dump(mode="json") for assertion in assertions]


Node = TypeVar("Node", bound=Named)

GRID_GROUPS = ("model", "persona", "stage", "format")


class Changes:
    """What experiments and the command line change in the options of the groups that a grid runs over.

    Hydra takes 0.1 s for a composition, and a plan needs dozens of options. One composition without any option of these
    groups leaves in their nodes what is changed in every option, and merged over an option's file that gives what Hydra
    composes. Where it might not, ``compose`` leaves the option to Hydra.
    """

    def __init__(self, config: str, overrides: Sequence[str]) -> None:
        self.config, self.overrides = config, overrides
        self._fits: dict[str, bool] = {}

    def compose(self, group: str, name: str) -> dict[str, Json]:
        """The option ``name`` of ``group`` with the changes."""
        from omegaconf import OmegaConf

        if group not in self._fits:
            self._fits[group] = self._fit_any_option(group)
        if name not in choices_of(group) or needs_others(group, name) or not self._fits[group]:
            return self.compose_with_hydra(group, name)
        option = OmegaConf.load(HOME / "conf" / group / f"{name}.yaml")
        return to_container(
            cast("DictConfig", OmegaConf.merge(option, self._without_options.get(group) or {}))
        )

    def compose_with_hydra(self, group: str, name: str) -> dict[str, Json]:
        """What ``compose`` gives, in a composition of its own."""
        import hydra

        # These belong to the chosen model; the other models of a grid have their own.
        own_keys = ("model.path", "model.name") if group == "model" else ()
        overrides = [composable(o) for o in self.overrides if key_of(o) not in (group, *own_keys)]
        return to_container(hydra.compose(self.config, [*overrides, f"{group}={name}"])[group])

    @functools.cached_property
    def _without_options(self) -> "DictConfig":
        kept = [o for o in self.overrides if key_of(o) not in (*GRID_GROUPS, "model.path", "model.name")]
        # Other settings change no node of these groups, and the jobs of a multirun over them share the composition.
        kept = [o for o in kept if is_group(key := key_of(o)) or key.partition(".")[0] in GRID_GROUPS]
        return _compose_without_options(HOME, self.config, tuple(map(composable, kept)))

    def _fit_any_option(self, group: str) -> bool:
        """Whether the changes of ``group`` are the same for each of its options: nothing is deleted, counted in a list or
        taken from elsewhere, and no mapping stands where another value was set before."""
        from omegaconf import OmegaConf

        if any(o.startswith("~") for o in self.overrides) or not all(map(is_independent, GRID_GROUPS)):
            return False
        given = [o for o in self.overrides if key_of(o).startswith(f"{group}.")]
        node = self._without_options.get(group)
        changed = cast(Json, {group: OmegaConf.to_container(node) if node else {}})
        replaced = {*keys_replaced(group), *(key_of(o) for o in given if "={" not in o)}
        return (
            not any(re.search(r"\.\d+(\.|$)", key_of(o)) for o in given)
            and "${" not in str(changed)
            and not any(isinstance(value_at(changed, key), dict) for key in replaced)
        )


@functools.lru_cache(maxsize=256)
def _compose_without_options(home: Path, config: str, overrides: tuple[str, ...]) -> "DictConfig":
    """The configuration in ``home`` without any option of the groups that a grid runs over."""
    import hydra

    return hydra.compose(config, [*overrides, *(f"~{group}" for group in GRID_GROUPS)])


class Composed(Mapping[str, Node]):
    """The options of a group. Each is composed when it is first used, with the overrides of the command line, and is
    kept in ``made``. Iteration lists the names in ``conf/<group>/``.

    ``every`` are keys that each option gets; ``published`` is the folder of the published study."""

    def __init__(
        self,
        changes: Changes,
        group: str,
        schema: type[Node],
        own: Node | None,
        every: Mapping[str, Json] = MappingProxyType({}),
        published: Json = None,
    ) -> None:
        self.every, self.published = every, published
        self.changes, self.group, self.schema = changes, group, schema
        self.made = {own.name: own} if own is not None else {}

    def __getitem__(self, name: str) -> Node:
        if name not in self.made:
            composed = self.changes.compose(self.group, name) | dict(self.every)
            _load_constitution(composed, self.published)
            node = self.made[name] = parse(self.schema, composed, self._place(name, composed))
            if node.name != name:
                where = f"conf/{self.group}/{name}.yaml: name"
                raise UserError(where, f"found {node.name!r}", f"allowed: {name}, as the file is called")
        return self.made[name]

    def _place(self, name: str, plain: Json) -> Callable[[str], str]:
        """Where a key of the option ``name`` has its value: in its file, or on the command line or in an experiment."""

        def place(key: str) -> str:
            in_file, composed = value_at(option_file(self.group, name), key), value_at(plain, key)
            if in_file == composed:
                return f"conf/{self.group}/{name}.yaml: {key}"
            return f"{self.group}.{key} ({self.group}={name})"

        return place

    def __iter__(self) -> Iterator[str]:
        return iter(options_of(self.group))

    def __len__(self) -> int:
        return len(options_of(self.group))


# ---------------------------------------------------------------- errors


def _explain(error: BaseException) -> str | None:
    """One line for a UserError, and for an error of the command line or of a YAML file; None for any other error."""
    if isinstance(known := system_refusal(error) or error, UserError):
        return f"error: {known}"
    if isinstance(error, RecursionError):
        return "error: a value is nested too deeply; write it flat"
    module = type(error).__module__.split(".")[0]
    if not {module, _origin(error)} & {"hydra", "omegaconf", "yaml", "antlr4"}:
        return None
    text = str(error)
    if found := re.search(r"Could not (?:find|load) '([^']+)/([^'/]+)'", text):
        group, name = found[1].removeprefix("hydra/"), found[2]
        return f"error: {group}={name}: no such {group}; {_choices(group, text)}"
    if found := re.search(r"Could not (?:override|delete from config\.) '([^']+)'", text):
        return f"error: {found[1]}: unknown key; see the keys with --cfg job"
    key = re.search(r"full_key: (\S+)", text)
    if found := re.search(r"Key '([^']+)' is not in struct", text):
        return f"error: {key[1] if key else found[1]}: unknown key; see the keys with --cfg job"
    if found := re.search(r"invalid literal for int\(\) with base 10: '([^']+)'", text):
        return f"error: {found[1]}: what it belongs to is a list, which has no keys; write the whole list"
    where = f"{key[1]}: " if key else ""
    return f"error: {where}" + " ".join(text.partition("full_key:")[0].split())[:400]


def _origin(error: BaseException) -> str:
    """The package whose code raised ``error``."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return str(frames[-1].f_globals.get("__name__", "")).split(".")[0] if frames else ""


def _choices(group: str, text: str) -> str:
    listed = re.search(r"Available options in '[^']+':\n((?:\s+\S+\n?)+)", text)
    names = listed[1].split() if listed else choices_of(group)
    return one_of(names) if names else f"conf/{group} has no YAML file"
