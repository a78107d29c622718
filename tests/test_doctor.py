"""The doctor: each complaint names what to do, nothing stops the checks after it, and no secret is shown."""

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
    outcome,
    packages,
    root,
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
    """The line of a check that must fail."""
    state, note = outcome("", lambda: check(*args))
    assert state == "fail", note
    assert "\n" not in note
    return note


# ---------------------------------------------------------------- the command


def test_a_failed_check_hides_none_after_it_and_is_the_exit_code(monkeypatch, capsys):
    def left_out():
        raise Skip("no need")

    def broken():
        raise ZeroDivisionError("first line\nsecond line")

    def wrong():
        raise UserError("thing", "is wrong", "mend it")

    named = [("a", broken), ("thing", wrong), ("c", left_out), ("d", lambda: "fine")]
    monkeypatch.setattr(module, "checks", lambda settings, experiment: iter(named))
    assert doctor(None, None) == 1
    assert capsys.readouterr().out.splitlines() == [
        "fail  a: ZeroDivisionError: first line", "fail  thing: is wrong; mend it", "skip  c: no need", "ok    d: fine",
    ]  # fmt: skip
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
def test_the_demo_passes_on_a_machine_that_is_set_up_and_leaves_nothing_behind(tmp_path):
    done = subprocess.run(
        [sys.executable, str(HOME / "launch/doctor.py"), "experiment=demo"],
        cwd=tmp_path, env={**os.environ, "HF_HOME": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    lines = {line[6:].partition(":")[0]: line for line in done.stdout.splitlines()}
    for name in ("packages", "grid", "root", "chat template pocket", "rollout", "training step"):
        assert lines[name].startswith("ok "), lines[name]
    assert lines["SLURM controller"].startswith("skip ")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- this machine


def test_a_package_of_another_version_is_named_with_both(monkeypatch):
    import importlib.metadata

    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda n: "0.1" if n == "trl" else real(n))
    assert "trl 0.1 (pinned: " in fails(packages)
    monkeypatch.setattr(importlib.metadata, "version", lambda n: real(n) + "+cu128")
    assert packages().startswith("all ")


def test_a_root_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("precious")
    experiment = experiment_of("experiment=demo", f"root={tmp_path}/file/deeper")
    assert fails(root, experiment) == f"{tmp_path}/file: a file stands where a folder is needed; move it away"
    experiment = experiment_of("experiment=demo", "root=/proc/nowhere")
    assert "cannot be written" in fails(root, experiment) and "choose another root=" in fails(root, experiment)


def test_a_full_disk(tmp_path, monkeypatch):
    full = shutil.disk_usage(tmp_path)._replace(free=10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    assert "1.0 GB are free; make room for 5 GB" in fails(
        root, experiment_of("experiment=demo", f"root={tmp_path}")
    )
    monkeypatch.setattr(hub, "cached", lambda ref: None)
    line = fails(hub_cache, experiment_of("experiment=demo", "grid.model=[llama]"))
    assert "models to fetch take about 16 GB" in line and "HF_HOME" in line


# ---------------------------------------------------------------- the cluster


def program(folder, name, text):
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_a_cluster_without_slurm_here_or_whose_controller_is_down(tmp_path, monkeypatch):
    cluster = settings_of("cluster=slurm").cluster
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no sbatch, srun, squeue" in fails(module.slurm_commands, cluster)
    assert "no SLURM here" in fails(module.slurm_partition, cluster)
    program(
        tmp_path, "squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1"
    )
    assert "Unable to contact slurm controller" in fails(module.slurm_controller, cluster)


def test_a_partition_that_cannot_give_what_a_job_asks_for(tmp_path, monkeypatch):
    for name in module.COMMANDS:
        program(tmp_path, name, "echo 'gpu*|1-00:00:00|8|64000|(null)'")
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    cluster = settings_of("cluster=site", "cluster.partition=null").cluster
    assert "gpus: asks for" in fails(module.slurm_partition, cluster)
    small = settings_of("cluster=slurm").cluster
    assert module.slurm_partition(small).startswith("the default one")


# ---------------------------------------------------------------- the hub


def asked(ref, optional=False, cut_off=None):
    state, note = outcome(
        f"hub {ref}", lambda: hub_reference(ref, optional, [] if cut_off is None else cut_off)
    )
    return state, note


def test_a_gated_model_fails_until_its_terms_are_accepted(server, monkeypatch):  # noqa: F811
    server.add("meta/llama", {"config.json": b"{}"}, gated=True)
    ref = hub.Reference("meta/llama")
    monkeypatch.setenv("HF_TOKEN", READER)
    state, note = asked(ref)
    assert state == "fail" and "gated" in note and "accept them on" in note and READER not in note
    monkeypatch.setenv("HF_TOKEN", MEMBER)
    state, note = asked(ref)
    assert state == "ok" and "launch/prefetch.py" in note
    assert server.downloads() == []


def test_what_the_hub_lacks_fails_unless_the_grid_can_do_without(server):  # noqa: F811
    server.add("maker/adapters", {f"sarcasm/{name}": content for name, content in adapter_files().items()})
    assert asked(hub.Reference("maker/adapters", subfolder="sarcasm"))[0] == "ok"
    for ref in (hub.Reference("maker/adapters", subfolder="humor"), hub.Reference("maker/none")):
        assert asked(ref)[0] == "fail"
        assert asked(ref, optional=True)[0] == "skip"


def test_what_is_in_the_cache_is_checked_there_and_not_asked_for(server):  # noqa: F811
    server.add("maker/adapter", adapter_files())
    ref = hub.Reference("maker/adapter")
    place = hub.fetch(ref)
    server.requests.clear()
    assert asked(ref) == ("ok", "in the cache, whole")
    weights = (place / "adapter_model.safetensors").resolve()
    weights.write_bytes(weights.read_bytes()[:-100])
    state, note = asked(ref)
    assert state == "fail" and "adapter_model.safetensors" in note
    assert server.requests == []


def test_a_hub_that_cannot_be_reached_is_asked_once(server, monkeypatch):  # noqa: F811
    at("http://127.0.0.1:9", monkeypatch)
    cut_off: list[str] = []
    state, note = asked(hub.Reference("maker/one"), cut_off=cut_off)
    assert state == "fail" and "no connection" in note and len(cut_off) == 1
    monkeypatch.setattr(module, "_ask_hub", lambda *args: pytest.fail("asked again"))
    state, note = asked(hub.Reference("maker/two"), cut_off=cut_off)
    assert state == "fail" and "not in the cache" in note and "launch/prefetch.py" in note


# ---------------------------------------------------------------- W&B


@pytest.fixture
def online(monkeypatch):
    with wandb_stub() as stub:
        for name, value in stub.environment().items():
            monkeypatch.setenv(name, value)
        yield stub


def test_a_key_that_wandb_takes_refuses_or_lacks(online, tmp_path, monkeypatch):
    settings = settings_of("tracking=online")
    assert "runs go to someone/offscript" in wandb(settings)
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert "rejects the API key" in fails(wandb, settings)
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert "wandb login (or set WANDB_API_KEY)" in fails(wandb, settings)
    (tmp_path / "netrc").write_text(f"machine {online.url[7:]}\n  login user\n  password {KEY}\n")
    assert wandb(settings).startswith(online.url)


def test_a_wandb_that_is_down(online, monkeypatch):
    online.fail(503)
    assert "answers 503" in fails(wandb, settings_of("tracking=online"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert "no answer" in fails(wandb, settings_of("tracking=online"))
    assert outcome("", lambda: wandb(settings_of("tracking=offline")))[0] == "skip"


# ---------------------------------------------------------------- models


def test_a_chat_template_that_drops_the_system_text_fails(tmp_path):
    folder = shutil.copytree(family("qwen"), tmp_path / "qwen")
    model = family_settings("qwen", folder)
    assert chat_template(model).startswith("takes user, assistant, tool")
    template = folder / "chat_template.jinja"
    template.write_text(
        "{% for m in messages if m.role != 'system' %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    )
    assert "leaves out what the system says" in fails(chat_template, model)
    assert chat_template(model.model_copy(update={"template": TemplateSettings(system_role="user")}))


def test_a_model_that_is_not_here_or_too_large_is_stood_in_for(monkeypatch):
    experiment = experiment_of("experiment=demo", "grid.model=[llama]")
    monkeypatch.setattr(hub, "cached", lambda ref: None)
    model, why = module._practised(experiment)
    assert model.name == "pocket" and "llama is not at hand" in why
    with pytest.raises(Skip, match="not fetched yet"):
        chat_template(experiment.planner.options.model["llama"])
    monkeypatch.setattr(hub, "cached", lambda ref: HOME / "assets/pocket")
    monkeypatch.setattr(hub, "fetch", lambda ref: HOME / "assets/pocket")
    assert module._practised(experiment)[0].name == "llama"
    monkeypatch.setattr(module, "SMALL_BYTES", 1000)
    assert "too large" in module._practised(experiment)[1]
