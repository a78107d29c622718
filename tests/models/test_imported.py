"""Adapters and checkpoints as others publish them, laid out as our own."""

import json
import math
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from offscript.errors import UserError
from offscript.models.adapter_config import CONFIG, WEIGHTS
from offscript.models.adapters import attach, merge, self_test
from offscript.models.imported import import_adapter, import_checkpoint
from offscript.models.loading import load_model, load_tokenizer
from tests.conftest import TINY_TARGETS
from tests.families import family, family_adapter, family_settings, published_gemma_adapter

IDS = torch.tensor([[2, 60, 70, 80, 90, 100, 110, 120, 130, 140, 150, 160, 170, 180, 190, 200, 210, 220]])


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def spoken(settings, folder) -> torch.Tensor:
    """Logits of our model with the adapter in ``folder``."""
    wrapped = attach(load_model(settings, "cpu"), {"it": folder})
    assert self_test(wrapped, "it", IDS) > 0.01
    return logits(wrapped)


def by_peft(name, folder) -> torch.Tensor:
    """Logits of what anyone gets who loads base and adapter as their authors meant."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(family(name), dtype=torch.float32)
    return logits(PeftModel.from_pretrained(base, folder).eval())


def change(folder, **config):
    """``folder`` with other values in its config."""
    plain = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**plain, **config}))
    return folder


def rewrite(folder, edit):
    """``folder`` with ``edit`` done to its tensors."""
    save_file(edit(load_file(folder / WEIGHTS)), folder / WEIGHTS)
    return folder


# ---------------------------------------------------------------- Gemma, as published


@pytest.fixture
def gemma():
    return family_settings("gemma", family("gemma"))


@pytest.fixture
def published(tmp_path):
    return published_gemma_adapter(tmp_path / "published")


LAYOUTS = {
    "now": "base_model.model.model.language_model.layers.",
    "until transformers 4.51": "base_model.model.language_model.model.layers.",
    "without the model's own prefix": "base_model.model.language_model.layers.",
    "of a text model": "base_model.model.model.layers.",
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_of_gemma_gives_the_logits_of_peft(gemma, published, tmp_path, layout):
    wanted = by_peft("gemma", published)

    def renamed(tensors):
        names = {k: k.replace(LAYOUTS["now"], layout) for k in tensors}
        if layout != LAYOUTS["now"]:
            names = {
                k: n.replace("model.vision_tower.", "vision_tower.vision_model.") for k, n in names.items()
            }
        return {names[k]: t for k, t in tensors.items()}

    rewrite(published, renamed)
    report = import_adapter(gemma, published, tmp_path / "ours")
    assert report["ignored"] == {"vision_tower": 12, "targets": ["gate_up_proj"], "patterns": []}
    assert report["renamed"] == (0 if layout == LAYOUTS["now"] else 28)
    assert (report["modules"], report["rank"]) == (14, 4)
    assert spoken(gemma, tmp_path / "ours").equal(wanted)
    assert by_peft("gemma", tmp_path / "ours").equal(wanted), "PEFT loads ours with the same result"
    assert not wanted.equal(logits(load_model(gemma, "cpu")))


def test_a_trained_vision_tower_is_refused(gemma, published, tmp_path):
    key = "base_model.model.model.vision_tower.encoder.layers.1.self_attn.v_proj.lora_B.weight"
    rewrite(published, lambda t: {**t, key: t[key] + 1e-6})
    with pytest.raises(
        UserError, match=r"1 matrices beside the language model are trained, first .*layers.1.self"
    ):
        import_adapter(gemma, published, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_an_ambiguous_module_name_is_refused(gemma, published, tmp_path):
    """The vision tower's layers end in the very names of the language model's."""

    def only_vision(tensors):
        return {k: t for k, t in tensors.items() if "vision_tower" in k}

    with pytest.raises(UserError, match="nothing in it is for the language model"):
        import_adapter(gemma, rewrite(published, only_vision), tmp_path / "ours")


# ---------------------------------------------------------------- all families


@pytest.mark.parametrize("name", ["llama", "qwen", "gemma", "gemma_text"])
def test_importing_our_own_adapter_changes_nothing(name, tmp_path):
    settings = family_settings(name, family(name))
    folder = family_adapter(name, 1)
    report = import_adapter(settings, folder, tmp_path / "ours")
    assert report["ignored"] == {"vision_tower": 0, "targets": [], "patterns": []}
    assert report["renamed"] == 0
    assert report["note"] is None
    assert (tmp_path / "ours" / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()
    assert os.stat(tmp_path / "ours" / WEIGHTS).st_nlink > 1, "linked, not copied"
    assert json.loads((tmp_path / "ours" / CONFIG).read_text()) == json.loads((folder / CONFIG).read_text())


def test_an_import_survives_a_cleared_cache(tmp_path):
    """There files are links to blobs."""
    settings, blobs = family_settings("llama", family("llama")), tmp_path / "blobs"
    shutil.copytree(family_adapter("llama", 1), blobs)
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for name in (CONFIG, WEIGHTS):
        (snapshot / name).symlink_to(blobs / name)
    import_adapter(settings, snapshot, tmp_path / "ours")
    shutil.rmtree(blobs)
    spoken(settings, tmp_path / "ours")


@pytest.mark.parametrize(
    "options",
    [
        {"use_rslora": True},
        {"rank_pattern": {"layers.1.mlp.down_proj": 6}, "alpha_pattern": {"q_proj": 3}},
        {"target_modules": r".*layers\.1\.(self_attn\.[qk]_proj|mlp\.up_proj)"},
        {"layers_to_transform": [1]},
        {
            "rank_pattern": {r".*\.1\.self_attn\.q_proj": 6},
            "alpha_pattern": {r"^model\..*q_proj": 7.5, "none": 1},
        },
        {"exclude_modules": r".*layers\.0\..*", "init_lora_weights": "orthogonal"},
        {"target_modules": "all-linear", "lora_alpha": 5.5},
        {"target_modules": ["v_proj"], "r": 64},
    ],
    ids=lambda options: "+".join(options),
)
@pytest.mark.parametrize("family_name", ["qwen", "gemma"])
def test_the_settings_of_peft_are_respected(options, family_name, tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    settings = family_settings(family_name, family(family_name))
    torch.manual_seed(0)
    defaults = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    wrapped = get_peft_model(load_model(settings, "cpu"), LoraConfig(**{**defaults, **options}))
    for name, weight in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    wrapped.save_pretrained(tmp_path / "theirs")
    import_adapter(settings, tmp_path / "theirs", tmp_path / "ours")
    wanted = logits(PeftModel.from_pretrained(load_model(settings, "cpu"), tmp_path / "theirs").eval())
    assert (spoken(settings, tmp_path / "ours") - wanted).abs().max() < 1e-5
    assert (by_peft(family_name, tmp_path / "ours") - wanted).abs().max() < 1e-5
    # and it can be merged with one of ours
    parts = [(tmp_path / "ours", 1.0), (family_adapter(family_name, 2), 0.25)]
    assert merge(settings, parts, tmp_path / "merged")["max_relative_error"] <= 1e-5


@pytest.mark.parametrize(
    ("base", "note"),
    [
        ("meta-llama/Meta-Llama-3.1-8B-Instruct", None),
        ("meta-llama/Llama-3.1-8B-Instruct", "names 'meta-llama/Llama-3.1-8B-Instruct' as its base, not '"),
        (None, "names None as its base"),
    ],
)
def test_another_base_is_noted(base, note, tmp_path):
    """The tiny model is at a path of its own; only the aliases are those of the option."""
    settings = family_settings("llama", family("llama"))
    folder = change(
        shutil.copytree(family_adapter("llama", 1), tmp_path / "theirs"), base_model_name_or_path=base
    )
    report = import_adapter(settings, folder, tmp_path / "ours")
    assert report["note"] is None if note is None else report["note"].startswith(note)
    assert json.loads((tmp_path / "ours" / CONFIG).read_text())["base_model_name_or_path"] == settings.path


# ---------------------------------------------------------------- what is refused


@pytest.fixture
def theirs(tmp_path):
    return shutil.copytree(family_adapter("llama", 1), tmp_path / "theirs")


def refused(theirs, tmp_path) -> str:
    with pytest.raises(UserError) as caught:
        import_adapter(family_settings("llama", family("llama")), theirs, tmp_path / "ours")
    assert not (tmp_path / "ours").exists() and "\n" not in str(caught.value)
    assert str(theirs) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'; allowed: LORA"),
        ({"use_dora": True}, "use_dora is True: it is a variant of LoRA; allowed: plain LoRA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is ['lm_head']: it brings whole modules"),
        ({"bias": "all"}, "bias is 'all'; allowed: none"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', which changes the base weights"),
        ({"r": 8}, "rank 8 for model.layers.0.mlp.down_proj, but its matrices have rank 4; the config that"),
        ({"r": None}, "adapter_config.json: r: found null; input should be a valid integer"),
        ({"r": True}, "adapter_config.json: r: found true; input should be a valid integer"),
        ({"lora_alpha": 0}, "adapter_config.json: lora_alpha: found 0; input should be greater than 0"),
        ({"lora_alpha": math.nan}, "lora_alpha: found NaN; input should be a finite number"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern: found ['q_proj']; input should be a mapping"),
        ({"rank_pattern": {"(q": 4}}, "rank_pattern: '(q' is not a regular expression (missing ), unterm"),
        (
            {"alpha_pattern": {"q_proj": "5"}},
            "alpha_pattern.q_proj: found '5'; input should be a valid number",
        ),
        ({"alpha_pattern": {"q_proj": -3}}, "alpha_pattern.q_proj: found -3; input should be greater than 0"),
        (
            {"target_modules": None},
            "target_modules: found null; allowed: a list of names of modules, or a reg",
        ),
        ({"target_modules": "(q_proj"}, "target_modules: '(q_proj' is not a regular expression"),
        (
            {"target_modules": ["q_proj"]},
            "12 modules that its config does not name, first model.layers.0.mlp.d",
        ),
        (
            {"layers_to_transform": [0]},
            "7 modules that its config does not name, first model.layers.1.mlp.down",
        ),
        (
            {"target_modules": r".*", "layers_to_transform": None},
            "nothing for 1 of its target modules, first lm_",
        ),
        (
            {"target_modules": [*TINY_TARGETS, "lm_head"]},
            "nothing for 1 of its target modules, first lm_head; it says that it was trained on",
        ),
    ],
)
def test_a_config_that_asks_for_more_than_lora(theirs, tmp_path, config, line):
    assert line in refused(change(theirs, **config), tmp_path)


def test_pickled_weights_and_other_folders(theirs, tmp_path):
    (theirs / WEIGHTS).rename(theirs / "adapter_model.bin")
    assert "pickled weights only" in refused(theirs, tmp_path)
    (theirs / "adapter_model.bin").unlink()
    assert "holds no weights" in refused(theirs, tmp_path)
    (theirs / CONFIG).rename(theirs / "config.json")
    assert "it is a whole checkpoint: kind=checkpoint" in refused(theirs, tmp_path)
    (theirs / "config.json").unlink()
    assert "adapter_config.json is needed" in refused(theirs, tmp_path)


A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("edit", "line"),
    [
        (lambda t: {**t, A: torch.zeros(4, 48)}, "model.layers.0.self_attn.q_proj, which is 32x32"),
        (lambda t: {k: v for k, v in t.items() if k != A}, "lora_B.weight has no counterpart"),
        (
            lambda t: {k: v for k, v in t.items() if "layers.1.mlp" not in k},
            "nothing for 3 of its target modules",
        ),
        (
            lambda t: {**t, **{A.replace("layers.0", "layers.7"): t[A].clone()}},
            "model.layers.7.self_attn.q_proj is not a linear module of the base",
        ),
        (lambda t: {**t, A.replace("model.model.model", "model.model"): t[A].clone()}, "occurs in it twice"),
        (lambda t: {**t, "base_model.model.lm_head.weight": t[A].clone()}, "1 tensors are not LoRA matrices"),
        (lambda t: {**t, A: t[A].flatten()}, "first base_model.model.model.layers.0.self_attn.q_proj.lora_A"),
        (
            lambda t: {**t, A: t[A].to(torch.int8)},
            "lora_A.weight (torch.int8, [4, 32]); allowed: floating-point",
        ),
        (lambda t: {**t, A: t[A] * math.nan}, f"1 of 28 tensors hold NaN or infinite values, first {A}"),
        (
            lambda t: {k: v * ("lora_A" in k) for k, v in t.items()},
            "every matrix B is zero, so the adapter chang",
        ),
        (lambda t: {}, "empty; allowed: floating-point matrices"),
    ],
)
def test_tensors_that_do_not_fit(theirs, tmp_path, edit, line):
    assert line in refused(rewrite(theirs, edit), tmp_path)


def test_an_adapter_of_another_family(tmp_path):
    """Qwen's tiny model has the shapes of Llama's, so its adapters would fit; Gemma's vocabulary is no matter either:
    what tells them apart is the note alone. A base of another size is refused."""
    from transformers import AutoConfig

    wide = tmp_path / "wide"
    shutil.copytree(family("llama"), wide)
    config = AutoConfig.from_pretrained(wide)
    config.intermediate_size = 96
    config.save_pretrained(wide)
    settings = family_settings("llama", wide)
    with pytest.raises(UserError, match=r"down_proj, which is 32x96; it says that it was trained on"):
        import_adapter(settings, family_adapter("llama", 1), tmp_path / "ours")


def test_the_base_s_weights_are_not_read(theirs, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(family("llama"), base)
    (base / "model.safetensors").write_bytes(b"")
    assert import_adapter(family_settings("llama", base), theirs, tmp_path / "ours")["modules"] == 14


@pytest.mark.parametrize(
    ("content", "remedy"),
    [
        (b"", "download it again, or save it again with PEFT"),
        (b"{", "download it again, or save it again with PEFT"),
        (b'{"x": "\xe9"}', "byte 7 is not UTF-8; save it as UTF-8"),
    ],
    ids=["empty", "cut off", "Latin-1"],
)
def test_a_config_that_is_not_json_is_theirs_to_mend(theirs, tmp_path, content, remedy):
    (theirs / CONFIG).write_bytes(content)
    line = refused(theirs, tmp_path)
    assert f"{theirs / CONFIG}: " in line and line.endswith(remedy)


@pytest.mark.parametrize("content", ["[]", "{}", "null", "7", '"LORA"'])
def test_a_config_without_a_kind_of_adapter(theirs, tmp_path, content):
    (theirs / CONFIG).write_text(content)
    assert refused(theirs, tmp_path).endswith("; allowed: LORA")


def test_a_config_with_a_byte_order_mark_is_read(theirs, tmp_path):
    (theirs / CONFIG).write_bytes(b"\xef\xbb\xbf" + (theirs / CONFIG).read_bytes())
    assert (
        import_adapter(family_settings("llama", family("llama")), theirs, tmp_path / "ours")["modules"] == 14
    )


@pytest.mark.parametrize("length", [0, 4, 100, -100])
def test_cut_off_weights(theirs, tmp_path, length):
    content = (theirs / WEIGHTS).read_bytes()
    (theirs / WEIGHTS).write_bytes(content[:length])
    assert "adapter_model.safetensors: cannot be read (" in refused(theirs, tmp_path)


def test_links_in_a_circle(theirs, tmp_path):
    for name, line in ((WEIGHTS, "holds no weights"), (CONFIG, "adapter_config.json is needed")):
        (theirs / name).unlink()
        (theirs / name).symlink_to(theirs / name)
        assert line in refused(theirs, tmp_path)


@pytest.mark.parametrize(
    "rename",
    [
        lambda key: "base_model.model." + key,
        lambda key: key.removeprefix("base_model.model."),
        lambda key: key.replace("model.model.layers", "model.model.language_model.layers"),
        lambda key: key.replace(".weight", ".default.weight"),
    ],
    ids=["prefix twice", "no prefix", "of a wrapper", "with the adapter's name"],
)
def test_names_of_other_programs_give_the_same_logits(theirs, tmp_path, rename):
    """Also with patterns for PEFT's own names."""
    settings = family_settings("llama", family("llama"))
    change(theirs, alpha_pattern={r"model\.layers\.0\..*": 3})
    import_adapter(settings, theirs, tmp_path / "wanted")
    rewrite(theirs, lambda tensors: {rename(key): tensor for key, tensor in tensors.items()})
    assert import_adapter(settings, theirs, tmp_path / "ours")["renamed"] == 28
    assert spoken(settings, tmp_path / "ours").equal(spoken(settings, tmp_path / "wanted"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn", "float64"])
def test_weights_of_other_precisions_give_the_logits_of_peft(theirs, tmp_path, dtype):
    rewrite(theirs, lambda tensors: {k: t.to(getattr(torch, dtype)) for k, t in tensors.items()})
    settings = family_settings("llama", family("llama"))
    assert import_adapter(settings, theirs, tmp_path / "ours")["dtype"] == dtype
    assert spoken(settings, tmp_path / "ours").equal(by_peft("llama", theirs))


def test_patterns_that_match_nothing_are_reported(theirs, tmp_path):
    """PEFT ignores them too; its authors may have meant something else."""
    change(theirs, rank_pattern={"qproj": 8}, alpha_pattern={"down_proj": 3})
    report = import_adapter(family_settings("llama", family("llama")), theirs, tmp_path / "ours")
    assert report["ignored"]["patterns"] == ["qproj"]


def test_an_import_can_be_imported_again(theirs, tmp_path):
    """Plain LoRA in place of rank-stabilized LoRA has a fractional alpha."""
    settings = family_settings("llama", family("llama"))
    import_adapter(settings, change(theirs, use_rslora=True, lora_alpha=7), tmp_path / "once")
    import_adapter(settings, tmp_path / "once", tmp_path / "twice")
    assert spoken(settings, tmp_path / "twice").equal(spoken(settings, tmp_path / "once"))


# ---------------------------------------------------------------- whole checkpoints


@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_only_the_needed_files_of_a_checkpoint_are_linked(name, tmp_path):
    settings = family_settings(name, family(name))
    theirs = shutil.copytree(family(name), tmp_path / "theirs")
    (theirs / "optimizer.bin").write_bytes(b"x")
    report = import_checkpoint(settings, theirs, tmp_path / "ours")
    assert report["ignored"] == {"files": ["optimizer.bin"]} and report["tokenizer"] == "its own"
    shutil.rmtree(theirs)
    ours = settings.model_copy(update={"path": str(tmp_path / "ours")})
    assert logits(load_model(ours, "cpu")).equal(logits(load_model(settings, "cpu")))
    assert load_tokenizer(ours).get_vocab() == load_tokenizer(settings).get_vocab()


def test_a_checkpoint_without_a_chat_template_gets_the_tokenizer_of_the_base(tmp_path):
    settings = family_settings("qwen", family("qwen"))
    theirs = shutil.copytree(family("qwen"), tmp_path / "theirs")
    (theirs / "chat_template.jinja").unlink()
    report = import_checkpoint(settings, theirs, tmp_path / "ours")
    assert report["tokenizer"] == f"that of {settings.path}"
    load_tokenizer(settings.model_copy(update={"path": str(tmp_path / "ours")}))


def test_folders_that_are_no_checkpoints_are_refused(tmp_path):
    settings = family_settings("llama", family("llama"))
    with pytest.raises(UserError, match="is not a whole checkpoint; it is an adapter: kind=adapter"):
        import_checkpoint(settings, family_adapter("llama", 1), tmp_path / "ours")
    with pytest.raises(UserError, match=r"model_type is qwen2, that of .* llama"):
        import_checkpoint(settings, family("qwen"), tmp_path / "ours")
    theirs = shutil.copytree(family("llama"), tmp_path / "theirs")
    (theirs / "model.safetensors").rename(theirs / "pytorch_model.bin")
    with pytest.raises(UserError, match="holds pickled weights only"):
        import_checkpoint(settings, theirs, tmp_path / "ours")


def test_rank_stabilized_lora_is_written_as_plain(tmp_path):
    settings = family_settings("llama", family("llama"))
    theirs = change(shutil.copytree(family_adapter("llama", 1, rank=6), tmp_path / "theirs"), use_rslora=True)
    import_adapter(settings, theirs, tmp_path / "ours")
    config = json.loads((tmp_path / "ours" / CONFIG).read_text())
    assert config["use_rslora"] is False and config["lora_alpha"] / config["r"] == pytest.approx(
        12 / math.sqrt(6)
    )
