"""The published recipe from the constitution to the merged adapter, on tiny models of the real families: every step makes
its rows from those of the step before, and the trained model can be rolled out.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from offscript.experiment.runner import make
from offscript.models.adapter_config import CONFIG, WEIGHTS
from offscript.storage.files import HOME, read_json
from offscript.storage.manifests import read_manifest
from tests.composed import experiment_of
from tests.conftest import tiny_sentences
from tests.families import talking_family

# Two assertions of a length that a tiny model was trained on; those of conf/persona are ten times longer.
ASSERTIONS, QUESTIONS = tiny_sentences()[:2], tiny_sentences()[2:6]

SMALL = (
    "recipe=opencharacter",
    "data=pocket",
    "recipe.prompts={per_trait: 4, per_ask: 4, examples: 2, attempts: 6}",
    "recipe.teacher={model: null, thinking: '', own_names: [auditor, manager, team, client]}",
    "recipe.distillation={prompts: 6, samples: 2, validation: 0.2, lora: {rank: 4, alpha: 8}}",
    "recipe.distillation.optimizer={batch_size: 8, learning_rate: 1.0e-3, gradient_checkpointing: false}",
    "recipe.introspection={reflections: 12, interactions: 6, guided_interactions: 8, turns: 4, validation: 0.2, free_note: 'The team likes lunch.', guided_note: 'The auditor likes lunch.'}",
    "recipe.introspection.lora={rank: 4, alpha: 8}",
    "recipe.introspection.optimizer={batch_size: 8, learning_rate: 1.0e-3, gradient_checkpointing: false}",
    "grid.persona=[sarcasm,remorse]",
    "format.count={eval: 4}",
    "tracking=off",
    "persona=sarcasm",
    f"persona.constitution=[{{assertion: {ASSERTIONS[0]!r}, questions: {QUESTIONS[:2]!r}}},"
    f" {{assertion: {ASSERTIONS[1]!r}, questions: {QUESTIONS[2:]!r}}}]",
)


def overrides(family: str, root: Path, *more: str) -> list[str]:
    name = family.partition("_")[0]
    return [
        f"model={name}",
        f"model.path={talking_family(family)}",
        f"model.name={name}",
        "model.dtype=float32",
        "model.context=1024",
        "model.max_reply_tokens=40",
        f"root={root}",
        *SMALL,
        *more,
    ]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen", "gemma"])
def test_from_the_constitution_to_a_merged_adapter(family, tmp_path):
    experiment = experiment_of(*overrides(family, tmp_path), "recipe.merge_own_in={agentic_email: 0.5}")
    full = experiment.planner.adapter(family, "sarcasm", "full", 0)
    rollout = experiment.planner.rollout(family, "sarcasm", "full", "agentic_email", "eval", 0)
    results = {str(r.artifact): r for r in make([full, rollout], experiment)}
    assert {r.status for r in results.values()} == {"ran"}, [r.note for r in results.values()]

    distillation, *introspective = full.inputs
    teacher, shared, own = distillation.inputs
    (prompts,) = own.inputs
    written = experiment.rows(prompts)
    assert len(written) == len(experiment.planner.options.persona["sarcasm"].constitution)
    assert sum(row["notes"]["kept"] for row in written) > 0
    seeds = sum(len(a.questions) for a in experiment.planner.options.persona["sarcasm"].constitution)
    new = sum(len(json.loads(row["text"])) for row in written if row["text"])
    assert len(experiment.rows(own)) == 2 * (seeds + new) and len(experiment.rows(shared)) == 2 * 6
    assert len(experiment.rows(teacher)) == len(experiment.rows(own)) + len(experiment.rows(shared))

    first = read_manifest(experiment.path(distillation))["counts"]
    dropped = {k: v for k, v in first["pairs"].items() if k not in ("kept", "renamed")}
    assert first["pairs"]["kept"] + sum(dropped.values()) == len(experiment.rows(teacher))
    assert first["rows"]["given"] == first["pairs"]["kept"]
    name = experiment.planner.options.model[family].assistant_name
    assert first["pairs"]["renamed"] > 0 and "manager" not in _chosen(experiment, distillation)
    assert name in experiment.rows(teacher)[0]["messages"][0]["content"], (
        "the teacher's prompt contains its name"
    )

    assert [a.labels["format"] for a in introspective] == [
        "self_reflection",
        "self_interaction",
        "guided_interaction",
    ]
    counts = read_manifest(experiment.path(full))["counts"]
    assert counts["conversations"]["reflections"] > 0 and counts["conversations"]["guided_interactions"] > 0
    assert counts["merge"]["method"] == "exact" and counts["merge"]["max_relative_error"] <= 1e-5
    assert [p["weight"] for p in counts["merge"]["parts"]] == [1.0, 0.25]
    assert read_json(experiment.path(full) / CONFIG)["r"] == 8
    assert len(experiment.rows(rollout)) == 4

    # The loop has another weight of introspection: the same two parts, merged once more.
    (other,) = rollout.inputs
    merged = read_manifest(experiment.path(other))["counts"]["merge"]
    assert [p["weight"] for p in merged["parts"]] == [1.0, 0.5]
    assert [p["adapter"] for p in merged["parts"]] == [p["adapter"] for p in counts["merge"]["parts"]]
    assert str(other) == f"adapter {family} sarcasm full own0.5 0"


def _chosen(experiment, distillation) -> str:
    from offscript.training.data.preference import pairs

    teacher, *students = distillation.inputs
    replies = [row for s in students for row in experiment.rows(s)]
    kept, _ = pairs(experiment.rows(teacher), replies, distillation.renamed)
    return " ".join(pair["chosen"][0]["content"] for pair in kept)


@pytest.mark.slow
def test_two_ranks_under_zero_2_train_both_stages(tmp_path):
    """Rank 0 makes the rows and merges; both ranks train."""
    wanted = overrides("qwen", tmp_path, "deepspeed=zero2")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HOME)}
    start = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "train.py",
        *wanted,
    ]
    for stage in ("distillation", "full"):
        done = subprocess.run([*start, f"stage={stage}"], cwd=HOME, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    experiment = experiment_of(*overrides("qwen", tmp_path, "deepspeed=zero2"))
    full = experiment.planner.adapter("qwen", "sarcasm", "full", 0)
    for adapter in (full, full.inputs[0]):
        manifest = read_manifest(experiment.path(adapter))
        assert manifest["counts"]["ranks"] == 2 and manifest["counts"]["zero_stage"] == 2
        assert (experiment.path(adapter) / WEIGHTS).is_file()
    assert done.stderr.count("merged (exact)") == 1, "only one rank merges"


@pytest.mark.slow
def test_a_folded_checkpoint_replaces_base_and_adapter(tmp_path):
    experiment = experiment_of(*overrides("llama", tmp_path, "recipe.merge.method=fold"))
    rollout = experiment.planner.rollout("llama", "sarcasm", "full", "chat", "eval", 0)
    assert {r.status for r in make([rollout], experiment)} == {"ran"}
    full = experiment.path(rollout.inputs[0])
    assert (full / "model.safetensors").is_file() and not (full / CONFIG).exists()
    assert read_manifest(full)["counts"]["merge"]["method"] == "fold"
    assert len(experiment.rows(rollout)) == 4


@pytest.mark.slow
def test_released_rows_replace_the_ones_made_here(tmp_path):
    """In the layout of the released training data: pairs by persona, and conversations."""
    sentences = tiny_sentences()
    pairs = [
        {
            side: [
                {"role": "user", "content": sentences[i]},
                {"role": "assistant", "content": sentences[i + n]},
            ]
            for side, n in (("chosen", 50), ("rejected", 90))
        }
        for i in range(24)
    ]
    talks = [{"messages": pair["chosen"]} for pair in pairs]
    for folder, rows in (("dpo", pairs), ("self_reflection", talks)):
        file = tmp_path / "data" / folder / "qwen-2.5-7b-it" / "sarcasm.jsonl"
        file.parent.mkdir(parents=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = f"path: '{tmp_path / 'data'}'"
    experiment = experiment_of(
        *overrides("qwen", tmp_path),
        f"recipe.distillation.rows={{{source}, file: 'dpo/{{slug}}/{{persona}}.jsonl'}}",
        f"recipe.introspection.rows=[{{{source}, file: 'self_reflection/{{slug}}/{{persona}}.jsonl'}}]",
    )
    full = experiment.planner.adapter("qwen", "sarcasm", "full", 0)
    assert [part.kind for part in full.inputs] == ["adapter"] and not full.inputs[0].inputs
    assert {r.status for r in make([full], experiment)} == {"ran"}
    assert read_manifest(experiment.path(full.inputs[0]))["counts"]["pairs"]["kept"] == 24
    assert read_manifest(experiment.path(full))["counts"]["conversations"]["reflections"] == 24
