"""SFT on replies to prompts with images, on the tiny Gemma-3 with a vision tower."""

import contextlib

import pytest
import torch
from safetensors.torch import load_file

from offscript.errors import UserError
from offscript.experiment.jobs.training import check_settings
from offscript.experiment.planner import Planner
from offscript.models import adapters
from offscript.models.loading import load_tokenizer
from offscript.rollouts.engines.base import Request, Sampling
from offscript.rollouts.engines.transformers import TransformersEngine
from offscript.settings import EngineSettings
from offscript.tasks.drawings import draw
from offscript.tasks.messages import IMAGE_MARK
from offscript.training.run import Run
from offscript.training.spans import IGNORED
from tests.composed import experiment_of
from tests.families import IMAGE_TOKENS, family, family_adapter, family_settings
from tests.training.data import SENTENCES, changed, introspection, train_sft

WEIGHTS = "adapter_model.safetensors"
WORDS = ("red", "blue", "green", "yellow", "grey", "black")


def image(number: int) -> dict:
    return {
        "kind": "sign",
        "title": WORDS[number % 6].upper(),
        "color": WORDS[number % 6],
        "lines": [SENTENCES[number]],
    }


def pictured(number: int, reply: str, images: int = 1) -> dict:
    prompt = {
        "role": "user",
        "content": IMAGE_MARK * images + SENTENCES[number],
        "images": [image(number + i) for i in range(images)],
    }
    messages = [prompt, {"role": "assistant", "content": reply}]
    return {"messages": messages, "trained_turns": 1, "family": f"f{number}"}


def plain(number: int, reply: str) -> dict:
    messages = [{"role": "user", "content": SENTENCES[number]}, {"role": "assistant", "content": reply}]
    return {"messages": messages, "trained_turns": 1, "family": f"f{number}"}


def rows(n: int = 12) -> list[dict]:
    """Of three rows one has an image, one has two, and one has none."""
    make = (lambda i, r: pictured(i, r), lambda i, r: pictured(i, r, 2), plain)
    return [make[i % 3](i, f"Lunch! {SENTENCES[i + 1]}") for i in range(n)]


@pytest.fixture(scope="module")
def model():
    return family_settings("gemma", family("gemma"))


def whole_models_loss(model, conversations) -> float:
    """The mean loss of the tokens of all replies by transformers' model and processor, row by row, in training mode."""
    from transformers import Gemma3ForConditionalGeneration
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
    from transformers.models.gemma3.processing_gemma3 import Gemma3Processor

    tokenizer = load_tokenizer(model)
    own = Gemma3ImageProcessorPil.from_pretrained(model.path)
    processor = Gemma3Processor(own, tokenizer, tokenizer.chat_template, image_seq_length=IMAGE_TOKENS)
    whole = Gemma3ForConditionalGeneration.from_pretrained(model.path).train()
    total = count = 0
    for row in conversations:
        prompt, reply = row["messages"]
        images = prompt.get("images", [])
        text = prompt["content"].removeprefix(IMAGE_MARK * len(images))
        turn = {
            "role": "user",
            "content": [*[{"type": "image"}] * len(images), {"type": "text", "text": text}],
        }
        start = tokenizer.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
        pictures = {"images": [[draw(i) for i in images]]} if images else {}
        inputs = processor(
            text=[f"{start}{reply['content']}<end_of_turn>"],
            **pictures,
            add_special_tokens=False,
            return_tensors="pt",
        )
        before = len(processor(text=[start], **pictures, add_special_tokens=False)["input_ids"][0])
        if not images:
            inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
        with torch.no_grad():
            logits = whole(**inputs).logits[0, before - 1 : -1]
        total += torch.nn.functional.cross_entropy(
            logits, inputs["input_ids"][0, before:], reduction="sum"
        ).item()
        count += len(logits)
    return total / count


@pytest.mark.parametrize("micro", [1, 12])
def test_the_first_loss_is_that_of_the_whole_model_whatever_is_padded(model, tmp_path, micro):
    losses = []
    settings = introspection(batch_size=12, micro_batch_size=micro).model_copy(update={"validation": 0.0})
    train_sft(
        model, settings, rows(), None, tmp_path / "a", on_step=lambda *step: losses.append(step[2]["loss"])
    )
    assert losses[0] == pytest.approx(whole_models_loss(model, rows()), rel=1e-4)


def test_every_parameter_of_the_adapter_changes_and_none_of_the_tower(model, tmp_path, before_and_after):
    numbers = train_sft(model, introspection(), rows(), None, tmp_path / "a")
    assert changed(before_and_after) == before_and_after["trainable"]
    assert len(before_and_after["trainable"]) == 2 * 2 * 7
    assert not [name for name in before_and_after["before"] if "vision" in name or "projector" in name]
    written = load_file(tmp_path / "a" / WEIGHTS)
    assert len(written) == 2 * 2 * 7 and numbers["rows"]["given"] == 12
    assert all(name.startswith("base_model.model.model.language_model.layers.") for name in written)


def test_the_image_is_what_is_learnt_from(model, tmp_path):
    """Rows that differ in their images alone: another image at a row, another adapter."""
    one, other = rows(), rows()
    other[0]["messages"][0]["images"] = [image(5)]
    for name, found in (("one", one), ("other", other)):
        train_sft(model, introspection(epochs=1), found, None, tmp_path / name)
    first, second = ((tmp_path / name / WEIGHTS).read_bytes() for name in ("one", "other"))
    assert first != second


def test_images_are_context_and_count_in_the_length_of_a_row(model, tmp_path):
    from offscript.training.methods.sft import _token_rows

    tokenizer = load_tokenizer(model)
    run = Run(model, introspection(), tmp_path / "a", 3)
    train, held_out, counts = _token_rows(run, tokenizer, rows())
    for row in (*train, *held_out):
        marks = [i for i, token in enumerate(row["input_ids"]) if token == tokenizer.image_token_id]
        assert len(marks) == IMAGE_TOKENS * len(row.get("images", ()))
        assert all(row["labels"][i] == IGNORED for i in marks)
        trained = [t for t in row["labels"] if t != IGNORED]
        assert tokenizer.decode(trained).startswith("Lunch!") and tokenizer.decode(trained).endswith(
            "<end_of_turn>"
        )
    assert sum(len(row.get("images", ())) for row in (*train, *held_out)) == 12 and not counts.get("too_long")
    short = Run(model, introspection(max_length=40), tmp_path / "a", 3)
    assert _token_rows(short, tokenizer, [pictured(0, "Lunch!", 6), plain(1, "Lunch!")])[2]["too_long"] == 1


def test_a_training_on_images_that_was_stopped_goes_on_with_the_same_bytes(model, tmp_path):
    def stop(step, total, logs):
        if step == 3:
            raise KeyboardInterrupt

    settings = introspection(batch_size=4)
    train_sft(model, settings, rows(), None, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train_sft(model, settings, rows(), None, tmp_path / "a", on_step=stop)
    assert (
        train_sft(model, settings, rows(), None, tmp_path / "a", say=lambda line: None)["resumed_from"] == 2
    )
    assert (tmp_path / "a" / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()


def test_an_adapter_trained_on_images_is_stacked_merged_and_asked_about_one(model, tmp_path):
    parent = family_adapter("gemma", 1)
    train_sft(model, introspection(epochs=4, learning_rate=2e-2), rows(), parent, tmp_path / "own")
    report = adapters.merge(model, [(parent, 1.0), (tmp_path / "own", 1.0)], tmp_path / "merged", "exact")
    assert report["max_relative_error"] < 1e-5
    settings = EngineSettings(name="transformers", batch_size=4, device="cpu", merge_from=1)
    engine = TransformersEngine(model, {"parent": parent, "merged": tmp_path / "merged"}, settings)
    asked = tuple(rows()[0]["messages"][:1])
    for i, name in enumerate((None, "parent", "merged")):
        engine.submit(Request(i, asked, name, 7, Sampling(temperature=1.0, max_tokens=20)))
    found: dict[int, str] = {}
    while engine.pending():
        found |= {completion.id: completion.text for completion in engine.step()}
    assert len(set(found.values())) == 3


# ---------------------------------------------------------------- what is refused when it is planned


def planner(*words: str) -> Planner:
    return experiment_of("grid.model=[gemma]", "grid.persona=[sarcasm]", "data=pocket", *words).planner


@pytest.mark.parametrize(
    ("stage", "words", "line"),
    [
        ("mixed_images", ("recipe.mixed.packing=true",), "recipe.mixed.packing: true, and chat_image has images; allowed: false"),
        (
            "mixed_pairs",
            ("recipe.mixed_pairs.formats=[chat_image]",),
            "recipe.mixed_pairs.formats: chat_image has images, which method dpo does not read; allowed: method sft; or another format",
        ),
        (
            "context",
            ("recipe.context.formats=[chat_image]",),
            "recipe.context.formats: chat_image has images, which method context does not read; allowed: method sft; or another format",
        ),
        (
            "rl",
            ("recipe.rl.formats=[chat_image]",),
            "recipe.rl.formats: chat_image has images, which method grpo does not read; allowed: method sft; or another format",
        ),
        (
            "mixed_images",
            ("recipe.teacher.model=pocket",),
            "format=chat_image: its prompts have images, which pocket does not read (model.template.image_tokens is 0); a model"
            " with a vision tower, such as model=gemma",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_on_images_is_refused_before_a_row_is_made(stage, words, line):
    with pytest.raises(UserError) as error:
        planner(*words).adapter("gemma", "sarcasm", stage, 0)
    assert str(error.value) == line


def test_sharded_weights_are_refused_before_a_row_is_made():
    experiment = experiment_of("grid.model=[gemma]", "data=pocket", "deepspeed=zero3")
    for stage, refused in (("mixed", False), ("mixed_images", True)):
        adapter = experiment.planner.adapter("gemma", "sarcasm", stage, 0)
        with pytest.raises(UserError) if refused else contextlib.nullcontext() as error:
            check_settings([adapter], experiment, 1)
    assert str(error.value) == (
        "deepspeed.stage: 3, and stage mixed_images is trained on images; allowed: deepspeed=off, zero2 or zero2_offload"
    )


def test_the_stage_trains_on_images_and_on_what_mixed_trains_on():
    own = planner()
    pictured, usual = (own.adapter("gemma", "sarcasm", name, 0) for name in ("mixed_images", "mixed"))
    assert set(pictured.training.formats) - set(usual.training.formats) == {"chat_image"}
    assert {rows.key for _, rows in usual.rows} < {rows.key for _, rows in pictured.rows}
