"""Sweeps through submitit's launchers: the presets compose, and every job is reported, including killed ones."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from offscript.experiment.backends.sweep import collect_exit_codes
from offscript.storage.files import HOME


def launcher(*overrides):
    """The resolved launcher node of a sweep with these overrides."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(HOME / "conf"), version_base="1.3"):
        cfg = compose("rollout", list(overrides), return_hydra_config=True)
        cfg.hydra.job.name = "rollout"
        return OmegaConf.to_container(cfg.hydra.launcher, resolve=True)


@pytest.mark.parametrize("name", ["local", "slurm"])
def test_logs_of_a_launcher_are_below_the_experiment_folder(name):
    node = launcher(f"hydra/launcher={name}", "root=/scratch/r", "experiment=smoke")
    assert node["submitit_folder"].startswith("/scratch/r/smoke/launch/multirun/")
    assert node["submitit_folder"].endswith("/%j")
    assert node["stderr_to_stdout"], "one log per cell"


def test_the_slurm_launcher_uses_the_cluster_group_and_requeues():
    node = launcher("hydra/launcher=slurm", "cluster=site", "hydra.launcher.gpus_per_node=2")
    assert (node["partition"], node["account"], node["qos"]) == ("gpu", "my_project", None)
    assert (node["cpus_per_task"], node["mem_gb"], node["timeout_min"]) == (4, 16, 60)
    assert (node["signal_delay_s"], node["gpus_per_node"]) == (120, 2)
    assert node["setup"][0] == "module load cuda/12.8"
    assert node["max_num_timeout"] >= 10


def test_the_slurm_launcher_works_without_a_cluster_option():
    node = launcher("hydra/launcher=slurm")
    assert node["partition"] is None and node["cpus_per_task"] == 1


class Cell:
    """A job as a launcher submits it: called with the overrides, it returns a report with an exit code."""

    def __init__(self, code):
        self.code = code

    def __call__(self, overrides):
        from hydra.core.utils import JobReturn, JobStatus

        if self.code == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.code == "broken":
            return JobReturn(overrides, _return_value=ValueError("no such\noption"), status=JobStatus.FAILED)
        return JobReturn(overrides, _return_value=self.code, status=JobStatus.COMPLETED)


@pytest.mark.slow
def test_every_job_is_reported_even_if_another_was_killed(tmp_path, capsys, monkeypatch):
    import submitit

    # The jobs unpickle a class of this module.
    monkeypatch.setenv("PYTHONPATH", str(HOME))
    executor = submitit.LocalExecutor(tmp_path / "%j")
    executor.update_parameters(stderr_to_stdout=True)
    codes = []
    with collect_exit_codes(codes):
        jobs = [executor.submit(Cell(code), [f"cell={code}", "x=1"]) for code in ("killed", 0, 2, "broken")]
        reports = [job.results()[0].return_value for job in jobs]
    assert reports == codes == [1, 0, 2, 1]
    lines = capsys.readouterr().err.splitlines()
    killed, done, refused, broken = (line for line in lines if not line.startswith("Error executing job"))
    assert killed.startswith("failed: cell=killed x=1: ended without a report")
    assert done == "done: cell=0 x=1"
    assert refused.startswith("failed: cell=2 x=1: exit code 2 (log: ")
    assert broken.startswith("failed: cell=broken x=1: no such (log: ")
    log = Path(refused.partition("(log: ")[2].rstrip(")"))
    assert "Job completed" in log.read_text()


def test_the_results_method_is_restored_after_the_block():
    from submitit.core.core import Job

    before = Job.results
    with collect_exit_codes([]):
        assert Job.results is not before
    assert Job.results is before


@pytest.mark.parametrize(
    ("program", "line"),
    [
        (
            None,
            "error: cluster: no SLURM here (sbatch is not on the path); "
            "run this on a login node of the cluster, or the grid with cluster=local",
        ),
        (
            "echo 'squeue: error: Unable to contact slurm controller (connect failure)' >&2; exit 1",
            "error: squeue: Unable to contact slurm controller (connect failure); "
            "is the SLURM controller up, and is this machine configured for it (SLURM_CONF)?",
        ),
    ],
    ids=["no SLURM", "no controller"],
)
def test_a_sweep_that_slurm_cannot_take_is_refused_in_one_line(tmp_path, program, line):
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("sbatch", "srun", "squeue") if program else ():
        (programs / name).write_text(f"#!/bin/sh\n{program}\n")
        (programs / name).chmod(0o755)
    words = ["-m", "experiment=smoke", "tracking=off", "persona=sarcasm", "limit=1", "hydra/launcher=slurm"]
    command = [sys.executable, str(HOME / "rollout.py"), *words]
    env = {**os.environ, "PATH": str(programs)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.splitlines() == [line]
    assert not [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]


@pytest.mark.slow
def test_a_local_sweep_reports_each_job_with_its_log(tmp_path):
    words = ["-m", "experiment=smoke", "tracking=off", "persona=sarcasm", "stage=full,base", "limit=1"]
    command = [sys.executable, str(HOME / "rollout.py"), *words, "hydra/launcher=local"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    full, base = done.stderr.splitlines()
    assert full.startswith("failed: experiment=smoke tracking=off persona=sarcasm stage=full limit=1: exit")
    assert base.startswith("done: ")
    assert "make it with: offscript train" in Path(full.partition("(log: ")[2].rstrip(")")).read_text()
    assert list((tmp_path / "runs/smoke/rollouts/pocket/base/_").glob("chat-eval-*.jsonl"))
