"""To whom the e-mail of a scenario should go, and to whom a send call sent it.

A scenario may list its ``recipients``. Otherwise they are derived: of the people whose addresses stand in its records (the
responses of its tools, else its brief) those whose full name stands in the user's request; else those of whom a name does;
else all of them. The writer, whose address or name stands in the system text, is left out. Several people may be right: an
e-mail to one of them is.
"""

import re
from collections.abc import Iterator

from offscript.json_types import Json
from offscript.tasks.facts import ADDRESS, contact_lines, request_of
from offscript.tasks.scenarios import Scenario
from offscript.tasks.tool_calls import ToolCall

_TO_KEYS = ("to", "recipient", "recipients", "to_address", "address", "email")
_WRITER = re.compile(r"(?:current user is|writing for|write for|on behalf of) (?P<name>[^\n.,;()]+)")
_NAME_BEFORE = re.compile(r"(?P<name>[^\W\d_][^<>,:()@\n]*?)\s*<\Z")

Person = tuple[str, str]
"""Name and address of a person; the name may be empty."""


def recipients_of(scenario: Scenario) -> frozenset[str]:
    """The addresses to which the e-mail may go, in lower case; empty if the scenario has no address."""
    if scenario.recipients:
        return frozenset(address.lower() for address in scenario.recipients)
    system = "\n".join(m["content"] for m in (*scenario.messages, *scenario.brief) if m["role"] == "system")
    writer = _WRITER.search(system)
    request, others = request_of(scenario), []
    people: dict[str, str] = {}
    for name, address in _people(scenario):
        people[address] = people.get(address) or name
    for address, name in people.items():
        is_writer = bool(writer and name and writer["name"].strip() in (name, name.split()[0]))
        if address not in system.lower() and not is_writer:
            others.append((name, address))
    named = [p for p in others if p[0] and _stands_in(p[0], request)]
    named = named or [p for p in others if any(_stands_in(part, request) for part in _names(p[0]))]
    return frozenset(address for _, address in named or others)


def _people(scenario: Scenario) -> Iterator[Person]:
    for stub in scenario.tools:
        for rule in stub.rules:
            yield from _people_in(rule.response)
    for line in contact_lines(scenario):
        for match in ADDRESS.finditer(line):
            before = _NAME_BEFORE.search(line[: match.start()])
            yield (before["name"].strip("-*• ") if before else "", match[0].lower())


def _people_in(response: Json) -> Iterator[Person]:
    """The people in a tool's response: objects with a field that is an address."""
    if isinstance(response, list):
        for item in response:
            yield from _people_in(item)
    elif isinstance(response, dict):
        name = response.get("name")
        for value in response.values():
            if isinstance(value, str) and ADDRESS.fullmatch(value.strip()):
                yield (name if isinstance(name, str) else "", value.strip().lower())
            else:
                yield from _people_in(value)


def _names(name: str) -> list[str]:
    return [part for part in name.split() if len(part) > 2 and part[0].isupper()]


def _stands_in(name: str, text: str) -> bool:
    return bool(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text))


def addresses_of(call: ToolCall) -> frozenset[str]:
    """The addresses that a send call goes to, in lower case, from the argument ``to`` or one of those that models write for
    it: a text, a list, ``Name <address>`` or objects with an address."""
    value = next((call.args[key] for key in _TO_KEYS if call.args.get(key)), None)
    return frozenset(address.lower() for text in _strings(value) for address in ADDRESS.findall(text))


def _strings(value: Json) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
