"""Predictions of a persona classifier: a probability for each label of each text."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from offscript.errors import MissingInput, UserError, command_line
from offscript.evaluation.classifier import tfidf
from offscript.evaluation.classifier.fits import (
    Classifier,
    OnBatch,
    average,
    fit_folders,
    probabilities_of_fits,
)
from offscript.models.checks import check_report, check_weight_files
from offscript.models.loading import pick_device
from offscript.models.pretrained import from_pretrained, require_safetensors
from offscript.storage import hub
from offscript.storage.files import locate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


CPU_BATCH_TOKENS, GPU_BATCH_TOKENS = 1024, 16384
"""Padded tokens of a batch. On a CPU, batches whose activations fit the cache are a third faster than four times as large
ones; a GPU needs large ones to be busy."""


@dataclass(frozen=True)
class NetworkClassifier:
    """A loaded network. ``labels`` are those of its ``id2label``; a batch has at most ``batch_tokens`` padded tokens."""

    folder: Path
    labels: list[str]
    tokenizer: "PreTrainedTokenizerBase"
    model: "PreTrainedModel"
    batch_tokens: int

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    def probabilities(self, texts: Sequence[str], on_batch: OnBatch | None = None) -> "NDArray[np.float64]":
        """Probabilities ``[n, labels]`` in the order of ``texts``; see ``of_tokens``."""
        return self.of_tokens(self.tokens(texts), on_batch)

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text, cut at the length that the network reads."""
        found: list[list[int]] = self.tokenizer(list(texts), truncation=True)["input_ids"] if texts else []
        return found

    def of_tokens(
        self, tokens: Sequence[list[int]], on_batch: OnBatch | None = None
    ) -> "NDArray[np.float64]":
        """Probabilities ``[n, labels]`` in the order of ``tokens``; each row sums to 1 (softmax in float64).

        Texts of similar length are batched together, so that little is padded. The batches change a result by float32
        rounding only.

        Args:
            on_batch: called with (texts done, n) after every batch.

        Raises:
            UserError: a result is NaN or infinite.
        """
        import numpy as np
        import torch

        probs, done = np.zeros((len(tokens), len(self.labels))), 0
        for rows in batches([len(ids) for ids in tokens], self.batch_tokens):
            batch = self.tokenizer.pad({"input_ids": [tokens[i] for i in rows]}, return_tensors="pt")
            with torch.inference_mode():
                logits = self.model(**batch.to(self.model.device)).logits
            probs[rows] = logits.double().softmax(dim=-1).cpu().numpy()
            done += len(rows)
            if on_batch:
                on_batch(done, len(tokens))
        if not np.isfinite(probs).all():
            raise UserError(str(self.folder), "its weights give NaN", "delete the folder to fit it again")
        return probs


def batches(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Yields the indices of ``lengths``, the longest first, in batches whose padded size (their number times the largest
    length) is at most ``most``; a larger length is a batch of its own.

    The longest come first, so that a batch that does not fit the memory fails at once.
    """
    rows: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if rows and (len(rows) + 1) * lengths[rows[0]] > most:
            yield rows
            rows = []
        rows.append(i)
    if rows:
        yield rows


def predict(
    folder: Path,
    texts: Sequence[str],
    batch_tokens: int | None = None,
    device: str = "auto",
    expected: Iterable[str] = (),
    on_batch: OnBatch | None = None,
) -> tuple[list[str], "NDArray[np.float64]"]:
    """Labels, and probabilities ``[fits, n, labels]`` of ``texts`` by each fit of the classifier in ``folder``. The
    prediction is their mean.

    Raises: see ``load`` and ``Classifier.probabilities``.
    """
    classifier = load(folder, device, expected, batch_tokens)
    return classifier.labels, probabilities_of_fits(classifier, texts, on_batch)


def load(
    folder: Path, device: str = "auto", expected: Iterable[str] = (), batch_tokens: int | None = None
) -> Classifier:
    """The classifier in ``folder``, of the kind that its files show; the average of several fits if there are.

    Args:
        device: of a network: auto, cpu, cuda or cuda:N.
        expected: labels that it must have.
        batch_tokens: of a network: padded tokens of a batch; None: ``CPU_BATCH_TOKENS`` or ``GPU_BATCH_TOKENS``.

    Raises:
        MissingInput: there is no classifier in ``folder``.
        UserError: it cannot be loaded, two labels are equal, or a label of ``expected`` is missing.
    """
    if any(fit_folders(folder)):
        return average(folder, lambda part: load_network_classifier(part, device, expected, batch_tokens))
    if (folder / tfidf.CONTENT).is_file():
        of_ngrams = tfidf.load(folder)
        _check_labels(of_ngrams.labels, expected, folder)
        return of_ngrams
    return load_network_classifier(folder, device, expected, batch_tokens)


def load_network_classifier(
    folder: Path, device: str = "auto", expected: Iterable[str] = (), batch_tokens: int | None = None
) -> NetworkClassifier:
    """The network in ``folder`` (Hugging Face layout), in eval mode and float32; see ``load``."""
    if not (folder / "config.json").is_file():
        make_it = "make it with: " + command_line("classify", "model=...")
        raise MissingInput(str(folder), "no classifier here", make_it)
    network = load_network(str(folder), None, str(folder))
    config = network.config
    labels = [label for _, label in sorted((config.id2label or {}).items())]
    _check_labels(labels, expected, folder)
    tokenizer = load_tokenizer(str(folder), None, str(folder))
    # The limit of a tokenizer may exceed that of the network, or be "none" as a number of 30 digits.
    limit = getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length
    tokenizer.model_max_length = min(tokenizer.model_max_length, limit)
    # The annotation of PreTrainedModel.to loses its first parameter.
    network.to(pick_device(device))  # type: ignore[arg-type]
    if batch_tokens is None:
        batch_tokens = CPU_BATCH_TOKENS if network.device.type == "cpu" else GPU_BATCH_TOKENS
    return NetworkClassifier(folder, labels, tokenizer, network.requires_grad_(False).eval(), batch_tokens)


def _check_labels(labels: Sequence[str], expected: Iterable[str], folder: Path) -> None:
    if missing := [persona for persona in expected if persona not in labels]:
        raise UserError(
            str(folder),
            f"its labels ({', '.join(labels)}) do not fit: no {', '.join(missing)}",
            "a classifier with a label (id2label) for every persona",
        )
    if len(set(labels)) < len(labels):
        raise UserError(
            str(folder), f"two labels have the same name ({', '.join(labels)})", "one name per label"
        )


# ---------------------------------------------------------------- loading, also for fit


def load_network(
    path: str,
    revision: str | None,
    where: str,
    new_head: bool = False,
    precision: str = "float32",
    **config: object,
) -> "PreTrainedModel":
    """A sequence classifier from a folder or a hub repository.

    Args:
        path: the folder or the hub id.
        where: setting or file that errors name.
        new_head: whether the last layers may be missing or of another size, as in a masked language model that is to be
            fitted.
        precision: dtype of the weights.
        config: entries that override those of its config.

    Raises:
        UserError: it cannot be loaded, or its weights are not those of its config (``check_report``).
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    folder = _folder_of(path, revision, where)
    require_safetensors(folder, where)
    check_weight_files(folder)
    network, loading_info = from_pretrained(
        AutoModelForSequenceClassification,
        folder,
        where,
        dtype=getattr(torch, precision),
        use_safetensors=True,
        output_loading_info=True,
        attn_implementation="sdpa",
        # Weights of another shape are then in the report, by name.
        ignore_mismatched_sizes=True,
        **config,
    )
    backbone = network.base_model_prefix + "."
    check_report(
        loading_info,
        where,
        # Masked language models have a pooler that no classifier uses, or none where one does.
        lambda name: new_head and (not name.startswith(backbone) or name.startswith(f"{backbone}pooler.")),
    )
    return network


def load_config(path: str, revision: str | None, where: str) -> "PreTrainedConfig":
    """The configuration of a folder or a hub repository; ``where`` is the setting or file that errors name.

    Raises:
        UserError: it cannot be loaded.
    """
    from transformers import AutoConfig

    config: PreTrainedConfig = from_pretrained(AutoConfig, _folder_of(path, revision, where), where)
    return config


def load_tokenizer(path: str, revision: str | None, where: str) -> "PreTrainedTokenizerBase":
    """The tokenizer of a folder or a hub repository; ``where`` is the setting or file that errors name.

    Raises:
        UserError: it cannot be loaded, or has no pad token.
    """
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = from_pretrained(
        AutoTokenizer, _folder_of(path, revision, where), where
    )
    if tokenizer.pad_token_id is None:
        raise UserError(
            where,
            "its tokenizer has no pad token",
            "the tokenizer of an encoder, saved beside its weights, is needed",
        )
    return tokenizer


def _folder_of(path: str, revision: str | None, where: str) -> Path:
    """The folder ``path``, or that of a hub repository in the local cache; downloads it if necessary."""
    folder = locate(path)
    if folder.is_dir():
        return folder
    if not hub.is_hub_id(path):
        raise UserError(where, f"no folder {path!r}", "a folder in Hugging Face layout, or a hub id")
    try:
        return hub.fetch(hub.Reference(path, revision=revision))
    except UserError as error:
        raise UserError(where, f"{error.where}: {error.found}", error.allowed) from error
