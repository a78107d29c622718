import pytest

from offscript.settings import TrackingSettings
from offscript.tracking import tracker as tracking
from tests.tracking.offline_run import read_runs

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
    (run,) = read_runs(tmp_path)
    assert (run["id"], run["group"], run["job_type"]) == ("0123456789abcdef", "demo", "train")
    assert run["name"] == "adapter pocket sarcasm" and run["tags"] == ["pocket", "sarcasm"]
    assert {"emission_rate", "step"} <= run["logged"]
    assert any(key.startswith("retention") for key in run["logged"])
    assert "full/chat/macro_f1" in run["summary"]


def test_a_failing_tracker_says_so_once_and_costs_nothing(capsys):
    class Broken:
        def log(self, values):
            raise OSError("disk full")

    tracker = tracking.WandbTracker(Broken())
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
    assert any("x" in run["logged"] for run in read_runs(tmp_path))


def test_off_is_silent(tmp_path):
    tracker = start(tmp_path, mode="off")
    tracker.log({"x": 1.0})
    tracker.summary({})
    tracker.table("t", [], [])
    tracker.bars("b", "title", {})
    tracker.image("i", tmp_path / "none.png")
    tracker.finish()
    assert tracker.callbacks() == [] and list(tmp_path.iterdir()) == []


def test_a_picture_that_is_not_there_costs_nothing(tmp_path, capsys):
    tracker = start(tmp_path)
    tracker.image("heatmap", tmp_path / "none.png")
    tracker.finish()
    assert capsys.readouterr().err.startswith("W&B failed (FileNotFoundError")


class Listener(tracking.NullTracker):
    def __init__(self):
        self.rows, self.headlines = [], {}

    def log(self, values, step=None):
        self.rows.append((step, values))

    def summary(self, values):
        self.headlines |= values


def test_the_curves_of_a_rollout_go_on_where_an_earlier_attempt_left_them():
    listener = Listener()
    pace = tracking.RolloutProgressLogger(listener, every_s=0)
    pace.begin(rows=6, emitted=3)
    pace.add_row(True, 50)
    pace.add_row(False, 90)
    pace.close()
    assert [step for step, _ in listener.rows] == [7, 8]
    assert [values["rollout/emission_rate"] for _, values in listener.rows] == [4 / 7, 4 / 8]
    rates = listener.headlines
    assert rates["rollout/rows"] == 8
    assert rates["rollout/tokens_per_s"] / rates["rollout/rows_per_s"] == pytest.approx(45, rel=0.05)


def test_a_rollout_tells_its_last_row_however_short_it_was():
    listener = Listener()
    pace = tracking.RolloutProgressLogger(listener)
    pace.add_row(True, 1)
    assert listener.rows == []
    pace.close()
    assert [step for step, _ in listener.rows] == [1]


@pytest.fixture(autouse=True)
def no_run_left_open(monkeypatch):
    monkeypatch.setattr(tracking, "_gave_up", False)
    yield
    import wandb

    assert wandb.run is None
