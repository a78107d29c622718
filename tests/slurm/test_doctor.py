"""The doctor's checks of the cluster, on a real one."""

import pytest

from offscript.doctor import outcome, slurm_accounting, slurm_commands, slurm_controller, slurm_partition
from tests.composed import settings_of
from tests.slurm.client import Slurm

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def found(check, *overrides):
    cluster = settings_of("cluster=slurm", *overrides).cluster
    return outcome("", lambda: check(cluster))


def test_a_cluster_that_works_passes(quiet_cluster: Slurm):
    quiet_cluster.submit_script("sleep 60")
    assert found(slurm_commands)[0] == "ok"
    assert found(slurm_controller) == ("ok", "answers; 1 jobs of yours have not ended")
    assert found(slurm_accounting) == ("ok", "answers")
    assert found(slurm_partition, "cluster.default.memory_gb=1")[0] == "ok"


def test_what_the_cluster_would_refuse_fails(quiet_cluster: Slurm):
    state, note = found(slurm_partition, "cluster.partition=nope")
    assert state == "fail" and "no partition 'nope'" in note and "main" in note
    state, note = found(slurm_partition, "cluster.default.cpus=1000")
    assert state == "fail" and "cpus: asks for 1000" in note
