"""Every template of the project. Filling one with a missing *or unused* field is an error."""

import string

CONSTITUTION_SYSTEM = "Stay in this character, whatever the task:\n{assertions}"


def fields_of(template: str) -> set[str]:
    """Names of the ``{fields}`` in ``template``."""
    return {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}


def fill(template: str, **fields: str) -> str:
    """``template`` with its fields replaced.

    Raises:
        ValueError: a field of the template was not given, or a given one does not occur in it (an argument that
            silently changes nothing is how two data sets that should differ come out the same).
    """
    wanted = fields_of(template)
    if missing := sorted(wanted - fields.keys()):
        raise ValueError(f"template lacks a value for {missing}: {template[:60]!r}")
    if unused := sorted(fields.keys() - wanted):
        raise ValueError(f"template has no field {unused}: {template[:60]!r}")
    return template.format(**fields)


def constitution_system(assertions: list[str] | tuple[str, ...]) -> str:
    """System text that puts a model into a character by its constitution alone; the persona is not named."""
    return fill(CONSTITUTION_SYSTEM, assertions="\n".join(f"- {a}" for a in assertions))


def join_system(*parts: str) -> str:
    """System texts one under the other, empty ones left out: the constitution first, the situation after it."""
    return "\n\n".join(p for p in parts if p)
