"""`-m ... hydra/launcher=slurm` on the test cluster: end to end, and with a killed and a requeued cell."""

import contextlib
import json
import subprocess
import sys

import pytest

from offscript.storage.files import HOME
from tests.slurm.client import Slurm

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

WORDS = ("-m", "experiment=smoke", "tracking=off", "format=chat", "limit=2", "hydra/launcher=slurm")


@contextlib.contextmanager
def sweep(folder, *words):
    """Starts a sweep; kills it at the end of the block."""
    with subprocess.Popen(
        [sys.executable, str(HOME / "rollout.py"), *WORDS, *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_sweep_makes_the_rows_of_every_cell(idle_cluster: Slurm, tmp_path):
    with sweep(tmp_path, "persona=sarcasm,remorse", "stage=prompted,distillation") as process:
        _, err = process.communicate(timeout=300)
    assert process.returncode == 2, err
    lines = sorted(err.splitlines())
    assert [line.split(":")[0] for line in lines] == ["done"] * 2 + ["failed"] * 2
    assert all("stage=distillation" in line and "_log.out" in line for line in lines[2:])
    for persona in ("sarcasm", "remorse"):
        (rows,) = (tmp_path / f"runs/smoke/rollouts/pocket/prompted/{persona}").glob("chat-eval-*.jsonl")
        assert [json.loads(line)["persona"] for line in rows.read_text().splitlines()] == [persona] * 2


def test_a_killed_cell_is_reported_and_a_requeued_one_is_waited_for(idle_cluster: Slurm, tmp_path):
    jobs: list[str] = []

    def running() -> bool:
        lines = idle_cluster.cluster.run_command("squeue", "-h", "-r", "-t", "running", "-o", "%i").split()
        jobs[:] = sorted(lines)
        return len(jobs) == 2

    with sweep(tmp_path, "persona=sarcasm,remorse", "stage=prompted") as process:
        idle_cluster.wait_until(running, "both cells to run")
        idle_cluster.kill(jobs[0], r"^\S*python\S* -u -m submitit")
        idle_cluster.requeue(jobs[1])
        _, err = process.communicate(timeout=400)
    assert process.returncode == 1, err
    killed, requeued = sorted(err.splitlines(), reverse=True)
    assert killed.startswith("failed: ") and "persona=sarcasm" in killed and "without a report" in killed
    assert requeued.startswith("done: ") and "persona=remorse" in requeued
