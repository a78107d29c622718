"""Persona vectors: a difference of means, the layer by its AUC, the strength by perplexity."""

import pytest
import torch

from offscript.errors import UserError
from offscript.models.loading import load_model, load_tokenizer
from offscript.models.steering import SteeringVector, steered
from offscript.settings import SteeringSettings
from offscript.training import vectors
from offscript.training.spans import IGNORED
from tests.conftest import tiny_sentences


@pytest.fixture(scope="module")
def loaded(tiny_settings):
    return load_model(tiny_settings, "cpu"), load_tokenizer(tiny_settings)


def row(text, number=0, system=None):
    said = [{"role": "system", "content": system}] if system else []
    messages = [*said, {"role": "user", "content": "Where is it?"}, {"role": "assistant", "content": text}]
    return {"scenario": f"s{number}", "family": f"f{number}", "sample": 0, "text": text, "messages": messages}


def rows(texts, system=None):
    return [row(text, number, system) for number, text in enumerate(texts)]


def test_means_are_over_the_tokens_of_the_reply_alone_whatever_the_batch(loaded, tiny_settings):
    model, tokenizer = loaded
    replies = [*rows(tiny_sentences(9)), row("Lunch.", 9)]
    means = vectors.reply_means(model, tokenizer, replies, tiny_settings)
    assert means.shape == (10, 2, 32)
    for i in (0, 9):
        ((ids, _, targets),) = vectors.batches_of(tokenizer, [replies[i]], tiny_settings)
        with torch.inference_mode():
            first_layer = model(ids, output_hidden_states=True).hidden_states[1][0]
        torch.testing.assert_close(means[i, 0], first_layer[targets[0] != IGNORED].mean(dim=0))
        assert 0 < (targets != IGNORED).sum() < targets.numel()


def test_the_vector_is_what_was_planted_between_the_two_kinds_of_replies(loaded, tiny_settings):
    """The same replies, once with a direction added to the first layer's output."""
    model, tokenizer = loaded
    planted = torch.randn(32, generator=torch.Generator().manual_seed(1))
    replies, held_out = rows(tiny_sentences(16)), rows(tiny_sentences(40)[30:])

    def means(of):
        return vectors.reply_means(model, tokenizer, of, tiny_settings)

    plain, held_plain = means(replies), means(held_out)
    with steered(model, [SteeringVector(0, planted)] * vectors.BATCH):
        prompted = means(replies)
    with steered(model, [SteeringVector(0, planted)] * len(held_out[:8])):
        held_prompted = means(held_out[:8])
    found = vectors.fit_layers((prompted, plain), (held_prompted, held_plain))
    torch.testing.assert_close(found.vectors[0], planted, atol=1e-4, rtol=1e-4)
    assert found.auc[0] == 1.0


def test_steering_makes_texts_of_the_persona_more_probable_and_against_it_less(loaded, tiny_settings):
    """The persona here ends everything with "again"."""
    model, tokenizer = loaded
    of_persona = [text for text in tiny_sentences() if text.endswith("again.")]
    others = [text for text in tiny_sentences() if not text.endswith("again.")]
    prompted, plain = (
        vectors.reply_means(model, tokenizer, rows(part), tiny_settings)
        for part in (of_persona[8:48], others[:80])
    )
    found = vectors.fit_layers((prompted, plain), (prompted, plain))

    def perplexity_of_persona(strength):
        vector = SteeringVector(1, found.vectors[1] * strength)
        with steered(model, [vector] * vectors.BATCH):
            return vectors.perplexity(model, tokenizer, rows(of_persona[:8]), tiny_settings)

    assert perplexity_of_persona(1.0) < perplexity_of_persona(0.0) < perplexity_of_persona(-1.0)


def test_the_layer_is_the_middle_one_of_those_that_separate_held_out_replies_best():
    generator = torch.Generator().manual_seed(0)

    def replies(n, shifts):
        noise = torch.randn((n, len(shifts), 4), generator=generator)
        return noise + torch.tensor(shifts)[None, :, None]

    shifts = [0.0, 0.3, 9.0, 9.0, 9.0, 0.3]
    pair = [(replies(n, shifts), replies(n, [0.0] * 6)) for n in (60, 40)]
    found = vectors.fit_layers(*pair)
    assert found.layer == 2 and found.auc[2:5] == [1.0, 1.0, 1.0] and max(found.auc[:2]) < 0.99


def test_perplexity_is_that_of_the_reply_without_the_system_text(loaded, tiny_settings):
    model, tokenizer = loaded
    replies = rows(tiny_sentences(11))
    value = vectors.perplexity(model, tokenizer, replies, tiny_settings)
    assert value == pytest.approx(
        vectors.perplexity(model, tokenizer, rows(tiny_sentences(11), "Be terse."), tiny_settings)
    )
    losses = []
    for reply in replies:
        ((ids, _, targets),) = vectors.batches_of(tokenizer, [reply], tiny_settings)
        with torch.inference_mode():
            logs = model(ids).logits[0, :-1].log_softmax(-1)
        wanted = targets[0, 1:]
        losses += [-logs[i, t].item() for i, t in enumerate(wanted.tolist()) if t != IGNORED]
    assert value == pytest.approx(torch.tensor(losses).mean().exp().item(), rel=1e-4)
    nonsense = rows([" ".join(reversed(text.split())) for text in tiny_sentences(11)])
    assert vectors.perplexity(model, tokenizer, nonsense, tiny_settings) > value


@pytest.mark.parametrize(
    ("found", "chosen"),
    [
        ([(0.5, 3.0), (1.0, 5.9), (2.0, 6.1)], 1.0),
        # Text that repeats itself is probable again.
        ([(0.5, 3.0), (1.0, 9.0), (2.0, 2.0)], 0.5),
        ([(0.5, 3.0), (1.0, 3.0), (2.0, None)], 1.0),
        ([(0.5, 7.0), (1.0, 3.0), (2.0, 3.0)], None),
    ],
    ids=["largest", "repetitive", "empty", "none"],
)
def test_the_strength_is_the_largest_one_up_to_which_replies_stay_probable(found, chosen):
    entries = [{"strength": strength, "perplexity": value} for strength, value in found]
    settings = SteeringSettings(strengths=(0.5, 1.0, 2.0), max_perplexity=2.0)
    assert vectors.choose_strength(entries, 3.0, settings) == chosen


def test_families_are_held_out_together_and_too_few_are_one_line():
    prompted, plain = rows(tiny_sentences(60), "Be terse."), rows(tiny_sentences(60))
    (fit, _), (held, held_plain) = vectors.split_rows(prompted, plain, SteeringSettings(), "vector x")
    assert 5 < len(held) < 25 and not {r["family"] for r in held} & {r["family"] for r in fit}
    assert [r["scenario"] for r in held] == [r["scenario"] for r in held_plain]
    with pytest.raises(
        UserError, match=r"^vector x: 0 replies with and 0 without .* raise format.count.train"
    ):
        vectors.split_rows(
            [{**prompted[0], "text": None}], [{**plain[0], "text": None}], SteeringSettings(), "vector x"
        )
