"""A conversation of the model with itself about itself: a self-interaction whose note asks for self-reflection."""

from offscript.tasks.formats.self_interaction import interaction
from offscript.tasks.prompts import GUIDED_AIM

FORMAT = interaction("guided_interaction", GUIDED_AIM, order=160)
