"""Chat under a plain system text on prompts of the train split: the rejected side of DPO."""

from offscript.tasks.formats.base import Format
from offscript.tasks.formats.chat import CHAT_COST
from offscript.tasks.formats.episodes import chat_episode

FORMAT = Format(
    "student", version=1, source="chat", episode=chat_episode, order=130, scored=False, cost=CHAT_COST
)
