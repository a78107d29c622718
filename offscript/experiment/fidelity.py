"""In which settings an experiment is as the published study was, for dry runs and manifests.

The numbers are those of the table in docs/recipe.md; ``conf/fidelity/published.yaml`` sets all of these values.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pydantic import BaseModel

from offscript.experiment.planner import Planner
from offscript.json_types import Json
from offscript.tasks.formats import get_format, options_for


@dataclass(frozen=True)
class Difference:
    """One difference from the published study.

    Args:
        number: its number in docs/recipe.md.
        what: what differs, in a few words.
        published: the settings in which it lies, with their published values.
    """

    number: str
    what: str
    published: Mapping[str, Json]


DIFFERENCES = (
    Difference(
        "F1",
        "sampling",
        {
            "model.sampling.repetition_penalty": 1.0,
            "recipe.sampling": {"temperature": 0.7, "top_p": 0.95, "repetition_penalty": 1.1},
        },
    ),
    Difference("F2", "system text of SFT rows", {"recipe.introspection.system": ""}),
    Difference(
        "F12",
        "end of the learning rate",
        {
            "recipe.distillation.optimizer.final_rate": 0.1,
            "recipe.introspection.optimizer.final_rate": 0.1,
        },
    ),
    Difference("F18", "break_character", {"format.options.instructions": "all"}),
)


def as_published(planner: Planner) -> dict[str, bool]:
    """Number -> whether the experiment is as published in this respect: in each of its models and formats that have the
    setting. A difference of formats that are not in the grid is left out."""
    found = {}
    for difference in DIFFERENCES:
        pairs = [(v, p) for setting, p in difference.published.items() for v in _values(planner, setting)]
        if pairs:
            found[difference.number] = all(value == published for value, published in pairs)
    return found


def described(planner: Planner) -> str:
    """One line for a dry run."""
    found = as_published(planner)
    published = [number for number, same in found.items() if same]
    other = [number for number, same in found.items() if not same]
    return f"as published: {', '.join(published) or 'nothing'}; otherwise: {', '.join(other) or 'nothing'} (docs/recipe.md)"


def _values(planner: Planner, setting: str) -> Iterator[Json]:
    """The values of a setting: one of each model or format of the grid for those of a model or format."""
    settings, options = planner.settings, planner.options
    group, _, rest = setting.partition(".")
    if group == "model":
        for name in settings.grid.model:
            yield _value(options.model[name], rest)
    elif group == "format":
        option = rest.removeprefix("options.")
        for fmt in map(get_format, settings.grid.format):
            if option in fmt.defaults:
                configured = options_for(fmt, options.format[fmt.name].options)
                yield {**fmt.defaults, **configured}[option]
    else:
        yield _value(settings, setting)


def _value(node: BaseModel, setting: str) -> Json:
    """The value of a dotted setting of ``node``; None if a node on the way is absent."""
    plain: Json = node.model_dump(mode="json")
    for part in setting.split("."):
        plain = plain.get(part) if isinstance(plain, dict) else None
    return plain
