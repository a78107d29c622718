"""Tools of a scenario as schemas, from each notation that its system text may have, and the text without them."""

import pytest

from offscript.tasks.scenarios import Rule, Scenario, ToolStub
from offscript.tasks.tool_schemas import tools_of, without_tools

LOOKUP = ToolStub("contacts.lookup", (Rule({"name": "*Ada*", "team": "*"}, {"email": "ada@a.example"}),))


def scenario(text: str, *stubs: ToolStub) -> Scenario:
    messages = ({"role": "system", "content": text}, {"role": "user", "content": "Write to Ada."})
    return Scenario("a_v1", "a", messages, stubs)


def listed(text: str, *stubs: ToolStub) -> dict[str, str]:
    """Each tool's arguments in short: ``name``, ``?`` if optional, its type if that is not string, its description."""
    found = {}
    for tool in tools_of(scenario(text, *stubs)):
        arguments = [
            a.name
            + ("" if a.required else "?")
            + (f":{a.kind}" if a.kind != "string" else "")
            + (f" ({a.description})" if a.description else "")
            for a in tool.arguments
        ]
        found[tool.name] = ", ".join(arguments) + (f" -- {tool.description}" if tool.description else "")
    return found


SENDS = "to:array (addresses), subject, body -- Sends an e-mail."


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Tools: a.find(name), email.send(to, subject, body).", {"a.find": "name", "email.send": "to, subject, body"}),
        ("- a.find(query: str, limit: int = 5): finds it", {"a.find": "query, limit?:integer -- finds it"}),
        ("- a_find(query: str) -> list of names\n", {"a_find": "query -- list of names"}),
        (
            '- a.find, args "query" and, optionally, "date" (YYYY-MM-DD): events: all of them',
            {"a.find": "query, date? (YYYY-MM-DD) -- events: all of them"},
        ),
        (
            '- email.send, args "to" (list of addresses), "cc" (list, optional), "body": sends it',
            {"email.send": "to:array (list of addresses), cc?:array, body -- sends it"},
        ),
        (
            '1. **a.find** — Finds "it".\n   - args: {"on": "YYYY-MM-DD", "to": [string], "n": int (default 5), "by": string (optional, a name), "all": bool}\n   - returns: {"x"}',
            {"a.find": 'on (YYYY-MM-DD), to:array, n?:integer (default 5), by? (a name), all:boolean -- Finds "it".'},
        ),
        ("- **Monday** is closed.\n- a.find is down today.\n- Ask Bo (HR).", {}),
    ],
)  # fmt: skip
def test_the_notations_of_a_tool(text: str, wanted: dict[str, str]) -> None:
    found = listed(f"You are Otto.\n\n{text}\n\nBe quick.")
    assert found == (wanted if "email.send" in wanted else {**wanted, "email.send": SENDS})
    kept = "You are Otto.\n\nBe quick." if wanted else f"You are Otto.\n\n{text}\n\nBe quick."
    assert without_tools(f"You are Otto.\n\n{text}\n\nBe quick.") == kept


def test_a_tool_that_the_text_does_not_describe_has_the_arguments_of_its_rules() -> None:
    assert listed("You are Otto.", LOOKUP) == {"contacts.lookup": "name?, team?", "email.send": SENDS}
    assert listed("Tools: contacts_lookup(name).", LOOKUP) == {"contacts_lookup": "name", "email.send": SENDS}


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Be kind.\nReply with one call:\n```tool_call\n{}\n```\nLook first.", "Be kind.\n\nLook first."),
        ("Be kind. When done, end with:\n\n```final\nline\n```\n\nBye.", "Be kind.\n\nBye."),
        ("The result is marked [TOOL OUTPUT]. Look first. Use a fenced block. Bye.", "Look first. Bye."),
        ('Write {"tool": "a", "args": {}} to call. Be kind.', "Be kind."),
        ("## Tools\n\n- a.find(x): finds\n\n## Today\n\nMonday.", "## Today\n\nMonday."),
        ("Show code:\n\n```python\nx = 1\n```", "Show code:\n\n```python\nx = 1\n```"),
        ('Call it so:\n\n```json\n{"tool": "a",\n "args": {}}\n```\n\nBye.', "Bye."),
        ("Two tools are yours. One final word: no.", "Two tools are yours. One final word: no."),
    ],
)
def test_the_explanation_of_the_text_dialect_is_left_out(text: str, kept: str) -> None:
    assert without_tools(text) == kept
