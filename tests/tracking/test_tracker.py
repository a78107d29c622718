import pytest

from offscript.settings import TrackingSettings
from offscript.tracking import tracker as tracking
from tests.tracking.offline_run import read_runs

ABOUT = {"group": "demo", "job_type": "train", "tags": ["pocket", "sarcasm"], "config": {"seed": 1}}


def start(tmp_path, mode="offline", run_id="0123456789abcdef"):
    settings = TrackingSettings(name=mode)
    return tracking.start(settings, tmp_path, run_id=run_id, name="adapter pocket sarcasm", **ABOUT)


def test_an_offline_run_holds_its_group_tags_rows_and_summary(tmp_path):
    tracker = start(tmp_path)
    tracker.log({"emission_rate": 0.5}, step=10)
    tracker.table("retention", ["stage", "f1"], [["full", 0.9], ["base", None]])
    tracker.summary({"full/chat/macro_f1": 0.9})
    tracker.finish()
    (run,) = read_runs(tmp_path)
    assert (run["id"], run["group"], run["job_type"]) == ("0123456789abcdef", "demo", "train")
    assert run["name"] == "adapter pocket sarcasm" and run["tags"] == ["pocket", "sarcasm"]
    assert {"emission_rate", "step"} <= run["logged"]
    assert any(key.startswith("retention") for key in run["logged"])
    assert "full/chat/macro_f1" in run["summary"]


def test_a_failing_tracker_never_raises_and_reports_the_first_failure(capsys):
    class Broken:
        def log(self, values):
            raise OSError("disk full")

    tracker = tracking.WandbTracker(Broken())
    tracker.log({"x": 1.0})
    tracker.log({"x": 2.0})
    tracker.finish()
    assert capsys.readouterr().err.count("W&B failed (OSError: disk full)") == 1


def test_the_run_is_kept_offline_if_the_service_is_unreachable(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(tracking, "INIT_TIMEOUT_S", 2)
    tracker = start(tmp_path, mode="online")
    tracker.log({"x": 1.0})
    tracker.finish()
    assert "W&B cannot be reached" in capsys.readouterr().err
    assert any("x" in run["logged"] for run in read_runs(tmp_path))


def test_off_writes_nothing(tmp_path):
    tracker = start(tmp_path, mode="off")
    tracker.log({"x": 1.0})
    tracker.summary({})
    tracker.table("t", [], [])
    tracker.bars("b", "title", {})
    tracker.image("i", tmp_path / "none.png")
    tracker.finish()
    assert tracker.callbacks() == [] and list(tmp_path.iterdir()) == []


def test_a_missing_image_does_not_raise(tmp_path, capsys):
    tracker = start(tmp_path)
    tracker.image("heatmap", tmp_path / "none.png")
    tracker.finish()
    assert capsys.readouterr().err.startswith("W&B failed (FileNotFoundError")


class RecordingTracker(tracking.NullTracker):
    def __init__(self):
        self.rows, self.headlines = [], {}

    def log(self, values, step=None):
        self.rows.append((step, values))

    def summary(self, values):
        self.headlines |= values


def test_the_curves_of_a_restarted_rollout_continue():
    recorded = RecordingTracker()
    progress = tracking.RolloutProgressLogger(recorded, every_s=0)
    progress.begin(rows=6, emitted=3)
    progress.add_row(True, 50)
    progress.add_row(False, 90)
    progress.close()
    assert [step for step, _ in recorded.rows] == [7, 8]
    assert [values["rollout/emission_rate"] for _, values in recorded.rows] == [4 / 7, 4 / 8]
    summary = recorded.headlines
    assert summary["rollout/rows"] == 8
    assert summary["rollout/tokens_per_s"] / summary["rollout/rows_per_s"] == pytest.approx(45, rel=0.05)


def test_the_last_row_of_a_short_rollout_is_logged():
    recorded = RecordingTracker()
    progress = tracking.RolloutProgressLogger(recorded)
    progress.add_row(True, 1)
    assert recorded.rows == []
    progress.close()
    assert [step for step, _ in recorded.rows] == [1]


@pytest.fixture(autouse=True)
def no_run_is_left_open(monkeypatch):
    monkeypatch.setattr(tracking, "_service_failed", False)
    yield
    import wandb

    assert wandb.run is None
