"""The transformers engine over a model that is being trained: its replies come from the weights as they are at that moment."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from offscript.rollouts.engines.transformers import TransformersEngine
from offscript.settings import EngineSettings, ModelSettings

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class TrainedEngine(TransformersEngine):
    """Answers requests with adapter ``adapter`` of ``trained``, inside ``current_weights``.

    Completions have their tokens. Nothing is loaded or copied, except for merged weights during ``current_weights``.

    Args:
        model: the base model.
        trained: the model in memory, with the adapter. No part of it is sharded (ZeRO stage 3).
        adapter: the name of the adapter in it.
        settings: bounds of the batch, and the device of ``trained``.
    """

    keeps_tokens = True

    def __init__(
        self, model: ModelSettings, trained: "PeftModel", adapter: str, settings: EngineSettings
    ) -> None:
        self._trained = trained
        # The folder of an adapter is read by ``_attach`` alone.
        super().__init__(model, {adapter: Path()}, settings, loaded=trained.get_base_model())  # type: ignore[arg-type]
        self.weights.restore()

    def _attach(
        self, model: "PreTrainedModel", adapters: Mapping[str, Path], scales: Mapping[str, float] | None
    ) -> "PeftModel":
        return self._trained

    @contextlib.contextmanager
    def current_weights(self) -> Iterator[None]:
        """Context in which requests are answered, between two steps of the training. Afterwards the model is as it was."""
        mode = self._trained.training
        self._trained.eval()
        try:
            yield
        finally:
            self._batch = None
            self._waiting = []
            self._prefixes.clear()
            self.weights.restore()
            self._trained.train(mode)

    def close(self) -> None:
        self.weights.close()
