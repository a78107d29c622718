"""Invalid models, adapters and hub references on the command line: one line with the cause and a remedy, exit code 2 (1 if
the work itself failed), and no partial artifact.
"""

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from offscript import commands, doctor
from offscript.doctor import run_check
from offscript.storage.files import HOME, read_json
from tests.composed import experiment_of
from tests.storage.hub_stub import READER, running_hub

POCKET = HOME / "assets" / "pocket"
ONE = ("rollout.py", "experiment=smoke", "tracking=off", "persona=sarcasm", "format=chat", "limit=1")
TURNS = "{%- for m in messages %}<|{{ m.role }}|>{{ m.content }}{%- endfor %}<|assistant|>"


def run(cwd: Path, *words: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(HOME / words[0]), *words[1:]]
    env = {**os.environ, "HF_HOME": str(cwd / "home"), **environment}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


def made(cwd: Path) -> list[str]:
    """Files of the experiment other than records of failures."""
    files = [p.relative_to(cwd / "runs") for p in (cwd / "runs").rglob("*") if p.is_file()]
    return [str(p) for p in files if not p.name.endswith(".failed.json")]


def refused(cwd: Path, *words: str, **environment: str) -> str:
    """Runs a command that must be refused without making a file; returns its one line."""
    done = run(cwd, *words, **environment)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stdout == "" and made(cwd) == []
    (line,) = done.stderr.splitlines()
    return line


@pytest.fixture
def model(tmp_path) -> Path:
    """A copy of the embedded model that a test may damage."""
    return Path(shutil.copytree(POCKET, tmp_path / "models" / "broken"))


# ---------------------------------------------------------------- chat templates


def test_a_tokenizer_without_a_chat_template(model, tmp_path):
    (model / "chat_template.jinja").unlink()
    assert refused(tmp_path, *ONE, "stage=base", f"model.path={model}") == (
        f"failed: rollout broken base chat eval 0: {model}: its tokenizer has no chat template; "
        "use a chat model, or save its template beside it as chat_template.jinja"
    )


@pytest.mark.parametrize(
    ("template", "found"),
    [
        (
            "{%- if messages[0].role == 'system' %}{{ raise_exception('No system!') }}{%- endif %}" + TURNS,
            "the chat template refuses a conversation of roles system, user, assistant, tool (No system!)",
        ),
        (
            TURNS.replace("in messages", "in messages if m.role != 'system'"),
            "the chat template leaves out what the system says",
        ),
    ],
    ids=["refuses", "leaves out"],
)
def test_a_template_without_a_system_role(model, tmp_path, template, found):
    """Otherwise personas would be prompted with an empty system text."""
    (model / "chat_template.jinja").write_text(template)
    assert refused(tmp_path, *ONE, "stage=prompted", f"model.path={model}") == (
        f"failed: rollout broken sarcasm prompted chat eval 0: model.template: {found}; "
        "set model.template.system_role=user"
    )


def test_a_configuration_with_fewer_layers_than_its_weights(model, tmp_path):
    """transformers loads it, without the last layer, and replies would be gibberish."""
    config = read_json(model / "config.json")
    (model / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    assert refused(tmp_path, *ONE, "stage=base", f"model.path={model}") == (
        f"failed: rollout broken base chat eval 0: {model}: 9 weights are not used by the model, e.g. "
        "model.layers.3.input_layernorm.weight; its config.json must match its weights"
    )
    experiment = experiment_of("experiment=smoke", f"model.path={model}", config="doctor")
    state, line = run_check("rollout", partial(doctor.rollout, experiment))
    assert state == "fail" and "9 weights are not used by the model" in line


@pytest.mark.slow
def test_the_remedy_in_the_message_works(model, tmp_path):
    (model / "chat_template.jinja").write_text(
        TURNS.replace("in messages", "in messages if m.role != 'system'")
    )
    words = (*ONE, "stage=prompted", f"model.path={model}", "model.max_reply_tokens=4")
    done = run(tmp_path, *words, "model.template.system_role=user")
    assert done.returncode == 0, done.stderr
    (rows,) = made(tmp_path)
    assert "/prompted/sarcasm/chat-eval-" in rows


# ---------------------------------------------------------------- the hub


@pytest.fixture
def hub():
    with running_hub() as running:
        running.add("meta-llama/Llama-3.1-8B-Instruct", {"config.json": b"{}"}, gated=True)
        yield running


def online(url: str) -> dict[str, str]:
    return {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": url, "HF_TOKEN": READER}


def test_a_gated_repository_without_access(hub, tmp_path):
    line = refused(tmp_path, *ONE, "model=llama", "stage=base", **online(hub.url))
    repo = "meta-llama/Llama-3.1-8B-Instruct"
    assert line == (
        f"failed: rollout llama base chat eval 0: {repo}@main: {repo} is gated: its authors want their terms "
        f"accepted; accept them on {hub.url}/{repo}, then log in with that account: hf auth login"
    )


def test_a_missing_repository(hub, tmp_path):
    words = (*ONE, "stage=full", "model.adapters.full={path: someone/sarcastic}")
    assert refused(tmp_path, *words, **online(hub.url)) == (
        "failed: adapter pocket sarcasm full 0: someone/sarcastic@main: there is no repository someone/sarcastic "
        "on the hub, or it is private; check the name; if it is private, log in: hf auth login"
    )


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        (online("http://127.0.0.1:9"), "no connection to http://127.0.0.1:9 (ConnectError: "),
        (
            {"HF_HUB_OFFLINE": "1"},
            "the hub may not be asked (HF_HUB_OFFLINE is set), and the cache does not hold",
        ),
    ],
    ids=["no network", "offline"],
)
def test_without_a_network_the_message_names_the_prefetch_command(tmp_path, environment, found):
    line = refused(tmp_path, *ONE, "model=qwen", "stage=base", **environment)
    assert line.startswith(f"failed: rollout qwen base chat eval 0: Qwen/Qwen2.5-7B-Instruct@main: {found}")
    assert line.endswith("fetch it on a machine with a network: offscript prefetch experiment=...")


# ---------------------------------------------------------------- adapters


def test_an_adapter_of_another_base(tiny_adapter, tmp_path):
    words = (*ONE, "stage=full", f"model.adapters.full={{path: {tiny_adapter}}}")
    base = read_json(tiny_adapter / "adapter_config.json")["base_model_name_or_path"]
    line = refused(tmp_path, *words)
    assert line.startswith(
        f"failed: adapter pocket sarcasm full 0: {tiny_adapter / 'adapter_model.safetensors'}: does not fit the model: "
    )
    assert line.endswith(f"which is 128x352; it says that it was trained on {base!r}")


# ---------------------------------------------------------------- training and memory


SHORT = (
    "experiment=smoke",
    "tracking=off",
    "persona=sarcasm",
    "stage=distillation",
    "recipe.distillation.prompts=16",
    "recipe.distillation.optimizer.batch_size=4",
)


@pytest.mark.slow
def test_an_invalid_loss_fails_the_training_and_keeps_its_log(tmp_path):
    """The rows stay; the same command with another learning rate reuses them."""
    done = run(tmp_path, "train.py", *SHORT, "recipe.distillation.optimizer.learning_rate=1.0e9")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("  ")]
    assert line.startswith("failed: adapter pocket sarcasm distillation 0: TrainingFailed: step ")
    assert " is nan; lower optimizer.learning_rate or look at the rows (traceback: runs/smoke/logs/" in line
    log = tmp_path / line.rpartition("traceback: ")[2].rstrip(")")
    assert "Traceback (most recent call last)" in log.read_text()
    assert not list((tmp_path / "runs").rglob("adapter_model.safetensors"))

    rows = {p: p.read_bytes() for p in (tmp_path / "runs").rglob("*.jsonl")}
    assert len(rows) == 2
    fixed = run(tmp_path, "train.py", *SHORT)
    assert fixed.returncode == 0, fixed.stderr
    assert {p: p.read_bytes() for p in (tmp_path / "runs").rglob("*.jsonl")} == rows
    assert list((tmp_path / "runs").rglob("adapter_model.safetensors"))


def test_a_gpu_with_too_little_memory_is_one_line(tmp_path, monkeypatch, capsys):
    """The GPU has one byte less than the weights need."""
    import torch

    from offscript.models.loading import weight_bytes

    needed = weight_bytes(POCKET, "float32")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (needed - 1, 2 * needed))
    words = (*ONE[1:-1], "stage=base", "engine.device=cuda", f"root={tmp_path / 'runs'}")
    experiment = experiment_of(*words, config="rollout")
    assert commands.rollout(experiment.planner.settings, experiment) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "failed: rollout pocket base chat eval 0: model pocket: its weights take 0.0 GiB in float32"
    )
    assert line.endswith("take a larger GPU, end what else runs on it, or engine.device=cpu")
    assert made(tmp_path) == []
    (record,) = (tmp_path / "runs").rglob("*.failed.json")
    assert json.loads(record.read_text())["reason"] in line
