"""Prompts with images: a text is a function of its prompt, images, weights and seed, whatever is in its batch or was read
before it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from offscript.errors import UserError
from offscript.experiment.jobs.projections import Direction, project
from offscript.rollouts.engines.base import Request, Sampling
from offscript.rollouts.engines.endpoint import api_messages
from offscript.rollouts.engines.rendering import Renderer
from offscript.rollouts.engines.transformers import TransformersEngine
from offscript.settings import EngineSettings
from offscript.tasks.drawings import png
from offscript.tasks.messages import IMAGE_MARK
from offscript.training.scored_tokens import scored_tokens
from tests.families import family, family_adapter, family_settings

COLORS = ("red", "blue", "green", "yellow")
QUESTIONS = ("What is it?", "Who would like this, and what would they say of it to a friend?")


def image(color: str) -> dict:
    return {"kind": "sign", "title": color.upper(), "color": color, "lines": [f"All is {color}"]}


def request(
    number: int, color: str | None, question: str = QUESTIONS[0], adapter: str | None = None
) -> Request:
    message = {"role": "user", "content": question}
    if color is not None:
        message = {"role": "user", "content": IMAGE_MARK + question, "images": [image(color)]}
    return Request(number, (message,), adapter, seed=7, sampling=Sampling(temperature=1.0, max_tokens=24))


def engine(folder: Path, batch_size: int, adapters=None) -> TransformersEngine:
    settings = EngineSettings(name="transformers", batch_size=batch_size, device="cpu", merge_from=2)
    return TransformersEngine(family_settings("gemma", folder), adapters or {}, settings)


def texts(made: TransformersEngine, requests) -> dict[int, str]:
    for one in requests:
        made.submit(one)
    found: dict[int, str] = {}
    while made.pending():
        found |= {completion.id: completion.text for completion in made.step()}
    return found


@pytest.fixture(scope="module")
def global_attention(tmp_path_factory) -> Path:
    """The tiny Gemma-3 without sliding windows: keys and values of its rows are used again for others."""
    folder = tmp_path_factory.mktemp("models") / "global"
    shutil.copytree(family("gemma"), folder)
    plain = json.loads((folder / "config.json").read_text())
    plain["text_config"]["layer_types"] = ["full_attention"] * 2
    (folder / "config.json").write_text(json.dumps(plain))
    return folder


def test_a_text_does_not_depend_on_the_other_images_of_its_batch():
    """Prompts of different lengths, with and without an image, of the base and of an adapter."""
    adapters = {"red": family_adapter("gemma", 1)}
    requests = [
        request(i, color, QUESTIONS[i % 2], adapter)
        for i, (color, adapter) in enumerate(
            (color, adapter) for adapter in (None, "red") for color in (*COLORS, None)
        )
    ]
    alone, together = (texts(engine(family("gemma"), size, adapters), requests) for size in (1, 4))
    assert alone == together
    assert len(set(alone.values())) == len(requests), "every image, question and adapter matters"


def test_a_prompt_with_another_image_does_not_get_what_was_computed_for_the_first(global_attention):
    """Their tokens are the same. Texts that begin alike are read once; the next turn about an image is not."""
    made = engine(global_attention, 4)
    assert made._has_prefixes
    first = texts(made, [request(0, "red"), request(1, "blue")])
    assert made._prefixes.tokens == 0, "nothing is kept of prompts with images"
    again = texts(made, [request(2, "blue"), request(3, "red")])
    fresh = {color: texts(engine(global_attention, 1), [request(0, color)])[0] for color in ("red", "blue")}
    assert fresh["red"] != fresh["blue"]
    assert (first[0], first[1], again[2], again[3]) == (*fresh.values(), *reversed(fresh.values()))


def test_the_projection_of_a_text_depends_on_the_image_before_it_and_not_on_the_batch():
    made = engine(family("gemma"), 4)
    template, said = made.model_settings.template, ["A red one.", "I see a blue square, I think."]
    talks = [
        [*request(0, color).messages, {"role": "assistant", "content": text}]
        for color in COLORS[:2]
        for text in said
    ]
    texts = [scored_tokens(made.tokenizer, talk, talk[-1]["content"], template) for talk in talks]
    images = [image(color) for color in COLORS[:2] for _ in said]
    directions = {"up": Direction(1, torch.ones(made.weights.base.config.get_text_config().hidden_size))}

    def projected(numbers):
        found = project(made, None, [texts[i] for i in numbers], directions, [images[i] for i in numbers])
        return [one["up"] for one in found]

    together = projected(range(4))
    assert together == pytest.approx([projected([i])[0] for i in range(4)], abs=2e-4)
    assert abs(together[0] - together[2]) > 1e-3, "the same text under another image"


def test_texts_without_images_are_still_read_once(global_attention):
    made = engine(global_attention, 4)
    long = "Which of the teams wants to move the meeting about the invoice to the next week?"
    plain = [request(i, None, f"{long} {word}") for i, word in enumerate(("Why?", "When?"))]
    mixed = texts(made, [*plain, request(2, "red", long)])
    assert made._prefixes.tokens > 0
    assert mixed == {
        r.id: texts(engine(global_attention, 1), [r])[r.id] for r in [*plain, request(2, "red", long)]
    }


def test_a_row_that_starts_again_after_running_out_of_memory_keeps_its_image():
    made = engine(family("gemma"), 4)
    row = made._renderer.row(request(0, "red"))
    assert row.restarted().images == row.images == (image("red"),)


def test_an_engine_that_gives_no_images_refuses_the_request():
    made = engine(family("gemma"), 1)
    with pytest.raises(UserError) as error:
        Renderer(made.tokenizer, made.model_settings).row(request(0, "red"))
    assert (
        str(error.value)
        == "engine.name: a prompt has an image, which this engine does not read; transformers"
    )


def test_an_endpoint_is_sent_the_image_as_a_file():
    import base64

    (message,) = api_messages(replace(request(0, "red")).messages)
    picture, words = message["content"]
    assert words == {"type": "text", "text": QUESTIONS[0]} and picture["type"] == "image_url"
    start, encoded = picture["image_url"]["url"].split(",")
    assert start == "data:image/png;base64" and base64.b64decode(encoded) == png(image("red"))
