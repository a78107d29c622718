"""The settings of an adapter in PEFT layout, and the ranks of its matrices. Nothing here needs torch."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from offscript.errors import UserError
from offscript.settings import parse, shown
from offscript.storage.files import read_json

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


class AdapterConfig(BaseModel):
    """The fields of adapter_config.json that say what the matrices mean. Other fields are not read here."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, allow_inf_nan=False)

    peft_type: Literal["LORA"]
    r: int = Field(ge=1)
    lora_alpha: float = Field(gt=0)
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] = {}
    alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] = {}
    use_rslora: bool = False
    target_modules: list[str] | str
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    base_model_name_or_path: Any = None
    target_parameters: None = None
    """Read by PEFT's rule for targets; an adapter that has some is refused before."""

    @field_validator("rank_pattern", "alpha_pattern", mode="before")
    @classmethod
    def _keys_are_patterns(cls, value: object) -> object:
        for key in value if isinstance(value, dict) else ():
            _check_pattern(str(key))
        return {} if value is None else value

    @field_validator("target_modules", "exclude_modules", "layers_pattern", mode="before")
    @classmethod
    def _names_or_a_pattern(cls, value: object, field: ValidationInfo) -> object:
        if isinstance(value, str):
            return _check_pattern(value)
        is_list = isinstance(value, list) and all(isinstance(v, str) for v in value)
        if not is_list and (value is not None or field.field_name == "target_modules"):
            raise ValueError(
                f"found {shown(value)}; allowed: a list of names of modules, or a regular expression"
            )
        return value


def _check_pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"{text!r} is not a regular expression ({error}); allowed: one of Python") from None
    return text


def read_config(folder: Path) -> AdapterConfig:
    """The adapter_config.json in ``folder``, which is one of ours.

    Raises:
        UserError: it is not JSON, or a value is missing or has another type.
    """
    return parse_config(read_json(folder / CONFIG, f"delete {folder} to have it made again"), folder)


def parse_config(plain: object, folder: Path) -> AdapterConfig:
    """``plain``, the content of the adapter_config.json in ``folder``, checked.

    Raises:
        UserError: a value is missing or has another type.
    """
    return parse(AdapterConfig, plain, lambda key: f"{folder / CONFIG}: {key}".removesuffix(": "))


def ranks_of(folder: Path) -> list[int]:
    """The ranks of the matrices of an adapter, each once, in ascending order. Only the header of its file is read.

    Raises:
        UserError: the file cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / WEIGHTS
    try:
        with safe_open(path, framework="numpy") as file:
            shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(str(path), f"cannot be read ({error})", "an adapter is needed") from None
    return sorted({shape[0] for key, shape in shapes.items() if ".lora_A." in key and shape})


def check_one_rank(ranks: Iterable[int]) -> None:
    """Checks that adapters with these ``ranks`` can be merged by method ``published``.

    Raises:
        UserError: the ranks differ.
    """
    found = list(dict.fromkeys(ranks))
    if len(found) > 1:
        raise UserError(
            "recipe.merge.method",
            f"published adds matrices of one rank, found ranks {', '.join(map(str, found))}",
            "use one lora.rank for both stages, or method=exact",
        )
