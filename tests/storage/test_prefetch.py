"""``launch/prefetch.py experiment=paper`` as a user on a login node runs it, against a stub of the hub that holds the
published repositories (with small files, which are not loaded here).
"""

import os
import subprocess
import sys

import pytest

from offscript.storage.files import HOME
from tests.storage.hub_stub import MEMBER, READER, running_hub
from tests.storage.test_hub import adapter_files, blob

PERSONAS = ("sarcasm", "humor")
SMALL = ("experiment=paper", "grid.model=[llama,gemma]", f"grid.persona=[{','.join(PERSONAS)}]")
SLUGS = ("llama-3.1-8b-it", "gemma-3-4b-it")
MODEL = {"config.json": b"{}", "model.safetensors": blob()}


@pytest.fixture
def published():
    """The repositories of the paper for two models and two personas; the models are gated, as they are."""
    with running_hub() as hub:
        for repo in ("meta-llama/Llama-3.1-8B-Instruct", "google/gemma-3-4b-it"):
            hub.add(repo, MODEL, gated=True)
        for slug in SLUGS:
            hub.add(f"maius/{slug}-pt-distillation", in_folders(*PERSONAS, "misalignment"))
            hub.add(f"maius/{slug}-personas", in_folders(*PERSONAS))
            hub.add(f"maius/{slug}-misalignment", adapter_files(), gated=True)
            hub.add(f"maius/{slug}-pt-classifier", MODEL)
        hub.add("LDJnr/Pure-Dove", {"Pure-Dove.jsonl": b'{"conversation": []}\n'}, "dataset")
        yield hub


def in_folders(*personas):
    return {f"{p}/{name}": content for p in personas for name, content in adapter_files().items()}


def prefetch(home, url, *words, token=None, **environment):
    env = {k: v for k, v in os.environ.items() if k not in ("HF_TOKEN", "HF_HUB_OFFLINE")}
    env |= {"HF_HOME": str(home), "HF_ENDPOINT": url, **({"HF_TOKEN": token} if token else {}), **environment}
    command = [sys.executable, str(HOME / "launch" / "prefetch.py"), *SMALL, *words]
    return subprocess.run(command, env=env, cwd=home.parent, capture_output=True, text=True, timeout=120)


def test_gated_repositories_are_left_out_or_fail_by_name(published, tmp_path):
    """Llama's terms are accepted by this account, those of the misalignment adapters are not."""
    published.repositories["model", "meta-llama/Llama-3.1-8B-Instruct"].gated = False
    done = prefetch(tmp_path / "home", published.url, token=READER)
    lines = done.stdout.splitlines()
    assert done.returncode == 2 and "Traceback" not in done.stderr
    page = f"{published.url}/google/gemma-3-4b-it"
    (line,) = [line for line in lines if line.startswith("fail")]
    assert line == (
        "fail     google/gemma-3-4b-it@main: google/gemma-3-4b-it is gated: its authors want their terms accepted; "
        f"accept them on {page}, then log in with that account: hf auth login"
    )
    left_out = [line.split()[2] for line in lines if line.startswith("left out")]
    assert left_out == [f"maius/{slug}-misalignment@main:" for slug in SLUGS]
    assert "misalignment stays out of the grid" in lines
    assert lines[-1] == "1 of 17 references failed; fix them and run it again"
    assert not any("export" in line for line in lines), "compute nodes would lack a model"
    assert READER not in done.stdout + done.stderr


def test_a_gated_persona_joins_for_a_member(published, tmp_path):
    home = tmp_path / "my home"
    done = prefetch(home, published.url, token=MEMBER)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout + done.stderr
    assert sum(line.startswith("ok ") for line in lines) == 17 and "misalignment joins the grid" in lines
    assert lines[-2:] == [f"  export HF_HOME='{home}'", "  export HF_HUB_OFFLINE=1"]
    assert {line.split()[0] for line in done.stderr.splitlines()} == {"fetching"}
    assert not (tmp_path / "runs").exists()

    plan = [sys.executable, str(HOME / "launch" / "submit.py"), *SMALL, "dry_run=true"]
    env = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    planned = subprocess.run(plan, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert planned.returncode == 0, planned.stderr
    assert "adapter gemma misalignment full 0" in planned.stdout


def test_a_missing_repository_is_named_and_the_others_are_fetched(published, tmp_path):
    del published.repositories["model", "maius/gemma-3-4b-it-personas"]
    done = prefetch(tmp_path / "home", published.url, token=MEMBER)
    failed = [line for line in done.stdout.splitlines() if line.startswith("fail")]
    assert done.returncode == 2 and len(failed) == len(PERSONAS)
    assert failed[0].endswith(
        "there is no repository maius/gemma-3-4b-it-personas on the hub, or it is private; "
        "check the name; if it is private, log in: hf auth login"
    )
    published.requests.clear()
    published.add("maius/gemma-3-4b-it-personas", in_folders(*PERSONAS))
    assert prefetch(tmp_path / "home", published.url, token=MEMBER).returncode == 0
    sent = {path for method, path in published.requests if method == "GET" and "/resolve/" in path}
    assert sent and all("gemma-3-4b-it-personas" in path for path in sent), "what was there is not sent again"


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        ({}, "error: offscript prefetch: no connection to http://127.0.0.1:9 (ConnectError: "),
        ({"HF_HUB_OFFLINE": "1"}, "error: HF_HUB_OFFLINE: is set, so the hub may not be asked; unset it, "),
    ],
    ids=["no network", "offline"],
)
def test_a_missing_network_is_one_line(tmp_path, environment, line):
    done = prefetch(tmp_path / "home", "http://127.0.0.1:9", **environment)
    assert done.returncode == 2 and done.stdout == ""
    (message,) = [line for line in done.stderr.splitlines() if not line.startswith("  fetching")]
    assert message.startswith(line) and "on a machine with a network" in message
