"""One question to the model about itself, answered under the constitution; training rows keep the plain system text."""

from offscript.tasks.formats.base import Cost, Format
from offscript.tasks.formats.episodes import chat_episode

FORMAT = Format(
    "self_reflection",
    version=1,
    source="reflection",
    episode=chat_episode,
    order=140,
    scored=False,
    in_role=True,
    # Assumed for chat models of 4B to 8B parameters.
    cost=Cost(replies=1, reply_tokens=400, prompt_tokens=60),
)
