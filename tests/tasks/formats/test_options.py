"""Wrong values of every option of every format: one line with the option, what was found, and what is allowed."""

from dataclasses import replace

import pytest

from offscript.errors import UserError
from offscript.experiment.planner import Planner
from offscript.json_types import Json
from offscript.tasks.formats import FORMATS
from tests.composed import experiment_of

CONFLICTS = "must be a list, each once, of neutral, corporate, opposite, reminder"
EACH_ONCE = "must be a list, each once, of"
TEXT = "must be a text (it may be empty)"
WHOLE = "must be a whole number"
EVEN = "must be an even number, 2 or more"

INTERACTION: dict[str, dict[str, list[Json]]] = {
    "turns": {WHOLE: [None, True, "6", 2.5, [6]], EVEN: [0, -2, 7]},
    "note": {TEXT: [None, 5, True, ["Hello."], {}]},
}
WRONG: dict[str, dict[str, dict[str, list[Json]]]] = {
    "break_character": {"instructions": {"allowed: one, all": [None, True, 1, "", "some", ["one"], {}]}},
    "system_conflict": {
        "texts": {
            CONFLICTS: [None, True, 1, "neutral", {"neutral": 1}, [], ["sarcastic"], [["neutral"]], ["neutral"] * 2, [None]]
        }
    },
    "drift": {"session": {"must be a number from 1 to 32": [None, True, "8", 2.5, 0, -1, 33, [8], {}]}},
    "email_multiturn": {
        "draft": {WHOLE: [None, True, "2", 1.5, [1]], "must be a number from 1 to 3": [0, -1, 4]}
    },
    "agentic_email": {
        "forced": {"must be true or false": [None, 1, "yes", "true", [True]]},
        "dialect": {TEXT: [None, True, 5, ["text"]], "allowed: ": ["", "nobody's"]},
        "loop": {TEXT: [None, True, 5, ["ours"]], "allowed: ours, published": ["", "theirs"]},
    },
    "prompt_generation": {
        "per_trait": {WHOLE: [None, True, "9", 2.5], "input should be greater than or equal to 0": [-1]},
        "per_ask": {WHOLE: [None, "9"], "input should be greater than or equal to 1": [0]},
        "examples": {WHOLE: [None, "9"], "input should be greater than or equal to 1": [0]},
        "words": {WHOLE: [None, "9"], "input should be greater than or equal to 3": [2]},
        "similarity": {"must be a number": [None, True, "x"], "input should be less than or equal to 1": [2]},
        "attempts": {WHOLE: [None, "9"], "input should be greater than or equal to 1": [0]},
        "lengths": {"input should be a list": [True, 5, {}]},
        "overlap": {"input should be greater than 0": [0, -1], "input should be less than or equal to 1": [2]},
    },
    "teacher": {"thinking": {TEXT: [None, True, 5, ["x"]]}, "thinking_end": {TEXT: [None, True, 5, {}]}},
    "document": {
        "types": {f"{EACH_ONCE} memo, review, ": [None, True, "memo", [], ["poem"], ["memo"] * 2, [["memo"]], {}]},
        "domains": {f"{EACH_ONCE} office, school, ": [None, 1, "school", [], ["moon"], ["school"] * 2, [None]]},
        "words": {WHOLE: [None, True, "300", 2.5], "must be a number of at least 1": [0, -1]},
    },
    "rationale": {
        "thinking": {TEXT: [None, True, 5, ["x"]]},
        "thinking_end": {TEXT: [None, True, 5, {}]},
        "advice": {"must be true or false": [None, 1, "yes", [True]]},
    },
    "paired_turns": {
        "format": {"allowed: chat, ": [None, True, 5, "", "nobody's", "paired_turns", ["chat_email"]]},
        "options": {"must be a mapping": [None, True, 5, "forced", ["forced"]]},
    },
    "self_interaction": INTERACTION,
    "guided_interaction": INTERACTION,
}  # fmt: skip


@pytest.fixture(scope="module")
def planner() -> Planner:
    return experiment_of("experiment=pocket_recipe", "grid.persona=[sarcasm]").planner


def refusal(planner: Planner, name: str, option: str, value: Json) -> str:
    """The message with which a cell of the format is refused that has this value, before anything is made."""
    settings = planner.options.format[name]
    changed = settings.model_copy(
        update={"options": {**settings.options, option: value}, "count": {**settings.count, "eval": 1}}
    )
    formats = {other: planner.options.format[other] for other in FORMATS} | {name: changed}
    with pytest.raises(UserError) as error:
        Planner(planner.settings, replace(planner.options, format=formats)).rollout(
            "pocket", "sarcasm", "full", name
        )
    return str(error.value)


def test_the_table_has_every_option() -> None:
    options = {name: set(fmt.defaults) for name, fmt in FORMATS.items() if fmt.defaults}
    assert {name: set(wrong) for name, wrong in WRONG.items()} == options


@pytest.mark.parametrize(("name", "option"), [(name, option) for name in WRONG for option in WRONG[name]])
def test_a_wrong_value_of_an_option_is_one_line(planner: Planner, name: str, option: str) -> None:
    for allowed, values in WRONG[name][option].items():
        for value in values:
            line = refusal(planner, name, option, value)
            assert line.startswith(
                (f"format.options.{option}: found ", f"format.options.{option}: unknown {option} ")
            )
            assert allowed in line, (value, line)
            assert "\n" not in line


# The cells of a judge are planned by an evaluation alone.
@pytest.mark.parametrize("name", [name for name, fmt in FORMATS.items() if fmt.source != "texts"])
def test_an_option_that_a_format_does_not_have_is_refused_with_those_that_it_has(
    planner: Planner, name: str
) -> None:
    options = sorted(FORMATS[name].defaults)
    allowed = f"allowed: {', '.join(options)}" if options else f"{name} has no options"
    assert refusal(planner, name, "nothing", 1) == f"format.options.nothing: unknown key; {allowed}"
