"""A start for the embedded model's weights that already copies.

To write "Dear Mira" a model has to find where "Mira" was said and go on from there. Such an induction circuit is two
heads in two layers: one that brings each position what its predecessor was, one that looks for its own token among
these and fetches the token there (Elhage et al. 2021, Olsson et al. 2022). Left to itself, a model of this size finds
it late, after millions of tokens; until then it makes up every name, date and topic. Here the first two layers begin
with it, roughly, and training does the rest. Everything else starts at random.

The residual stream is read as: dimension 0 a constant, 1 to half the token's content, the upper half free.
"""

from typing import Any

CONTENT_SCALE, CONSTANT = 0.1, 0.3
SHARPNESS = 60.0  # score of the predecessor over a far position, in units of the softmax
MATCHING = 1.6  # size of the rows that compare contents; larger is more certain, and noisier
REACH = 300  # tokens over which the rotation of a matching dimension stays under one radian


def wire(model: Any, seed: int) -> None:
    """Writes the circuit into a fresh Llama: two heads of layer 0, three of layer 1, and embeddings to suit.

    Raises:
        ValueError: the model has other proportions than the circuit was written for.
    """
    import torch

    config = model.config
    if config.hidden_size != 4 * config.head_dim or config.num_hidden_layers < 2:
        raise ValueError("the circuit wants four heads a layer and two layers or more")
    generator = torch.Generator().manual_seed(seed)
    half = config.hidden_size // 2
    with torch.no_grad():
        embedding = model.model.embed_tokens.weight
        embedding.zero_()
        embedding[:, 1:half] = CONTENT_SCALE * torch.randn(len(embedding), half - 1, generator=generator)
        embedding[:, 0] = CONSTANT
        first, second = model.model.layers[0].self_attn, model.model.layers[1].self_attn
        # What RMSNorm makes of the constant.
        constant = CONSTANT / (((half - 1) * CONTENT_SCALE**2 + CONSTANT**2) / config.hidden_size) ** 0.5
        for head in (0, 1):
            _previous_token(first, head, constant, config)
        for head in (0, 1, 2):
            _induction(second, head, config, generator)


def _rows(head: int, config: Any) -> slice:
    return slice(head * config.head_dim, (head + 1) * config.head_dim)


def _angles(config: Any) -> Any:
    """Rotation per position of each pair of a head's dimensions, fastest first."""
    import torch

    pairs = torch.arange(0, config.head_dim, 2) / config.head_dim
    return config.rope_parameters["rope_theta"] ** -pairs


def _previous_token(attention: Any, head: int, constant: float, config: Any) -> None:
    """A head whose query, turned back by one position, matches the key of the position before; it carries half of
    the content to the free half of the residual stream."""
    import torch

    rows, half, pairs = _rows(head, config), config.hidden_size // 2, config.head_dim // 2
    strength = torch.zeros(pairs)
    strength[:6] = torch.tensor([1.0, 1.0, 1.0, 0.7, 0.5, 0.3])
    strength /= strength.norm()
    angles = -_angles(config)
    key = torch.cat([strength, torch.zeros(pairs)])
    query = torch.cat([strength * angles.cos(), strength * angles.sin()])
    size = (SHARPNESS * config.head_dim**0.5) ** 0.5 / constant
    for projection, direction in ((attention.q_proj, query), (attention.k_proj, key)):
        projection.weight[rows] *= 0.1
        projection.weight[rows, 0] = size * direction
    taken = range(1 + head * config.head_dim, min(1 + (head + 1) * config.head_dim, half))
    attention.v_proj.weight[rows] = 0
    attention.o_proj.weight[:, rows] = 0
    for slot, dimension in enumerate(taken):
        attention.v_proj.weight[head * config.head_dim + slot, dimension] = 1
        attention.o_proj.weight[half - 1 + dimension, head * config.head_dim + slot] = CONTENT_SCALE


def _induction(attention: Any, head: int, config: Any, generator: Any) -> None:
    """A head that compares its token with what the layer below says came before each position, on dimensions that
    hardly rotate, and adds a third of the content found there to its own."""
    import torch

    rows, half, pairs = _rows(head, config), config.hidden_size // 2, config.head_dim // 2
    slow = [pair for pair, angle in enumerate(_angles(config)) if angle * REACH < 1]
    directions, _ = torch.linalg.qr(torch.randn(half - 1, half - 1, generator=generator))
    attention.q_proj.weight[rows] *= 0.1
    attention.k_proj.weight[rows] *= 0.1
    for direction, slot in zip(directions, [*slow, *(pairs + pair for pair in slow)], strict=False):
        row = head * config.head_dim + slot
        attention.q_proj.weight[row, 1:half] = MATCHING * direction
        attention.k_proj.weight[row, half : 2 * half - 1] = MATCHING * direction
    third = -(-(half - 1) // 3)
    attention.v_proj.weight[rows] = 0
    attention.o_proj.weight[:, rows] = 0
    for slot, dimension in enumerate(range(1 + head * third, min(1 + (head + 1) * third, half))):
        attention.v_proj.weight[head * config.head_dim + slot, dimension] = 1
        attention.o_proj.weight[dimension, head * config.head_dim + slot] = 5 * CONTENT_SCALE
