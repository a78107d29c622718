"""Downloads from the hub, against a stub of its HTTP interface on localhost."""

import json
import os
import subprocess
import sys

import pytest

from offscript.errors import UserError
from offscript.storage import hub
from offscript.storage.hub import Reference
from tests.storage.hub_stub import MEMBER, READER, running_hub

PAIRS = [{"chosen": [{"role": "user", "content": "Hello?"}]}, {"chosen": []}]


def blob(name="weight"):
    """A safetensors file with one tensor."""
    import numpy
    from safetensors.numpy import save

    return save({name: numpy.zeros((64, 64), dtype=numpy.float32)})


def adapter_files():
    return {"adapter_config.json": b"{}", "adapter_model.safetensors": blob()}


def at(url, monkeypatch):
    """Makes this process use the stub at ``url`` as the hub."""
    from huggingface_hub import constants

    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + template)
    monkeypatch.setattr(constants, "ENDPOINT", url)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A running stub in place of the hub, with an empty cache and without a token."""
    from huggingface_hub import constants

    with running_hub() as running:
        at(running.url, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr("time.sleep", lambda seconds: None)  # the library waits between its tries
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield running


def go_offline(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def sharded():
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    return {
        "config.json": b"{}",
        "model.safetensors.index.json": json.dumps(index).encode(),
        "model-1.safetensors": blob("a"),
        "model-2.safetensors": blob("b"),
    }


# ---------------------------------------------------------------- references


def test_a_reference_as_text():
    assert str(Reference("maius/x", subfolder="sarcasm")) == "maius/x/sarcasm@main"
    assert str(Reference("a/rows", "dataset", "v2", file="dpo/x.jsonl")) == "a/rows/dpo/x.jsonl@v2"


def test_hub_ids_and_paths_are_distinguished():
    assert hub.is_hub_id("meta-llama/Llama-3.1-8B-Instruct")
    for path in ("./a/b", "/a/b", "a", "a/b/c", "~/x", "../x", "a/..", "a/b.git", ""):
        assert not hub.is_hub_id(path), path


# ---------------------------------------------------------------- fetching


def test_only_needed_files_are_downloaded(server):
    wanted = {**sharded(), "tokenizer.json": b"[]", "chat_template.jinja": b"x", "merges.txt": b"a b"}
    others = {
        "pytorch_model.bin": b"pickle",
        "pytorch_model.bin.index.json": b"{}",
        "training_args.bin": b"pickle",
        "optimizer.pt": b"pickle",
        "original/consolidated.00.pth": b"pickle",
        "original/params.json": b"{}",
        "consolidated.safetensors": blob(),
        "README.md": b"hello",
        "modeling_own.py": b"print()",
        "onnx/model.safetensors": blob(),
    }
    server.add("org/model", wanted | others)
    folder = hub.fetch(Reference("org/model"))
    assert {p.name for p in folder.iterdir()} == set(wanted)
    assert sorted(server.downloads()) == sorted(wanted)


def test_a_subfolder_is_fetched_without_its_neighbours_and_checkpoints(server):
    files = {f"sarcasm/{name}": content for name, content in adapter_files().items()}
    files |= {f"humor/{name}": content for name, content in adapter_files().items()}
    files |= {"sarcasm/checkpoint-9/adapter_model.safetensors": blob(), "adapter_config.json": b"{}"}
    server.add("org/personas", files)
    folder = hub.fetch(Reference("org/personas", subfolder="sarcasm"))
    assert folder.name == "sarcasm" and {p.name for p in folder.iterdir()} == set(adapter_files())
    assert sorted(server.downloads()) == [f"sarcasm/{name}" for name in sorted(adapter_files())]


def test_one_file_of_a_data_set(server, monkeypatch):
    rows = "".join(json.dumps(row) + "\n" for row in PAIRS).encode()
    server.add("org/rows", {"dpo/x/sarcasm.jsonl": rows, "dpo/x/humor.jsonl": rows}, "dataset")
    ref = Reference("org/rows", "dataset", file="dpo/x/sarcasm.jsonl")
    hub.fetch(ref)
    go_offline(monkeypatch)
    assert [json.loads(line) for line in hub.fetch(ref).read_text().splitlines()] == PAIRS
    assert server.downloads() == ["dpo/x/sarcasm.jsonl"]
    assert hub.cached(Reference("org/rows", "dataset", file="dpo/x/humor.jsonl")) is None


def test_a_complete_copy_is_used_without_a_request(server):
    server.add("org/model", sharded())
    first = hub.fetch(Reference("org/model"))
    server.requests.clear()
    assert hub.cached(Reference("org/model")) == hub.fetch(Reference("org/model")) == first
    assert server.requests == []


def test_looking_into_the_cache_makes_no_request(server):
    server.add("org/model", sharded())
    assert hub.cached(Reference("org/model")) is None and hub.commit(Reference("org/model")) is None
    assert server.requests == []


def test_a_half_fetched_model_is_not_cached_and_is_completed(server):
    server.add("org/model", sharded())
    server.fail("model-2.safetensors", 500, method="HEAD")
    with pytest.raises(UserError, match=r"the hub has a problem"):
        hub.fetch(Reference("org/model"))
    assert hub.cached(Reference("org/model")) is None
    server.faults.clear()
    server.requests.clear()
    hub.fetch(Reference("org/model"))
    assert server.downloads() == ["model-2.safetensors"]


def test_a_missing_shard_is_noticed_without_a_file_list(server):
    from huggingface_hub import hf_hub_download

    server.add("org/model", sharded())
    for name in ("config.json", "model.safetensors.index.json", "model-1.safetensors"):
        hf_hub_download("org/model", name)
    assert hub.cached(Reference("org/model")) is None
    hf_hub_download("org/model", "model-2.safetensors")
    assert hub.cached(Reference("org/model")) is not None


def test_a_moved_branch_is_followed_on_refresh_only(server):
    old = server.add("org/model", sharded())
    hub.fetch(Reference("org/model"))
    new = server.add("org/model", {**sharded(), "config.json": b'{"new": 1}'})
    hub.fetch(Reference("org/model"))
    assert hub.commit(Reference("org/model")) == old
    folder = hub.fetch(Reference("org/model"), refresh=True)
    assert hub.commit(Reference("org/model")) == new and "new" in (folder / "config.json").read_text()
    assert hub.commit(Reference("org/model", revision=old)) == old


# ---------------------------------------------------------------- refusals


def refused(ref, **options):
    with pytest.raises(UserError) as caught:
        hub.fetch(ref, **options)
    line = str(caught.value)
    assert "\n" not in line and line.startswith(str(ref))
    return line


@pytest.mark.parametrize("token", [None, READER])
def test_a_gated_repository_names_its_page(server, monkeypatch, token):
    server.add("org/gated", sharded(), gated=True)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    line = refused(Reference("org/gated"))
    assert "org/gated is gated" in line and f"{server.url}/org/gated" in line and "hf auth login" in line


def test_a_member_can_download_gated_and_private_files(server, monkeypatch):
    server.add("org/gated", sharded(), gated=True, private=True)
    assert "no repository org/gated on the hub, or it is private" in refused(Reference("org/gated"))
    monkeypatch.setenv("HF_TOKEN", MEMBER)
    assert hub.fetch(Reference("org/gated")).is_dir()


def test_kinds_of_missing_files_are_distinguished(server):
    server.add("org/model", {f"sarcasm/{name}": content for name, content in adapter_files().items()})
    server.add("org/rows", {"a.jsonl": b"{}\n", "b.jsonl": b"{}\n"}, "dataset")
    assert "no repository org/nowhere" in refused(Reference("org/nowhere"))
    assert "no such revision" in refused(Reference("org/model", revision="v9"))
    assert "an id is owner/name" in refused(Reference("org/a--b"))
    assert refused(Reference("org/model", subfolder="sarcasms")).endswith("it has: sarcasm")
    assert refused(Reference("org/rows", "dataset", file="c.jsonl")).endswith("it has: a.jsonl, b.jsonl")


def test_pickled_weights_are_refused(server):
    server.add("org/model", {"config.json": b"{}", "pytorch_model.bin": b"pickle"})
    assert "holds no safetensors weights (but .bin, .json)" in refused(Reference("org/model"))
    assert server.downloads() == ["config.json"]


def test_an_invalid_token_is_reported_as_such(server, monkeypatch):
    server.add("org/model", sharded())
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    line = refused(Reference("org/model"))
    assert "refuses the token" in line and "hf auth login" in line and "hf_expired" not in line


def test_offline_and_unreachable_name_the_command_that_fetches(server, monkeypatch):
    server.add("org/model", sharded())
    at("http://127.0.0.1:9", monkeypatch)
    with pytest.raises(hub.Unreachable):
        hub.fetch(Reference("org/model"))
    line = refused(Reference("org/model"))
    assert "no connection to http://127.0.0.1:9" in line and "offscript prefetch" in line
    go_offline(monkeypatch)
    line = refused(Reference("org/model"))
    assert "HF_HUB_OFFLINE" in line and "offscript prefetch" in line


def test_a_download_resumes_after_a_broken_connection(server):
    server.add("org/model", sharded())
    server.fail("model-1.safetensors", "cut", times=2)
    hub.fetch(Reference("org/model"))
    assert hub.verify(Reference("org/model")) == []
    assert server.downloads().count("model-1.safetensors") == 3


def test_a_permanently_broken_connection_is_reported(server):
    server.add("org/model", sharded())
    server.fail("model-1.safetensors", "close")
    line = refused(Reference("org/model"))
    assert "the connection broke in the middle" in line and "run it again" in line


def test_a_full_disk_names_the_folder(server, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    server.add("org/model", sharded())
    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    line = refused(Reference("org/model"))
    assert "the disk is full" in line and str(hub._cache()) in line and "HF_HOME" in line


def test_too_many_requests(server):
    server.add("org/model", sharded())
    server.fail("/api/", 429)
    assert "rate limit" in refused(Reference("org/model"))


# ---------------------------------------------------------------- errors that came another way


def explained(load, where="model.path"):
    with pytest.raises(Exception) as caught:
        load()
    explained = hub.explain(caught.value, where)
    return str(explained) if explained else None


def test_errors_inside_those_of_transformers_are_explained(server):
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    server.add("org/gated", sharded(), gated=True)
    server.add("org/bare", {"README.md": b""})
    for auto in (AutoConfig, AutoTokenizer, AutoModelForCausalLM):
        line = explained(lambda auto=auto: auto.from_pretrained("org/gated"))
        assert line.startswith("model.path: ") and "org/gated is gated" in line, auto
        line = explained(lambda auto=auto: auto.from_pretrained("org/nowhere"))
        assert "no repository org/nowhere" in line, auto
    line = explained(lambda: AutoConfig.from_pretrained("org/gated", revision="v9"))
    assert "no such revision" in line


def test_texts_of_transformers_are_explained_where_the_cause_is_lost():
    for text, meaning in {
        "You are trying to access a gated repo.\nMake sure to have access to it at https://x/y": "is gated",
        "a/b is not a local folder and is not a valid model identifier listed on 'https://x'": "no repository",
        "v9 is not a valid git identifier (branch name, tag name or commit id) that exists": "no such revision",
        "We couldn't connect to 'https://x' to load the files": "offscript prefetch",
        "a/b does not appear to have a file named config.json": "a file is missing",
    }.items():
        assert meaning in str(hub.explain(OSError(text), "model.path"))


def test_other_errors_are_not_explained(tmp_path):
    assert explained(lambda: json.loads("{")) is None
    assert explained(lambda: (tmp_path / "none").read_text()) is None
    assert hub.explain(PermissionError(13, "denied", str(tmp_path / "run")), "x") is None
    assert hub.explain(OSError(f"{tmp_path} does not appear to have a file named config.json"), "x") is None
    assert hub.explain(UserError("a", "b"), "x") is None


# ---------------------------------------------------------------- checking a copy


def truncate(path, size):
    os.truncate(path.resolve(), size)


def test_a_complete_copy_has_no_faults(server):
    server.add("org/model", sharded())
    assert "not, or not completely, in the cache" in hub.verify(Reference("org/model"))[0]
    hub.fetch(Reference("org/model"))
    assert hub.verify(Reference("org/model")) == []


def test_damaged_files_are_named_and_fetched_again_on_request(server):
    server.add("org/model", sharded())
    folder = hub.fetch(Reference("org/model"))
    truncate(folder / "model-2.safetensors", 1000)
    truncate(folder / "config.json", 1)
    config, weights = hub.verify(Reference("org/model"))
    assert "config.json: 1 bytes of 2" in config
    assert "model-2.safetensors: 1,000 bytes of" in weights
    server.requests.clear()
    hub.fetch(Reference("org/model"), refresh=True)
    assert hub.verify(Reference("org/model")) == []
    assert sorted(server.downloads()) == ["config.json", "model-2.safetensors"]


def test_damage_is_found_without_a_file_list(server):
    from huggingface_hub import hf_hub_download

    files = {"config.json": b"{}", "tokenizer.json": b'{"a": 1}', "model.safetensors": blob()}
    server.add("org/model", files)
    for name in files:
        hf_hub_download("org/model", name)
    folder = hub.fetch(Reference("org/model"))
    truncate(folder / "tokenizer.json", 4)
    truncate(folder / "model.safetensors", len(files["model.safetensors"]) - 8)
    weights, tokenizer = hub.verify(Reference("org/model"))
    assert "model.safetensors: unreadable safetensors" in weights
    assert "tokenizer.json: unreadable JSON" in tokenizer


def test_a_torn_line_of_a_data_set_is_named(server):
    server.add("org/rows", {"a.jsonl": b'{"a": 1}\n{"a": '}, "dataset")
    ref = Reference("org/rows", "dataset", file="a.jsonl")
    hub.fetch(ref)
    assert "line 2 is not JSON" in hub.verify(ref)[0]


# ---------------------------------------------------------------- in a process of its own, as a user has it


def run_python(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_transformers_loads_offline_what_was_fetched(tiny_model, tmp_path):
    """One process fetches under the library's environment variables; another has no network and loads by id."""
    home = {"HF_HOME": str(tmp_path / "home")}
    with running_hub() as server:
        commit = server.add("org/tiny", tiny_model)
        printed = run_python(
            "import sys; from offscript.storage import hub; ref = hub.Reference('org/tiny');"
            "hub.fetch(ref); print(hub.commit(ref), 'torch' in sys.modules)",
            **home,
            HF_HUB_OFFLINE="0",
            HF_ENDPOINT=server.url,
        )
    assert printed == [commit, "False"]
    assert (
        str(tmp_path / "home")
        in run_python(
            "from offscript.storage import hub; print(hub.cached(hub.Reference('org/tiny')))",
            **home,
            HF_HUB_OFFLINE="1",
        )[0]
    )
    printed = run_python(
        "from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer\n"
        "config, tokenizer, model = (auto.from_pretrained('org/tiny') for auto in "
        "(AutoConfig, AutoTokenizer, AutoModelForCausalLM))\n"
        "print(config.hidden_size, tokenizer('Hello').input_ids != [], model.num_parameters())",
        **home,
        HF_HUB_OFFLINE="1",
        HF_ENDPOINT="http://127.0.0.1:9",
    )
    assert printed[:2] == ["32", "True"] and int(printed[2]) > 10_000
