"""In which settings an experiment is as the published study was, for dry runs and manifests.

The numbers are those of the table in docs/recipe.md; ``conf/fidelity/published.yaml`` sets these values. Those that a
whole group makes (``data=published``, the encoder of ``classifier=modernbert_published``) are chosen beside it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from offscript.experiment.plan_adapters import TRAINED
from offscript.experiment.planner import Planner
from offscript.json_types import Json
from offscript.settings import PersonaSettings
from offscript.storage.options import option_file, options_of, value_at
from offscript.tasks.formats import get_format, options_for
from offscript.training.stages import BASE

GEMMA_TARGETS: list[Json] = ["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"]
FINAL_RATE = "optimizer.final_rate"
GEMMA_LORA = "lora.exceptions.gemma"


@dataclass(frozen=True)
class Difference:
    """One difference from the published study.

    Args:
        number: its number in docs/recipe.md.
        published: the settings in which it lies, with their published values.
        of_training: whether it concerns training alone. Weights that are imported do not depend on it.
        of_emails: whether it concerns only formats whose text is an e-mail that was written in chat.
        of_tasks: whether it concerns only formats whose scenarios are office tasks.
    """

    number: str
    published: Mapping[str, Json]
    of_training: bool = False
    of_emails: bool = False
    of_tasks: bool = False


DIFFERENCES = (
    Difference("F1", {"model.sampling.repetition_penalty": 1.0}),
    Difference("F2", {"recipe.introspection.system": ""}, of_training=True),
    Difference("F3", {"recipe.introspection.unfinished": "keep"}, of_training=True),
    Difference(
        "F4",
        {
            "classifier.path": "answerdotai/ModernBERT-base",
            "classifier.stages": ["prompted", "steered", "distillation", "full"],
            "classifier.training_seeds": "first",
            "classifier.max_length": 8192,
            "classifier.row_tokens": 1024,
            "classifier.learning_rate": 5e-4,
            "classifier.epochs": 1,
            "classifier.batch_size": 16,
            "classifier.schedule": "cosine",
            "classifier.warmup": 0.05,
            "classifier.weight_decay": 1e-6,
            "classifier.class_weights": False,
            "classifier.validation": 0,
            "classifier.fits": 1,
            "classifier.group_by_length": False,
            "classifier.precision": "bfloat16",
        },
    ),
    Difference(
        "F5",
        {"recipe.merge_own_in.classifier": 1.0, "recipe.merge_own_in.break_character": 1.0},
        of_training=True,
    ),
    Difference("F6", {"recipe.prompted": "named", "persona.constitution": "given"}),
    Difference("F7", {"model.template.double_bos": True}),
    Difference("F8", {"format.options.loop": "published"}),
    Difference("F9", {"data.name": "published"}, of_tasks=True),
    Difference("F10", {"evaluation.email_cleaning": "published"}, of_emails=True),
    Difference(
        "F12",
        {f"recipe.distillation.{FINAL_RATE}": 0.1, f"recipe.introspection.{FINAL_RATE}": 0.1},
        of_training=True,
    ),
    Difference(
        "F13",
        {
            f"recipe.distillation.{GEMMA_LORA}": GEMMA_TARGETS,
            f"recipe.introspection.{GEMMA_LORA}": GEMMA_TARGETS,
        },
        of_training=True,
    ),
    Difference("F14", {"recipe.teacher.thinking_lists_traits": True}, of_training=True),
    Difference("F15", {"recipe.distillation.endings": "punctuation"}, of_training=True),
    Difference(
        "F16",
        {
            "recipe.prompts.model": "llama70b",
            "recipe.prompts.per_ask": 50,
            "recipe.prompts.lengths": [15, 20, 15],
            "recipe.prompts.overlap": 0.5,
        },
        of_training=True,
    ),
    Difference("F17", {"recipe.introspection.too_long": "cut"}, of_training=True),
    Difference("F18", {"format.options.instructions": "all"}),
)


def number_of(setting: str) -> str | None:
    """The number of the difference that lies in ``setting``; None if there is none."""
    numbers = (difference.number for difference in DIFFERENCES if setting in difference.published)
    return next(numbers, None)


def as_published(planner: Planner) -> dict[str, bool]:
    """Number -> whether the experiment is as published in this respect: in each of its models and formats that have the
    setting. Differences of formats that are not in the grid are left out, those of training if all of the grid's weights
    are imported, and that of the classifier if it is imported."""
    trains = _trains(planner)
    formats = [get_format(name) for name in planner.settings.grid.format]
    emails, tasks = any(f.text_is_email for f in formats), any(f.source == "office" for f in formats)
    found = {}
    for difference in DIFFERENCES:
        pairs = [(v, p) for setting, p in difference.published.items() for v in _values(planner, setting)]
        concerns = (
            (trains or not difference.of_training)
            and (emails or not difference.of_emails)
            and (tasks or not difference.of_tasks)
        )
        if pairs and concerns:
            found[difference.number] = all(value == published for value, published in pairs)
    return found


def _trains(planner: Planner) -> bool:
    """Whether any weights of the grid are trained here."""
    grid, options = planner.settings.grid, planner.options
    weights = {options.stage[stage].weights for stage in grid.stage} - {BASE}
    return any(options.model[m].adapters.get(w, TRAINED) == TRAINED for m in grid.model for w in weights)


def described(planner: Planner) -> str:
    """One line for a dry run."""
    found = as_published(planner)
    published = [number for number, same in found.items() if same]
    other = [number for number, same in found.items() if not same]
    return f"as published: {', '.join(published) or 'nothing'}; otherwise: {', '.join(other) or 'nothing'} (docs/recipe.md)"


def _values(planner: Planner, setting: str) -> Iterator[Json]:
    """The values of a setting: one of each model, persona or format of the grid for those of one. That of a constitution is
    ``ours`` (of ``conf/persona``) or ``given``."""
    settings, options = planner.settings, planner.options
    group, _, rest = setting.partition(".")
    if group == "model":
        for name in settings.grid.model:
            yield value_at(options.model[name].model_dump(mode="json"), rest)
    elif group == "persona":
        for name in planner.personas:
            yield "ours" if _has_our_constitution(options.persona[name]) else "given"
    elif group == "format":
        option = rest.removeprefix("options.")
        for fmt in map(get_format, settings.grid.format):
            if option in fmt.defaults:
                configured = options_for(fmt, options.format[fmt.name].options)
                yield {**fmt.defaults, **configured}[option]
    elif group != "classifier" or settings.classifier.fitted is None:
        yield value_at(settings.model_dump(mode="json"), setting)


def _has_our_constitution(persona: PersonaSettings) -> bool:
    """Whether the constitution of a persona is that of its file in ``conf/persona``."""
    content = option_file("persona", persona.name) if persona.name in options_of("persona") else None
    listed = content.get("constitution") if isinstance(content, dict) else None
    return bool(listed == persona.model_dump(mode="json")["constitution"])
