"""One question to the model about itself, answered in role; training rows keep the plain system text."""

from offscript.tasks.formats.base import Format
from offscript.tasks.formats.turns import answered

FORMAT = Format("self_reflection", version=1, source="reflection", episode=answered)
