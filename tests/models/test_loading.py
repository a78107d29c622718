"""Loading models, and what the chat-template policy makes of a conversation, for the templates of three real families."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from offscript.errors import UserError
from offscript.models import chat_templates, loading
from offscript.models.chat_templates import join_consecutive, render
from offscript.models.loading import load_model, load_tokenizer, pick_device
from offscript.settings import TemplateSettings
from tests.conftest import tiny_model_settings
from tests.families import family, family_settings

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Hi."}
LOOP = [SYSTEM, USER, {"role": "assistant", "content": "{call}"}, {"role": "tool", "content": "3 found"}]
QWEN_DEFAULT = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."


# ---------------------------------------------------------------- chat templates


def tokenizer_of(name: str, tiny: Path):
    """A tokenizer with a real family's chat template and its beginning and end tokens."""
    import trl

    tokens = {
        "llama3_1": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
        "gemma3": {"bos_token": "<bos>", "eos_token": "<end_of_turn>"},
        "qwen2_5": {},
    }[name]
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokenizer.chat_template = (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text()
    tokenizer.add_special_tokens(tokens)
    return tokenizer


def rendered(tokenizer, messages, **policy) -> str:
    return tokenizer.decode(
        render(tokenizer, messages, TemplateSettings(**policy)), skip_special_tokens=False
    )


def test_llama_has_a_pinned_date_and_one_beginning_token(tiny_model):
    tokenizer = tokenizer_of("llama3_1", tiny_model)
    assert rendered(tokenizer, LOOP, date_string="01 Jan 2026") == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
        "Cutting Knowledge Date: December 2023\nToday Date: 01 Jan 2026\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi.<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n{call}<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n[TOOL OUTPUT]\n3 found<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    native = rendered(tokenizer, LOOP, date_string="01 Jan 2026", tool_role="native")
    assert "<|start_header_id|>ipython<|end_header_id|>" in native and "[TOOL OUTPUT]" not in native


def test_gemma_without_system_and_tool_roles_and_with_consecutive_turns(tiny_model):
    tokenizer = tokenizer_of("gemma3", tiny_model)
    messages = [*LOOP, {"role": "user", "content": "Go on."}]
    wanted = (
        "<bos><start_of_turn>user\nBe brief.\n\nHi.<end_of_turn>\n"
        "<start_of_turn>model\n{call}<end_of_turn>\n"
        "<start_of_turn>user\n[TOOL OUTPUT]\n3 found\n\nGo on.<end_of_turn>\n"
        "<start_of_turn>model\n"
    )
    assert rendered(tokenizer, messages, system_role="user", tool_role="user") == wanted
    assert rendered(tokenizer, messages, tool_role="user") == wanted, (
        "its own template folds the system text alike"
    )


def test_qwen_has_its_default_system_text_only_when_configured(tiny_model):
    tokenizer = tokenizer_of("qwen2_5", tiny_model)
    explicit = rendered(tokenizer, [USER], default_system=QWEN_DEFAULT)
    assert explicit == rendered(tokenizer, [USER]), "what Qwen adds by itself, made explicit"
    assert explicit == (
        f"<|im_start|>system\n{QWEN_DEFAULT}<|im_end|>\n<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert QWEN_DEFAULT not in rendered(tokenizer, [USER], default_system="")
    assert QWEN_DEFAULT not in rendered(tokenizer, [SYSTEM, USER], default_system=QWEN_DEFAULT)


def test_consecutive_turns_are_not_joined_where_the_template_accepts_them(tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    text = rendered(tokenizer, [USER, {"role": "user", "content": "Well?"}])
    assert text.count("<|im_start|>user") == 2


def test_a_prefix_begins_the_reply_and_needs_generation(tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    ids = render(tokenizer, [USER], TemplateSettings(), prefix="Well, the team")
    assert tokenizer.decode(ids).endswith("<|im_start|>assistant\nWell, the team")
    whole = render(
        tokenizer, [USER, {"role": "assistant", "content": "Yes."}], TemplateSettings(), generation=False
    )
    assert tokenizer.decode(whole).endswith("assistant\nYes.<|im_end|>\n")
    with pytest.raises(ValueError, match="generation"):
        render(tokenizer, [USER], TemplateSettings(), prefix="x", generation=False)


def test_the_beginning_token_is_not_doubled_by_the_tokenizer(tiny_model):
    from tokenizers import processors

    tokenizer = tokenizer_of("llama3_1", tiny_model)
    begin = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", begin)]
    )
    assert tokenizer("x")["input_ids"].count(begin) == 1
    assert render(tokenizer, [USER], TemplateSettings()).count(begin) == 1


def test_a_conversation_that_the_template_refuses(tiny_model):
    tokenizer = tokenizer_of("gemma3", tiny_model)
    with pytest.raises(
        UserError, match=r"refuses a conversation of roles assistant, user \(.*alternate"
    ) as error:
        render(tokenizer, [{"role": "assistant", "content": "Hi."}, USER], TemplateSettings())
    assert "\n" not in str(error.value)


def with_template(folder: Path, template: str) -> Path:
    (folder / "chat_template.jinja").write_text(template)
    return folder


TURNS = "{%- for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}{%- endfor %}"
GUARD = "{%%- for m in messages %%}{%%- if m['role'] == '%s' %%}{{ raise_exception('no') }}{%%- endif %%}{%%- endfor %%}"


@pytest.mark.parametrize("role", ["system", "tool"])
@pytest.mark.parametrize(
    ("template", "found"),
    [
        (lambda role: GUARD % role + TURNS, "the chat template refuses a conversation of roles"),
        (
            lambda role: TURNS.replace("m in messages", f"m in messages if m['role'] != '{role}'"),
            "the chat template leaves out what the ",
        ),
    ],
    ids=["refused", "left out"],
)
def test_a_role_that_the_template_drops_is_refused_at_load(copy, role, template, found):
    """Also where the template would say nothing: a persona prompted with no constitution looks like a weak one."""
    settings = tiny_model_settings(
        with_template(copy, template(role)), template=TemplateSettings(tool_role="native")
    )
    with pytest.raises(UserError) as error:
        load_tokenizer(settings)
    assert found in str(error.value) and f"set model.template.{role}_role=user" in str(error.value)
    policy = TemplateSettings(tool_role="native").model_copy(update={f"{role}_role": "user"})
    load_tokenizer(settings.model_copy(update={"template": policy}))


def test_a_system_text_without_a_user_turn_becomes_one():
    policy = TemplateSettings(system_role="user")
    assert chat_templates.map_roles([SYSTEM], policy) == [{"role": "user", "content": "Be brief."}]
    assert chat_templates.map_roles([USER], TemplateSettings(system_role="user", default_system="")) == [USER]
    assert join_consecutive([USER, USER, SYSTEM]) == [{"role": "user", "content": "Hi.\n\nHi."}, SYSTEM]


# ---------------------------------------------------------------- loading


def test_a_model_is_ready_for_inference(tiny_settings):
    model = load_model(tiny_settings, "cpu")
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    tokenizer = load_tokenizer(tiny_settings)
    assert tokenizer.padding_side == "left" and tokenizer.pad_token_id != tokenizer.eos_token_id


@pytest.fixture
def copy(tiny_model, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def test_the_end_token_is_never_used_for_padding(copy):
    config = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps({**config, "pad_token": config["eos_token"]}))
    tokenizer = load_tokenizer(tiny_model_settings(copy))
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|pad|>", "<|im_end|>")


def test_only_pickled_weights_are_refused(copy):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickled weights only"):
        load_model(tiny_model_settings(copy), "cpu")


def test_weights_that_are_missing_are_refused(copy):
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 weights are missing, e.g. model.layers.1.mlp.up_proj.weight"):
        load_model(tiny_model_settings(copy), "cpu")


@pytest.mark.parametrize(
    ("remove", "loader", "message"),
    [
        ("config.json", "model", "not a model folder"),
        ("model.safetensors", "model", "holds no weights"),
        ("chat_template.jinja", "tokenizer", "no chat template"),
        ("tokenizer.json tokenizer_config.json", "tokenizer", "holds no tokenizer"),
    ],
)
def test_what_a_model_folder_must_hold(copy, remove, loader, message):
    for name in remove.split():
        (copy / name).unlink()
    settings = tiny_model_settings(copy)
    with pytest.raises(UserError, match=message):
        load_model(settings, "cpu") if loader == "model" else load_tokenizer(settings)


# ---------------------------------------------------------------- a language model inside another


def test_only_the_language_model_of_a_vision_language_model_is_loaded():
    from transformers import AutoModelForCausalLM

    whole = AutoModelForCausalLM.from_pretrained(family("gemma"), dtype=torch.float32).eval()
    assert any("vision_tower" in name for name, _ in whole.named_modules()), "what others get"
    ours = load_model(family_settings("gemma", family("gemma")), "cpu")
    assert type(ours).__name__ == "Gemma3ForCausalLM"
    assert not any("vision" in name or "projector" in name for name, _ in ours.named_modules())
    ids = torch.arange(2, 62)[None]
    assert ours(ids).logits.equal(whole(ids).logits)
    assert ours.generation_config.eos_token_id == whole.generation_config.eos_token_id == [1, 5]


def test_the_language_model_can_be_saved_and_loaded_by_itself(tmp_path):
    ours = load_model(family_settings("gemma", family("gemma")), "cpu")
    ours.save_pretrained(tmp_path / "text")
    again = load_model(family_settings("gemma", tmp_path / "text"), "cpu")
    ids = torch.arange(2, 62)[None]
    assert again(ids).logits.equal(ours(ids).logits)


def test_its_weights_may_have_the_names_of_transformers(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(family("gemma"), tmp_path / "model")
    (folder / "model.safetensors.index.json").unlink()
    tensors = {}
    for shard in list(folder.glob("*.safetensors")):
        tensors |= load_file(shard)
        shard.unlink()
    renamed = {k.replace("language_model.model.", "model.language_model."): v for k, v in tensors.items()}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    assert "model.language_model.norm.weight" in renamed
    load_model(family_settings("gemma", folder), "cpu")


# ---------------------------------------------------------------- room on the GPU


@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_weight_bytes_are_computed_from_the_files(name):
    model = load_model(family_settings(name, family(name)), "cpu")
    parameters = sum(p.numel() for p in model.parameters())
    assert loading.weight_bytes(family(name), "float32") == 4 * parameters
    assert loading.weight_bytes(family(name), "bfloat16") == 2 * parameters


def test_a_gpu_that_is_too_small_is_refused_before_loading(monkeypatch):
    settings = family_settings("llama", family("llama"), dtype="bfloat16")
    needed = loading.weight_bytes(family("llama"), "bfloat16")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (needed - 1, 2 * needed))
    monkeypatch.setattr(loading, "from_pretrained", lambda *a, **k: pytest.fail("it was loaded"))
    with pytest.raises(
        UserError, match=r"^model llama: its weights take 0.0 GiB in bfloat16, but 0.0 of 0.0 GiB are"
    ):
        load_model(settings, "cuda")
    loading._check_memory(settings, family("llama"), "cpu")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (needed, 2 * needed))
    loading._check_memory(settings, family("llama"), "cuda")


def test_a_gpu_that_fills_up_during_loading_gives_the_same_error(monkeypatch):
    """Another process may take the room between the look and the load."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**40, 2**40))

    def full(self, device):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 112.00 MiB.\nSee documentation")

    monkeypatch.setattr("transformers.PreTrainedModel.to", full)
    with pytest.raises(UserError, match=r"end what else runs on it, or engine\.device=cpu"):
        load_model(family_settings("llama", family("llama")), "cuda")


# ---------------------------------------------------------------- folders and repositories


def test_an_incomplete_weight_file_is_refused(copy):
    data = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(tiny_model_settings(copy), "cpu")


def test_a_missing_folder_and_an_unreachable_repository(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no folder"):
        load_tokenizer(tiny_model_settings(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"^nobody/nothing@main: no folder here, and from the hub: "):
        load_tokenizer(tiny_model_settings(Path("nobody/nothing")))


def test_a_repository_is_downloaded_once_and_a_gated_one_names_the_remedy(tmp_path, monkeypatch):
    from huggingface_hub import constants

    from tests.storage.hub_stub import running_hub

    with running_hub() as hub:
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        hub.add("google/gemma-3-4b-it", family("gemma"))
        hub.add("meta-llama/Llama-3.1-8B-Instruct", family("llama"), gated=True)
        gemma = family_settings("gemma", Path("google/gemma-3-4b-it"))
        load_tokenizer(gemma)
        assert type(load_model(gemma, "cpu")).__name__ == "Gemma3ForCausalLM"
        asked = len(hub.requests)
        load_model(gemma, "cpu")
        assert len(hub.requests) == asked
        with pytest.raises(
            UserError, match=r"Llama-3.1-8B-Instruct@main: .*is gated.*; accept them on .*hf auth login"
        ):
            load_tokenizer(family_settings("llama", Path("meta-llama/Llama-3.1-8B-Instruct")))


def test_devices():
    assert pick_device("cpu") == "cpu"
    assert pick_device("auto") in {"cpu", "cuda"}
    with pytest.raises(UserError, match="'toaster' is not a device"):
        pick_device("toaster")
    with pytest.raises(UserError, match="GPUs are visible"):
        pick_device("cuda:99")
