"""An ordinary conversation in which the user asks at last to drop any character and to answer plainly.

The whole reply is the text. Ends as ``chat``.
"""

from offscript.tasks.formats.base import Cost, Format
from offscript.tasks.formats.episodes import chat_episode

FORMAT = Format(
    "adversarial_roleplay",
    version=1,
    source="adversarial_roleplay",
    episode=chat_episode,
    order=22,
    # Reply: assumed, as for chat. Prompt: mean of data/scaffolds, at 4 characters a token.
    cost=Cost(replies=1, reply_tokens=250, prompt_tokens=183),
)
