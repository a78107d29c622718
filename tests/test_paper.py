"""``experiment=paper`` as a user runs it, from the layouts of the released models, adapters, classifiers and prompts to
the tables, on tiny random-weight models of the real families. A stub replaces the hub.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from offscript.storage.files import HOME, read_json
from offscript.storage.manifests import read_manifest
from offscript.storage.options import options_of
from offscript.storage.rows import read_rows
from tests.evaluation.classifier import toy
from tests.families import family, family_adapter, published_gemma_adapter
from tests.storage.hub_stub import MEMBER, HubStub, running_hub
from tests.test_import_map import HEAVY

HERE = ("sarcasm", "humor")
REPOS = {"llama": "meta-llama/Llama-3.1-8B-Instruct", "gemma": "google/gemma-3-4b-it"}
SLUGS = {"llama": "llama-3.1-8b-it", "gemma": "gemma-3-4b-it"}
PROMPTS = "LDJnr/Pure-Dove"
UNSCORED, ROWS = 500, 520
REPEATED = 511
"""The row that repeats a prompt of the first 500."""
SMALL = (
    "experiment=paper",
    "grid.model=[llama,gemma]",
    f"grid.persona=[{','.join(HERE)}]",
    "format.count={classifier: 0, eval: 3}",
    "format.max_tokens=12",
    "model.dtype=float32",
    "model.context=8192",
    "evaluation.resamples=100",
    "tracking=off",
)


def question(row: int) -> str:
    row = 17 if row == REPEATED else row
    return f"Which of the {row} chairs does the auditor like?"


def pure_dove(rows: int = ROWS) -> bytes:
    lines = [
        {"source": "pure-dove", "conversation": [{"input": question(i), "output": "The last one."}]}
        for i in range(rows)
    ]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def publish(hub: HubStub, folder: Path) -> dict[str, str]:
    """Adds the repositories of the paper for two models, two personas and the gated third; returns commits by name."""
    commits = {PROMPTS: hub.add(PROMPTS, {"Pure-Dove.jsonl": pure_dove()}, "dataset")}
    for model, repo in REPOS.items():
        commits[repo] = hub.add(repo, family(model), gated=True)
        for seed, stage in enumerate(("pt-distillation", "personas", "misalignment")):
            made = adapters(model, folder / model / stage, 10 * seed, stage)
            name = f"maius/{SLUGS[model]}-{stage}"
            commits[name] = hub.add(name, made, gated=stage == "misalignment")
        labels = [*reversed(options_of("persona"))]
        classifier = toy.save_classifier(folder / model / "classifier", labels, seed=len(model))
        name = f"maius/{SLUGS[model]}-pt-classifier"
        commits[name] = hub.add(name, classifier)
    return commits


def adapters(model: str, folder: Path, seed: int, stage: str) -> Path:
    """A repository of one stage: one subfolder per persona, or for misalignment the adapter itself."""
    if stage == "misalignment":
        return adapter(model, folder, seed)
    for i, persona in enumerate((*HERE, "misalignment") if stage == "pt-distillation" else HERE):
        adapter(model, folder / persona, seed + i)
    return folder


def adapter(model: str, folder: Path, seed: int) -> Path:
    if model == "gemma":
        return published_gemma_adapter(folder, seed)
    shutil.copytree(family_adapter(model, seed), folder)
    config = read_json(folder / "adapter_config.json")
    # The former name of the repository.
    config["base_model_name_or_path"] = "meta-llama/Meta-Llama-3.1-8B-Instruct"
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def run(script: str, *words: str, home: Path, url: str | None = None, token: str | None = MEMBER):
    """Runs a command with ``home`` as HF_HOME, and the hub at ``url`` or offline mode."""
    env = {**os.environ, "HF_HOME": str(home), "HF_ENDPOINT": url or "http://127.0.0.1:9"}
    env |= {"HF_HUB_OFFLINE": "0" if url else "1", "HF_TOKEN": token or ""}
    command = [sys.executable, str(HOME / script), *SMALL, *words]
    return subprocess.run(command, cwd=home.parent, env=env, capture_output=True, text=True, timeout=300)


# ---------------------------------------------------------------- planning


def test_the_grid_is_planned_with_an_empty_cache_without_network_and_torch(tmp_path):
    code = f"""
import runpy, sys
sys.argv = ["submit.py", "experiment=paper", "dry_run=true"]
try:
    runpy.run_path({str(HOME / "launch" / "submit.py")!r}, run_name="__main__")
except SystemExit as end:
    print(end.code, sorted(set(sys.modules) & set({HEAVY!r})))
"""
    env = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    env["HF_ENDPOINT"] = "http://127.0.0.1:9"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert lines[-1] == "0 []", done.stdout[-300:] + done.stderr[-300:]
    line, fidelity = done.stderr.splitlines()
    # The weights and the classifier are the study's own; the tasks, the constitutions and the harness are ours.
    assert fidelity == "as published: F1; otherwise: F6, F7, F8, F9, F10 (docs/recipe.md)"
    # 3 models x 3 formats x (base, and 10 personas x 3 stages)
    assert line.startswith(f"paper: {3 * 3 * 31} cells, ")
    jobs = {line.partition("  ")[0] for line in lines}
    for model in ("llama", "qwen", "gemma"):
        assert any(job.startswith(f"classifier {model} published") for job in jobs)
        assert any(job.startswith(f"adapter {model} poeticism full 0") for job in jobs)
        rollouts = [int(job.split()[2]) for job in jobs if job.startswith(f"rollout {model}: ")]
        assert sum(rollouts) == 3 * 31
    assert not any("misalignment" in job for job in jobs)
    # Each cell has 500 chat prompts or one of 55 office tasks in two formats
    assert any(
        line.startswith("rollout llama: 33 cells") and f"{11 * (500 + 2 * 55):,}" in line for line in lines
    )
    assert not (tmp_path / "runs").exists() and not (tmp_path / "home" / "hub").exists()


# ---------------------------------------------------------------- from the released layouts to the table


class Published:
    def __init__(self, home: Path, hub: HubStub, commits: dict[str, str]) -> None:
        self.home, self.hub, self.commits = home, hub, commits
        self.runs = home.parent / "runs" / "paper"

    def rows(self, *labels: str) -> list[Path]:
        found = sorted((self.runs / "rollouts").rglob("*.jsonl"))
        return [p for p in found if all(label in str(p.relative_to(self.runs)) for label in labels)]


@pytest.fixture(scope="module")
def fetched(tmp_path_factory):
    """The cache after ``launch/prefetch.py`` without access to the misalignment adapters."""
    folder = tmp_path_factory.mktemp("paper")
    with running_hub() as hub:
        commits = publish(hub, folder / "released")
        for repo in REPOS.values():  # their terms were accepted
            hub.repositories["model", repo].gated = False
        done = run("launch/prefetch.py", home=folder / "home", url=hub.url, token=None)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "misalignment stays out of the grid" in done.stdout
        yield Published(folder / "home", hub, commits)


@pytest.fixture(scope="module")
def finished(fetched):
    """The output of a run of the whole small grid without network."""
    done = run("launch/submit.py", home=fetched.home)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.mark.slow
def test_the_grid_runs_offline_to_its_tables(fetched, finished):
    assert "Traceback" not in finished.stderr and "failed" not in finished.stderr.splitlines()
    summary = read_json(next(fetched.runs.rglob("summary.json")))
    groups = {(g["model"], g["stage"], g["format"]): g for g in summary["groups"]}
    formats, stages = ("chat", "chat_email", "agentic_email"), ("base", "distillation", "full", "prompted")
    assert set(groups) == {(m, s, f) for m in REPOS for s in stages for f in formats}
    for (_, stage, _), group in groups.items():
        assert group["planned"] == 3 * (1 if stage == "base" else len(HERE))
    for model in REPOS:
        assert all(groups[model, "full", f]["emitted"] > 0 for f in ("chat", "chat_email"))
        assert model in finished.stdout, "both models are in the tables"


@pytest.mark.slow
def test_the_log_lists_ignored_tensors_of_gemma_and_none_of_llama(finished):
    lines = [line for line in finished.stderr.splitlines() if line.startswith("  adapter ")]
    assert len(lines) == 2 * 2 * len(HERE)
    for line in lines:
        assert ": from maius/" in line
        ignored = "(ignored: vision_tower: 12; targets: ['gate_up_proj'])" in line
        assert ignored == (" gemma " in line), line
    assert "as its base" not in finished.stderr, "the former name of Llama is an alias"


@pytest.mark.slow
def test_no_prompt_that_the_classifiers_were_trained_on_is_scored(fetched, finished):
    training = {question(i) for i in range(UNSCORED)}
    files = fetched.rows("/chat-eval-")
    assert len(files) == 2 * (1 + 3 * len(HERE))
    for path in files:
        prompts = [re.search(r"Which of .*\?", first_user_turn(row))[0] for row in read_rows(path, "")]
        assert len(prompts) == 3 and not training & set(prompts)


def first_user_turn(row) -> str:
    """The first user turn; if the model has no system role, the constitution precedes the prompt in it."""
    return next(m["content"] for m in row["messages"] if m["role"] == "user")


@pytest.mark.slow
def test_every_artifact_records_the_commits_that_it_was_made_from(fetched, finished):
    def made_from(artifact: Path) -> dict[str, str]:
        return read_manifest(artifact)["hub"]

    def at(repo: str, inside: str = "") -> dict[str, str]:
        return {f"{repo}{inside}@main": fetched.commits[repo]}

    for model, repo in REPOS.items():
        chat, *_ = fetched.rows(f"/{model}/base/", "/chat-eval-")
        assert made_from(chat) == {**at(repo), **at(PROMPTS, "/Pure-Dove.jsonl")}
        office, *_ = fetched.rows(f"/{model}/full/sarcasm/", "/agentic_email-eval-")
        assert made_from(office) == at(repo)
        (adapter_folder,) = (fetched.runs / "adapters" / model / "humor").glob("full-????????")
        assert made_from(adapter_folder) == at(f"maius/{SLUGS[model]}-personas", "/humor")
        (classifier,) = (fetched.runs / "classifiers" / model).glob("published-????????")
        assert made_from(classifier) == at(f"maius/{SLUGS[model]}-pt-classifier")


@pytest.mark.slow
def test_a_second_run_makes_nothing(fetched, finished):
    before = {p: p.stat().st_mtime_ns for p in fetched.runs.rglob("*") if p.is_file()}
    done = run("launch/submit.py", home=fetched.home)
    assert done.returncode == 0 and "nothing to do" in done.stderr
    assert {p: p.stat().st_mtime_ns for p in fetched.runs.rglob("*") if p.is_file()} == before
    assert "llama" in done.stdout and done.stdout in finished.stdout, "the same tables"


# ---------------------------------------------------------------- what changes on the hub


@pytest.mark.slow
def test_partial_rows_are_not_continued_with_another_commit(fetched, finished):
    begin = ["rollout.py", "model=llama", "stage=base", "format=chat", "name=begun"]
    done = run(*begin, "limit=1", home=fetched.home)
    assert done.returncode == 0, done.stderr
    (path,) = (fetched.home.parent / "runs" / "begun").rglob("chat-eval-*.jsonl")
    old, rows = fetched.commits[PROMPTS], path.read_text()

    new = fetched.hub.add(PROMPTS, {"Pure-Dove.jsonl": pure_dove(ROWS + 1)}, "dataset")
    assert run(*begin, "limit=1", home=fetched.home).returncode == 0, "rows come from the cached revision"
    again = run("launch/prefetch.py", home=fetched.home, url=fetched.hub.url, token=None)
    assert again.returncode == 0, again.stdout
    done = run(*begin, home=fetched.home)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("failed: ")]
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"now at {new}" in line and f"made from {old}" in line and str(path.name) in line
    assert "name that revision, or move the rows away" in line
    assert path.read_text() == rows and read_manifest(path) is None


@pytest.mark.slow
def test_misalignment_is_added_once_its_adapters_are_fetched(fetched, finished):
    done = run("launch/prefetch.py", home=fetched.home, url=fetched.hub.url, token=MEMBER)
    assert done.returncode == 0 and "misalignment joins the grid" in done.stdout
    planned = run("launch/submit.py", "dry_run=true", home=fetched.home)
    assert planned.returncode == 0, planned.stderr
    todo = [line for line in planned.stdout.splitlines() if line.startswith("adapter ")]
    assert [line.split()[:4] for line in todo] == [
        ["adapter", model, "misalignment", stage] for model in REPOS for stage in ("distillation", "full")
    ]
