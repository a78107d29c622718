"""One question, one reply: the format that characters are trained in."""

from offscript.tasks.formats.base import Cost, Format
from offscript.tasks.formats.episodes import chat_episode

# Assumed for chat models of 4B to 8B parameters: a reply of about 190 words to a question of one or two lines.
CHAT_COST = Cost(replies=1, reply_tokens=250, prompt_tokens=60)

FORMAT = Format(
    "chat", version=1, source="chat", episode=chat_episode, order=10, in_distribution=True, cost=CHAT_COST
)
