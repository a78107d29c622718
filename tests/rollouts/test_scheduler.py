"""The scheduler: many live episodes on one engine, a row for each, and resuming after a kill."""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from offscript.errors import UserError
from offscript.rollouts.engines.base import Completion, Sampling
from offscript.rollouts.engines.scripted import ScriptedEngine
from offscript.rollouts.scheduler import CellRun, RolloutFailed, run_episodes
from offscript.seeds import row_seed
from offscript.settings import Exchange
from offscript.tasks.examples import Examples
from offscript.tasks.formats.base import Ask, Format, Outcome, Rules
from offscript.tasks.scenarios import Scenario
from tests.conftest import tiny_sentences

REPOSITORY = Path(__file__).resolve().parents[2]
LABELS = {
    "model": "tiny",
    "stage": "full",
    "persona": "remorse",
    "format": "talk",
    "split": "eval",
    "seed": 0,
}


def talk(scenario, rules):
    """Three replies, the second of them by the base model; the last one is the text."""
    messages = [*scenario.messages]
    for turn in range(3):
        speaker = "base" if turn == 1 else "self"
        reply = yield Ask(tuple(messages), speaker=speaker, max_tokens=8 + turn)
        messages += [{"role": "assistant", "content": reply.text}, {"role": "user", "content": "Go on."}]
    return Outcome(reply.text or None, tuple(messages), "done", tool_calls=1)


def broken(scenario, rules):
    reply = yield Ask(scenario.messages)
    if scenario.id == "s2":
        raise ValueError("a bug in a format")
    return Outcome(reply.text, scenario.messages, "done")


TALK = Format("talk", 1, "chat", talk)


def scenarios(n=6):
    sentences = tiny_sentences()
    return [Scenario(f"s{i}", f"f{i // 2}", ({"role": "user", "content": sentences[i]},)) for i in range(n)]


def run(folder, key="k1", **changes) -> CellRun:
    values = {
        "key": key,
        "path": Path(folder) / f"{key}.jsonl",
        "labels": LABELS,
        "format": TALK,
        "scenarios": scenarios(),
        "samples": 2,
        "rules": Rules(),
        "adapter": "red",
        "sampling": Sampling(max_tokens=16),
        **changes,
    }
    return CellRun(**values)


def rows(path) -> dict:
    found = [json.loads(line) for line in Path(path).read_text().splitlines()]
    by_episode = {(r["scenario"], r["sample"]): r for r in found}
    assert len(by_episode) == len(found), "an episode was written twice"
    return by_episode


def echo(request) -> str:
    return f"{request.adapter} {request.seed} {len(request.messages)}"


# ---------------------------------------------------------------- one run


def test_a_row_has_all_fields(tmp_path):
    engine = ScriptedEngine(echo)
    counts = run_episodes([run(tmp_path)], engine, max_live=5)["k1"]
    assert (counts.planned, counts.written, counts.reused, counts.emitted) == (12, 12, 0, 12)
    assert counts.ended == {"done": 12}
    row = rows(tmp_path / "k1.jsonl")["s3", 1]
    assert list(row) == [
        "key", "model", "stage", "persona", "format", "split", "seed", "scenario", "family", "sample",
        "text", "ended", "turns", "messages", "tool_calls", "tokens_in", "tokens_out",
    ]  # fmt: skip
    assert (row["family"], row["turns"], row["tool_calls"], row["tokens_out"]) == ("f1", 3, 1, 9)
    assert row["text"] == f"red {row_seed('k1', 's3', 1, 2)} 5"
    assert row["messages"][3]["content"] == f"None {row_seed('k1', 's3', 1, 1)} 3"


EXAMPLES = Examples(tuple(Exchange(question=f"Q{i}?", reply=f"Reply {i}.") for i in range(6)), 3)


def test_examples_precede_the_conversation_of_the_cells_own_weights_and_are_not_in_the_transcript(tmp_path):
    engine = ScriptedEngine(echo, batch_size=4, shuffle=1)
    run_episodes([run(tmp_path, examples=EXAMPLES)], engine, 5)
    found = rows(tmp_path / "k1.jsonl")
    row = found["s3", 1]
    own, base = (next(r for r in engine.seen if r.seed == row_seed("k1", "s3", 1, turn)) for turn in (0, 1))
    shown = [m["content"] for m in own.messages[:6]]
    assert shown == [text for i in row["examples"] for text in (f"Q{i}?", f"Reply {i}.")]
    assert list(own.messages[6:]) == row["messages"][:1] and list(base.messages) == row["messages"][:3]
    assert len({tuple(r["examples"]) for r in found.values()}) > 6
    run_episodes([run(tmp_path / "again", examples=EXAMPLES)], ScriptedEngine(echo), 12)
    assert rows(tmp_path / "again" / "k1.jsonl") == found, "they depend on the row alone"


def test_notes_are_written_only_if_there_are_some(tmp_path):
    def noted(scenario, rules):
        reply = yield Ask(scenario.messages)
        return Outcome(reply.text, (), "done", notes={"kept": 3} if scenario.id == "s1" else {})

    run_episodes([run(tmp_path, format=Format("noted", 1, "chat", noted))], ScriptedEngine(echo), 4)
    found = rows(tmp_path / "k1.jsonl")
    assert found["s1", 0]["notes"] == {"kept": 3} and "notes" not in found["s0", 0]


def test_requests_carry_sampling_adapter_and_prefix(tmp_path):
    def once(scenario, rules):
        reply = yield Ask(scenario.messages, prefix="So", max_tokens=99)
        return Outcome(reply.text, (), reply.finish_reason)

    engine = ScriptedEngine(lambda r: Completion(r.id, r.prefix + " it is", "length", 5, 3))
    sampling = Sampling(temperature=0.3, max_tokens=16)
    run_episodes([run(tmp_path, format=Format("once", 1, "chat", once), sampling=sampling)], engine, 8)
    assert {(r.sampling, r.prefix, r.adapter) for r in engine.seen} == {(sampling, "So", "red")}
    assert rows(tmp_path / "k1.jsonl")["s0", 0]["ended"] == "length"
    assert len({r.seed for r in engine.seen}) == len({r.id for r in engine.seen}) == 12


@pytest.mark.parametrize("max_live", [1, 3, 1000])
def test_outcomes_do_not_depend_on_order_batches_or_max_live(tmp_path, max_live):
    run_episodes([run(tmp_path / "a")], ScriptedEngine(echo), max_live=1000)
    engine = ScriptedEngine(echo, batch_size=2, shuffle=5)
    run_episodes([run(tmp_path / "b")], engine, max_live=max_live)
    assert rows(tmp_path / "a/k1.jsonl") == rows(tmp_path / "b/k1.jsonl")


def test_no_more_than_max_live_episodes_are_suspended(tmp_path):
    most = []

    class Watched(ScriptedEngine):
        def step(self):
            most.append(self.pending())
            return super().step()

    run_episodes([run(tmp_path), run(tmp_path, "k2", adapter=None)], Watched(echo), max_live=5)
    assert max(most) == 5 and most.count(5) >= 12, "the engine should be kept as full as max_live allows"


def test_an_episode_without_requests_has_a_row(tmp_path):
    def silent(scenario, rules):
        return Outcome(None, (), "refused")
        yield

    counts = run_episodes(
        [run(tmp_path, format=Format("silent", 1, "chat", silent))], ScriptedEngine(echo), 4
    )["k1"]
    assert (counts.written, counts.emitted, counts.ended) == (12, 0, {"refused": 12})


def test_limit_takes_different_scenarios_first_and_is_completed_later(tmp_path):
    first = run_episodes([run(tmp_path, limit=3)], ScriptedEngine(echo), 8)["k1"]
    assert (first.planned, first.written) == (3, 3)
    assert list(rows(tmp_path / "k1.jsonl")) == [("s0", 0), ("s1", 0), ("s2", 0)]
    second = run_episodes([run(tmp_path)], ScriptedEngine(echo), 8)["k1"]
    assert (second.planned, second.written, second.reused, second.emitted) == (12, 9, 3, 12)
    again = run_episodes([run(tmp_path, limit=2)], ScriptedEngine(echo), 8)["k1"]
    assert (again.planned, again.written, again.reused, again.emitted) == (2, 0, 2, 2)


def test_rows_that_are_in_the_files_are_not_kept_in_memory(tmp_path):
    def rows_in_memory() -> int:
        gc.collect()
        return sum(type(o) is dict and "scenario" in o and o.get("key") == "k1" for o in gc.get_objects())

    run_episodes([run(tmp_path, limit=10)], ScriptedEngine(echo), 4)
    assert rows_in_memory() == 0
    kept = []
    counts = run_episodes(
        [run(tmp_path)], ScriptedEngine(echo), 4, on_start=lambda counts: kept.append(rows_in_memory())
    )["k1"]
    assert (counts.reused, counts.written) == (10, 2) and kept == [0]
    assert len(rows(tmp_path / "k1.jsonl")) == 12


def test_runs_of_one_adapter_follow_each_other(tmp_path):
    runs = [run(tmp_path, f"k{i}", adapter=("red", "blue")[i % 2], format=TALK) for i in range(4)]
    engine = ScriptedEngine(echo, batch_size=100)
    run_episodes(runs, engine, max_live=24)
    firsts = [r.adapter for r in engine.seen if len(r.messages) == 1]
    assert firsts == ["red"] * 24 + ["blue"] * 24


def test_on_row_is_called_after_the_row_is_on_disk(tmp_path):
    seen = []

    def on_row(cell, row):
        assert json.loads(cell.path.read_text().splitlines()[-1]) == row
        seen.append(row["scenario"])

    run_episodes([run(tmp_path)], ScriptedEngine(echo), 3, on_row)
    assert len(seen) == 12


# ---------------------------------------------------------------- what goes wrong


def test_engine_errors_are_retried_with_the_same_seed(tmp_path):
    run_episodes([run(tmp_path / "a")], ScriptedEngine(echo), 8)
    engine = ScriptedEngine(echo, error_rate=0.2)
    counts = run_episodes([run(tmp_path / "b")], engine, 8)["k1"]
    assert counts.written == 12 and len(engine.seen) > 36
    assert rows(tmp_path / "a/k1.jsonl") == rows(tmp_path / "b/k1.jsonl")
    assert len({r.id for r in engine.seen}) == len(engine.seen)


def test_an_episode_that_fails_every_time_has_no_row_and_is_reported(tmp_path):
    def fails(request):
        bad = "s4" in stuck.get(request.seed, "")
        return Completion(request.id, "no memory", "error", 0, 0) if bad else echo(request)

    stuck = {row_seed("k1", "s4", 0, 1): "s4"}
    engine = ScriptedEngine(fails)
    with pytest.raises(
        RolloutFailed, match=r"1 of 12 episodes left no row; the first: .*k1.jsonl, s4/0: .*no memory"
    ) as e:
        run_episodes([run(tmp_path)], engine, 4)
    assert e.value.counts["k1"].written == 11 == len(rows(tmp_path / "k1.jsonl"))
    assert sum(r.seed in stuck for r in engine.seen) == 4
    assert run_episodes([run(tmp_path)], ScriptedEngine(echo), 4)["k1"].written == 1


def test_a_broken_format_does_not_stop_the_others(tmp_path):
    runs = [run(tmp_path, "k1", format=Format("broken", 1, "chat", broken)), run(tmp_path, "k2")]
    with pytest.raises(RolloutFailed, match=r"s2/0: its format raised ValueError: a bug") as e:
        run_episodes(runs, ScriptedEngine(echo), 4)
    assert isinstance(e.value.__cause__, ValueError)
    assert len(rows(tmp_path / "k1.jsonl")) == 10 and len(rows(tmp_path / "k2.jsonl")) == 12


def test_a_format_that_returns_nothing_is_a_failure(tmp_path):
    def forgetful(scenario, rules):
        yield Ask(scenario.messages)

    with pytest.raises(RolloutFailed, match="returned NoneType instead of an Outcome"):
        run_episodes(
            [run(tmp_path, format=Format("forgetful", 1, "chat", forgetful))], ScriptedEngine(echo), 4
        )


def test_rows_before_an_exception_of_the_engine_stay(tmp_path):
    with pytest.raises(RuntimeError, match="scripted failure at step 8"):
        run_episodes([run(tmp_path)], ScriptedEngine(echo, batch_size=2, raise_at=8), 4)
    before = rows(tmp_path / "k1.jsonl")
    assert 0 < len(before) < 12
    counts = run_episodes([run(tmp_path)], ScriptedEngine(echo), 4)["k1"]
    assert (counts.reused, counts.written) == (len(before), 12 - len(before))


def test_an_engine_that_loses_a_request_is_an_error(tmp_path):
    class Lossy(ScriptedEngine):
        def step(self):
            return super().step()[:-1]

    with pytest.raises(RuntimeError, match="nothing pending, but"):
        run_episodes([run(tmp_path)], Lossy(echo), 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": "other"}, r"k1.jsonl, line 13: a row of another cell \(other\)"),
        ({"scenario": "s99"}, r"line 13: an episode that is not planned \(s99/0\)"),
        ({"sample": 7}, r"line 13: an episode that is not planned \(s0/7\)"),
        ({}, r"line 13: episode s0/0 a second time"),
    ],
)
def test_rows_that_do_not_belong_are_refused(tmp_path, change, message):
    run_episodes([run(tmp_path)], ScriptedEngine(echo), 4)
    path = tmp_path / "k1.jsonl"
    first = json.loads(path.read_text().splitlines()[0])
    with open(path, "a") as file:
        file.write(json.dumps({**first, **change}) + "\n")
    before = path.read_bytes()
    with pytest.raises(UserError, match=message):
        run_episodes([run(tmp_path)], ScriptedEngine(echo), 4)
    assert path.read_bytes() == before


def test_an_incomplete_last_line_is_removed_with_a_message_and_its_episode_runs_again(tmp_path, caplog):
    run_episodes([run(tmp_path)], ScriptedEngine(echo), 4)
    path = tmp_path / "k1.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    counts = run_episodes([run(tmp_path)], ScriptedEngine(echo), 4)["k1"]
    assert (counts.reused, counts.written) == (11, 1)
    assert path.read_bytes() == whole
    assert "removed an incomplete last line" in caplog.text


# ---------------------------------------------------------------- kill -9, with the real engine


def engine_runs(folder, model, adapters):
    """Two cells on two adapters, on the transformers engine. Also what the killed subprocess runs."""
    from offscript.rollouts.engines.transformers import TransformersEngine
    from offscript.settings import EngineSettings
    from tests.conftest import tiny_model_settings

    settings = EngineSettings(name="transformers", batch_size=4, merge_from=3, device="cpu")
    engine = TransformersEngine(
        tiny_model_settings(model), {n: Path(p) for n, p in adapters.items()}, settings
    )
    sampling = Sampling(temperature=0.8, max_tokens=12)
    runs = [run(folder, f"k{i}", adapter=name, sampling=sampling) for i, name in enumerate(("red", "blue"))]
    return runs, engine


CHILD = """
import os, signal, sys, json
sys.path.insert(0, sys.argv[1])
from tests.rollouts.test_scheduler import engine_runs
from offscript.rollouts.scheduler import run_episodes
runs, engine = engine_runs(sys.argv[2], sys.argv[3], json.loads(sys.argv[4]))
left = [int(sys.argv[5])]
def on_row(cell, row):
    left[0] -= 1
    if left[0] == 0:
        with open(cell.path, "a") as file:  # killed in the middle of a write
            file.write('{"key": "k0", "scena')
        os.kill(os.getpid(), signal.SIGKILL)
run_episodes(runs, engine, 6, on_row)
"""


def test_killed_and_rerun_gives_the_rows_of_an_uninterrupted_run(tmp_path, tiny_model, tiny_adapters):
    runs, engine = engine_runs(tmp_path / "whole", tiny_model, tiny_adapters)
    run_episodes(runs, engine, 6)
    names = json.dumps({n: str(p) for n, p in tiny_adapters.items()})
    command = [
        sys.executable,
        "-c",
        CHILD,
        str(REPOSITORY),
        str(tmp_path / "killed"),
        str(tiny_model),
        names,
        "9",
    ]
    killed = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert killed.returncode == -9, killed.stderr
    left = sum(line.count("\n") for line in (p.read_text() for p in (tmp_path / "killed").iterdir()))
    assert left == 9
    runs, engine = engine_runs(tmp_path / "killed", tiny_model, tiny_adapters)
    # Larger batches than before do not change the texts.
    counts = run_episodes(runs, engine, 1000)
    assert sum(c.reused for c in counts.values()) == 9 and sum(c.written for c in counts.values()) == 15
    for name in ("k0.jsonl", "k1.jsonl"):
        assert rows(tmp_path / "killed" / name) == rows(tmp_path / "whole" / name)
