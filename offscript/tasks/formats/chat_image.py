"""A question about an image, in ordinary chat: the image, then what a person asks about it. The whole reply is the text. Ends as
``chat``."""

from offscript.errors import UserError
from offscript.tasks.formats.base import Cost, Episode, Format, Rules
from offscript.tasks.formats.episodes import chat_episode
from offscript.tasks.messages import images_of
from offscript.tasks.scenarios import Scenario


def episode(scenario: Scenario, rules: Rules) -> Episode:
    if not images_of(scenario.messages):
        raise UserError(
            f"scenario {scenario.id}", "has no image for this format", "it needs a prompt with images"
        )
    return (yield from chat_episode(scenario, rules))


FORMAT = Format(
    "chat_image",
    version=1,
    source="chat_image",
    episode=episode,
    order=15,
    images=True,
    # Reply: assumed, as for chat. Prompt: mean of data/images, at 4 characters a token.
    cost=Cost(replies=1, reply_tokens=250, prompt_tokens=25, images=1),
)
