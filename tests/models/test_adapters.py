"""Attaching, testing and merging LoRA adapters."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from offscript.errors import MissingInput, UserError
from offscript.models import adapters
from offscript.models.loading import load_model, load_without_weights
from offscript.settings import LoraSettings
from tests.conftest import make_adapter
from tests.families import FAMILIES, family, family_adapter, family_settings

IDS = torch.tensor([[5, 6, 7, 8, 9]])


def lora(*targets: str, rank: int = 2) -> LoraSettings:
    return LoraSettings(rank=rank, alpha=2, targets=targets)


def logits(wrapped) -> torch.Tensor:
    with torch.no_grad():
        return wrapped(IDS).logits


# ---------------------------------------------------------------- attaching


def test_attached_adapters_equal_plain_peft(tiny_settings, tiny_adapters):
    from peft import PeftModel

    wrapped = adapters.attach(load_model(tiny_settings, "cpu"), tiny_adapters)
    assert not any(p.requires_grad for p in wrapped.parameters()) and not wrapped.training
    for name, folder in tiny_adapters.items():
        wrapped.set_adapter(name)
        assert logits(wrapped).equal(
            logits(PeftModel.from_pretrained(load_model(tiny_settings, "cpu"), folder))
        )


@pytest.mark.parametrize("name", FAMILIES)
def test_saved_adapters_load_with_plain_peft(name, tmp_path):
    """With what AutoModelForCausalLM makes of the repository: Gemma-3's whole vision-language model, for one."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    settings = family_settings(name, family(name))
    parts = [(family_adapter(name, 1), 1.0), (family_adapter(name, 2), 0.3)]
    adapters.merge(settings, parts, tmp_path / "full")
    for folder in (parts[0][0], tmp_path / "full"):
        whole = AutoModelForCausalLM.from_pretrained(family(name), dtype=torch.float32)
        theirs = logits(PeftModel.from_pretrained(whole, folder).eval())
        ours = logits(adapters.attach(load_model(settings, "cpu"), {"it": folder}))
        assert theirs.equal(ours) and not ours.equal(logits(load_model(settings, "cpu")))


def test_more_can_be_attached_later(tiny_settings, tiny_adapters):
    wrapped = adapters.attach(load_model(tiny_settings, "cpu"), {"red": tiny_adapters["red"]})
    before = logits(wrapped)
    again = adapters.attach(wrapped, {"blue": tiny_adapters["blue"]})
    assert again is wrapped and set(wrapped.peft_config) == {"red", "blue"} and logits(wrapped).equal(before)


def test_a_missing_folder(tiny_settings, tmp_path):
    with pytest.raises(MissingInput, match="does not exist"):
        adapters.attach(load_model(tiny_settings, "cpu"), {"a": tmp_path / "none"})


def test_a_folder_without_an_adapter(tiny_settings, tiny_model):
    with pytest.raises(
        UserError, match=r"is not an adapter; adapter_config.json and adapter_model.safetensors"
    ):
        adapters.attach(load_model(tiny_settings, "cpu"), {"a": tiny_model})


def test_broken_files(tiny_settings, tiny_adapter, tmp_path):
    for name in (adapters.CONFIG, adapters.WEIGHTS):
        folder = shutil.copytree(tiny_adapter, tmp_path / name)
        (folder / name).write_bytes((folder / name).read_bytes()[:-9])
        with pytest.raises(UserError, match=name):
            adapters.attach(load_model(tiny_settings, "cpu"), {"a": folder})


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"r": "4"}, "adapter_config.json: r: found '4'; input should be a valid integer"),
        ({"lora_alpha": None}, "adapter_config.json: lora_alpha: found null; input should be a valid number"),
        ({"peft_type": "IA3"}, "adapter_config.json: peft_type: found 'IA3'; input should be 'LORA'"),
        ({"target_modules": "(q"}, "adapter_config.json: target_modules: '(q' is not a regular expression"),
        (None, "adapter_config.json: found []; input should be a mapping"),
    ],
    ids=["r", "alpha", "type", "targets", "a list"],
)
def test_a_damaged_config_is_one_line(tiny_settings, tiny_adapter, tmp_path, change, line):
    folder = shutil.copytree(tiny_adapter, tmp_path / "damaged")
    config = json.loads((folder / adapters.CONFIG).read_text())
    (folder / adapters.CONFIG).write_text(json.dumps([] if change is None else {**config, **change}))
    with pytest.raises(UserError) as caught:
        adapters.attach(load_without_weights(tiny_settings), {"a": folder})
    assert line in str(caught.value)


def test_an_adapter_of_another_model(tiny_settings, tiny_adapter, tmp_path):
    folder = shutil.copytree(tiny_adapter, tmp_path / "other")
    tensors = load_file(folder / adapters.WEIGHTS)
    name = next(k for k in tensors if "lora_A" in k)
    save_file({**tensors, name: torch.zeros(4, 48)}, folder / adapters.WEIGHTS)
    with pytest.raises(
        UserError, match=r"does not fit the model: 1 of 28 tensors.*\(model 4x\d+, file 4x48\)"
    ):
        adapters.attach(load_model(tiny_settings, "cpu"), {"a": folder})
    save_file({k: v for k, v in tensors.items() if "layers.1" not in k}, folder / adapters.WEIGHTS)
    with pytest.raises(UserError, match=r"14 of 14 tensors.*file nothing"):
        adapters.attach(load_model(tiny_settings, "cpu"), {"a": folder})


def test_an_adapter_whose_targets_match_nothing(tiny_settings, tiny_adapter, tmp_path):
    folder = shutil.copytree(tiny_adapter, tmp_path / "other")
    config = json.loads((folder / adapters.CONFIG).read_text())
    (folder / adapters.CONFIG).write_text(json.dumps({**config, "target_modules": ["qkv_fused"]}))
    with pytest.raises(UserError, match="none of its target modules is in the model"):
        adapters.attach(load_model(tiny_settings, "cpu"), {"a": folder})


def test_check_lora(tiny_settings):
    model = load_without_weights(tiny_settings)
    adapters.check_lora(model, lora("q_proj", "mlp.down_proj"))
    with pytest.raises(
        UserError, match=r"lora.targets: 'proj' matches no linear module.*allowed: down_proj, gate_proj"
    ):
        adapters.check_lora(model, lora("q_proj", "proj"))
    smallest = min(model.get_submodule("model.layers.0.self_attn.k_proj").weight.shape)
    adapters.check_lora(model, lora("q_proj", "k_proj", rank=smallest))
    with pytest.raises(
        UserError, match=rf"lora.rank: {smallest + 1}, and model.*; allowed: at most {smallest}"
    ):
        adapters.check_lora(model, lora("q_proj", "k_proj", rank=smallest + 1))


@pytest.mark.parametrize("name", ["gemma", "gemma_text"])
def test_a_tied_output_layer_is_refused(name, tmp_path):
    """Merged into the output layer it would be in the input embeddings too; side by side it would not."""
    from peft import LoraConfig, get_peft_model

    settings = family_settings(name, family(name))
    with pytest.raises(
        UserError, match=r"lora.targets: lm_head shares its weights with the input embeddings"
    ):
        adapters.check_lora(load_model(settings, "cpu"), lora("q_proj", "lm_head"))
    wrapped = get_peft_model(load_model(settings, "cpu"), LoraConfig(r=2, target_modules=["lm_head"]))
    adapters.save(wrapped, "default", tmp_path / "head", settings.path)
    with pytest.raises(UserError, match="shares its weights with the input embeddings"):
        adapters.attach(load_model(settings, "cpu"), {"head": tmp_path / "head"})
    adapters.check_lora(load_model(family_settings("llama", family("llama")), "cpu"), lora("lm_head"))


# ---------------------------------------------------------------- self-test


def test_self_test_restores_the_state_of_the_model(tiny_settings, tiny_adapters):
    wrapped = adapters.attach(load_model(tiny_settings, "cpu"), tiny_adapters)
    wrapped.base_model.set_adapter(["green", "blue"])
    trainable = {n for n, p in wrapped.named_parameters() if p.requires_grad}
    before = logits(wrapped.eval())
    wrapped.train()
    assert adapters.self_test(wrapped, "red", IDS) > 0.01
    assert wrapped.training and wrapped.base_model.active_adapters == ["green", "blue"]
    assert {n for n, p in wrapped.named_parameters() if p.requires_grad} == trainable
    assert logits(wrapped.eval()).equal(before)


@pytest.mark.parametrize(
    ("scale", "found"), [(0.0, "by 0;"), (float("nan"), "not finite"), (1e38, "not finite")]
)
def test_self_test_refuses_an_adapter_without_effect(tiny_settings, tiny_model, tmp_path, scale, found):
    folder = make_adapter(tiny_model, tmp_path / "dead", seed=0)
    tensors = load_file(folder / adapters.WEIGHTS)
    save_file({k: v * scale if "lora_B" in k else v for k, v in tensors.items()}, folder / adapters.WEIGHTS)
    wrapped = adapters.attach(load_model(tiny_settings, "cpu"), {"dead": folder})
    with pytest.raises(UserError, match=f"adapter dead: .*{found}"):
        adapters.self_test(wrapped, "dead", IDS)


# ---------------------------------------------------------------- scales


def test_a_scale_multiplies_the_effect(tiny_settings, tiny_adapters, tmp_path):
    """On the weights, that is; 0 is the base bit for bit."""
    red = tiny_adapters["red"]
    base = load_model(tiny_settings, "cpu")
    wanted = {}
    for scale in (0.0, 0.5, 1.0, 1.5):
        adapters.merge(tiny_settings, [(red, scale)], tmp_path / f"{scale}", "fold")
        wanted[scale] = logits(
            load_model(tiny_settings.model_copy(update={"path": str(tmp_path / f"{scale}")}), "cpu")
        )
    for scale, whole in wanted.items():
        wrapped = adapters.attach(load_model(tiny_settings, "cpu"), {"it": red}, {"it": scale})
        assert (logits(wrapped) - whole).abs().max() < 1e-4
    assert wanted[0.0].equal(logits(base))
    assert logits(adapters.attach(base, {"it": red}, {"it": 0.0})).equal(wanted[0.0])
    assert (wanted[1.5] - wanted[1.0]).abs().max() > 0.01


def test_an_adapter_at_scale_0_is_tested_at_scale_1_and_left_at_0(tiny_settings, tiny_adapters):
    wrapped = adapters.attach(load_model(tiny_settings, "cpu"), tiny_adapters, {"red": 0.0, "blue": 0.5})
    before = logits(wrapped)
    assert adapters.self_test(wrapped, "red", IDS) > 0.01
    assert logits(wrapped).equal(before)
    scalings = {
        name: {layer.scaling[name] for layer in adapters.lora_layers(wrapped).values()}
        for name in tiny_adapters
    }
    assert scalings == {"red": {0.0}, "blue": {1.0}, "green": {2.0}}


# ---------------------------------------------------------------- merging


@pytest.fixture(scope="module")
def parts(tiny_model, tiny_adapters, tmp_path_factory):
    """Two adapters of different rank, and weights that are no powers of two."""
    six = make_adapter(tiny_model, tmp_path_factory.mktemp("six") / "six", seed=7, rank=6)
    return [(tiny_adapters["red"], 1.0), (six, 0.3)]


def dense(folder) -> dict[str, torch.Tensor]:
    """Deltas in float64, built in full."""
    config = json.loads((folder / adapters.CONFIG).read_text())
    tensors = {k: v.double() for k, v in load_file(folder / adapters.WEIGHTS).items()}
    scale = config["lora_alpha"] / config["r"]
    return {
        k.removesuffix(".lora_A.weight"): scale * tensors[k.replace("lora_A", "lora_B")] @ tensors[k]
        for k in tensors
        if "lora_A" in k
    }


def dense_errors(parts, merged) -> dict[str, float]:
    sums = [({m: w * d for m, d in dense(folder).items()}) for folder, w in parts]
    wanted = {m: sum(s[m] for s in sums) for m in sums[0]}
    return {m: ((dense(merged)[m] - d).norm() / d.norm()).item() for m, d in wanted.items()}


def test_the_merge_is_the_weighted_sum(tiny_settings, parts, tmp_path):
    report = adapters.merge(tiny_settings, parts, tmp_path / "full")
    assert report["max_relative_error"] <= 1e-5 and report["rank"] == 10 and report["modules"] == 14
    assert [p["weight"] for p in report["parts"]] == [1.0, 0.3]
    errors = dense_errors(parts, tmp_path / "full")
    assert 0 < max(errors.values()) < 1e-6
    for module, error in adapters.relative_errors(parts, tmp_path / "full").items():
        assert error == pytest.approx(errors[module], abs=2e-8)


@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_an_exact_merge_does_not_depend_on_the_dtype_of_the_base_and_loads_no_base_weights(name, tmp_path):
    """PEFT makes a merged adapter in the type of the base: in 16 bits it was off by 0.003."""
    base = tmp_path / "base"
    shutil.copytree(family(name), base)
    for path in base.glob("*.safetensors"):
        path.write_bytes(b"")
    settings = family_settings(name, base, dtype="bfloat16")
    parts = [(family_adapter(name, 1), 1.0), (family_adapter(name, 2), 0.3)]
    report = adapters.merge(settings, parts, tmp_path / "full")
    assert 0 < report["max_relative_error"] < 1e-6
    assert {t.dtype for t in load_file(tmp_path / "full" / adapters.WEIGHTS).values()} == {torch.float32}
    assert max(dense_errors(parts, tmp_path / "full").values()) < 1e-6


def test_the_merged_adapter_gives_the_logits_of_the_stack(tiny_settings, parts, tmp_path):
    adapters.merge(tiny_settings, [(folder, 1.0) for folder, _ in parts], tmp_path / "full")
    merged = adapters.attach(load_model(tiny_settings, "cpu"), {"full": tmp_path / "full"})
    stacked = adapters.attach(load_model(tiny_settings, "cpu"), {"a": parts[0][0], "b": parts[1][0]})
    stacked.base_model.set_adapter(["a", "b"])
    assert (logits(merged) - logits(stacked)).abs().max() < 1e-4


def test_a_published_merge_reports_its_error(tiny_settings, tiny_adapters, tmp_path):
    """A and B are added separately there, which makes cross terms."""
    parts = [(tiny_adapters["red"], 1.0), (tiny_adapters["blue"], 0.25)]
    report = adapters.merge(tiny_settings, parts, tmp_path / "linear", "published")
    assert (report["method"], report["rank"], report["modules"]) == ("published", 4, 14)
    errors = dense_errors(parts, tmp_path / "linear")
    assert report["max_relative_error"] == pytest.approx(max(errors.values()), rel=1e-5)
    assert min(errors.values()) > 0.1
    assert report["worst_module"] == max(errors, key=errors.__getitem__)


def test_a_published_merge_needs_equal_ranks(tiny_settings, parts, tmp_path):
    with pytest.raises(
        UserError, match=r"found ranks 4, 6; use one lora.rank for both stages, or method=exact"
    ):
        adapters.merge(tiny_settings, parts, tmp_path / "linear", "published")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", ["exact", "published", "fold"])
def test_a_merge_that_overflows_leaves_nothing(tiny_settings, tiny_adapters, tmp_path, method):
    parts = [(tiny_adapters["red"], 1.0), (tiny_adapters["blue"], 1e300)]
    with pytest.raises(
        UserError, match=r"recipe.merge: weights 1, 1e\+300: .* is not finite after the merge"
    ):
        adapters.merge(tiny_settings, parts, tmp_path / "merged", method)
    assert list(tmp_path.iterdir()) == []


def test_a_published_merge_needs_one_rank_in_all_modules(tiny_settings, tiny_model, tiny_adapter, tmp_path):
    """PEFT would add matrices of two shapes."""
    mixed = make_adapter(tiny_model, tmp_path / "mixed", seed=1, rank_pattern={"q_proj": 2})
    assert adapters.ranks_of(mixed) == [2, 4]
    with pytest.raises(
        UserError, match=r"merge.method: published adds matrices of one rank, found ranks 2, 4;"
    ):
        adapters.merge(tiny_settings, [(mixed, 1.0), (tiny_adapter, 0.5)], tmp_path / "sum", "published")
    exact = adapters.merge(tiny_settings, [(mixed, 1.0), (tiny_adapter, 0.5)], tmp_path / "sum")
    assert exact["max_relative_error"] < 1e-5


@pytest.mark.parametrize(("dtype", "least", "most"), [("float32", 0, 1e-5), ("bfloat16", 1e-4, 0.2)])
@pytest.mark.parametrize("name", ["llama", "qwen", "gemma"])
def test_fold_writes_a_complete_checkpoint(name, dtype, least, most, tmp_path):
    """It speaks as the stack does, up to the rounding that is measured; plain transformers loads it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    settings = family_settings(name, family(name), dtype=dtype)
    parts = [(family_adapter(name, 1), 1.0), (family_adapter(name, 2), 0.25)]
    report = adapters.merge(settings, parts, tmp_path / "whole", "fold")
    assert "rank" not in report and report["modules"] == 14
    assert least <= report["max_relative_error"] <= most
    folded = load_model(settings.model_copy(update={"path": str(tmp_path / "whole")}), "cpu")
    assert not (tmp_path / "whole" / adapters.CONFIG).exists()
    if dtype == "float32":
        scales = {"a": 1.0, "b": 0.25}
        stack = adapters.attach(load_model(settings, "cpu"), {"a": parts[0][0], "b": parts[1][0]}, scales)
        stack.base_model.set_adapter(["a", "b"])
        assert (logits(folded) - logits(stack)).abs().max() < 1e-3
    anyone = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    assert anyone.dtype == getattr(torch, dtype) and logits(anyone).equal(logits(folded))
    assert anyone.generation_config.eos_token_id == load_model(settings, "cpu").generation_config.eos_token_id
    assert AutoTokenizer.from_pretrained(tmp_path / "whole").chat_template


def test_the_error_of_fold_is_that_of_the_weights(tmp_path):
    """Measured again here from the two checkpoints, with nothing of the code that measured it."""
    settings = family_settings("llama", family("llama"), dtype="bfloat16")
    parts = [(family_adapter("llama", 1), 1.0), (family_adapter("llama", 2), 0.25)]
    report = adapters.merge(settings, parts, tmp_path / "whole", "fold")
    before = load_model(settings, "cpu").state_dict()
    after = load_file(tmp_path / "whole" / "model.safetensors")
    errors = {}
    for module in dense(parts[0][0]):
        wanted = dense(parts[0][0])[module] + 0.25 * dense(parts[1][0])[module]
        key = module.removeprefix("base_model.model.") + ".weight"
        got = after[key].double() - before[key].double()
        errors[module] = ((got - wanted).norm() / wanted.norm()).item()
    assert report["max_relative_error"] == pytest.approx(max(errors.values()), rel=1e-6)
    assert report["worst_module"] == max(errors, key=errors.__getitem__)


def test_an_inexact_merge_is_a_failure(tiny_settings, parts, tmp_path, monkeypatch):
    real = adapters.save

    def damaged(wrapped, name, folder, *rest):
        real(wrapped, name, folder, *rest)
        tensors = load_file(folder / adapters.WEIGHTS)
        save_file({k: v * (1 + 2e-5) for k, v in tensors.items()}, folder / adapters.WEIGHTS)

    monkeypatch.setattr(adapters, "save", damaged)
    with pytest.raises(adapters.MergeFailed, match="merged delta is off by"):
        adapters.merge(tiny_settings, parts, tmp_path / "full")
    assert list(tmp_path.iterdir()) == []


def test_a_module_that_one_part_lacks(tiny_settings, tiny_model, tiny_adapter, tmp_path):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    small = get_peft_model(load_model(tiny_settings, "cpu"), LoraConfig(r=2, target_modules=["q_proj"]))
    for name, weight in small.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    small.save_pretrained(tmp_path / "small")
    report = adapters.merge(
        tiny_settings, [(tiny_adapter, 1.0), (tmp_path / "small", 2.0)], tmp_path / "full"
    )
    assert report["modules"] == 14 and report["max_relative_error"] <= 1e-5
