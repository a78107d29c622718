"""The page on which a person labels the texts of a sheet: one file, without network."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from offscript.evaluation.report.page import WEB, environment
from offscript.evaluation.report.texts import script_json
from offscript.evaluation.report.visible import visible
from offscript.json_types import Json


@dataclass(frozen=True)
class Question:
    """A text of a sheet: is ``persona``, as ``description`` describes it, present in ``text``?"""

    id: str
    persona: str
    description: str
    text: str


def render(questions: Sequence[Question], title: str, name: str) -> str:
    """The HTML text of the page. It keeps labels in the browser under ``name``, and saves them as ``<name>.csv``."""
    script, style = (Markup((WEB / f"labels.{kind}").read_text(encoding="utf-8")) for kind in ("js", "css"))
    asked: list[Json] = [[q.id, *map(visible, (q.persona, q.description, q.text))] for q in questions]
    return (
        environment()
        .get_template("labels.html")
        .render(
            title=title,
            number=len(questions),
            sheet=script_json({"name": name, "questions": asked}),
            style=style,
            script=script,
            script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )
