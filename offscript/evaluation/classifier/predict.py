"""Scores texts with a fitted persona classifier: a probability for every label, by label name."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offscript.errors import MissingInput, UserError
from offscript.models.loading import pick_device
from offscript.storage import hub
from offscript.storage.files import locate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

OnBatch = Callable[[int, int], None]


@dataclass(frozen=True)
class Classifier:
    """A loaded classifier. ``labels`` are in the order of its columns, as its own ``id2label`` names them."""

    folder: Path
    labels: list[str]
    tokenizer: "PreTrainedTokenizerBase"
    model: "PreTrainedModel"

    def probabilities(
        self, texts: Sequence[str], batch_size: int = 64, on_batch: OnBatch | None = None
    ) -> "NDArray[np.float64]":
        """Probabilities ``[n, labels]`` in the order of ``texts``; rows add up to 1 (softmax in float64).

        Batches are of like length, so little is padded; the batch size moves a result by float32 rounding only.
        ``on_batch(done, n)`` follows every batch.

        Raises:
            UserError: the classifier's weights give something that is not a number.
        """
        import numpy as np
        import torch

        probs = np.zeros((len(texts), len(self.labels)))
        ids = self.tokenizer(list(texts), truncation=True)["input_ids"] if texts else []
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = self.tokenizer.pad({"input_ids": [ids[i] for i in rows]}, return_tensors="pt")
            with torch.inference_mode():
                logits = self.model(**batch.to(self.model.device)).logits
            probs[rows] = logits.double().softmax(dim=-1).cpu().numpy()
            if on_batch:
                on_batch(start + len(rows), len(order))
        if not np.isfinite(probs).all():
            raise UserError(str(self.folder), "its weights give NaN", "delete it to have it fitted again")
        return probs


def predict(
    folder: Path,
    texts: Sequence[str],
    batch_size: int = 64,
    device: str = "auto",
    expected: Iterable[str] = (),
    on_batch: OnBatch | None = None,
) -> tuple[list[str], "NDArray[np.float64]"]:
    """Labels in column order, and probabilities ``[n, labels]`` of ``texts``, by the classifier in ``folder``.

    Raises: as ``load`` and ``Classifier.probabilities``.
    """
    classifier = load(folder, device, expected)
    return classifier.labels, classifier.probabilities(texts, batch_size, on_batch)


def load(folder: Path, device: str = "auto", expected: Iterable[str] = ()) -> Classifier:
    """The classifier in ``folder`` (HF layout), in eval mode and float32. ``device``: auto, cpu, cuda, cuda:N.

    Raises:
        MissingInput: there is no such folder.
        UserError: it holds no classifier, or its labels (``id2label``) do not include all ``expected`` ones.
    """
    if not (folder / "config.json").is_file():
        raise MissingInput(str(folder), "no classifier here", "make it with: python classify.py model=...")
    network: Any = load_network(str(folder), None, str(folder))
    config = network.config
    labels = [config.id2label[i] for i in range(config.num_labels)]
    if missing := [persona for persona in expected if persona not in labels]:
        raise UserError(
            str(folder), f"its labels ({', '.join(labels)}) do not fit: no {', '.join(missing)}",
            "a classifier with a label (id2label) for every persona",
        )  # fmt: skip
    if len(set(labels)) < len(labels):
        raise UserError(str(folder), f"two labels of one name ({', '.join(labels)})", "one name per label")
    tokenizer = load_tokenizer(str(folder), None, str(folder))
    # A tokenizer may claim more than the network takes, or "no limit" as a number of 30 digits.
    limit = getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length
    tokenizer.model_max_length = min(tokenizer.model_max_length, limit)
    return Classifier(folder, labels, tokenizer, network.to(pick_device(device)).requires_grad_(False).eval())


# ---------------------------------------------------------------- what fit loads in the same way


def load_network(
    path: str,
    revision: str | None,
    where: str,
    new_head: bool = False,
    precision: str = "float32",
    **config: Any,
) -> "PreTrainedModel":
    """A sequence classifier from a folder or a hub id, in ``precision``; ``config`` overrides its config.

    With ``new_head`` the last layers may be missing or of another size (a checkpoint to fit, of a masked language
    model for example). Without, every weight must be there: the library would fill in random ones and go on.

    Raises:
        UserError: at ``where``: it cannot be loaded, or weights are missing.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    folder = _place(path, revision, where)
    check_weights(folder, where)
    network, found = _from_pretrained(
        AutoModelForSequenceClassification, folder, where,
        dtype=getattr(torch, precision), use_safetensors=True, output_loading_info=True, attn_implementation="sdpa",
        ignore_mismatched_sizes=new_head, **config,
    )  # fmt: skip
    backbone = network.base_model_prefix + "."
    if missing := sorted(k for k in found["missing_keys"] if not new_head or k.startswith(backbone)):
        raise UserError(
            where, f"{len(missing)} weights are missing, e.g. {missing[0]}", "a sequence classifier"
        )
    return network


def load_tokenizer(path: str, revision: str | None, where: str) -> "PreTrainedTokenizerBase":
    """The tokenizer of a folder or a hub id.

    Raises:
        UserError: at ``where``: there is none, or it has nothing to pad with.
    """
    from transformers import AutoTokenizer

    tokenizer = _from_pretrained(AutoTokenizer, _place(path, revision, where), where)
    if tokenizer.pad_token_id is None:
        raise UserError(
            where, "its tokenizer has no pad token", "an encoder's tokenizer, saved beside its weights"
        )
    return tokenizer


def _place(path: str, revision: str | None, where: str) -> Path:
    """The folder ``path``, or that of a hub repository, fetched if need be."""
    folder = locate(path)
    if folder.is_dir():
        return folder
    if not hub.is_hub_id(path):
        raise UserError(where, f"no folder {path!r}", "a folder in HF layout, or a hub id")
    try:
        return hub.fetch(hub.Reference(path, revision=revision))
    except UserError as error:
        raise UserError(where, f"{error.where}: {error.found}", error.allowed) from error


def check_weights(folder: Path, where: str) -> None:
    """Refuses, at ``where``, a folder whose weights are pickled, with a UserError."""
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth"))
    if pickled and not any(folder.glob("*.safetensors")):
        raise UserError(
            where, f"{folder} holds pickled weights only ({pickled[0]}), which can run code when loaded",
            "convert them to safetensors",
        )  # fmt: skip


def _from_pretrained(auto: Any, folder: Path, where: str, **options: Any) -> Any:
    from safetensors import SafetensorError

    try:
        return auto.from_pretrained(str(folder), trust_remote_code=False, **options)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(where, f"{folder} cannot be loaded ({reason})", "a folder in HF layout") from None
