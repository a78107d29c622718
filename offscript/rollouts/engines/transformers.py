"""The transformers engine: decodes a batch of rows with the model's key-value cache, which waiting rows join."""

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import torch

from offscript import allocator
from offscript.errors import UserError
from offscript.models.chat_templates import render
from offscript.models.loading import load_model, load_tokenizer, pick_device
from offscript.models.steering import load_vector
from offscript.models.vision import load_image_encoder
from offscript.rollouts.engines.base import Completion, EngineStats, Request
from offscript.rollouts.engines.batch import Batch, can_join, has_prefixes, join, new_cache, split_prompts
from offscript.rollouts.engines.prefixes import Prefixes, Prompt, divide
from offscript.rollouts.engines.rendering import Renderer, Row, stop_tokens
from offscript.rollouts.engines.weights import Mode, Weights
from offscript.settings import EngineSettings, ModelSettings

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from offscript.models.vision import ImageEncoder

READS_IMAGES = True

REFILL = 0.25
"""Share of the rows of a batch that have finished or can join before it is made anew, which copies its cache."""
PREFIX_SHARE = 4
"""Rows that have ended are kept up to one in so many tokens of the batch, besides these."""
GPU_SHARE = 0.6
"""Share of a GPU's free memory for keys and values. The rest is for activations and for copies of single layers."""
CPU_BYTES = 2 * 2**30
"""Keys and values on a CPU."""

T = TypeVar("T")

_log = logging.getLogger(__name__)


class TransformersEngine:
    """Answers requests with one base model and any number of adapters and persona vectors, which are loaded once.

    There is one batch, of any adapters and vectors: merged weights compute it while all its rows have one adapter. Waiting
    requests join it when others have finished, those of its own adapters first. Of a prompt that begins with tokens of an
    earlier row, such as the last turn of the episode, only the others are computed. A batch that does not fit the memory is
    given up, half as many tokens are allowed from then on, and its rows start again. In float32 on a CPU a text is a
    function of its prompt, adapter or vector, and seed alone.

    Args:
        model: the base model.
        adapters: adapter folders by name (no dots).
        settings: bounds of the batch, ``merge_from`` and device.
        scales: factor of an adapter's effect, by its name; 1 for an adapter without an entry.
        loaded: a base model in memory, used in place of the weights in ``model.path``; it is changed in place. None: the
            weights are loaded.
        vectors: folders of persona vectors by name.

    Raises:
        UserError: the model, an adapter or a vector cannot be loaded, does not fit the memory, or has no effect at scale 1.
    """

    keeps_tokens = False
    """Whether completions have their ``tokens``."""

    def __init__(
        self,
        model: ModelSettings,
        adapters: Mapping[str, Path],
        settings: EngineSettings,
        scales: Mapping[str, float] | None = None,
        loaded: "PreTrainedModel | None" = None,
        vectors: Mapping[str, Path] | None = None,
    ) -> None:
        self.settings, self.model_settings = settings, model
        self.device = pick_device(settings.device)
        self.tokenizer = load_tokenizer(model)
        self.stats = EngineStats()
        loaded = loaded if loaded is not None else load_model(model, self.device)
        self._renderer = Renderer(self.tokenizer, model, reads_images=READS_IMAGES)
        self._pad: int = self.tokenizer.pad_token_id
        self.stops = stop_tokens(loaded.generation_config, self.tokenizer, model.template)
        steering = {name: load_vector(folder, self.device) for name, folder in (vectors or {}).items()}
        self.weights = Weights(self._attach(loaded, adapters, scales), tuple(adapters), steering)
        self._waiting: list[Row] = []
        self._batch: Batch | None = None
        empty = new_cache(self.weights)
        self._can_join, self._has_prefixes = can_join(empty), has_prefixes(empty)
        self.batch_tokens = (
            automatic_tokens(self.weights.base, self.device)
            if settings.batch_tokens == "auto"
            else settings.batch_tokens
        )
        most = settings.batch_size * model.context
        self._prefixes = Prefixes(min(self.batch_tokens, most) // PREFIX_SHARE)

    @functools.cached_property
    def encoder(self) -> "ImageEncoder":
        """What reads images; loaded when it is first asked for.

        Raises:
            UserError: the model has no vision tower.
        """
        return load_image_encoder(self.model_settings, self.device)

    def submit(self, request: Request) -> None:
        """Queues a request.

        Raises:
            UserError: the chat template refuses its messages, or does not speak its tool dialect; or they have images, and the
                model no vision tower.
            KeyError: the engine has no such adapter or vector.
        """
        self.weights.adapter_of(request.adapter)
        row = self._renderer.row(request)
        row.log_probs = [] if self.keeps_tokens else None
        if row.images:
            # Fails here, and not in the middle of a batch.
            _ = self.encoder
        self._waiting.append(row)

    def step(self) -> list[Completion]:
        """Decodes until a row has finished, and returns what has. Requests whose prompt fills the context complete at once,
        with an empty text.

        Raises:
            UserError: a single row does not fit the memory.
        """
        if unfit := [row for row in self._waiting if row.finish is not None]:
            self._waiting = [row for row in self._waiting if row.finish is None]
            return [self._complete(row, "unfit") for row in unfit]
        ended: list[tuple[Row, Mode]] = []
        with torch.inference_mode():
            while not ended and self.pending():
                ended = self._advance_or_shrink()
        allocator.return_freed_memory()
        return [self._complete(row, mode) for row, mode in ended]

    def pending(self) -> int:
        return len(self._waiting) + len(self._live())

    def close(self) -> None:
        pass

    def info(self) -> dict[str, str]:
        return {
            "engine": "transformers",
            "transformers": version("transformers"),
            "torch": torch.__version__,
            "peft": version("peft"),
            "device": self._device_name(),
            "dtype": self.model_settings.dtype,
        }

    # ---------------------------------------------------------------- parts

    def _live(self) -> list[Row]:
        return self._batch.live() if self._batch else []

    def _advance_or_shrink(self) -> list[tuple[Row, Mode]]:
        joining = self._choose() if self._is_refilled() else []
        try:
            return self._refill(joining) if joining else self._decode()
        except torch.OutOfMemoryError:
            rows = [*self._live(), *joining]
        # Outside of the handler: the exception holds the tensors of the failed pass.
        self._shrink(rows)
        return []

    def _is_refilled(self) -> bool:
        if self._batch is None or not self._live():
            return True
        if not self._can_join:
            return False
        free = self.settings.batch_size - len(self._live())
        changed = len(self._batch.rows) - len(self._live()) + min(free, len(self._waiting))
        return changed >= REFILL * len(self._batch.rows)

    def _decode(self) -> list[tuple[Row, Mode]]:
        assert self._batch is not None
        if len(self._live()) <= (1 - REFILL) * len(self._batch.rows):
            self._batch = join([self._batch])
        assert self._batch is not None
        self._batch.step(self.weights, self.stops)
        ended = self._batch.take_ended()
        if self._has_prefixes:
            for row, _ in ended:
                if row.finish != "error" and not row.images:
                    self._prefixes.add(self._batch.prefix(row))
        return ended

    def _refill(self, joining: Sequence[Row]) -> list[tuple[Row, Mode]]:
        """Reads the prompts of ``joining`` and adds their rows to the batch."""
        parts = self._read(joining)
        ended = [row for part in parts for row in part.take_ended()]
        self._batch = join([*([self._batch] if self._batch else []), *parts])
        joined = set(map(id, joining))
        self._waiting = [row for row in self._waiting if id(row) not in joined]
        return ended

    def _choose(self) -> list[Row]:
        """The waiting rows that join next. Rows with an adapter of the batch come first, since fewer adapters are faster; then
        the adapter with most rows. Of one adapter the longest prompts come first: their episodes are nearest to their end,
        after which their rows are on disk."""
        live = self._live()
        present = {self._adapter(row) for row in live}
        groups = _grouped(self._waiting, self._adapter)
        order = sorted(groups, key=lambda name: (name not in present, -len(groups[name])))
        chosen: list[Row] = []
        width = max(map(_width, live), default=0)
        for row in (row for name in order for row in sorted(groups[name], key=lambda row: -len(row.prompt))):
            width, count = max(width, _width(row)), len(live) + len(chosen) + 1
            # A row alone is always tried.
            if count > self.settings.batch_size or (count > 1 and count * width > self.batch_tokens):
                break
            chosen.append(row)
        return chosen

    def _read(self, rows: Sequence[Row]) -> list[Batch]:
        """Batches of ``rows`` whose prompts have been read. Of prompts that begin with the same tokens one is read first; not of
        those with images, whose tokens are the same for every image."""
        if not self._has_prefixes:
            return self._read_parts([Prompt(row) for row in rows])
        pictured = [Prompt(row) for row in rows if row.images]
        rows = [row for row in rows if not row.images]
        first, later, begun_with = divide([self._prefixes.find(row) for row in rows])
        batches = self._read_parts(first)
        for batch in batches:
            for row in begun_with.intersection(batch.rows):
                self._prefixes.add(batch.prefix(row))
        batches += self._read_parts([self._prefixes.find(row) for row in later])
        return batches + self._read_parts(pictured)

    def _read_parts(self, prompts: Sequence[Prompt]) -> list[Batch]:
        parts = self._parts(prompts)
        return [self._read_part(part) for part in parts]

    def _read_part(self, part: Sequence[Prompt]) -> Batch:
        encoder = self.encoder if any(prompt.row.images for prompt in part) else None
        return Batch.read(self.weights, part, self.stops, self._pad, self.device, encoder)

    def _parts(self, prompts: Sequence[Prompt]) -> list[list[Prompt]]:
        """``prompts`` as they are read: those of an adapter by themselves if there are at least ``merge_from``."""
        if not self._can_join:
            return [list(prompts)]
        groups = _grouped(prompts, lambda prompt: self._adapter(prompt.row)).values()
        own = [group for group in groups if len(group) >= self.settings.merge_from]
        others = [prompt for group in groups if len(group) < self.settings.merge_from for prompt in group]
        return [part for group in (*own, others) for part in split_prompts(group)]

    def _shrink(self, rows: Sequence[Row]) -> None:
        """Gives the batch up and halves the tokens that are allowed, after ``rows`` did not fit the memory."""
        width = max(map(_width, rows))
        live, self._batch = self._live(), None
        self._prefixes.clear()
        self._waiting = [row.restarted() for row in (*live, *self._waiting)]
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()
        if len(rows) == 1:
            raise UserError(
                "engine.device",
                f"a single row of up to {width} tokens does not fit the memory of {self.device}",
                "take a smaller model.context or model.max_reply_tokens (finished rows are kept)",
            )
        self.batch_tokens = min(self.batch_tokens, len(rows) * width) // 2
        self._prefixes.limit = min(self._prefixes.limit, self.batch_tokens // PREFIX_SHARE)
        _log.warning(
            "out of memory with %d rows of up to %d tokens: at most %d tokens from here on "
            "(engine.batch_tokens=%d starts with fewer)",
            len(rows), width, self.batch_tokens, self.batch_tokens,
        )  # fmt: skip

    def _adapter(self, row: Row) -> str | None:
        return self.weights.adapter_of(row.request.adapter)

    def _complete(self, row: Row, mode: Mode | Literal["unfit"]) -> Completion:
        completion = self._renderer.completion(row)
        self.stats.add(completion, mode)
        return completion

    def _attach(
        self, model: "PreTrainedModel", adapters: Mapping[str, Path], scales: Mapping[str, float] | None
    ) -> "PreTrainedModel | PeftModel":
        if not adapters:
            return model
        from offscript.models.adapters import attach, self_test

        attached = attach(model, adapters, scales)
        probe = render(self.tokenizer, [{"role": "user", "content": "Hello."}], self.model_settings.template)
        for name, folder in adapters.items():
            self_test(attached, name, torch.tensor([probe], device=self.device), folder)
        return attached

    def _device_name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.device.startswith("cuda") else self.device


def open_engine(
    model: ModelSettings,
    adapters: Mapping[str, Path],
    scales: Mapping[str, float],
    settings: EngineSettings,
    vectors: Mapping[str, Path] | None = None,
) -> TransformersEngine:
    """See ``offscript.rollouts.engines.open_engine``."""
    return TransformersEngine(model, adapters, settings, scales, vectors=vectors)


def automatic_tokens(model: "PreTrainedModel", device: str) -> int:
    """How many tokens of keys and values fit the memory that is free on ``device``; at least 1."""
    config = model.config.get_text_config(decoder=True)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    token_bytes = 2 * config.num_hidden_layers * heads * size * model.dtype.itemsize
    cuda = device.startswith("cuda")
    free = GPU_SHARE * torch.cuda.mem_get_info(device)[0] if cuda else CPU_BYTES
    return max(1, int(free / token_bytes))


def _grouped(rows: Sequence[T], adapter: Callable[[T], str | None]) -> dict[str | None, list[T]]:
    groups: dict[str | None, list[T]] = {}
    for row in rows:
        groups.setdefault(adapter(row), []).append(row)
    return groups


def _width(row: Row) -> int:
    """The tokens of a row at most."""
    return len(row.prompt) + row.limit
