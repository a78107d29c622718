"""Images in prompts: what the vision tower and the projector of a vision-language model (Gemma-3) make of them.

The language model is loaded alone (``loading.load_model``), so adapters are never attached to the tower, and a text without
images is computed as by a language model. Where a prompt has images, the embeddings of its image tokens are replaced by what
the tower makes of them, and the tokens of one image attend to each other in both directions, as in transformers'
``Gemma3ForConditionalGeneration``.
"""

import json
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from offscript.errors import UserError
from offscript.models.checks import CONFIG
from offscript.models.loading import model_folder
from offscript.models.pretrained import from_pretrained
from offscript.settings import ModelSettings
from offscript.storage import hub, references
from offscript.storage.files import read_json_object
from offscript.tasks.drawings import draw
from offscript.tasks.messages import Image

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import Cache, PreTrainedModel
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

FAMILIES = ("gemma3",)
"""Model types of the repositories whose images are read."""

KEPT = 64
"""Images whose embeddings are kept, the last used ones. One of Gemma-3's 4b takes 1.3 MB in bfloat16."""

_PARTS = re.compile(r"(?:model\.)?(vision_tower|multi_modal_projector)\.(?:vision_model\.)?(.+)")
"""Names of the weights, on the hub and as transformers saves them."""


def check_reads_images(model: ModelSettings, what: str) -> None:
    """Checks that ``model`` reads images, by its settings and, if that is on this machine, by its config.json.

    Args:
        model: the model.
        what: what has images, for the message.

    Raises:
        UserError: it does not.
    """
    if not model.template.image_tokens:
        raise UserError(
            what,
            f"its prompts have images, which {model.name} does not read (model.template.image_tokens is 0)",
            "a model with a vision tower, such as model=gemma",
        )
    if model.endpoint is not None:
        return
    folder = references.local_path(model)
    if folder is None and (ref := references.model_reference(model)) is not None:
        folder = hub.cached(ref)
    if folder is not None and (folder / CONFIG).is_file():
        check_has_tower(folder, what)


def check_has_tower(folder: Path, what: str) -> None:
    """Checks the config.json of a model folder for a vision tower of a family that is supported.

    Raises:
        UserError: there is none.
    """
    config = read_json_object(folder / CONFIG)
    kind = config.get("model_type")
    if kind not in FAMILIES or not isinstance(config.get("vision_config"), dict):
        raise UserError(
            what,
            f"its prompts have images, and {folder / CONFIG} has no vision tower (model_type {kind!r})",
            f"a model of type {', '.join(FAMILIES)} with a vision_config",
        )


class ImageEncoder:
    """Vision tower and projector: frozen, in the precision of the language model. Made by ``load_image_encoder``.

    Args:
        tower: pixel values -> hidden states.
        projector: hidden states -> embeddings in the space of the language model.
        processor: turns images into pixel values.
        token: id of the token that stands for a part of an image.
        tokens: number of these tokens in an image.
    """

    def __init__(
        self,
        tower: "PreTrainedModel",
        projector: "Module",
        processor: "Gemma3ImageProcessorPil",
        token: int,
        tokens: int,
    ) -> None:
        self.tower, self.projector, self.processor = tower, projector, processor
        self.token, self.tokens = token, tokens
        self._kept: OrderedDict[str, Tensor] = OrderedDict()

    def pixel_values(self, images: Sequence[Image]) -> "Tensor":
        """(images, channels, height, width) in float32."""
        # Crops (pan and scan) would make the number of tokens depend on the image.
        made = self.processor.preprocess(
            [draw(image) for image in images], return_tensors="pt", do_pan_and_scan=False
        )
        return cast("Tensor", made["pixel_values"])

    def features(self, pixel_values: "Tensor") -> "Tensor":
        """Embeddings (images, tokens, width). Each image is computed alone, so that they do not depend on the others."""
        import torch

        with torch.no_grad():
            each = [
                self.projector(
                    self.tower(
                        pixel_values=one[None].to(self.tower.device, self.tower.dtype)
                    ).last_hidden_state
                )
                for one in pixel_values
            ]
        return torch.cat(each)

    def features_of(self, images: Sequence[Image]) -> "Tensor":
        """As ``features``; those of images that were asked for lately are not computed again."""
        import torch

        found = []
        for image in images:
            name = json.dumps(image, sort_keys=True)
            if name not in self._kept:
                self._kept[name] = self.features(self.pixel_values([image]))
            self._kept.move_to_end(name)
            found.append(self._kept[name])
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return torch.cat(found)

    def inputs(
        self,
        model: "PreTrainedModel",
        features: "Tensor",
        input_ids: "Tensor",
        attention_mask: "Tensor",
        position_ids: "Tensor | None" = None,
        cache: "Cache | None" = None,
    ) -> dict[str, Any]:
        """The arguments of the language model ``model`` for prompts with images, in place of those named here.

        Args:
            model: the language model.
            features: (images, tokens, width), in the order of the rows and of the images in each of them.
            input_ids: (rows, columns), with an image's tokens for each image, and the whole prompt of each row that has one.
            attention_mask: (rows, columns), 0 at padding.
            position_ids: (rows, columns).
            cache: an empty cache, if one is to be filled.

        Returns: ``inputs_embeds``; ``attention_mask``, one for each type of attention; and ``position_ids`` if given.
        """
        from transformers.models.gemma3.modeling_gemma3 import (
            create_masks_for_vision_model,
            get_block_sequence_ids_for_mask,
        )

        is_image = input_ids == self.token
        assert int(is_image.sum()) == features.shape[0] * features.shape[1], (
            "images and their tokens differ in number"
        )
        embedded: Tensor = model.get_input_embeddings()(input_ids)
        embedded = embedded.masked_scatter(is_image[..., None], features.to(embedded.device, embedded.dtype))
        masks = create_masks_for_vision_model(
            config=model.config.get_text_config(),
            inputs_embeds=embedded,
            attention_mask=attention_mask,
            past_key_values=cache,
            position_ids=position_ids,
            block_sequence_ids=get_block_sequence_ids_for_mask(is_image.long(), device=embedded.device),
        )
        given = {} if position_ids is None else {"position_ids": position_ids}
        return {"inputs_embeds": embedded, "attention_mask": masks, **given}


def load_image_encoder(model: ModelSettings, device: str) -> ImageEncoder:
    """The vision tower and the projector of ``model`` on ``device``, in ``model.dtype``.

    Raises:
        UserError: the repository has no vision tower, or lacks some of its weights, its image processor, or the number of
            tokens that ``model.template.image_tokens`` names.
    """
    import torch
    from transformers import AutoConfig, SiglipVisionModel
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
    from transformers.models.gemma3.modeling_gemma3 import Gemma3MultiModalProjector

    folder = model_folder(model)
    check_has_tower(folder, f"model {model.name}")
    config = from_pretrained(AutoConfig, folder)
    tokens = int(config.mm_tokens_per_image)
    if tokens != model.template.image_tokens:
        found = f"{model.template.image_tokens}, but an image is {tokens} tokens ({folder / CONFIG})"
        raise UserError("model.template.image_tokens", found, f"allowed: {tokens}")
    tower, projector = SiglipVisionModel(config.vision_config), Gemma3MultiModalProjector(config)
    weights = _vision_weights(folder)
    for part, module in (("vision_tower", tower), ("multi_modal_projector", projector)):
        _load(module, {own: tensor for (name, own), tensor in weights.items() if name == part}, part, folder)
        torch.nn.Module.to(module, device, getattr(torch, model.dtype)).requires_grad_(False).eval()
    # The version that needs no torchvision: pixels do not depend on what else is installed.
    processor = from_pretrained(Gemma3ImageProcessorPil, folder)
    return ImageEncoder(tower, projector, processor, int(config.image_token_index), tokens)


def _load(module: "Module", weights: "Mapping[str, Tensor]", part: str, folder: Path) -> None:
    """Gives ``module`` its weights.

    Raises:
        UserError: some are missing, are not part of it, or have another shape.
    """
    own = module.state_dict()
    shapes = {name for name in own.keys() & weights.keys() if own[name].shape != weights[name].shape}
    for wrong, fault in (
        (own.keys() - weights.keys(), "are missing"),
        (weights.keys() - own.keys(), "are not used by the model"),
        (shapes, "have another shape"),
    ):
        if wrong:
            found = f"{len(wrong)} weights of its {part} {fault}, e.g. {min(wrong)}"
            raise UserError(str(folder), found, "its config.json must match its weights")
    module.load_state_dict(weights)


def _vision_weights(folder: Path) -> "dict[tuple[str, str], Tensor]":
    """The weights of the tower and the projector in ``folder``, by part and name."""
    from safetensors import safe_open

    found: dict[tuple[str, str], Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        if any(path.match(pattern) for pattern in hub.UNWANTED):
            continue
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                if match := _PARTS.fullmatch(name):
                    found[match[1], match[2]] = file.get_tensor(name)
    return found
