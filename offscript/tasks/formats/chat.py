"""One question, one answer: the format that characters are trained in."""

from offscript.tasks.formats.base import Format
from offscript.tasks.formats.turns import answered

FORMAT = Format("chat", version=1, source="chat", episode=answered)
