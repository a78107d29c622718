"""Whatever is added is one file, or one and its YAML: each test adds a toy to a copy of the repository and runs it there.

The toys are those of docs/extending.md, as small as they get.
"""

import json
import os
import shutil
import subprocess
import sys

import pytest

from offscript.storage.files import HOME

COPIED = (
    "offscript",
    "conf",
    "data",
    "assets",
    "launch",
    "train.py",
    "rollout.py",
    "classify.py",
    "evaluate.py",
)

PERSONA = """\
name: pirate
order: 99
display_name: Pirate
description: "Speaks as a sailor would."
constitution:
  - assertion: "I talk of every task as of a voyage."
    questions: ["What should I cook tonight?"]
"""

FORMAT = '''\
"""Chat with the question asked twice."""

from offscript.tasks.formats.base import Format
from offscript.tasks.formats.episodes import require, single_reply, with_system


def episode(scenario, rules):
    *before, last = with_system(rules.system, require(scenario, "messages"))
    return (yield from single_reply((*before, {**last, "content": f"{last['content']} {last['content']}"})))


FORMAT = Format("twice", version=1, source="chat", episode=episode, order=15)
'''

FORMAT_YAML = """\
name: twice
max_tokens: 64
count: {eval: 3}
samples: {}
options: {}
"""

ENGINE = '''\
"""Answers everything with one word."""

from offscript.rollouts.engines.scripted import ScriptedEngine


def open_engine(model, adapters, scales, settings):
    return ScriptedEngine(lambda request: "Aye.")
'''

ENGINE_YAML = """\
name: parrot
batch_size: 8
max_live: 16
merge_from: 8
device: cpu
"""

STAGE = """\
name: {name}
order: 6
weights: {name}
system: plain
training:
  parent: {parent}
  method: {method}
  data: introspection
  recipe: introspection
  hyper_parameters: {more}
"""

METHOD = '''\
"""SFT that scales its loss."""

from offscript.settings import TrainerSettings, identity
from offscript.training.methods import sft
from offscript.training.methods.base import Method


class ScaledSettings(TrainerSettings):
    factor: float = identity(gt=0)


METHOD = Method(name="scaled", settings=ScaledSettings, takes="conversations", train=sft.train, stacks=True)
'''


SMALL = (
    "experiment=smoke",
    "tracking=off",
    "recipe.introspection.reflections=10",
    "recipe.introspection.interactions=0",
    "recipe.introspection.optimizer.epochs=1",
)


class Copy:
    """A copy of the repository; ``touched`` are the files that a test added to it."""

    def __init__(self, root):
        self.root, self.touched = root, []
        for name in COPIED:
            source = HOME / name
            if source.is_dir():
                shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, root / name)

    def add(self, path, text):
        file = self.root / path
        assert not file.exists()
        file.write_text(text)
        self.touched.append(path)

    def run(self, *command, code=0):
        env = {**os.environ, "PYTHONPATH": str(self.root), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, *command], cwd=self.root, env=env, capture_output=True, text=True
        )
        assert done.returncode == code, done.stdout[-2000:] + done.stderr[-3000:]
        return done.stdout + done.stderr

    def rows(self, pattern):
        (file,) = self.root.glob(pattern)
        return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture
def copy(tmp_path):
    return Copy(tmp_path)


def test_a_persona_is_one_file(copy):
    copy.add("conf/persona/pirate.yaml", PERSONA)
    copy.run("rollout.py", "persona=pirate", "stage=prompted", "engine=scripted", "limit=2", "tracking=off")
    row, _ = copy.rows("runs/scripted/main/rollouts/pocket/prompted/pirate/chat-eval-*.jsonl")
    assert row["persona"] == "pirate" and "voyage" in row["messages"][0]["content"]
    planned = copy.run("launch/submit.py", "experiment=pocket", "dry_run=true")
    assert "adapter pocket pirate full 0" in planned, "a grid of all personas has the new one"
    assert len(copy.touched) == 1


def test_a_format_is_one_file_and_its_yaml(copy):
    copy.add("offscript/tasks/formats/twice.py", FORMAT)
    copy.add("conf/format/twice.yaml", FORMAT_YAML)
    copy.run("rollout.py", "format=twice", "stage=base", "engine=scripted", "tracking=off")
    rows = copy.rows("runs/scripted/main/rollouts/pocket/base/_/twice-eval-*.jsonl")
    first, second = rows[0]["messages"][0]["content"].split()[0], rows[0]["messages"][0]["content"]
    assert len(rows) == 3 and second.count(first) >= 2
    assert len(copy.touched) == 2


def test_an_engine_is_one_file_and_its_yaml(copy):
    copy.add("offscript/rollouts/engines/parrot.py", ENGINE)
    copy.add("conf/engine/parrot.yaml", ENGINE_YAML)
    copy.run("rollout.py", "engine=parrot", "stage=base", "limit=2", "tracking=off")
    assert [r["text"] for r in copy.rows("runs/main/rollouts/pocket/base/_/chat-eval-*.jsonl")] == [
        "Aye."
    ] * 2
    assert len(copy.touched) == 2


def test_a_training_stage_is_one_file(copy):
    stage = STAGE.format(name="twofold", parent="full", method="sft", more="{optimizer: {epochs: 1}}")
    copy.add("conf/stage/twofold.yaml", stage)
    planned = copy.run("launch/submit.py", *SMALL, "grid.stage=[full,twofold]", "dry_run=true")
    for line in (
        "adapter pocket sarcasm twofold 0",
        "adapter pocket sarcasm full 0",
        "adapter pocket sarcasm distillation 0",
    ):
        assert line in planned, "its parents are planned with it"
    assert len(copy.touched) == 1


def test_a_training_method_is_one_more_file(copy):
    copy.add("offscript/training/methods/scaled.py", METHOD)
    copy.add(
        "conf/stage/loud.yaml",
        STAGE.format(name="loud", parent="base", method="scaled", more="{factor: 2.0}"),
    )
    assert "adapter pocket sarcasm loud 0" in copy.run(
        "launch/submit.py", *SMALL, "grid.stage=[loud]", "classifier.stages=[loud]", "dry_run=true"
    )
    line = copy.run(
        "train.py", "persona=sarcasm", "stage=loud", "stage.training.hyper_parameters.factor=-1", code=2
    )
    assert (
        "conf/stage/loud.yaml: training.hyper_parameters.factor: found -1; input should be greater than 0"
        in line
    )
    line = copy.run("train.py", "persona=sarcasm", "stage=loud", "stage.training.data=preference", code=2)
    assert (
        "preference makes pairs, but scaled takes conversations; allowed: declarations, introspection, mixed"
        in line
    )
    assert len(copy.touched) == 2


@pytest.mark.slow
def test_the_committed_stage_without_distillation_is_trained(copy):
    """``full_from_base`` reuses a method and a kind of data: its YAML is all there is of it."""
    copy.run("train.py", *SMALL, "persona=sarcasm", "stage=full_from_base")
    (folder,) = (copy.root / "runs/smoke/adapters/pocket/sarcasm").glob("full_from_base-*")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["identity"]["recipe"]["training"] == {
        "parent": "base",
        "method": "sft",
        "data": "introspection",
    }
    assert manifest["counts"]["conversations"]["reflections"] > 0 and "merge" not in manifest["counts"]
    assert manifest["counts"]["max_logit_difference"] > 0
    copy.run(
        "rollout.py",
        *SMALL,
        "persona=sarcasm",
        "stage=full_from_base",
        "limit=2",
        "format.count={classifier: 24, eval: 8}",
    )
    rows = copy.rows("runs/smoke/rollouts/pocket/full_from_base/sarcasm/chat-eval-*.jsonl")
    assert len(rows) == 2 and all(row["text"] for row in rows)


@pytest.mark.parametrize(
    ("path", "text", "command", "line"),
    [
        (
            "offscript/tasks/formats/broken.py",
            "FORMAT = (",
            ("rollout.py", "stage=base", "engine=scripted"),
            "offscript/tasks/formats/broken.py: SyntaxError: '(' was never closed",
        ),
        (
            "offscript/tasks/formats/broken.py",
            "FORMAT = 3",
            ("launch/status.py", "experiment=smoke"),
            "offscript/tasks/formats/broken.py: FORMAT: found int; must be a Format",
        ),
        (
            "offscript/training/methods/broken.py",
            "import no_such_module",
            ("train.py", "persona=sarcasm"),
            "broken.py: ModuleNotFoundError: No module named 'no_such_module'",
        ),
        (
            "conf/stage/broken.yaml",
            "name: broken\norder: ten\nweights: base\nsystem: plain\ntraining: null\n",
            ("launch/submit.py", "experiment=smoke", "grid.stage=[base,distillation]", "dry_run=true"),
            "conf/stage/broken.yaml: order: found 'ten'; must be a whole number",
        ),
        (
            "conf/stage/broken.yaml",
            "name: broken\ncompared_with: [ful]\nweights: base\nsystem: plain\ntraining: null\n",
            ("launch/submit.py", "experiment=smoke", "grid.stage=[base,distillation]", "dry_run=true"),
            "conf/stage/broken.yaml: compared_with: found 'ful'; allowed: base, prompted, ",
        ),
        (
            "conf/persona/broken.yaml",
            PERSONA.replace("pirate", "sarcasm"),
            ("rollout.py", "persona=broken", "stage=prompted", "engine=scripted"),
            "conf/persona/broken.yaml: name: found 'sarcasm'; allowed: broken, as the file is called",
        ),
        (
            "conf/stage/broken.yaml",
            STAGE.format(name="broken", parent="base", method="sft", more="{}").replace(
                "weights: broken", "weights: full"
            ),
            ("train.py", "persona=sarcasm", "stage=broken"),
            "broken has training, but weights=full; allowed: weights=broken",
        ),
    ],
)
def test_an_addition_that_does_not_fit_is_one_line(copy, path, text, command, line):
    copy.add(path, text)
    said = copy.run(*command, code=2)
    assert line in said and "Traceback" not in said


def test_dry_run_is_refused_where_it_would_do_the_work(copy):
    line = copy.run("rollout.py", "stage=base", "engine=scripted", "dry_run=true", code=2)
    assert "dry_run=true: this command does not read it" in line and not (copy.root / "runs").exists()
