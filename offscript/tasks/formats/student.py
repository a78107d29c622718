"""Plain chat on train prompts: the side that DPO moves away from."""

from offscript.tasks.formats.base import Format
from offscript.tasks.formats.turns import answered

FORMAT = Format("student", version=1, source="chat", episode=answered)
