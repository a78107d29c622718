"""Composes the real configuration in a test, without a command line."""

import functools

from offscript.arguments import composable
from offscript.cli import assemble, to_container
from offscript.experiment.folder import Experiment
from offscript.experiment.planner import Planner
from offscript.settings import Settings
from offscript.storage.files import HOME


def settings_of(*overrides, config="launch") -> Settings:
    return _composed(overrides, config)[0]


def experiment_of(*overrides, config="launch") -> Experiment:
    """The experiment that a command would get from these overrides, with a planner of its own."""
    settings, experiment = _composed(overrides, config)
    _open_hydra()
    return Experiment(Planner(settings, experiment.planner.options), experiment.overrides)


@functools.cache
def _composed(overrides, config):
    from hydra import compose
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    _open_hydra()
    return assemble(
        to_container(compose(config, [composable(o) for o in overrides])), list(overrides), config
    )


def _open_hydra() -> None:
    """Opens ``conf`` unless it is: options are composed when they are asked for, and other tests may have closed it."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    if not GlobalHydra().is_initialized():
        initialize_config_dir(str(HOME / "conf"), version_base="1.3")
