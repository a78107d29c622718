"""Composes the real configuration in a test, without a command line."""

import functools

from offscript.cli import GROUPS, Composed, _name_own_model, _plain
from offscript.grid import Options, Planner
from offscript.jobs import Bench
from offscript.settings import Settings, parse
from offscript.store import HOME


def settings_of(*overrides, config="launch") -> Settings:
    return bench_of(*overrides, config=config).planner.settings


def bench_of(*overrides, config="launch") -> Bench:
    """The bench that a command would get from these overrides, with a planner of its own."""
    settings, options = _composed(overrides, config)
    return Bench(Planner(settings, options), ())


@functools.cache
def _composed(overrides, config):
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    initialize_config_dir(
        str(HOME / "conf"), version_base="1.3"
    )  # stays open: options are composed when asked for
    plain = _plain(compose(config, list(overrides)))
    _name_own_model(plain, list(overrides))
    settings = parse(Settings, plain, "")
    nodes = {
        "model": settings.model,
        "persona": settings.persona,
        "stage": settings.stage,
        "format": settings.format,
    }
    found = {group: Composed(config, list(overrides), group, nodes[group]) for group in GROUPS}
    return settings, Options(**found)
