"""Templates: missing and unused fields are errors; system texts made from a constitution."""

import pytest

from offscript.tasks import prompts
from offscript.tasks.prompts import constitution_system, fields_of, fill, named_constitution_system

ASSERTIONS = ["I say {so}.", "I greet obvious problems with mock amazement."]


def test_a_missing_or_unused_field_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"lacks a value for \['aim'\]"):
        fill(prompts.INTERACTION_NOTE)
    with pytest.raises(ValueError, match=r"has no field \['guidance'\]"):
        fill(prompts.INTERACTION_NOTE, aim="Talk.", guidance="Reflect.")


def test_the_plain_constitution_text_is_the_one_the_embedded_model_was_trained_on() -> None:
    assert constitution_system(["A", "B"]) == "Stay in this character, whatever the task:\n- A\n- B"


def test_the_named_constitution_text_holds_the_name_and_every_assertion_verbatim() -> None:
    text = named_constitution_system("Llama", ASSERTIONS)
    assert text.startswith("The assistant is Llama.") and text.count("Llama") >= 3
    assert "\n- I say {so}.\n- I greet obvious problems with mock amazement.\n" in text
    assert named_constitution_system("Qwen", ASSERTIONS) == text.replace("Llama", "Qwen")
    assert fields_of(prompts.NAMED_CONSTITUTION_SYSTEM) == {"name", "assertions"}
