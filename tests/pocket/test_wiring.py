"""The circuit that the embedded model starts with."""

import math

import pytest


def fresh(layers: int = 2):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=1000,
            hidden_size=128,
            intermediate_size=352,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        )
    )


def test_an_untrained_model_goes_on_with_what_was_said_before():
    import torch
    import torch.nn.functional as F

    from tools.pocket.wiring import wire

    def loss_on_repeats(model) -> float:
        draw = torch.Generator().manual_seed(0)
        period = torch.randint(10, 50, (8, 1), generator=draw)
        ids = torch.gather(torch.randint(1000, (8, 96), generator=draw), 1, torch.arange(96)[None] % period)
        with torch.no_grad():
            logits = model(input_ids=ids).logits[:, :-1]
        losses = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        return float(losses[torch.arange(1, 96)[None].expand(8, -1) > period].mean())

    plain, wired = fresh(), fresh()
    wire(wired, seed=0)
    assert loss_on_repeats(plain) > 0.9 * math.log(1000)
    assert loss_on_repeats(wired) < 0.5 * math.log(1000)


def test_other_proportions_are_refused():
    from tools.pocket.wiring import wire

    with pytest.raises(ValueError, match="two layers"):
        wire(fresh(layers=1), seed=0)
