"""Engines, found by folder: a file here that defines ``open_engine`` is an engine of that name (``engine=<name>``).

    def open_engine(model, adapters, scales, settings) -> Engine: ...

with the arguments of ``open_engine`` below. An engine with settings of its own for batches and devices also has a file
in ``conf/engine``. Files without that function (``base``, ``draw``, ``weights``) are parts that engines share.
"""

import importlib
import re
from collections.abc import Mapping
from pathlib import Path

from offscript.errors import UserError, one_of
from offscript.rollouts.engines.base import Engine
from offscript.settings import EngineSettings, ModelSettings

_DEFINES_ENGINE = re.compile(r"^def open_engine\(", re.MULTILINE)


def engine_names() -> tuple[str, ...]:
    """Names of all engines, sorted. Files are read but not imported: torch or vLLM would take seconds."""
    files = (file for folder in __path__ for file in Path(folder).glob("*.py") if file.stem != "__init__")
    return tuple(sorted(f.stem for f in files if _DEFINES_ENGINE.search(f.read_text(encoding="utf-8"))))


def check_engine(name: str) -> None:
    """Checks that there is an engine called ``name``.

    Raises:
        UserError: there is none; lists those there are.
    """
    if name not in engine_names():
        raise UserError("engine.name", f"unknown engine {name!r}", one_of(engine_names()))


def open_engine(
    model: ModelSettings, adapters: Mapping[str, Path], scales: Mapping[str, float], settings: EngineSettings
) -> Engine:
    """The engine ``settings.name``, or ``openai`` for a model with an endpoint (unless the engine is ``scripted``).

    Args:
        model: the base model.
        adapters: adapter folders in PEFT layout, by the name that requests use for them (no dots).
        scales: factor of an adapter's effect, by its name; 1 for an adapter without an entry.
        settings: batch sizes and device.

    Raises:
        UserError: no such engine; or the engine cannot speak for the model or its adapters.
    """
    check_engine(settings.name)
    # An endpoint's weights are not on this machine: no other engine could load them.
    name = "openai" if model.endpoint is not None and settings.name != "scripted" else settings.name
    engine: Engine = importlib.import_module(f"{__name__}.{name}").open_engine(
        model, adapters, scales, settings
    )
    return engine
