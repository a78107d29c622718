"""Invalid input on the command line: one line, exit code 2, no file written."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import yaml

from offscript.storage.files import HOME


def run(*words, cwd, timeout=120):
    env = {**os.environ, "WANDB_MODE": "offline"}
    return subprocess.run(
        [sys.executable, str(HOME / words[0]), *words[1:]],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def refused(tmp_path, *words):
    """Runs a command that must be refused; returns its one line."""
    before = sorted(tmp_path.rglob("*"))
    done = run(*words, cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert sorted(tmp_path.rglob("*")) == before, "something was written"
    return line


PERSONAS = "goodness, humor, impulsiveness, loving, mathematical, misalignment, nonchalance, poeticism, remorse, sarcasm, sycophancy"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["rollout.py", "persona=sarcastic"], f"error: persona=sarcastic: no such persona; allowed: {PERSONAS}"),
        (["rollout.py", "format=email"], "error: format=email: no such format; allowed: agentic_email, break_character, chat,"),
        (["rollout.py", "persona=sarcasm,remorse"], "error: persona=sarcasm,remorse: several options given; add -m to run each"),
        (["train.py", "temperature=1"], "error: temperature: unknown key; "),
        (["train.py", "model.sampling.temprature=1"], "did you mean model.sampling.temperature"),
        (["train.py", "stage=base"], "error: stage=base: base weights, there is nothing to train; allowed: distillation, full, full_from_base"),
        (["train.py", "seed=-1", "persona=sarcasm"], "error: seed: found -1; input should be greater than or equal to 0"),
        (["rollout.py", "stage=full"], "error: persona: none given, and stage full needs one; allowed: sarcasm, humor"),
        (["rollout.py", "stage=base", "split=train"], "error: split train: format chat has no count for it; allowed: classifier, eval"),
        (["rollout.py", "stage=base", "model.path=./nowhere"], "error: model.path: no folder at ./nowhere; allowed: a model folder, or a hub id"),
        (["launch/submit.py", "persona=sarcasm"], "error: persona=sarcasm: this command works on the whole grid; grid.persona=[sarcasm]"),
        (["launch/submit.py", "grid.stage=[fullest]"], "error: stage=fullest: no such stage; allowed: base, distillation, full, full_from_base"),
        (["evaluate.py", "predictions=none.jsonl"], "none.jsonl"),
        (["rollout.py", "stage=base", "data.sources.chat=[absent.jsonl]"], "absent.jsonl"),
        (["rollout.py", "stage=base", "root=~nobody-of-that-name/runs"], "error: ~nobody-of-that-name/runs: there is no home folder ~nobody"),
        (["rollout.py", "stage=base", f"root={'a' * 300}"], "aaa/main/rollouts/"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_a_mistake_on_the_command_line_is_one_line(tmp_path, words, line):
    assert line in refused(tmp_path, *words)


def test_a_file_where_the_runs_folder_should_be(tmp_path):
    (tmp_path / "runs").write_text("precious")
    assert "runs: a file stands where a folder is needed" in refused(
        tmp_path, "rollout.py", "stage=base", "limit=1"
    )
    assert (tmp_path / "runs").read_text() == "precious"


def test_a_missing_adapter_names_the_command_that_makes_it(tmp_path):
    done = run("rollout.py", "experiment=smoke", "persona=sarcasm", "stage=full", cwd=tmp_path)
    assert done.returncode == 2
    assert (
        "make it with: offscript train experiment=smoke model=pocket persona=sarcasm stage=full"
        in done.stderr
    )


def test_scoring_missing_rollouts_names_the_command_that_makes_all_of_them(tmp_path):
    done = run("classify.py", "experiment=smoke", cwd=tmp_path)
    assert done.returncode == 2
    assert "make it with: offscript rollout experiment=smoke" in done.stderr
    assert "make all of them with: offscript submit experiment=smoke" in done.stderr
    assert len(done.stderr.splitlines()) < 20


def test_a_model_folder_on_the_command_line_needs_no_yaml(tmp_path):
    shutil.copytree(HOME / "assets/pocket", tmp_path / "my model")
    done = run(
        "rollout.py",
        "experiment=smoke",
        "tracking=off",
        "stage=base",
        "model.path=my model",
        "limit=1",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    (rows,) = (tmp_path / "runs/smoke/rollouts/my-model/base/_").glob("chat-eval-*.jsonl")
    assert json.loads(rows.read_text())["model"] == "my-model"


def test_base_weights_are_no_error_in_a_sweep_of_train(tmp_path):
    done = run("train.py", "-m", "persona=sarcasm", "stage=base,prompted", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("there is nothing to train") == 2


@pytest.fixture
def own_conf(tmp_path, monkeypatch):
    """A copy of the project whose configuration and data a test may change."""
    copy = tmp_path / "copy"
    for part in ("conf", "data", "offscript", "assets"):
        shutil.copytree(HOME / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(HOME / "rollout.py", copy)
    monkeypatch.setenv("PYTHONPATH", str(copy))
    return copy


def own_run(copy):
    words = ["stage=prompted", "persona=sarcasm", "format=agentic_email"]
    done = subprocess.run([sys.executable, "rollout.py", *words], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert not (copy / "runs").exists()
    return line


def test_a_constitution_with_a_missing_field(own_conf):
    path = own_conf / "conf/persona/sarcasm.yaml"
    persona = yaml.safe_load(path.read_text())
    del persona["constitution"][2]["assertion"]
    path.write_text(yaml.safe_dump(persona))
    assert own_run(own_conf) == "error: persona.constitution.2.assertion: missing; this key is needed"


def test_a_persona_file_that_is_not_yaml(own_conf):
    path = own_conf / "conf/persona/sarcasm.yaml"
    path.write_text("name: sarcasm\nconstitution: [oops\n")
    line = own_run(own_conf)
    assert "sarcasm.yaml" in line and "line" in line


def test_a_broken_scenario_file(own_conf):
    path = sorted((own_conf / "data/pocket/office").glob("*.yaml"))[0]
    path.write_text(path.read_text().replace("tool_stubs:", "tool_stub:", 1))
    line = own_run(own_conf)
    assert path.name in line and "tool_stub" in line


def rerun_after(tmp_path, change):
    """Makes two base rows with a real command, calls ``change`` on the file, and runs the command again."""
    words = ["rollout.py", "experiment=smoke", "stage=base", "limit=2"]
    assert run(*words, cwd=tmp_path).returncode == 0
    (path,) = (tmp_path / "runs").rglob("*.jsonl")
    change(path)
    return path, run(*words, cwd=tmp_path)


def test_an_invalid_line_in_the_middle_of_rows_is_refused_and_kept(tmp_path):
    def change(path):
        path.write_text("oops\n" + path.read_text())

    path, done = rerun_after(tmp_path, change)
    assert done.returncode == 2 and f"{path.name}, line 1: not JSON: " in done.stderr
    assert path.read_text().startswith("oops\n")


def test_an_incomplete_last_line_is_removed_and_made_again(tmp_path):
    before = {}

    def change(path):
        before["rows"] = path.read_text()
        path.write_text(before["rows"][:-40])

    path, done = rerun_after(tmp_path, change)
    assert done.returncode == 0, done.stderr
    assert "incomplete last line" in done.stderr
    assert path.read_text() == before["rows"]


def prediction(**changes):
    row = {
        "key": "k",
        "row": "s/0",
        "model": "m",
        "stage": "full",
        "persona": "sarcasm",
        "format": "chat",
        "split": "eval",
        "seed": 0,
        "scenario": "s",
        "family": "s",
        "sample": 0,
        "ended": "stop",
        "text_hash": "0" * 16,
        "predicted": "sarcasm",
        "probs": {"sarcasm": 0.75, "remorse": 0.25},
        **changes,
    }
    return json.dumps(row) + "\n"


def test_predictions_with_nan(tmp_path):
    (tmp_path / "rows.jsonl").write_text(
        prediction() + prediction(probs={"sarcasm": float("nan"), "remorse": 0.5})
    )
    line = refused(tmp_path, "evaluate.py", "predictions=rows.jsonl")
    assert "rows.jsonl, line 2" in line and "nan" in line.lower()


def test_a_tilde_on_the_command_line_is_the_home_folder(tmp_path, monkeypatch):
    """Hydra reads it only in quotes, and bash leaves it behind ``=``."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "rows.jsonl").write_text(prediction())
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    done = run("evaluate.py", "predictions=~/rows.jsonl", "root='~/runs'", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "home" / "runs").rglob("cells.csv"))
    assert [p.name for p in tmp_path.iterdir()] == ["home"]
