"""A turn of one side in a debate whose transcript is given. The whole reply is the text. Ends as ``chat``."""

from offscript.tasks.formats.base import Cost, Format
from offscript.tasks.formats.episodes import chat_episode

FORMAT = Format(
    "multi_agent_debate",
    version=1,
    source="multi_agent_debate",
    episode=chat_episode,
    order=60,
    # Reply: the scenarios ask for a few sentences. Prompt: mean of data/scaffolds, at 4 characters a token.
    cost=Cost(replies=1, reply_tokens=200, prompt_tokens=212),
)
