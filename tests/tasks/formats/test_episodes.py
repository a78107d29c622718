"""The first messages of an episode, with a system text and without it."""

import pytest

from offscript.tasks.formats.episodes import with_system, without_system

USER = {"role": "user", "content": "Where is it?"}
OWN = {"role": "system", "content": "You are at work.\n\nBe brief."}


@pytest.mark.parametrize(
    "messages", [(USER,), (OWN, USER), (OWN, USER, {"role": "system", "content": "Go."})]
)
@pytest.mark.parametrize("system", ["", "I am kind.\n\nI wait.", OWN["content"]])
def test_what_is_put_before_the_messages_can_be_taken_out_again(messages, system) -> None:
    assert without_system(system, with_system(system, messages)) == list(messages)


@pytest.mark.parametrize("messages", [[], [USER], [OWN, USER]])
def test_messages_without_the_system_text_are_refused(messages) -> None:
    with pytest.raises(ValueError, match=r"do not begin with the system text 'I am kind\.'"):
        without_system("I am kind.", messages)
