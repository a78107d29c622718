"""A training method: the loss that a stage is trained with.

A method is one file of this folder with a ``METHOD``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from offscript.settings import TrainerSettings
from offscript.training.data.base import TrainingRow
from offscript.training.run import Metrics, Run


@dataclass(frozen=True)
class Method:
    """A training method.

    Args:
        name: name of its file.
        settings: schema of its hyper-parameters, those of every training included.
        takes: type of the rows that it trains on: ``pairs``, ``conversations``, ``documents``, ``prompted_conversations`` or
            ``episodes`` (``run.live`` is then given).
        train: trains on rows and writes the adapter to ``run.out``; returns the numbers for the manifest.
        stacks: whether it can train an adapter on top of a parent's.
        continues: whether it can train a copy of the parent's adapter further (``run.continues``).
        texts_per_row: texts that a row is read as (2 for the sides of a pair), for estimates.
        extra_forward: further forward passes over each text, once in a training (a reference model's), for estimates.
        reads_images: whether its rows may have images.
        reads_prompts: whether its rows contain the prompts of the texts, for estimates.
        plays: of a method that plays its episodes: settings -> the number that it trains on, the number of each format that it
            is watched by, and forward passes over each that are no part of the loss; for estimates.
        check: (settings, number of processes, ZeRO stage, config key of the settings) -> None; raises UserError if it cannot
            train so. Called before any row is made. None: nothing is checked.
    """

    name: str
    settings: type[TrainerSettings]
    takes: str
    train: Callable[[Run, Sequence[TrainingRow]], Metrics]
    stacks: bool = False
    continues: bool = False
    texts_per_row: int = 1
    extra_forward: int = 0
    reads_prompts: bool = True
    reads_images: bool = False
    plays: Callable[[Any], tuple[int, int, int]] | None = None
    check: Callable[[Any, int, int | str, str], None] | None = None
