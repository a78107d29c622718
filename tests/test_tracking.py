import pytest

from offscript import tracking
from offscript.settings import TrackingSettings
from tests.offline_run import told

ABOUT = {"group": "demo", "job_type": "train", "tags": ["pocket", "sarcasm"], "config": {"seed": 1}}


def start(tmp_path, mode="offline", run_id="0123456789abcdef"):
    settings = TrackingSettings(name=mode)
    return tracking.start(settings, tmp_path, run_id=run_id, name="adapter pocket sarcasm", **ABOUT)


def test_an_offline_run_says_what_it_belongs_to_and_what_was_logged(tmp_path):
    tracker = start(tmp_path)
    tracker.log({"emission_rate": 0.5}, step=10)
    tracker.table("retention", ["stage", "f1"], [["full", 0.9], ["base", None]])
    tracker.summary({"full/chat/macro_f1": 0.9})
    tracker.finish()
    (run,) = told(tmp_path)
    assert (run["id"], run["group"], run["job_type"]) == ("0123456789abcdef", "demo", "train")
    assert run["name"] == "adapter pocket sarcasm" and run["tags"] == ["pocket", "sarcasm"]
    assert {"emission_rate", "step"} <= run["logged"]
    assert any(key.startswith("retention") for key in run["logged"])
    assert "full/chat/macro_f1" in run["summary"]


def test_a_failing_tracker_says_so_once_and_costs_nothing(capsys):
    class Broken:
        def log(self, values):
            raise OSError("disk full")

    tracker = tracking.Wandb(Broken())
    tracker.log({"x": 1.0})
    tracker.log({"x": 2.0})
    tracker.finish()
    assert capsys.readouterr().err.count("W&B failed (OSError: disk full)") == 1


def test_an_unreachable_service_keeps_the_run_offline(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(tracking, "INIT_TIMEOUT_S", 2)
    tracker = start(tmp_path, mode="online")
    tracker.log({"x": 1.0})
    tracker.finish()
    assert "W&B cannot be reached" in capsys.readouterr().err
    assert any("x" in run["logged"] for run in told(tmp_path))


def test_off_is_silent(tmp_path):
    tracker = start(tmp_path, mode="off")
    tracker.log({"x": 1.0})
    tracker.summary({})
    tracker.table("t", [], [])
    tracker.finish()
    assert tracker.report_to == "none" and list(tmp_path.iterdir()) == []


@pytest.fixture(autouse=True)
def no_run_left_open():
    yield
    import wandb

    assert wandb.run is None
