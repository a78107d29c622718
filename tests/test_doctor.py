"""The doctor: every failure has a remedy, all checks run, and no secret is printed."""

import os
import shutil
import stat
import subprocess
import sys

import pytest

from offscript import doctor as module
from offscript.doctor import (
    Skip,
    chat_template,
    doctor,
    hub_cache,
    hub_reference,
    packages,
    pick_probe_model,
    root,
    run_check,
    wandb,
)
from offscript.errors import UserError
from offscript.settings import TemplateSettings
from offscript.storage import hub
from offscript.storage.files import HOME
from tests.composed import experiment_of, settings_of
from tests.families import family, family_settings
from tests.storage.hub_stub import MEMBER, READER
from tests.storage.test_hub import adapter_files, at, server  # noqa: F401
from tests.tracking.wandb_stub import KEY, wandb_stub


def fails(check, *args):
    """Runs a check that must fail; returns its message."""
    state, message = run_check("", lambda: check(*args))
    assert state == "fail", message
    assert "\n" not in message
    return message


# ---------------------------------------------------------------- the command


def test_all_checks_run_after_a_failure_and_the_exit_code_is_1(monkeypatch, capsys):
    def skipped():
        raise Skip("no need")

    def broken():
        raise ZeroDivisionError("first line\nsecond line")

    def wrong():
        raise UserError("thing", "is wrong", "change it")

    named = [("a", broken), ("thing", wrong), ("c", skipped), ("d", lambda: "fine")]
    monkeypatch.setattr(module, "checks", lambda settings, experiment: iter(named))
    assert doctor(None, None) == 1
    assert capsys.readouterr().out.splitlines() == [
        "fail  a: ZeroDivisionError: first line",
        "fail  thing: is wrong; change it",
        "skip  c: no need",
        "ok    d: fine",
    ]
    monkeypatch.setattr(module, "checks", lambda settings, experiment: iter(named[2:]))
    assert doctor(None, None) == 0


def test_no_secret_is_printed(monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", "wk-123456789")
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")

    def leaks():
        raise OSError("hf_abcdefgh at https://me:word@proxy:80/ with wk-123456789")

    monkeypatch.setattr(module, "checks", lambda settings, experiment: iter([("x", leaks)]))
    doctor(None, None)
    assert capsys.readouterr().out == "fail  x: OSError: *** at https://***@proxy:80/ with ***\n"


@pytest.mark.slow
def test_the_demo_passes_and_leaves_no_file(tmp_path):
    command = [sys.executable, str(HOME / "launch/doctor.py"), "experiment=demo"]
    env = {**os.environ, "HF_HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = {line[6:].partition(":")[0]: line for line in done.stdout.splitlines()}
    for name in ("packages", "grid", "root", "chat template pocket", "rollout", "training step"):
        assert lines[name].startswith("ok "), lines[name]
    assert lines["SLURM controller"].startswith("skip ")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- this machine


def test_a_package_of_another_version_fails_with_both_versions(monkeypatch):
    import importlib.metadata

    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda n: "0.1" if n == "trl" else real(n))
    assert "trl 0.1 (pinned: " in fails(packages)
    monkeypatch.setattr(importlib.metadata, "version", lambda n: real(n) + "+cu128")
    assert packages().startswith("all ")


def test_an_unwritable_root_fails(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("precious")
    experiment = experiment_of("experiment=demo", f"root={tmp_path}/file/deeper")
    assert fails(root, experiment) == f"{tmp_path}/file: a file stands where a folder is needed; move it away"
    experiment = experiment_of("experiment=demo", "root=/proc/nowhere")
    assert "cannot be written" in fails(root, experiment) and "choose another root=" in fails(
        root, experiment
    )


def test_a_full_disk_fails(tmp_path, monkeypatch):
    full = shutil.disk_usage(tmp_path)._replace(free=10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    assert "1.0 GB are free; make room for 5 GB" in fails(
        root, experiment_of("experiment=demo", f"root={tmp_path}")
    )
    monkeypatch.setattr(hub, "cached", lambda ref: None)
    line = fails(hub_cache, experiment_of("experiment=demo", "grid.model=[llama]"))
    assert "models to fetch take about 16 GB" in line and "HF_HOME" in line


def test_vllm_that_is_not_installed_fails_with_the_command_and_is_skipped_for_another_engine(monkeypatch):
    line = fails(module.vllm, experiment_of("experiment=demo", "engine=vllm", "engine.python=no/python"))
    assert line.startswith("engine.python: no Python at ")
    assert line.endswith("/no/python; make vllm creates the environment of vLLM")
    assert run_check("vLLM", lambda: module.vllm(experiment_of("experiment=demo"))) == (
        "skip",
        "engine=transformers does not use it",
    )


# ---------------------------------------------------------------- the cluster


def program(folder, name, text):
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_missing_slurm_commands_and_a_controller_that_is_down_fail(tmp_path, monkeypatch):
    cluster = settings_of("cluster=slurm").cluster
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no sbatch, srun, squeue" in fails(module.slurm_commands, cluster)
    assert "no SLURM here" in fails(module.slurm_partition, cluster)
    program(
        tmp_path, "squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1"
    )
    assert "Unable to contact slurm controller" in fails(module.slurm_controller, cluster)


def test_a_partition_without_the_resources_of_a_job_fails(tmp_path, monkeypatch):
    for name in module.COMMANDS:
        program(tmp_path, name, "echo 'gpu*|1-00:00:00|8|64000|(null)'")
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    cluster = settings_of("cluster=site", "cluster.partition=null").cluster
    assert "gpus: asks for" in fails(module.slurm_partition, cluster)
    small = settings_of("cluster=slurm").cluster
    assert module.slurm_partition(small).startswith("the default one")


# ---------------------------------------------------------------- the hub


def check_reference(ref, optional=False, unreachable=None):
    reasons = [] if unreachable is None else unreachable
    return run_check(f"hub {ref}", lambda: hub_reference(ref, optional, reasons))


def test_a_gated_model_fails_until_its_terms_are_accepted(server, monkeypatch):  # noqa: F811
    server.add("meta/llama", {"config.json": b"{}"}, gated=True)
    ref = hub.Reference("meta/llama")
    monkeypatch.setenv("HF_TOKEN", READER)
    state, message = check_reference(ref)
    assert state == "fail" and "gated" in message and "accept them on" in message and READER not in message
    monkeypatch.setenv("HF_TOKEN", MEMBER)
    state, message = check_reference(ref)
    assert state == "ok" and "offscript prefetch" in message
    assert server.downloads() == []


def test_a_missing_reference_fails_unless_it_is_optional(server):  # noqa: F811
    server.add("maker/adapters", {f"sarcasm/{name}": content for name, content in adapter_files().items()})
    assert check_reference(hub.Reference("maker/adapters", subfolder="sarcasm"))[0] == "ok"
    for ref in (hub.Reference("maker/adapters", subfolder="humor"), hub.Reference("maker/none")):
        assert check_reference(ref)[0] == "fail"
        assert check_reference(ref, optional=True)[0] == "skip"


def test_a_cached_reference_is_verified_without_a_request(server):  # noqa: F811
    server.add("maker/adapter", adapter_files())
    ref = hub.Reference("maker/adapter")
    place = hub.fetch(ref)
    server.requests.clear()
    assert check_reference(ref) == ("ok", "in the cache, complete")
    weights = (place / "adapter_model.safetensors").resolve()
    weights.write_bytes(weights.read_bytes()[:-100])
    state, message = check_reference(ref)
    assert state == "fail" and "adapter_model.safetensors" in message
    assert server.requests == []


def test_an_unreachable_hub_is_queried_once(server, monkeypatch):  # noqa: F811
    at("http://127.0.0.1:9", monkeypatch)
    unreachable: list[str] = []
    state, message = check_reference(hub.Reference("maker/one"), unreachable=unreachable)
    assert state == "fail" and "no connection" in message and len(unreachable) == 1
    monkeypatch.setattr(module, "_query_hub", lambda *args: pytest.fail("queried again"))
    state, message = check_reference(hub.Reference("maker/two"), unreachable=unreachable)
    assert state == "fail" and "not in the cache" in message and "offscript prefetch" in message


# ---------------------------------------------------------------- W&B


@pytest.fixture
def online(monkeypatch):
    with wandb_stub() as stub:
        for name, value in stub.environment().items():
            monkeypatch.setenv(name, value)
        yield stub


def test_a_valid_an_invalid_and_a_missing_wandb_key(online, tmp_path, monkeypatch):
    settings = settings_of("tracking=online")
    assert "runs go to someone/offscript" in wandb(settings)
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert "rejects the API key" in fails(wandb, settings)
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert "wandb login (or set WANDB_API_KEY)" in fails(wandb, settings)
    (tmp_path / "netrc").write_text(f"machine {online.url[7:]}\n  login user\n  password {KEY}\n")
    assert wandb(settings).startswith(online.url)


def test_a_wandb_server_that_is_down_fails(online, monkeypatch):
    online.fail(503)
    assert "answers 503" in fails(wandb, settings_of("tracking=online"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert "no answer" in fails(wandb, settings_of("tracking=online"))
    assert run_check("", lambda: wandb(settings_of("tracking=offline")))[0] == "skip"


# ---------------------------------------------------------------- models


def test_a_chat_template_that_drops_the_system_text_fails(tmp_path):
    folder = shutil.copytree(family("qwen"), tmp_path / "qwen")
    model = family_settings("qwen", folder)
    assert chat_template(model).startswith("renders user, assistant, tool")
    template = folder / "chat_template.jinja"
    template.write_text(
        "{% for m in messages if m.role != 'system' %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    )
    assert "leaves out what the system says" in fails(chat_template, model)
    assert chat_template(model.model_copy(update={"template": TemplateSettings(system_role="user")}))


def test_the_embedded_model_is_probed_if_the_grids_model_is_unavailable_or_too_large(monkeypatch):
    experiment = experiment_of("experiment=demo", "grid.model=[llama]")
    monkeypatch.setattr(hub, "cached", lambda ref: None)
    model, note = pick_probe_model(experiment)
    assert model.name == "pocket" and "llama is not on this machine" in note
    with pytest.raises(Skip, match="not fetched yet"):
        chat_template(experiment.planner.options.model["llama"])
    monkeypatch.setattr(hub, "cached", lambda ref: HOME / "assets/pocket")
    monkeypatch.setattr(hub, "fetch", lambda ref: HOME / "assets/pocket")
    assert pick_probe_model(experiment)[0].name == "llama"
    monkeypatch.setattr(module, "SMALL_BYTES", 1000)
    assert "too large" in pick_probe_model(experiment)[1]
