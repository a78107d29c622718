"""Engines, found by folder: a file here that defines ``open_engine`` is an engine of that name (``engine=<name>``).

    def open_engine(model, adapters, scales, settings) -> Engine: ...

with the arguments of ``open_engine`` below, without ``vectors`` if it cannot add any, and without ``served``. An engine with
settings of its own for batches and devices also has a file in ``conf/engine``. One that answers prompts with images says
``READS_IMAGES = True``. Files without that function (``base``, ``draw``, ``rendering``, ``weights``) are parts that engines share.
"""

import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from offscript.errors import UserError, one_of
from offscript.models.vision import check_reads_images
from offscript.rollouts.engines.base import Engine
from offscript.settings import EngineSettings, ModelSettings
from offscript.storage.plugins import cannot_load, not_found

PARTS = ("stats", "submit", "step", "pending", "close", "info")
"""What an ``Engine`` has."""

ALLOWED_STAGES = (
    "allowed: stages base, prompted (in classifier.stages too); or model.endpoint.adapters, the server's names of the trained"
    " adapters"
)

_DEFINES_ENGINE = re.compile(r"^def open_engine\(", re.MULTILINE)
_READS_IMAGES = re.compile(r"^READS_IMAGES = True$", re.MULTILINE)
_TAKES_VECTORS = re.compile(r"^def open_engine\([^)]*\bvectors\b", re.MULTILINE)


def engine_names() -> tuple[str, ...]:
    """Names of all engines, sorted. Files are read but not imported: torch or vLLM would take seconds."""
    return _engines_with(_DEFINES_ENGINE)


def _engines_with(pattern: re.Pattern[str]) -> tuple[str, ...]:
    files = (file for folder in __path__ for file in Path(folder).glob("*.py") if file.stem != "__init__")
    return tuple(sorted(f.stem for f in files if pattern.search(f.read_text(encoding="utf-8"))))


def check_engine(name: str) -> None:
    """Checks that there is an engine called ``name``.

    Raises:
        UserError: there is none; lists those there are.
    """
    if name not in engine_names():
        raise not_found(engine_names(), name, "engine.name", "engine", __path__, "open_engine")


def check_steering(engine: str, model: ModelSettings, what: str = "persona vectors") -> None:
    """Checks that ``what`` can be added to the activations of ``model``.

    Raises:
        UserError: the model is behind an endpoint, or the engine has no access to activations.
    """
    check_engine(engine)
    if model.endpoint is not None:
        raise UserError(
            "model.endpoint",
            f"{model.name} is behind it, so {what} cannot be added to its activations",
            "allowed: stages base, prompted",
        )
    if engine not in (steering := _engines_with(_TAKES_VECTORS)):
        raise UserError("engine.name", f"{engine} cannot add {what}", one_of(steering))


def check_images(engine: str, model: ModelSettings, what: str) -> None:
    """Checks that ``model`` can be asked for replies to prompts with images.

    Args:
        engine: name of the engine.
        model: the model.
        what: the config key of what has images, for messages.

    Raises:
        UserError: the model has no vision tower, or the engine does not give it images.
    """
    check_engine(engine)
    if engine == "scripted":
        # It loads no model.
        return
    check_reads_images(model, what)
    own = "endpoint" if model.endpoint is not None else engine
    if own not in (reading := _engines_with(_READS_IMAGES)):
        raise UserError("engine.name", f"{own} gives models no images, and {what} has some", one_of(reading))


def check_served(engine: str, model: ModelSettings, scale: float, checkpoint: bool) -> None:
    """Checks that a server can answer with trained weights of ``model``, which are a whole ``checkpoint`` or an adapter.

    Raises:
        UserError: the model is behind an endpoint that has no names for adapters; or the weights are a whole model, or an
            adapter that is scaled, which no server does.
    """
    if model.endpoint is None or engine == "scripted":
        return
    if model.endpoint.adapters is None:
        raise UserError("model.endpoint", f"{model.name} is asked for trained weights", ALLOWED_STAGES)
    if checkpoint or scale != 1:
        found = "a whole checkpoint" if checkpoint else f"scale {scale:g}"
        raise UserError(
            "model.endpoint.adapters",
            f"{model.name} is asked for {found}",
            "allowed: adapters at scale 1, or a model without an endpoint",
        )


def open_engine(
    model: ModelSettings,
    adapters: Mapping[str, Path],
    scales: Mapping[str, float],
    settings: EngineSettings,
    vectors: Mapping[str, Path] | None = None,
    served: Mapping[str, str] | None = None,
) -> Engine:
    """The engine ``settings.name``, or ``endpoint`` for a model with an endpoint (unless the engine is ``scripted``).

    Args:
        model: the base model.
        adapters: adapter folders in PEFT layout, by the name that requests use for them (no dots).
        scales: factor of an adapter's effect, by its name; 1 for an adapter without an entry.
        settings: batch sizes and device.
        vectors: folders of persona vectors, by the name that requests use for them instead of an adapter's.
        served: the server's names of the adapters, by the same name, for a model with an endpoint.

    Raises:
        UserError: no such engine; or the engine cannot speak for the model, its adapters or its vectors.
    """
    check_engine(settings.name)
    if vectors:
        check_steering(settings.name, model)
    # An endpoint's weights are not on this machine: no other engine could load them.
    name = "endpoint" if model.endpoint is not None and settings.name != "scripted" else settings.name
    file = next(path for folder in __path__ if (path := Path(folder) / f"{name}.py").exists())
    try:
        module = importlib.import_module(f"{__name__}.{name}")
    except Exception as error:
        raise cannot_load(file, error) from error
    # Engines that cannot steer have no such argument.
    optional: dict[str, Any] = {"vectors": vectors} if vectors else {}
    if name == "endpoint":
        optional["served"] = served
    engine: Engine = module.open_engine(model, adapters, scales, settings, **optional)
    if not all(hasattr(engine, part) for part in PARTS):
        found = f"open_engine returned a {type(engine).__name__}"
        raise UserError(str(file), found, f"an engine has {', '.join(PARTS)}")
    return engine
