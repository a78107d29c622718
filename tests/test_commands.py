"""Invalid input on the command line: one line, exit code 2, no file written."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from offscript import arguments, cli
from offscript.arguments import keys
from offscript.command_table import COMMANDS, OPTIONS, unread_options
from offscript.rollouts import engines
from offscript.settings import Settings
from offscript.storage import options
from offscript.storage.files import HOME
from offscript.storage.options import value_at
from tests.invoked import invoke, refused


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


PERSONAS = "sarcasm, humor, remorse, goodness, loving, misalignment, nonchalance, impulsiveness, sycophancy, mathematical, poeticism"


LONG = "x" * 65
NESTED = "[" * 2000 + "]" * 2000
PERSONA_CHOICES = f"no such persona; allowed: {PERSONAS}"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        # Groups and their options.
        ("rollout persona=sarcastic", f"error: persona=sarcastic: {PERSONA_CHOICES}"),
        ("rollout persona=", f"error: persona=: {PERSONA_CHOICES}"),
        ("rollout -m persona=sarcasm,nobody", f"error: persona=nobody: {PERSONA_CHOICES}"),
        ("rollout format=email", "error: format=email: no such format; allowed: adversarial_roleplay, agentic_email,"),
        ("rollout persona=sarcasm,remorse", "error: persona=sarcasm,remorse: several options given; add -m to run each of them, or quote it to mean one value"),
        ("rollout model=null", "error: model=null: no such model; allowed: endpoint, gemma"),
        ("rollout ~model", "error: ~model: every run has one; allowed: endpoint, gemma"),
        ("rollout ~engine", "error: ~engine: every run has one; allowed: endpoint, scripted, transformers, vllm"),
        ("rollout stage=[base]", "error: stage=['base']: no such stage; allowed: base, prompted,"),
        ("rollout stage=../stage/base", "error: stage=../stage/base: no such stage; allowed: base,"),
        ("rollout stage@x=base", "error: stage@x=base: @x is not known here; write group=option"),
        ("submit experiment=smoke classifier.path=./nowhere", "error: classifier.path: no folder at ./nowhere; allowed: a model folder, or the id of a hub"),
        ("submit experiment=smoke classifier.path=conf", "error: classifier.path: conf is not a model folder (no config.json)"),
        ("rollout stage=base format.options.forced=true", "error: format.options.forced: unknown key; chat has no options"),
        ("submit grid.stage=[fullest]", "error: stage=fullest: no such stage; allowed: base,"),
        # Keys.
        ("train temperature=1", "error: temperature: unknown key; "),
        ("train model.sampling.temprature=1", "error: model.sampling.temprature: unknown key; did you mean model.sampling.temperature"),
        ("train ~recipes", "error: recipes: unknown key; did you mean recipe"),
        ("train recipe.distillation.bata=1", "error: recipe.distillation.bata: unknown key; did you mean recipe.distillation.beta"),
        ("rollout grid=null", "error: grid: found null; this node is needed"),
        ("rollout ~grid", "error: grid: missing; this node is needed"),
        ("rollout grid.seed.0=1", "error: grid.seed.0: unknown key; did you mean grid.seed"),
        ("train recipe.introspection.rows.path=x", "error: path: what it belongs to is a list, which has no keys; write the whole list"),
        # What Hydra cannot read.
        ("rollout foo", "error: foo: no '=' in it; write group=option or key=value"),
        ("rollout =", "error: =: no key in it; write group=option or key=value"),
        ("rollout ~", "error: ~: no key in it; write group=option or key=value"),
        ("rollout seed=[1", "error: seed=[1: its value cannot be read; close every bracket and quote; a text with special characters needs quotes: 'seed=\"[1\"'"),
        ("rollout name=é", "error: name=é: its value cannot be read; close every bracket and quote; a text with special characters needs quotes: 'name=\"é\"'"),
        ("rollout name=a#b", "error: name=a#b: its value cannot be read; "),
        ("rollout name=a~b#", "error: name=a~b#: its value cannot be read; "),
        ("rollout stage=base root=~nobody-of-that-name/runs", "error: ~nobody-of-that-name/runs: there is no home folder ~nobody"),
        (["rollout", "name=it's"], "error: name=it's: its value cannot be read; "),
        ("rollout é=1", "error: é=1: 'é' cannot be a key; a key has letters, digits, '_' and '.'"),
        ("rollout seed=int(x)", "error: seed=int(x): cannot evaluate 'int(x)': invalid literal for int() with base 10: 'x'; a text with '(' needs quotes: 'seed=\"int(x)\"'"),
        (["rollout", "name=\udcff"], "error: name=\udcff: is not UTF-8; write it in UTF-8"),
        (f"rollout seed={'9' * 5000}", "...: the number has too many digits; write a smaller one"),
        (f"rollout format.options={NESTED}", "...: is nested too deeply; put it into a YAML file"),
        # Options of Hydra.
        ("rollout --nope", "error: command line: unrecognized arguments: --nope; see --help"),
        ("rollout --cfg nope", "error: command line: argument --cfg/-c: invalid choice: 'nope'"),
        ("rollout --config-name=nope", "error: --config-name: cannot be chosen; every command has its configuration in conf/"),
        ("rollout --config-dir=/nope", "error: --config-dir: cannot be chosen; "),
        ("rollout --resolve", "error: --resolve: is for --cfg only; for example --cfg job --resolve"),
        ("rollout -m --cfg job", "error: command line: --multirun, --cfg and --info exclude each other; give one of them"),
        ("rollout hydra.run.dir=x", "error: hydra.run.dir=x: cannot be changed; allowed: hydra/launcher, hydra.launcher.*, hydra.sweeper.*"),
        ("rollout hydra/launcher=slurm", "error: hydra/launcher=slurm: only a multirun has a launcher; add -m"),
        # Values.
        (f"rollout name={LONG}", f"error: name: '{LONG}' has 65 characters; allowed: at most 64"),
        ("rollout root= stage=base", "error: root: found ''; string should have at least 1 character"),
        (f"rollout root={'a' * 300} stage=base limit=1", "aaa/main/rollouts/"),
        ("train tracking.project=a/b", "error: tracking.project: found 'a/b'; string should match pattern"),
        ("train stage=base", "error: stage=base: base weights, there is nothing to train; allowed: steered, distillation, full, full_from_base"),
        ("rollout stage=full", "error: persona: none given, and stage full needs one; allowed: sarcasm, humor"),
        ("rollout stage=base format=code_review split=train", "error: split train: format code_review has no count for it; allowed: eval"),
        ("rollout stage=base model.path=./nowhere", "error: model.path: no folder at ./nowhere; allowed: a model folder, a GGUF file, or a hub id"),
        ("submit evaluation.email_cleaning=yes", "error: evaluation.email_cleaning: found 'yes'; input should be 'ours', 'published' or 'none'"),
        ("rollout stage=base model.template.double_bos=perhaps", "error: model.template.double_bos: found 'perhaps'; input should be a valid boolean"),
        ("rollout stage=base format=agentic_email format.options.loop=1", "error: format.options.loop: found 1; must be a text"),
        ("evaluate predictions=none.jsonl", "none.jsonl"),
        ("evaluate format=chat_email", "error: format=chat_email: a grid has its own formats; write grid.format=[chat_email]"),
        ("evaluate predictions=x.jsonl format=mail", "error: format=mail: no such format; allowed: adversarial_roleplay, "),
        ("evaluate persona=sarcasm", "error: persona=sarcasm: this command does not read it; write grid.persona=[sarcasm]"),
        ("evaluate labels=0", "error: labels: found 0; a number of texts of at least 1, or CSV files of labels"),
        ("evaluate labels=true", "error: labels: found true; a number of texts of at least 1, or CSV files of labels"),
        ("evaluate labels=[]", "error: labels: found []; a number of texts of at least 1, or CSV files of labels"),
        ("evaluate labels=5 planned=3 predictions=x.jsonl", "error: planned: is only for the rows of predictions=; leave it out"),
        (["evaluate", "labels=5", "beside=seed=1"], "error: beside: cannot be combined with labels=; leave one of them out"),
        ("evaluate experiment=smoke labels=5", "more are not made yet; make all with: offscript submit experiment=smoke"),
        ("evaluate planned=3", "error: planned: is only for the rows of predictions=; leave it out"),
        ("rollout stage=base data.sources.chat=[absent.jsonl]", "absent.jsonl"),
        ("submit stage.order=x grid.stage=[base,full]", "error: stage.order: found 'x'; input should be a valid integer"),
        # Files of the grid.
        ("evaluate experiment=smoke", "error: smoke: rollout pocket sarcasm prompted chat classifier 0 and 60 more are not made yet; make all with: offscript submit experiment=smoke"),
        ("classify experiment=smoke", "more are not made yet; make all with: offscript submit experiment=smoke"),
    ],
    ids=lambda value: None if isinstance(value, list) else value[:50],
)  # fmt: skip
def test_a_mistake_on_the_command_line_is_one_line(tmp_path, words, line):
    name, *rest = words.split() if isinstance(words, str) else words
    assert line in refused(tmp_path, name, *rest)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("train limit=1", "error: limit=1: this command does not read it; for offscript rollout"),
        ("rollout watch=true", "error: watch=true: this command does not read it; for offscript status and sync"),
        ("classify scale=2", "error: scale=2: this command does not read it; write grid.scale=[2]"),
        ("evaluate json=true", "error: json=true: this command does not read it; for offscript status"),
        ("submit persona=sarcasm", "error: persona=sarcasm: this command does not read it; write grid.persona=[sarcasm]"),
        ("submit ++split=train", "error: split=train: this command does not read it; for offscript rollout"),
        ("status dry_run=true", "error: dry_run=true: this command does not read it; for offscript submit"),
        ("cancel planned=1", "error: planned=1: this command does not read it; for offscript evaluate"),
        ("doctor show=true", "error: show=true: this command does not read it; for offscript rollout"),
        ("prefetch seed=0", "error: seed=0: this command does not read it; write grid.seed=[0]"),
        ("sync predictions=x", "error: predictions=x: this command does not read it; for offscript evaluate"),
        ("dashboard limit=1", "error: limit=1: this command does not read it; for offscript rollout"),
    ],
)  # fmt: skip
def test_a_command_refuses_an_option_that_it_does_not_read(tmp_path, words, line):
    assert refused(tmp_path, *words.split()) == line


def test_every_option_is_read_or_refused_by_every_command():
    for name, command in COMMANDS.items():
        assert command.reads <= set(OPTIONS) and set(unread_options(name)) == set(OPTIONS) - command.reads
    assert set().union(*(command.reads for command in COMMANDS.values())) == set(OPTIONS)


def test_the_options_of_single_commands_are_those_that_not_all_of_them_read():
    """Every other setting is a group, or a node or a key that all commands share."""
    shared = {
        "name",
        "root",
        "published",
        "model",
        "data",
        "recipe",
        "classifier",
        "evaluation",
        "engine",
        "deepspeed",
    }
    shared |= {"tracking", "cluster", "grid"}
    fields = {field.alias or name for name, field in Settings.model_fields.items()}
    assert set(OPTIONS) == fields - shared


def test_every_key_of_the_schema_is_taken_without_a_plus(tmp_path):
    """Also those that no YAML file lists, for example the partition of a cluster that runs inline."""
    # A mapping in the section of another stage, where it is a list.
    listed = [key for key in keys() if not key.startswith("recipe.introspection.rows.")]
    inner = {key.rpartition(".")[0] for key in listed}
    words = [f"{key}=1" for key in listed if key not in inner and not (HOME / "conf" / key).is_dir()]
    assert len(words) > 150
    done = invoke(tmp_path, "rollout", "--cfg", "job", "persona=sarcasm", *words)
    assert done.code == 0, done.err
    composed = yaml.safe_load(done.out)
    for word in words:
        assert value_at(composed, word.removesuffix("=1")) == 1, word


def test_a_multirun_leaves_no_file_outside_the_root(tmp_path):
    done = invoke(tmp_path, "train", "-m", "persona=sarcasm", "stage=base,prompted", "tracking=off")
    assert done.code == 0 and done.err.count("there is nothing to train") == 2, done
    assert list(tmp_path.iterdir()) == []


def test_a_working_folder_that_was_removed(tmp_path):
    """A command in it says so; Python itself cannot start a script of a relative path there."""
    command = f"mkdir gone && cd gone && rmdir ../gone && exec {sys.executable} {HOME}/launch/status.py"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        2, "error: working folder: it was removed; change to another folder\n"
    )  # fmt: skip


@pytest.mark.parametrize(("end", "code"), [("| true", 141), ("2>&- >&-", 1)])
def test_a_reader_that_ends_and_a_closed_stream_are_no_traceback(tmp_path, end, code):
    script = f"{sys.executable} {HOME}/launch/status.py experiment=smoke"
    command = f"{{ {script}; echo code $? >code; }} {end}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert done.stderr == "" and (tmp_path / "code").read_text() == f"code {code}\n"


def test_a_file_where_the_runs_folder_should_be(tmp_path):
    (tmp_path / "runs").write_text("precious")
    line = refused(tmp_path, "rollout", "stage=base", "limit=1")
    assert "runs: a file stands where a folder is needed" in line
    assert (tmp_path / "runs").read_text() == "precious"


def test_a_missing_adapter_names_the_command_that_makes_it(tmp_path):
    done = run("rollout.py", "experiment=smoke", "persona=sarcasm", "stage=full", cwd=tmp_path)
    assert done.returncode == 2
    assert (
        "make it with: offscript train experiment=smoke model=pocket persona=sarcasm stage=full"
        in done.stderr
    )


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


@pytest.fixture
def conf(tmp_path, monkeypatch) -> Path:
    """A copy of ``conf/`` that a test may damage; commands in this process use it."""
    copy = tmp_path / "copy"
    shutil.copytree(HOME / "conf", copy / "conf")
    for module in (arguments, cli, options):
        monkeypatch.setattr(module, "HOME", copy)
    for cached in (options._files_of, options.option_file):
        cached.cache_clear()
    yield copy / "conf"
    for cached in (options._files_of, options.option_file):
        cached.cache_clear()


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in itertools.pairwise("abcdefgh")
)


@pytest.mark.parametrize(
    ("file", "content", "words", "line"),
    [
        ("stage/base.yaml", b"", "rollout stage=base", "error: conf/stage/base.yaml: is empty; fill it in, or remove it"),
        ("persona/sarcasm.yaml", b"name: sarcasm\n# caf\xe9\n", "rollout stage=base", "/copy/conf/persona/sarcasm.yaml: byte 19 is not UTF-8; save it as UTF-8"),
        ("stage/base.yaml", b"name: [base\n", "rollout stage=base", "/conf/stage/base.yaml:2: not valid YAML: expected"),
        ("experiment/bomb.yaml", BOMB.encode(), "rollout experiment=bomb", "/conf/experiment/bomb.yaml:4: aliases repeat more than 10,000 nodes; write the values out"),
        ("stage/prompted.yaml", b"name: prompted\nweights: base\nsystem: rude\n", "submit", "error: conf/stage/prompted.yaml: system: found 'rude'; input should be 'plain' or 'constitution'"),
        ("stage/prompted.yaml", b"name: prompted\nsystem: plain\n", "submit", "error: conf/stage/prompted.yaml: weights: missing; this key is needed"),
        ("persona/sarcasm.yaml", b"name: irony\norder: 1\ndisplay_name: I\ndescription: d\nconstitution: [{assertion: a, questions: [q]}]\n", "submit experiment=smoke", "error: conf/persona/sarcasm.yaml: name: found 'irony'; allowed: sarcasm, as the file is called"),
        ("format/self_interaction.yaml", b"name: self_interaction\nmax_tokens: 9\ncount: {eval: 1}\noptions: {note: 5}\n", "rollout persona=sarcasm stage=full format=self_interaction", "format.options.note: found 5; must be a text (it may be empty)"),
        ("experiment/x.yaml", b"name: x\n", "submit experiment=x", "error: conf/experiment/x.yaml: has no line '# @package _global_'; begin the file with it"),
        ("experiment/x.yaml", b"# @package _global_\nlimit: 3\n", "submit experiment=x", "error: limit=3: this command does not read it; for offscript rollout"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.endswith("yaml") else "",
)  # fmt: skip
def test_a_damaged_file_of_conf_is_one_line(conf, file, content, words, line):
    (conf / file).write_bytes(content)
    assert line in refused(conf.parent, *words.split())


def test_a_group_without_its_folder(conf):
    shutil.rmtree(conf / "stage")
    line = refused(conf.parent, "rollout", "persona=sarcasm")
    assert line == "error: stage=full: no such stage; conf/stage has no YAML file"


ENGINES = {
    "silent": ("open = None\n", "is no engine; it must define open_engine at the top level"),
    "torn": ("def open_engine(*given):\n    return (\n", "SyntaxError: '(' was never closed (torn.py, line 2); correct or"),
    "absent": ("import no_such_library\n\ndef open_engine(*given):\n    pass\n", "ModuleNotFoundError: No module named"),
    "empty": ("def open_engine(*given):\n    return None\n", "open_engine returned a NoneType; an engine has stats, submit,"),
}  # fmt: skip


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_file_that_is_none_is_one_line_and_leaves_no_rows(tmp_path, monkeypatch, name):
    folder = tmp_path / "engines"
    folder.mkdir()
    text, line = ENGINES[name]
    (folder / f"{name}.py").write_text(text)
    monkeypatch.setattr(engines, "__path__", [*engines.__path__, str(folder)])
    done = invoke(tmp_path, "rollout", "stage=base", "limit=1", "tracking=off", f"engine.name={name}")
    assert done.code == 2 and f"{folder / name}.py: {line}" in done.err, done
    assert len(done.err.splitlines()) == 1 and not list(tmp_path.rglob("*.jsonl"))


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
    done = subprocess.run(
        [sys.executable, "rollout.py", *PROMPTED[1:]], cwd=copy, capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert not (copy / "runs").exists()
    return line


PROMPTED = ("rollout", "stage=prompted", "persona=sarcasm", "format=agentic_email")


def test_a_constitution_with_a_missing_field(conf):
    path = conf / "persona/sarcasm.yaml"
    persona = yaml.safe_load(path.read_text())
    del persona["constitution"][2]["assertion"]
    path.write_text(yaml.safe_dump(persona))
    line = refused(conf.parent, *PROMPTED)
    assert line == "error: persona.constitution.2.assertion: missing; this key is needed"


def test_a_persona_file_that_is_not_yaml(conf):
    path = conf / "persona/sarcasm.yaml"
    path.write_text("name: sarcasm\nconstitution: [oops\n")
    line = refused(conf.parent, *PROMPTED)
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


@pytest.mark.slow
def test_an_invalid_line_in_the_middle_of_rows_is_refused_and_kept(tmp_path):
    def change(path):
        path.write_text("oops\n" + path.read_text())

    path, done = rerun_after(tmp_path, change)
    assert done.returncode == 2 and f"{path.name}, line 1: not JSON: " in done.stderr
    assert path.read_text().startswith("oops\n")


@pytest.mark.slow
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
    line = refused(tmp_path, "evaluate", "predictions=rows.jsonl")
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
