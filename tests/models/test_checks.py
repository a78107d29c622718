"""Model folders that do not fit: each is refused by one line when it is loaded, the tokenizer's faults and the
configuration's before any weights."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from offscript.errors import UserError
from offscript.models import template_checks
from offscript.models.chat_templates import render
from offscript.models.loading import load_generation_config, load_model, load_tokenizer
from offscript.rollouts.engines.rendering import stop_tokens
from offscript.rollouts.engines.transformers import TransformersEngine
from offscript.settings import EngineSettings, TemplateSettings
from tests.composed import settings_of
from tests.conftest import TINY_TEMPLATE, tiny_model_settings
from tests.families import family, family_settings

HI = [{"role": "user", "content": "Hi."}]
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def copy(tiny_model, tmp_path) -> Path:
    """A model folder that a test may damage."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def change(path: Path, **values) -> None:
    """Sets entries of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def change_weights(folder: Path, edit) -> None:
    """Replaces the tensors of a model folder by ``edit(tensors)``."""
    path = folder / "model.safetensors"
    tensors = {name: tensor.contiguous() for name, tensor in edit(load_file(path)).items()}
    save_file(tensors, path, metadata={"format": "pt"})


def refusal(load, folder: Path, **settings) -> str:
    """The line that refuses ``folder``, with its path shortened."""
    with pytest.raises(UserError) as error:
        load(tiny_model_settings(folder, **settings))
    line = str(error.value)
    assert line.startswith(str(folder)) and "\n" not in line and len(line) < 600
    return line.removeprefix(str(folder)).lstrip("/")


def load_on_cpu(settings):
    return load_model(settings, "cpu")


# ---------------------------------------------------------------- chat templates


@pytest.mark.parametrize(
    ("insertion", "found"),
    [
        ("{{ 1 / 0 }}", "fails for the roles user (ZeroDivisionError: division by zero)"),
        ("{{ 1 + 'a' }}", "fails for the roles user (TypeError: "),
        (
            "{% for i in range(10 ** 9) %}{% endfor %}",
            "fails for the roles user (OverflowError: Range too big.",
        ),
        ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "fails for the roles user (RecursionError: "),
        ("{{ nothing.at.all }}", "fails for the roles user (UndefinedError: 'nothing' is undefined)"),
        ("{{ ''.__class__.mro() }}", "fails for the roles user (SecurityError: "),
        ("\n\n{% for %}", "fails in line 3 for the roles user (TemplateSyntaxError: "),
        ("{{ [1, 2] | random }}", "draws at random"),
    ],
)
def test_a_template_that_fails_is_one_line_with_its_file(copy, insertion, found):
    (copy / "chat_template.jinja").write_text(insertion + TINY_TEMPLATE)
    line = refusal(load_tokenizer, copy)
    assert line.startswith("chat_template.jinja: the chat template " + found)
    assert line.endswith("correct the template")


@pytest.mark.parametrize(
    ("insertion", "found"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "after 1 seconds"),
        ("{{ 7 ** (10 ** 9 * messages|length) }}", "after 1 seconds"),
        ("{% set x = 'a' * (10 ** 9 * messages|length) %}", "it takes more than 32 MiB of memory"),
    ],
    ids=["loops", "arithmetic", "memory"],
)
def test_a_template_that_does_not_end_is_stopped(copy, insertion, found, monkeypatch):
    """The second and third are single operations in C, which no signal interrupts."""
    monkeypatch.setattr(template_checks, "MAX_SECONDS", 1.0)
    monkeypatch.setattr(template_checks, "MAX_MEMORY", 32 * 2**20)
    (copy / "chat_template.jinja").write_text(insertion + TINY_TEMPLATE)
    line = refusal(load_tokenizer, copy)
    assert line.startswith("chat_template.jinja: rendering the chat template was stopped") and found in line


def test_a_template_that_makes_too_much_text(copy):
    (copy / "chat_template.jinja").write_text("{{ 'a' * 200000 }}" + TINY_TEMPLATE)
    line = refusal(load_tokenizer, copy)
    assert "the chat template makes 200,181 characters" in line and line.endswith("allowed: 100,000")


def test_several_templates_need_one_called_default(copy):
    (copy / "chat_template.jinja").unlink()
    named = [{"name": name, "template": TINY_TEMPLATE} for name in ("rag", "tool_use")]
    change(copy / "tokenizer_config.json", chat_template=named)
    assert refusal(load_tokenizer, copy) == (
        "tokenizer_config.json: its chat templates are called rag, tool_use; call one of them default"
    )
    change(
        copy / "tokenizer_config.json", chat_template=[{"name": "default", "template": TINY_TEMPLATE}, *named]
    )
    assert load_tokenizer(tiny_model_settings(copy))
    change(copy / "tokenizer_config.json", chat_template=5)
    assert (
        refusal(load_tokenizer, copy)
        == "tokenizer_config.json: chat_template is 5; a Jinja template is needed"
    )


def test_the_current_date_is_refused_and_a_fixed_one_stands_in_its_place(copy):
    """Also in a template that does not ask for ``date_string`` itself."""
    insertion = "{% set today = strftime_now('%Y-%m-%d') %}\n  {% if today %}Today: {{ today }}\n{% endif %}"
    (copy / "chat_template.jinja").write_text(insertion + TINY_TEMPLATE)
    assert refusal(load_tokenizer, copy) == (
        "chat_template.jinja: the chat template inserts the current date, with which every text would change from day "
        "to day; set model.template.date_string"
    )
    fixed = TemplateSettings(date_string="26 Jul 2024")
    tokenizer = load_tokenizer(tiny_model_settings(copy, template=fixed))
    text = tokenizer.decode(render(tokenizer, HI, fixed))
    assert text.startswith("Today: 26 Jul 2024\n<|im_start|>user\nHi.")
    assert "strftime_now" in tokenizer.chat_template and "macro" not in tokenizer.chat_template, (
        "as it is saved"
    )


# ---------------------------------------------------------------- end, pad and beginning tokens


def test_a_template_without_an_end_token_is_said_once(copy, capsys):
    (copy / "chat_template.jinja").write_text(TINY_TEMPLATE.replace("<|im_end|>", ""))
    template_checks.warn.cache_clear()
    for _ in range(2):
        load_tokenizer(tiny_model_settings(copy))
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"warning: {copy}/chat_template.jinja: the chat template puts no end token after a reply; a model that is "
        "trained with it does not learn to end its replies"
    )


def test_a_model_without_any_end_token_is_said(copy, capsys):
    (copy / "chat_template.jinja").write_text(TINY_TEMPLATE.replace("<|im_end|>", ""))
    change(copy / "tokenizer_config.json", eos_token=None)
    change(copy / "config.json", eos_token_id=None)
    change(copy / "generation_config.json", eos_token_id=None)
    template_checks.warn.cache_clear()
    engine = TransformersEngine(
        tiny_model_settings(copy), {}, EngineSettings(name="transformers", device="cpu")
    )
    assert engine.stops == frozenset()
    assert "no end token is known; every reply goes on to model.max_reply_tokens" in capsys.readouterr().err


def test_a_reply_ends_at_every_end_token_of_the_generation_config(copy):
    change(copy / "generation_config.json", eos_token_id=[5, 6])
    settings = tiny_model_settings(copy)
    tokenizer = load_tokenizer(settings)
    stops = stop_tokens(load_generation_config(settings), tokenizer, settings.template)
    assert stops == {5, 6, tokenizer.convert_tokens_to_ids("<|im_end|>")}


@pytest.mark.parametrize("pad", [None, "<|im_end|>"])
def test_a_tokenizer_without_a_beginning_or_pad_token_is_completed(copy, pad):
    change(copy / "tokenizer_config.json", bos_token=None, pad_token=pad)
    tokenizer = load_tokenizer(tiny_model_settings(copy))
    assert tokenizer.pad_token == "<|pad|>" and tokenizer.bos_token is None


# ---------------------------------------------------------------- configuration and tokenizer


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("config.json", "[1]", "damaged: found [1], not an object; a folder made by save_pretrained"),
        ("config.json", "null", "damaged: found null, not an object; a folder made by save_pretrained"),
        ("config.json", "", "is empty; a folder made by save_pretrained is needed"),
        ("config.json", "{", "not JSON: Expecting property name"),
        ("generation_config.json", "{", "not JSON: Expecting property name"),
        ("generation_config.json", '{"eos_token_id": "</s>"}', 'eos_token_id is "</s>"; allowed: token ids'),
        (
            "generation_config.json",
            '{"eos_token_id": [2, "a"]}',
            'eos_token_id is [2, "a"]; allowed: token ids',
        ),
        ("tokenizer_config.json", "[]", "damaged: found [], not an object; a folder made by save_pretrained"),
    ],
)
def test_a_settings_file_that_cannot_be_read(copy, name, text, found):
    (copy / name).write_text(text)
    for load in (load_tokenizer, load_on_cpu):
        assert refusal(load, copy).startswith(f"{name}: {found}")


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        ({"num_attention_heads": 0}, "config.json: num_attention_heads is 0; allowed: 1 or more"),
        ({"hidden_size": -128}, "config.json: hidden_size is -128; allowed: 1 or more"),
        ({"hidden_size": "big"}, ": cannot be loaded by AutoConfig ("),
        (
            {"model_type": "gpt17"},
            ": cannot be loaded by AutoConfig (The checkpoint you are trying to load has model",
        ),
        ({"model_type": ["llama"]}, ": cannot be loaded by AutoConfig (TypeError: "),
        (
            {"quantization_config": {"quant_method": "fp8"}},
            "config.json: its weights are quantized (fp8); use the checkpoint in bfloat16, float16 or float32",
        ),
        ({"quantization_config": {"load_in_8bit": True}}, "config.json: its weights are quantized"),
    ],
)
def test_a_configuration_that_cannot_be_used(copy, entry, found):
    change(copy / "config.json", **entry)
    for load in (load_tokenizer, load_on_cpu):
        assert refusal(load, copy).startswith(found)


def test_code_of_a_repository_is_not_run(copy):
    (copy / "mine.py").write_text("raise SystemExit('it was run')")
    change(copy / "config.json", model_type="mine", auto_map={"AutoConfig": "mine.Config"})
    assert "contains custom code" in refusal(load_on_cpu, copy)
    change(copy / "config.json", model_type="llama", auto_map={"AutoModelForCausalLM": "mine.Model"})
    assert load_on_cpu(tiny_model_settings(copy)), "transformers has this architecture itself"


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"added_tokens": ['])
def test_a_tokenizer_file_that_cannot_be_read(copy, text):
    (copy / "tokenizer.json").write_text(text)
    assert refusal(load_tokenizer, copy).startswith(": cannot be loaded by AutoTokenizer (")


@pytest.mark.parametrize(
    ("edit", "found"),
    [
        (lambda content: content["model"].update(dropout=0.1), "its merges are dropped at random (0.1)"),
        (lambda content: content.update(decoder=None), "turns 'Hello, how are you today?' into "),
        (
            lambda content: content.update(
                normalizer={"type": "Replace", "pattern": {"Regex": ".+"}, "content": "x"}
            ),
            "turns 'Hello, how are you today?' into 'x'",
        ),
    ],
    ids=["dropout", "no decoder", "normalizer"],
)
def test_a_tokenizer_that_does_not_give_texts_back(copy, edit, found):
    content = json.loads((copy / "tokenizer.json").read_text())
    edit(content)
    (copy / "tokenizer.json").write_text(json.dumps(content))
    assert refusal(load_tokenizer, copy).startswith(f"tokenizer.json: {found}")


def test_a_configuration_that_fails_at_the_first_token(copy):
    change(copy / "config.json", rms_norm_eps=-1000.0)
    assert "outputs are not finite numbers" in refusal(load_on_cpu, copy)


def test_a_context_beyond_the_positions_of_the_model_is_said_once(copy, capsys):
    settings = tiny_model_settings(copy).model_copy(update={"context": 100_000})
    for _ in range(2):
        load_model(settings, "cpu")
    assert capsys.readouterr().err.count("model.context is 100000, but the model was made for") == 1


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(copy, name):
    (copy / name).unlink()
    os.mkfifo(copy / name)
    line = refusal(load_on_cpu, copy)
    assert "not a regular file" in line or "not a model folder" in line or "holds no weights" in line


def test_a_token_without_a_row_of_the_embedding(copy):
    """The text with it would be an IndexError in the middle of a batch."""
    rows = json.loads((copy / "config.json").read_text())["vocab_size"]
    change(copy / "tokenizer_config.json", pad_token="[NEW]")
    assert refusal(load_tokenizer, copy) == (
        f": its tokenizer has token '[NEW]' with id {rows}, but the embedding has {rows} rows (config.json); "
        "resize the model's embeddings, or use the tokenizer that it was trained with"
    )
    change(copy / "config.json", vocab_size=rows + 24)
    change_weights(
        copy,
        lambda tensors: {
            name: torch.cat([tensor, tensor[:24]]) if tensor.shape[0] == rows else tensor
            for name, tensor in tensors.items()
        },
    )
    settings = tiny_model_settings(copy)
    assert load_tokenizer(settings) and load_on_cpu(settings), (
        "an embedding may be larger than the vocabulary"
    )


# ---------------------------------------------------------------- weights


@pytest.mark.parametrize("layers", [1, 3])
def test_weights_and_configuration_of_different_depth(copy, layers):
    change(copy / "config.json", num_hidden_layers=layers)
    fault = (
        "are not used by the model, e.g. model.layers.1."
        if layers == 1
        else "are missing, e.g. model.layers.2."
    )
    line = refusal(load_on_cpu, copy)
    assert line.startswith(": 9 weights " + fault) and line.endswith("its config.json must match its weights")


@pytest.mark.parametrize(
    ("edit", "found"),
    [
        (
            lambda t: {**t, "model.layers.0.self_attn.q_proj.bias": torch.ones(32)},
            ": 1 weights are not used by",
        ),
        (
            lambda t: {**t, UP: t[UP].T},
            f": 1 weights have another shape, e.g. {UP} (32x64, the model's is 64x32)",
        ),
        (lambda t: {**t, UP: t[UP] * float("nan")}, f": {UP} has NaN or infinite values in float32; "),
        (lambda t: {**t, UP: t[UP] + float("inf")}, f": {UP} has NaN or infinite values in float32; "),
        (lambda t: {**t, UP: t[UP].to(torch.int8)}, f"model.safetensors: {UP} is stored as I8; allowed: F64"),
        (
            lambda t: {**t, UP: t[UP].to(torch.float8_e4m3fn)},
            f"model.safetensors: {UP} is stored as F8_E4M3; allowed: F64",
        ),
    ],
    ids=["not used", "transposed", "NaN", "infinite", "int8", "float8"],
)
def test_weights_that_are_not_those_of_the_model(copy, edit, found):
    change_weights(copy, edit)
    assert refusal(load_on_cpu, copy).startswith(found)


def test_weights_that_overflow_in_the_dtype_of_the_settings(copy):
    change_weights(copy, lambda tensors: {**tensors, UP: tensors[UP] + 1e6})
    assert load_on_cpu(tiny_model_settings(copy))
    assert f"{UP} has NaN or infinite values in float16" in refusal(load_on_cpu, copy, dtype="float16")


def test_a_tied_head_with_and_without_weights_of_its_own(tmp_path):
    """A head that differs from the embedding in the file is used as it is."""
    folder = Path(shutil.copytree(family("gemma_text"), tmp_path / "model"))
    settings = family_settings("gemma_text", folder)
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    assert load_on_cpu(settings).lm_head.weight.equal(embedding)
    for head in (embedding.clone(), -embedding):
        change_weights(folder, lambda tensors, head=head: {**tensors, "lm_head.weight": head})
        loaded = load_on_cpu(settings)
        assert loaded.lm_head.weight.equal(head) and loaded.get_input_embeddings().weight.equal(embedding)


def test_an_untied_head_must_be_there(copy):
    change_weights(copy, lambda tensors: {k: v for k, v in tensors.items() if k != "lm_head.weight"})
    assert refusal(load_on_cpu, copy).startswith(": 1 weights are missing, e.g. lm_head.weight")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "cannot be loaded (Error while deserializing header: header too small)"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
            "is a Git LFS pointer, not the weights",
        ),
    ],
)
def test_a_weight_file_that_is_none(copy, content, found):
    (copy / "model.safetensors").write_bytes(content)
    assert refusal(load_on_cpu, copy).startswith(f"model.safetensors: {found}; ")


def in_two_files(folder: Path, second: object = "b.safetensors") -> None:
    """Splits the weights into a.safetensors and b.safetensors; the index calls the latter ``second``."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    parts = {"a.safetensors": {}, "b.safetensors": {}}
    for i, (name, tensor) in enumerate(tensors.items()):
        parts["ab"[i % 2] + ".safetensors"][name] = tensor
    for file, part in parts.items():
        save_file(part, folder / file, metadata={"format": "pt"})
    weight_map = {
        name: second if file == "b.safetensors" else file for file, part in parts.items() for name in part
    }
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )


def test_an_index_names_files_of_its_folder(copy):
    """A file outside of it would not be part of the model's key."""
    in_two_files(copy)
    assert load_on_cpu(tiny_model_settings(copy))
    (copy / "b.safetensors").rename(copy.parent / "b.safetensors")
    line = "model.safetensors.index.json: names {!r}; allowed: files that stand beside it; copy all of them"
    assert refusal(load_on_cpu, copy) == line.format("b.safetensors")
    index = copy / "model.safetensors.index.json"
    index.write_text(index.read_text().replace('"b.safe', '"../b.safe'))
    assert refusal(load_on_cpu, copy) == line.format("../b.safetensors")


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": [1]}', '{"weight_map": {"a": 3}}'])
def test_an_index_that_cannot_be_used(copy, content):
    in_two_files(copy)
    (copy / "model.safetensors.index.json").write_text(content)
    assert refusal(load_on_cpu, copy).startswith("model.safetensors.index.json: ")


# ---------------------------------------------------------------- folders


@pytest.mark.parametrize("name", ["a b", "a.b", "é日本", "new\nline", "{x}", "$HOME", ".hidden", "-dash"])
def test_a_folder_may_have_any_name(tiny_model, tmp_path, name):
    folder = Path(shutil.copytree(tiny_model, tmp_path / name))
    settings = tiny_model_settings(folder)
    assert load_tokenizer(settings) and load_on_cpu(settings)


def test_links_in_a_circle(copy):
    (copy / "again").symlink_to(copy)
    (copy / "self").symlink_to(copy / "self")
    assert load_tokenizer(tiny_model_settings(copy)) and load_on_cpu(tiny_model_settings(copy))
    (copy / "config.json").unlink()
    (copy / "config.json").symlink_to(copy / "config.json")
    assert refusal(load_tokenizer, copy).startswith(": not a model folder (no config.json)")


@pytest.mark.parametrize(("folder", "name"), [("a b", "a-b"), (".hidden", "hidden"), ("日本", "model")])
def test_a_model_is_called_after_its_folder_and_never_as_another_model(folder, name):
    settings = settings_of(f'model.path="models/{folder}"', config="rollout")
    assert settings.model.name == name and settings.grid.model == (name,)
