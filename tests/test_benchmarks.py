"""The scripts of benchmarks/: that they run. Their numbers mean nothing here."""

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from offscript.storage.files import HOME

SCRIPTS = (
    "classifier.py",
    "coverage.py",
    "demo.py",
    "evaluation.py",
    "gpu.py",
    "launch.py",
    "memory.py",
    "report.py",
    "rollouts.py",
    "scaling.py",
    "startup.py",
    "training.py",
)


HELP_OF_EACH = """
import runpy, sys
scripts, sys.path[0] = sys.argv[1:], "benchmarks"
for script in scripts:
    sys.argv = [script, "--help"]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        assert not end.code, f"{script}: exit code {end.code}"
"""


def run(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(HOME), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=HOME, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture
def gpu(monkeypatch):
    """benchmarks/gpu.py as a module."""
    monkeypatch.syspath_prepend(str(HOME / "benchmarks"))
    return importlib.import_module("gpu")


@pytest.mark.slow
def test_every_benchmark_can_be_imported():
    """In one process, since most of the time is that of importing torch."""
    done = run("-c", HELP_OF_EACH, *(f"benchmarks/{script}" for script in SCRIPTS))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage:") == len(SCRIPTS)


@pytest.mark.slow
def test_the_training_benchmark_ends_at_the_same_losses(tmp_path):
    words = ["--pairs", "1", "--preferences", "20", "--conversations", "12", "--out", str(tmp_path)]
    done = run("benchmarks/training.py", *words)
    assert done.returncode == 0, done.stderr
    (result,) = [json.loads(line) for line in (tmp_path / "training.jsonl").read_text().splitlines()]
    assert set(result["final_losses"]) == {"0", "1"} and "time of offscript:" in done.stdout
    for sides in result["final_losses"].values():
        for stage in ("DPO", "SFT"):
            assert sides["offscript"][stage] == pytest.approx(sides["TRL"][stage], rel=0.05)


@pytest.mark.slow
def test_the_gpu_benchmark_runs_every_case_on_a_cpu_and_says_that_gpu_figures_are_missing(tmp_path):
    done = run("benchmarks/gpu.py", "--small", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    assert {r["case"]: r.get("note") for r in results if r["status"] != "ok"} == {}
    assert {
        "ceilings",
        "episodes one at a time",
        "episodes one adapter, 4 at a time",
        "DPO step",
        "SFT step",
    } <= {r["case"] for r in results}
    assert all(r["commit"] and r["card"].startswith("CPU") for r in results)
    assert all(r["repetitions"] >= 5 for r in results if "ms" in r)
    assert "GPU figures are missing" in done.stdout
    assert "6,000 episodes, one adapter, 4 at a time:" in done.stdout
    # Every figure of the screen is also in a file.
    assert (tmp_path / "gpu.txt").read_text().strip().endswith(done.stdout.strip()[-500:])


@pytest.mark.slow
def test_without_a_gpu_the_gpu_benchmark_ends_with_one_line(tmp_path):
    done = run("benchmarks/gpu.py", "--out", str(tmp_path / "new"))
    assert done.returncode == 2
    assert done.stderr == "error: benchmarks/gpu.py: no GPU on this machine; allowed: --small, on a CPU\n"
    assert not (tmp_path / "new").exists()


def test_sides_are_measured_in_turns_and_a_faster_side_has_a_larger_ratio(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(HOME / "benchmarks"))
    pairs = importlib.import_module("pairs")
    clock, order = [0.0], []
    monkeypatch.setattr(pairs.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(pairs, "cpu_seconds", lambda: clock[0] / 2)

    def side(name, seconds, done):
        def work():
            order.append(name)
            clock[0] += seconds
            return done

        return work

    result = pairs.compare("a case", "rows", {"plain": side("plain", 4, 10), "ours": side("ours", 2, 20)}, 3)
    assert order == ["plain", "ours", "plain", "ours", "ours", "plain", "plain", "ours"]
    assert result["sides"]["plain"]["rate"] == 2.5 and result["sides"]["ours"]["rate_cpu"] == 20
    assert result["ratio"] == {"ours": 4} and result["ratio_cpu"] == {"ours": 4}
    for _ in range(2):
        pairs.report("name", [result], tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "name.jsonl").read_text().splitlines()]
    assert [line["case"] for line in lines] == ["a case"] * 2 and lines[0]["commit"] and lines[0]["versions"]
    assert "4.00x" in capsys.readouterr().out


@pytest.mark.slow
def test_the_benchmark_of_a_grid_shows_every_phase(tmp_path):
    done = run("benchmarks/demo.py", "--experiment", "smoke", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    [record] = map(json.loads, (tmp_path / "demo.jsonl").read_text().splitlines())
    assert record["sides"]["now"]["phases"].keys() >= {"rollout", "adapter", "evaluation"}
    assert "start-up, planning" in done.stdout


def test_the_texts_of_two_runs_are_compared_without_the_keys_of_their_files(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(HOME / "benchmarks"))
    demo = importlib.import_module("demo")

    def rows(side, key, texts):
        file = tmp_path / side / "smoke/rollouts/pocket/full/sarcasm" / f"chat-eval-{key}.jsonl"
        file.parent.mkdir(parents=True)
        rows = [{"scenario": str(i), "sample": 0, "text": text} for i, text in enumerate(texts)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return demo.texts(tmp_path / side, "smoke")

    before = rows("before", "0123abcd", ["a", "b", None])
    assert demo.changed(before, rows("same", "4567abcd", ["a", "b", None])) == {"full": 0}
    assert demo.changed(before, rows("now", "89ababcd", ["a", "c", None, "d"])) == {"full": 2}


def test_an_earlier_commit_is_checked_out_and_removed_again(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(HOME / "benchmarks"))
    demo = importlib.import_module("demo")
    with demo.checked_out("HEAD", tmp_path) as tree:
        assert (tree / "launch/submit.py").is_file()
    assert not tree.exists()


def test_a_case_that_fails_is_recorded_and_says_why(gpu, tmp_path):
    import torch

    def raises(error):
        def measure(bench):
            raise error

        return measure

    bench = gpu.Bench(gpu.SMALL, "cpu", tmp_path)
    errors = {
        "out of memory": torch.OutOfMemoryError("CUDA out of memory."),
        "failed": RuntimeError("odd\nmore"),
        "not run": gpu.Skipped("no adapters"),
    }
    with open(tmp_path / "log", "w") as log:
        for status, error in errors.items():
            result = gpu.run(gpu.Case("a", raises(error)), bench, time.monotonic() + 60, log)
            assert result["status"] == status
        assert gpu.run(gpu.Case("a", raises(errors["failed"])), bench, time.monotonic() + 60, log)[
            "note"
        ] == ("RuntimeError: odd")
        slow = gpu.run(gpu.Case("a", lambda b: time.sleep(30), limit=0.2), bench, time.monotonic() + 60, log)
        late = gpu.run(gpu.Case("a", lambda b: {}, spare=40), bench, time.monotonic() + 30, log)
    assert slow["status"] == "time limit" and slow["case_seconds"] < 5
    assert late["status"] == "not run" and late["note"] == "no time left"
    assert "RuntimeError: odd" in (tmp_path / "log").read_text()


def results_of(script: str, *words: str, out: Path) -> dict[str, dict]:
    """The results of a benchmark by their case, from one pair of each."""
    done = run(f"benchmarks/{script}.py", *words, "--pairs", "1", "--out", str(out))
    assert done.returncode == 0, done.stderr
    lines = (out / f"{script}.jsonl").read_text().splitlines()
    return {result["case"]: result for result in map(json.loads, lines)}


@pytest.mark.slow
def test_the_classifier_benchmark_compares_equal_probabilities(tmp_path):
    found = results_of("classifier", "--small", "--texts", "90", "--fit-texts", "24", out=tmp_path)
    predicted, fitted = found["predict, ModernBERT 2 x 128"], found["fit, ModernBERT 2 x 128"]
    assert predicted["largest_difference"] < 1e-5
    assert predicted["sides"]["offscript"]["amount"] == [90] and fitted["sides"]["offscript"]["amount"] == [
        24
    ]
    assert set(predicted["ratio"]) == {"offscript", "offscript, bfloat16"}


@pytest.mark.slow
def test_the_evaluation_benchmark_compares_equal_scores(tmp_path):
    found = results_of("evaluation", "--resamples", "1000", "--loop", "30", out=tmp_path)["macro-F1"]
    assert found["difference_of_means"] < 0.05
    assert set(found["ratio"]) == {"loop, counts", "offscript", "offscript, all that is computed"}


@pytest.mark.slow
def test_the_report_benchmark_measures_every_part(tmp_path):
    found = results_of("report", "--episodes", "600", out=tmp_path)["rows to report"]
    assert all(found["parts_cpu_seconds"][part] > 0 for part in ("rows read", "files and page"))
    # What is in no part are the imports.
    assert sum(found["parts_cpu_seconds"].values()) < found["sides"]["offscript"]["cpu_seconds"][0]


@pytest.mark.slow
@pytest.mark.parametrize(("personas", "seeds", "fits"), [(6, 3, 0), (10, 1, 0), (10, 1, 5)])
def test_intervals_contain_the_true_value_about_as_often_as_they_say(personas, seeds, fits):
    """200 grids: the standard error is .015."""
    coverage = importlib.import_module("benchmarks.coverage")
    found = coverage.coverage(coverage.Kind(personas, seeds, fits), 200)
    assert all(0.90 <= covered <= 0.995 for covered, _ in found.values()), found


@pytest.mark.slow
def test_intervals_by_rows_and_of_one_fit_are_too_narrow():
    """What the intervals would be without families, and without the spread of the fits."""
    coverage = importlib.import_module("benchmarks.coverage")
    assert coverage.coverage(coverage.Kind(10, 1), 200, unit="rows")["F1"][0] < 0.85
    assert coverage.coverage(coverage.Kind(10, 1, fits=1), 200)["full - distillation"][0] < 0.89


@pytest.mark.slow
def test_the_rollout_benchmark_runs_as_many_episodes_a_side_as_it_says(tmp_path):
    words = ["--episodes", "22", "--slow", "11", "--max-tokens", "8", "--no-vllm"]
    results = results_of("rollouts", *words, out=tmp_path)
    assert set(results) == {
        "agentic_email, 1 persona", "agentic_email, 11 personas", "chat, 1 persona", "chat, 11 personas"
    }  # fmt: skip
    for result in results.values():
        amounts = {name: side["amount"] for name, side in result["sides"].items()}
        assert amounts["one at a time"] == [11] and amounts["offscript"] == [22]


@pytest.mark.slow
def test_the_scaling_benchmark_fits_an_exponent_to_every_case(tmp_path):
    results = results_of("scaling", "--episodes", "4", "--max-tokens", "4", out=tmp_path)
    assert set(results) == {"episodes", "personas", "turns"}
    for result in results.values():
        assert len(result["cpu_seconds"]) == 4 and isinstance(result["exponent"], float)


@pytest.mark.slow
def test_the_memory_of_rollouts_does_not_grow_with_their_rows(tmp_path):
    words = ["--rows", "400", "--factors", "1", "10", "--work", "rollouts", "--out", str(tmp_path)]
    done = run("benchmarks/memory.py", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "memory.jsonl").read_text())
    assert result["kib_per_row"] < 1.0, "a row has 2 KiB"
