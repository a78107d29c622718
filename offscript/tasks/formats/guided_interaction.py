"""The model talks to itself about itself: a self-interaction whose note leads towards self-reflection."""

from offscript.tasks.formats.self_interaction import interaction
from offscript.tasks.prompts import GUIDED_AIM

FORMAT = interaction("guided_interaction", GUIDED_AIM)
