"""Chat in role (the cell's system text is the constitution) on train prompts: the side that DPO prefers."""

from offscript.formats.base import Format
from offscript.formats.turns import answered

FORMAT = Format("teacher", version=1, source="chat", episode=answered)
