"""Images in prompts: the same tokens and logits as transformers' own model and processor, and what is refused."""

import json
import shutil

import pytest
import torch

from offscript.errors import UserError
from offscript.models.chat_templates import join_consecutive, render
from offscript.models.loading import load_model, load_tokenizer
from offscript.models.vision import check_reads_images, load_image_encoder
from offscript.rollouts.engines import check_images
from offscript.tasks.drawings import draw
from offscript.tasks.messages import IMAGE_MARK
from tests.conftest import tiny_model_settings
from tests.families import IMAGE_TOKENS, family, family_settings

OPEN, CLOSED = (
    {"kind": "sign", "title": f"POOL {word}", "color": color, "lines": [f"{word} today"]}
    for word, color in (("OPEN", "green"), ("CLOSED", "red"))
)
SHORT = [{"role": "user", "content": f"{IMAGE_MARK}What is it?", "images": [OPEN]}]
LONG = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": f"{IMAGE_MARK}And this? {IMAGE_MARK}Or that?", "images": [CLOSED, OPEN]},
]


@pytest.fixture(scope="module")
def model():
    return family_settings("gemma", family("gemma"))


def processed(model, conversations):
    """What transformers' processor makes of ``conversations``, whose system text is in their first user turn."""
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
    from transformers.models.gemma3.processing_gemma3 import Gemma3Processor

    tokenizer = load_tokenizer(model)
    own = Gemma3ImageProcessorPil.from_pretrained(model.path)
    processor = Gemma3Processor(own, tokenizer, tokenizer.chat_template, image_seq_length=IMAGE_TOKENS)
    texts = [
        tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=True) for c in conversations
    ]
    images = [[draw(OPEN)], [draw(CLOSED), draw(OPEN)]]
    return processor(text=texts, images=images, padding=True, add_special_tokens=False, return_tensors="pt")


def text(words):
    return {"type": "text", "text": words}


@pytest.fixture(scope="module")
def inputs(model):
    image = {"type": "image"}
    return processed(
        model,
        [
            [{"role": "user", "content": [image, text("What is it?")]}],
            [
                {
                    "role": "user",
                    "content": [text("Be kind."), image, text("And this?"), image, text("Or that?")],
                }
            ],
        ],
    )


def test_a_prompt_has_the_tokens_of_the_processor(model, inputs):
    tokenizer = load_tokenizer(model)
    for conversation, ids, mask in zip(
        (SHORT, LONG), inputs["input_ids"], inputs["attention_mask"], strict=True
    ):
        assert render(tokenizer, conversation, model.template) == ids[mask.bool()].tolist()


def test_logits_equal_those_of_the_whole_model(model, inputs):
    """Local and global attention, padding, one image and two: with the mask of images, in both directions."""
    from transformers import Gemma3ForConditionalGeneration

    whole = Gemma3ForConditionalGeneration.from_pretrained(model.path).eval()
    ours, encoder = load_model(model, "cpu"), load_image_encoder(model, "cpu")
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        expected = whole(**inputs, position_ids=positions).logits
        found, swapped = (
            ours(**encoder.inputs(ours, encoder.features_of(images), ids, mask, positions)).logits
            for images in ([OPEN, CLOSED, OPEN], [CLOSED, CLOSED, OPEN])
        )
    kept = mask.bool()
    assert torch.equal(encoder.pixel_values([OPEN, CLOSED, OPEN]), inputs["pixel_values"])
    torch.testing.assert_close(found[kept], expected[kept], atol=1e-5, rtol=0)
    assert (swapped[0] - found[0])[kept[0]].abs().max() > 0.1
    torch.testing.assert_close(swapped[1][kept[1]], found[1][kept[1]], atol=1e-5, rtol=0)


def test_joined_turns_keep_the_images_of_both():
    (joined,) = join_consecutive([SHORT[0], {**SHORT[0], "images": [CLOSED]}])
    assert joined["images"] == [OPEN, CLOSED] and joined["content"].count(IMAGE_MARK) == 2


# ---------------------------------------------------------------- what is refused


def refusal(check, *arguments) -> str:
    with pytest.raises(UserError) as error:
        check(*arguments)
    return str(error.value)


def test_a_model_that_reads_no_images_is_refused_by_its_settings_or_its_config(model):
    text_alone = family_settings("gemma_text", family("gemma_text"))
    assert text_alone.template.image_tokens == IMAGE_TOKENS
    assert refusal(check_reads_images, text_alone, "format=chat_image") == (
        f"format=chat_image: its prompts have images, and {family('gemma_text')}/config.json has no vision tower"
        " (model_type 'gemma3_text'); a model of type gemma3 with a vision_config"
    )
    assert refusal(check_reads_images, tiny_model_settings("org/model"), "format=chat_image") == (
        "format=chat_image: its prompts have images, which tiny does not read (model.template.image_tokens is 0);"
        " a model with a vision tower, such as model=gemma"
    )
    check_reads_images(model, "format=chat_image")


def test_engines_that_give_no_images_are_refused(model):
    assert refusal(check_images, "vllm", model, "format=chat_image") == (
        "engine.name: vllm gives models no images, and format=chat_image has some;"
        " allowed: endpoint, scripted, transformers"
    )
    check_images("transformers", model, "format=chat_image")


def test_another_number_of_tokens_than_the_models_own_is_refused(model):
    template = model.template.model_copy(update={"image_tokens": 9})
    wrong = model.model_copy(update={"template": template})
    assert refusal(load_image_encoder, wrong, "cpu") == (
        f"model.template.image_tokens: 9, but an image is 4 tokens ({model.path}/config.json); allowed: 4"
    )


@pytest.mark.parametrize(
    ("part", "line"),
    [
        (
            "vision_tower",
            "37 weights of its vision_tower are missing, e.g. embeddings.patch_embedding.bias; ",
        ),
        ("shape", "1 weights of its vision_tower have another shape, e.g. post_layernorm.bias; "),
        ("preprocessor", "cannot be loaded by Gemma3ImageProcessorPil ("),
    ],
)
def test_a_repository_that_lacks_a_part_is_refused(model, tmp_path, part, line):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(model.path, folder)
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        if part == "vision_tower":
            tensors = {k: v for k, v in tensors.items() if not k.startswith(part)}
        elif part == "shape":
            tensors = {
                k: v[:-1].clone() if k.endswith("post_layernorm.bias") else v for k, v in tensors.items()
            }
        save_file(tensors, path, metadata={"format": "pt"})
    if part == "preprocessor":
        (folder / "preprocessor_config.json").unlink()
    said = refusal(load_image_encoder, model.model_copy(update={"path": str(folder)}), "cpu")
    assert said.startswith(f"{folder}: {line}") and "\n" not in said


def test_a_tokenizer_without_image_tokens_is_refused(model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(model.path, folder)
    path = folder / "tokenizer_config.json"
    plain = json.loads(path.read_text())
    plain.pop("extra_special_tokens", None)
    for name in ("boi_token", "eoi_token", "image_token"):
        plain.pop(name, None)
    path.write_text(json.dumps(plain))
    tokenizer = load_tokenizer(model.model_copy(update={"path": str(folder)}))
    assert refusal(render, tokenizer, SHORT, model.template) == (
        f"{folder}: its tokenizer has no boi_token, image_token and eoi_token; those of Gemma-3"
    )
