"""The vLLM engine: its process, which here is a small script, and (slow) vLLM itself beside the transformers engine."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from offscript.errors import UserError
from offscript.models.adapters import NotFinite
from offscript.models.loading import load_model
from offscript.models.served import served_adapter, served_model
from offscript.rollouts.engines import vllm, worker_process
from offscript.rollouts.engines.base import Request, Sampling
from offscript.rollouts.engines.transformers import TransformersEngine
from offscript.rollouts.engines.vllm import VllmEngine, WorkerFailed
from offscript.rollouts.scheduler import run_episodes
from offscript.settings import EngineSettings
from offscript.storage.files import HOME, locate
from offscript.tasks.formats import get_format
from offscript.tasks.formats.base import Rules
from offscript.tasks.scenario_files import load_scenarios
from tests.composed import settings_of
from tests.conftest import make_adapter
from tests.families import family, family_adapter, family_settings
from tests.rollouts.engines.test_transformers import SAMPLING, engine_settings, requests
from tests.rollouts.test_scheduler import rows, run

FAKE = """
import json, os, socket, subprocess, sys, time
from pathlib import Path

channel = socket.socket(fileno=int(sys.argv[1]))
lines = channel.makefile("rb")
fault, times, folder = json.loads(os.environ["FAKE"])
starts = Path(folder, "starts")
starts.write_text((starts.read_text() if starts.exists() else "") + f"{os.getpid()}\\n")
if len(starts.read_text().split()) > times:
    fault = "none"

def send(message):
    channel.sendall(json.dumps(message).encode() + b"\\n")

print('{"done": [{"id": 0, "tokens": [1], "finish": "stop"}]}', flush=True)
print("not a message", file=sys.stderr, flush=True)
settings = json.loads(next(lines))
Path(folder, "settings.json").write_text(json.dumps(settings))
if fault == "refuses":
    send({"refused": "ValueError: no such attention\\nsecond line"})
    sys.exit(1)
effect = {"no effect": 0.0, "not finite": float("nan")}.get(fault, 1.0)
effects = dict.fromkeys(settings["adapters"], effect)
send({"ready": {"versions": {"vllm": "fake"}, "device": "none", "effects": effects}})
for number, line in enumerate(lines, start=1):
    request = json.loads(line)
    print('{"done": []}', flush=True)
    if fault == "dies" and number == 3:
        # As the processes among which weights are divided, it keeps the socket.
        child = subprocess.Popen(["sleep", "600"], pass_fds=[channel.fileno()])
        Path(folder, "child").write_text(str(child.pid))
        os._exit(7)
    if fault == "dies at once":
        send({"done": []})
        os._exit(7)
    if fault == "hangs" and number == 3:
        time.sleep(600)
    tokens = [3 + (request["seed"] + i) % 250 for i in range(request["limit"])]
    send({"done": []})
    send({"done": [{"id": request["id"], "tokens": tokens, "finish": "length"}]})
if fault == "stays":
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """The folder of logs and copies."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/offscript"


@pytest.fixture
def fake(tmp_path, tiny_settings, tiny_adapters, monkeypatch):
    """Opens an engine whose process is FAKE, which has ``fault`` at its first ``times`` starts."""
    (tmp_path / "fake.py").write_text(FAKE)
    monkeypatch.setattr(vllm, "WORKER", tmp_path / "fake.py")
    monkeypatch.setattr(worker_process, "EXIT_S", 0.5)
    opened = []

    def open_fake(fault="none", times=99, adapters=tiny_adapters, scales=None, **changes):
        monkeypatch.setenv("FAKE", json.dumps([fault, times, str(tmp_path)]))
        opened.append(VllmEngine(tiny_settings, adapters, vllm_settings(**changes), scales))
        return opened[-1]

    yield open_fake
    for engine in opened:
        engine.close()


def vllm_settings(**changes) -> EngineSettings:
    return EngineSettings(**{"name": "vllm", "python": sys.executable, "start_s": 60, **changes})


def pids(folder: Path) -> list[int]:
    """The processes that were started."""
    return [int(line) for line in (folder / "starts").read_text().split()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def answers(engine, wanted) -> dict[int, tuple[str, str, int, int]]:
    for request in wanted:
        engine.submit(request)
    found = {}
    while engine.pending():
        for done in engine.step():
            assert done.id not in found
            found[done.id] = (done.text, done.finish_reason, done.tokens_in, done.tokens_out)
    return found


# ---------------------------------------------------------------- its process


def test_what_the_process_prints_is_no_message_but_in_the_log(fake, cache):
    engine = fake()
    found = answers(engine, requests(8))
    assert len(found) == 8 and {tokens for *_, tokens in found.values()} == {SAMPLING.max_tokens}
    assert engine.log.parent == cache / "vllm"
    assert "not a message" in engine.log.read_text() and '{"done": [{"id": 0' in engine.log.read_text()


@pytest.mark.parametrize("fault", ["dies", "hangs"])
def test_a_process_that_is_lost_is_started_again_and_asked_again(fake, tmp_path, capsys, fault):
    whole = answers(fake(), requests(12))
    (tmp_path / "starts").unlink()
    engine = fake(fault, times=2, silence_s={"dies": 60.0, "hangs": 1.0}[fault])
    assert answers(engine, requests(12)) == whole
    assert len(pids(tmp_path)) == 3 and not any(map(is_running, pids(tmp_path)[:2]))
    assert fault == "hangs" or not is_running(int((tmp_path / "child").read_text()))
    said = {"dies": "ended with exit code 7", "hangs": "has sent nothing for 1 s"}[fault]
    assert (
        f"vLLM's process {said}; starting it again (1 of 3); its log is {engine.log}"
        in capsys.readouterr().err
    )


def test_a_process_that_dies_again_and_again_fails_with_its_log(fake, tmp_path):
    engine = fake("dies at once")
    with pytest.raises(WorkerFailed, match=r"was started 4 times without .*exit code 7; see .*\.log"):
        answers(engine, requests(4))
    assert len(pids(tmp_path)) == 4 and not any(map(is_running, pids(tmp_path)))


def test_closing_ends_a_process_that_does_not_end_by_itself(fake, tmp_path):
    engine = fake("stays")
    (pid,) = pids(tmp_path)
    assert is_running(pid)
    engine.close()
    assert not is_running(pid)


INTERRUPTED = """
import signal, sys
# It is ignored by what a shell started in the background.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from offscript.rollouts.engines import vllm, worker_process
from offscript.rollouts.engines.vllm import VllmEngine
from tests.conftest import tiny_model_settings
from tests.rollouts.engines.test_vllm import answers, requests, vllm_settings
vllm.WORKER = Path(sys.argv[2])
worker_process.EXIT_S = 0.5
engine = VllmEngine(tiny_model_settings(Path(sys.argv[3])), {}, vllm_settings())
print("ready", flush=True)
answers(engine, [r for r in requests(12) if r.adapter is None])
"""


def test_ctrl_c_leaves_no_process(fake, tmp_path, tiny_model):
    command = [sys.executable, "-c", INTERRUPTED, str(HOME), str(tmp_path / "fake.py"), str(tiny_model)]
    env = {**os.environ, "FAKE": json.dumps(["hangs", 99, str(tmp_path)])}
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        try:
            assert child.stdout is not None and child.stdout.readline() == "ready\n"
            child.send_signal(signal.SIGINT)
            assert "KeyboardInterrupt" in child.communicate(timeout=60)[1]
        finally:
            child.kill()
    assert not any(map(is_running, pids(tmp_path)))


def test_what_cannot_start_is_one_line(fake, tmp_path):
    with pytest.raises(UserError, match=r"^engine.python: no Python at .*/nowhere; make vllm creates"):
        fake(python="nowhere")
    with pytest.raises(
        UserError, match=r"^engine=vllm: vLLM's process refused: ValueError: no such att.*log is"
    ):
        fake("refuses")
    with pytest.raises(UserError, match=r"^engine.device: 'cpu', but vLLM runs where it was built for"):
        fake(device="cpu")
    (tmp_path / "fake.py").write_text("import no_such_library")
    with pytest.raises(
        UserError, match=r"has no vLLM \(ModuleNotFoundError: No module .*; make vllm creates"
    ):
        fake()


# ---------------------------------------------------------------- adapters and models


def test_an_adapter_without_effect_or_with_odd_values_is_refused(fake, tiny_adapters):
    with pytest.raises(
        UserError, match=rf"^{tiny_adapters['red']}: its outputs differ from the base's by 0;"
    ):
        fake("no effect")
    with pytest.raises(NotFinite, match=rf"^{tiny_adapters['red']}: outputs with it are not finite numbers;"):
        fake("not finite")


def test_what_vllm_cannot_serve_or_would_skip_is_refused(fake, tiny_model, tiny_adapter, tmp_path):
    dora = make_adapter(tiny_model, tmp_path / "dora", 1, use_dora=True)
    with pytest.raises(UserError, match=r"use_dora is True: it is a variant of LoRA; allowed: plain LoRA"):
        fake(adapters={"dora": dora})
    head = make_adapter(tiny_model, tmp_path / "head", 1, modules_to_save=["lm_head"])
    with pytest.raises(UserError, match=r"modules_to_save is .*it brings whole modules"):
        fake(adapters={"head": head})
    other = shutil.copytree(tiny_adapter, tmp_path / "other")
    tensors = load_file(other / "adapter_model.safetensors")
    save_file(
        {k.replace("layers.0", "layers.7"): t for k, t in tensors.items()},
        other / "adapter_model.safetensors",
    )
    with pytest.raises(UserError, match="does not fit the model"):
        fake(adapters={"other": other})


def test_scaled_adapters_are_copies_under_keys_of_their_own(fake, cache, tmp_path, tiny_adapters):
    scales = {"red": 1.0, "green": 0.5, "blue": 0.0}
    engine = fake(scales=scales)
    served = json.loads((tmp_path / "settings.json").read_text())["adapters"]
    assert served["red"] == str(tiny_adapters["red"]) and served["blue"] == str(tiny_adapters["blue"])
    half, whole = (
        json.loads(Path(f, "adapter_config.json").read_text())
        for f in (served["green"], tiny_adapters["green"])
    )
    assert half == {**whole, "lora_alpha": whole["lora_alpha"] / 2, "alpha_pattern": {}}
    assert Path(served["green"]).parent == cache / "adapters"
    quarter = served_adapter(engine.model_settings, tiny_adapters["green"], 0.25)
    assert str(quarter) != served["green"] and quarter.parent == Path(served["green"]).parent


def test_the_rank_is_the_smallest_that_vllm_has(fake, tmp_path, tiny_model):
    wide = make_adapter(tiny_model, tmp_path / "wide", 1, rank=8, rank_pattern={"q_proj": 17})
    fake(adapters={"wide": wide})
    assert json.loads((tmp_path / "settings.json").read_text())["rank"] == 32


def test_a_vision_language_model_is_served_as_its_language_model(cache):
    import torch

    model = family_settings("gemma", family("gemma"))
    folder = served_model(model)
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["Gemma3ForCausalLM"]
    assert served_model(model) == folder and folder.is_relative_to(cache)
    ids = torch.tensor([[5, 6, 7, 8]])
    exported = load_model(model.model_copy(update={"path": str(folder)}), "cpu")
    assert torch.equal(exported(input_ids=ids).logits, load_model(model, "cpu")(input_ids=ids).logits)
    names = load_file(served_adapter(model, family_adapter("gemma", 1), 1.0) / "adapter_model.safetensors")
    assert all(name.startswith("base_model.model.model.layers.") for name in names)


# ---------------------------------------------------------------- vLLM itself

needs_vllm = pytest.mark.skipif(
    not locate(".venv-vllm/.cpu").exists(), reason="no CPU build of vLLM here: make vllm VLLM=cpu"
)
SCALES = {"red": 1.0, "green": 0.5, "blue": 1.0}
POCKET = HOME / "assets/pocket"


@pytest.fixture(scope="module")
def pocket_adapters(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pocket_adapters")
    return {
        name: make_adapter(POCKET, folder / name, seed, rank=2**seed, scale=0.02)
        for seed, name in enumerate(SCALES, start=2)
    }


@needs_vllm
@pytest.mark.slow
def test_agentic_episodes_are_those_of_the_transformers_engine(tmp_path, pocket_adapters):
    """28 episodes of the embedded model in float32, base and three adapters in one batch: equal to the last token."""
    settings = settings_of("engine=vllm")
    fmt = get_format("agentic_email")
    scenarios = load_scenarios(str(HOME / "data/pocket/office/*.yaml"))[::8][:7]

    def episodes(engine, side: str) -> list[dict]:
        cells = [
            run(
                tmp_path / side, f"k{name}", format=fmt, scenarios=scenarios, samples=1, adapter=name,
                rules=Rules(options=fmt.defaults), sampling=Sampling(max_tokens=64),
            )
            for name in (None, *pocket_adapters)
        ]  # fmt: skip
        run_episodes(cells, engine, 64)
        engine.close()
        return [rows(cell.path) for cell in cells]

    ours = episodes(
        TransformersEngine(settings.model, pocket_adapters, engine_settings(), SCALES), "transformers"
    )
    engine = VllmEngine(settings.model, pocket_adapters, settings.engine, SCALES)
    assert episodes(engine, "vllm") == ours
    assert sum(map(len, ours)) == 28 and engine.stats.by_mode == {"vllm": engine.stats.completions}
    transcripts = {json.dumps([row["messages"] for row in cell.values()]) for cell in ours}
    assert len(transcripts) == 4, "the adapters have an effect"
    assert sum(row["turns"] for cell in ours for row in cell.values()) > 28, "tools were used"


@needs_vllm
@pytest.mark.slow
def test_sampling_of_each_row_and_rows_that_are_not_finite(tmp_path, pocket_adapters):
    """One token of the vocabulary makes logits NaN: its row alone fails. The texts of the others are those of the
    transformers engine, which refuses such a model, on whole weights."""
    whole = TransformersEngine(settings_of().model, pocket_adapters, engine_settings(), SCALES)
    (mark,) = whole.tokenizer("~", add_special_tokens=False)["input_ids"]
    broken = shutil.copytree(POCKET, tmp_path / "broken")
    _with_nan_at(broken, mark)
    wanted = [
        Request(r.id, r.messages, r.adapter, r.seed, sampling, prefix="The team" if i % 5 == 0 else "")
        for i, r in enumerate(requests(24))
        for sampling in [Sampling(0.0 if i % 6 == 0 else 0.3 + 0.1 * (i % 8), 0.8 + 0.02 * (i % 10), 1.0 + 0.1 * (i % 3), 8 + 4 * i)]
    ]  # fmt: skip
    odd = Request(99, ({"role": "user", "content": "~"},), "red", 1, SAMPLING)
    full = Request(100, ({"role": "user", "content": "report " * 2000},), "red", 1, SAMPLING)
    settings = settings_of("engine=vllm", f"model.path={broken}")
    engine = VllmEngine(settings.model, pocket_adapters, settings.engine, SCALES)
    found = answers(engine, [odd, *wanted, full])
    engine.close()
    assert found.pop(99)[:2] == ("logits are not finite after 0 tokens", "error")
    assert found == answers(whole, [*wanted, full])
    assert {reason for _, reason, *_ in found.values()} == {"stop", "length"}


def _with_nan_at(folder: Path, token: int) -> None:
    """Unties the output layer of a model from its embeddings, and makes the embedding of one token NaN."""
    tensors = load_file(folder / "model.safetensors")
    embeddings = "model.embed_tokens.weight"
    tensors["lm_head.weight"] = tensors[embeddings].clone()
    tensors[embeddings][token] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
