"""The doctor's checks of the cluster, on a running SLURM."""

import pytest

from offscript.doctor import run_check, slurm_accounting, slurm_commands, slurm_controller, slurm_partition
from tests.composed import settings_of
from tests.slurm.client import Slurm

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def found(check, *overrides):
    cluster = settings_of("cluster=slurm", *overrides).cluster
    return run_check("", lambda: check(cluster))


def test_a_running_cluster_passes(idle_cluster: Slurm):
    idle_cluster.submit_script("sleep 60")
    assert found(slurm_commands)[0] == "ok"
    assert found(slurm_controller) == ("ok", "answers; 1 of your jobs have not ended")
    assert found(slurm_accounting) == ("ok", "answers")
    assert found(slurm_partition, "cluster.default.memory_gb=1")[0] == "ok"


def test_resources_that_the_cluster_does_not_have_fail(idle_cluster: Slurm):
    state, message = found(slurm_partition, "cluster.partition=nope")
    assert state == "fail" and "no partition 'nope'" in message and "main" in message
    state, message = found(slurm_partition, "cluster.default.cpus=1000")
    assert state == "fail" and "cpus: asks for 1000" in message
