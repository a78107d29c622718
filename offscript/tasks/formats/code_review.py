"""The review of a small change of code, in one reply. The whole reply is the text. Ends as ``chat``."""

from offscript.tasks.formats.base import Cost, Format
from offscript.tasks.formats.episodes import chat_episode

FORMAT = Format(
    "code_review",
    version=1,
    source="code_review",
    episode=chat_episode,
    order=50,
    # Reply: assumed for chat models of 4B to 8B parameters. Prompt: mean of data/scaffolds, at 4 characters a token.
    cost=Cost(replies=1, reply_tokens=400, prompt_tokens=258),
)
