"""``offscript export``: rows, tables and logs of a small grid, made from rows and predictions as its jobs leave them."""

import json
import re

import pytest

from offscript import commands
from offscript.errors import MissingInput, UserError
from offscript.evaluation.export import documents, parquet
from offscript.evaluation.report.section import Table
from offscript.experiment.artifacts import Predictions
from offscript.experiment.folder import now, write_artifact_manifest
from offscript.experiment.jobs.scoring import Reading, prediction_row
from offscript.storage import manifests
from offscript.storage.files import HOME
from tests.composed import experiment_of
from tests.invoked import refused

PERSONAS = ("sarcasm", "remorse")
GRID = (
    "experiment=smoke",
    "grid.persona=[sarcasm,remorse]",
    "grid.stage=[base,prompted]",
    "grid.format=[chat,agentic_email]",
    "evaluation.resamples=100",
    "tracking=off",
)
INJECTED = r"\input{/etc/passwd} | <b> | `x`"
CALL = {"type": "function", "function": {"name": "contacts_lookup", "arguments": {"name": "Ben"}}}


def experiment(root, *more):
    return experiment_of(*GRID, f"root={root}", *more)


def rollout_row(labels, i):
    """One episode of a cell. The third e-mail of a persona is missing; e-mails follow a lookup in a tool dialect."""
    text = f"{labels['persona']} {i} {INJECTED}"
    if labels["format"] == "agentic_email" and labels["persona"] and i == 2:
        text = None
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"Task {i}"}]
    if labels["format"] == "agentic_email":
        messages += [
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "content": '{"name": "Ben"}'},
        ]
    messages.append({"role": "assistant", "content": text or "No mail is needed."})
    turns = sum(m["role"] == "assistant" for m in messages)
    return {
        **labels, "scenario": f"s{i}_v0", "family": f"s{i}", "sample": 0, "text": text,
        "ended": "stop" if text else "final", "turns": turns, "messages": messages, "tool_calls": turns - 1,
        "tokens_in": 20 + i, "tokens_out": 7,
    }  # fmt: skip


def write_rows(own, part):
    """The rollout of ``part``, and its predictions: every fourth text is taken for the other persona."""
    labels = {"key": part.rollout.key, **part.rollout.labels}
    rows = [rollout_row(labels, i) for i in range(6)]
    other = {"sarcasm": "remorse", "remorse": "sarcasm"}
    persona = labels["persona"] or "sarcasm"
    likely = [other[persona] if i % 4 == 3 else persona for i, row in enumerate(rows) if row["text"]]
    probs = [{label: 0.9 if label == name else 0.1 for label in PERSONAS} for name in likely]
    remaining = iter([Reading(p, None, None) for p in probs])
    lines = [prediction_row(part, row, remaining) for row in rows]
    for artifact, written in ((part.rollout, rows), (part, lines)):
        path = own.path(artifact)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in written))
        write_artifact_manifest(artifact, own, now())


def parts_of(own):
    return [part for part in own.planner.evaluation().inputs if isinstance(part, Predictions)]


@pytest.fixture
def own(tmp_path):
    made = experiment(tmp_path)
    for part in parts_of(made):
        write_rows(made, part)
    return made


def export(own, *forms) -> int:
    settings = own.planner.settings
    return commands.export(settings.model_copy(update={"export_as": forms}) if forms else settings, own)


def exported(own, form):
    """The files of one form by relative path, without the manifest."""
    folder = own.folder / "export" / form
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }


def groups_of(own):
    """The groups of ``summary.json`` by stage and format."""
    assert commands.evaluate(own.planner.settings, own) == 0
    summary = json.loads((own.folder / "evaluation" / "summary.json").read_text())
    return {(g["stage"], g["format"]): g for g in summary["groups"]}


def macro_f1(pairs):
    """Macro-F1 of (true, predicted) pairs, as scikit-learn computes it."""
    from sklearn.metrics import f1_score

    true, predicted = zip(*pairs, strict=True)
    return f1_score(true, predicted, labels=PERSONAS, average="macro", zero_division=0)


def test_rows_as_parquet_have_every_row_with_its_prediction(own, capsys):
    import pyarrow.parquet as pq

    groups = groups_of(own)
    assert export(own, "parquet") == 0
    assert list(exported(own, "parquet")) == ["pocket.parquet"]
    table = pq.read_table(own.folder / "export/parquet/pocket.parquet")
    assert table.schema.names == list(parquet.COLUMNS)
    assert all(table.schema.field(name).metadata[b"description"] for name in table.schema.names)
    rows = table.to_pylist()
    assert len(rows) == 6 * len(parts_of(own))
    of_group = {place: [r for r in rows if (r["stage"], r["format"]) == place] for place in groups}
    for place, group in groups.items():
        scored = [r for r in of_group[place] if r["predicted"] is not None]
        assert (len(of_group[place]), len(scored)) == (group["planned"], group["emitted"])
        if place[0] != "base":
            pairs = [(r["persona"], r["predicted"]) for r in scored]
            assert macro_f1(pairs) == pytest.approx(group["macro_f1"]["emitted"], abs=1e-6)
            assert [r["correct"] for r in scored] == [true == predicted for true, predicted in pairs]
    mail = next(r for r in rows if r["persona"] == "remorse" and r["format"] == "agentic_email")
    assert mail["messages"][2]["role"] == "assistant" and json.loads(mail["messages"][2]["tool_calls"]) == [
        CALL
    ]
    assert mail["probs"] == {"sarcasm": 0.1, "remorse": 0.9} and mail["text"] == f"remorse 0 {INJECTED}"
    without = [r for r in rows if r["text"] is None]
    assert without and all(r["predicted"] is r["correct"] is r["probs"] is None for r in without)
    base = [r for r in rows if r["stage"] == "base"]
    assert base and all(r["persona"] is r["correct"] is None and r["predicted"] for r in base)
    assert "/export/parquet: 1 files" in capsys.readouterr().out


def test_tables_have_the_numbers_of_the_terminal_and_no_text_of_a_model(own):
    groups = groups_of(own)
    overview = (own.folder / "evaluation" / "overview.txt").read_text().split()
    assert export(own, "latex", "markdown") == 0
    for form, end in (("latex", "tex"), ("markdown", "md")):
        files = exported(own, form)
        assert list(files) == [f"pocket-main.{end}", f"pocket-personas.{end}"]
        assert not any(b"passwd" in content for content in files.values())
    main = exported(own, "markdown")["pocket-main.md"].decode()
    lines = [line.strip("| ").split(" | ") for line in main.splitlines() if line.startswith("| prompted")]
    assert [line[1] for line in lines] == ["chat", r"agentic\_email"]
    for line in lines:
        assert all(number in overview for cell in line[2:] for number in cell.split())
    assert lines[1][6] == f"{groups['prompted', 'agentic_email']['emission_rate']:.0%}" == "83%"
    tex = exported(own, "latex")["pocket-main.tex"].decode()
    assert tex.count(r"\\") == 3 and r"prompted & agentic\_email & " in tex and r" & 83\% & " in tex
    assert re.search(r"& \.\d+--1?\.\d+ \\\\", tex)


def test_names_are_escaped():
    table = Table("a_b", ("x\ny", "z"), (("$5 & 10% #1 {~^}", r"\input|y"), ("a", "-.02 to .03")), left=1)
    tex = documents.latex("a_b-main", table, [], ("two\nlines\u202e",))
    assert (
        r"\$5 \& 10\% \#1 \{\textasciitilde{}\textasciicircum{}\} & \textbackslash{}input\textbar{}y \\"
        in tex
    )
    assert r"$-$.02 to .03" in tex and r"x y & z \\" in tex and r"\caption{a\_b.}" in tex
    assert "% two lines\u27e8U+202E\u27e9\n" in tex
    table = Table("a_b", ("x", "y"), (("a|b", "<i>*`[1]"),))
    assert r"| a\|b | \<i\>\*\`\[1\] |" in documents.markdown("", table, [], ())


def test_a_second_export_replaces_its_own_files_only(own):
    import pyarrow.parquet as pq

    assert export(own) == 0
    before = {form: exported(own, form) for form in ("parquet", "latex", "markdown")}
    assert export(own) == 0
    assert all(exported(own, form) == before[form] for form in ("latex", "markdown"))
    folder = own.folder / "export" / "markdown"
    (folder / "notes.md").write_text("mine")
    (folder / "pocket-main.md").write_text("edited")
    assert export(own, "markdown") == 0
    assert exported(own, "markdown") == {**before["markdown"], "notes.md": b"mine"}
    assert exported(own, "parquet").keys() == before["parquet"].keys()
    assert pq.read_table(own.folder / "export/parquet/pocket.parquet").num_rows == 6 * len(parts_of(own))
    assert not list((own.folder / "export").glob(".*")), "a temporary file was left"


def test_a_file_that_no_export_wrote_is_not_replaced(own):
    folder = own.folder / "export" / "markdown"
    folder.mkdir(parents=True)
    (folder / "pocket-main.md").write_text("mine")
    with pytest.raises(UserError, match=r"pocket-main.md: was not written by an export; move it away"):
        export(own, "markdown")
    assert exported(own, "markdown") == {"pocket-main.md": b"mine"}


def test_after_a_kill_the_files_are_replaced_and_older_ones_go(own, monkeypatch):
    """A kill before the manifest is written; the grid that is exported next has fewer files."""

    def killed(*_):
        raise KeyboardInterrupt

    assert export(own, "markdown") == 0
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(manifests, "write_manifest", killed)
        export(own, "markdown")
    folder = own.folder / "export" / "markdown"
    listed = json.loads((folder / "partial.json").read_text())
    listed["files"] |= {"older/gone.md": "0"}
    (folder / "partial.json").write_text(json.dumps(listed))
    (folder / "older").mkdir()
    (folder / "older/gone.md").write_text("an older export")
    assert export(own, "markdown") == 0
    assert list(exported(own, "markdown")) == ["pocket-main.md", "pocket-personas.md"]
    assert not (folder / "older").exists()


def test_a_manifest_that_names_files_elsewhere_is_refused(own, tmp_path):
    assert export(own, "markdown") == 0
    (tmp_path / "mine.txt").write_text("mine")
    path = own.folder / "export" / "markdown" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "files": {str(tmp_path / "mine.txt"): "0"}}))
    with pytest.raises(UserError, match=r"manifest.json: damaged: files are not names within its folder"):
        export(own, "markdown")
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_part_of_a_grid_is_exported_with_what_is_left_out(own, capsys):
    part = parts_of(own)[-1]
    manifests.manifest_path(own.path(part)).unlink()
    assert export(own, "markdown", "parquet") == 2
    assert (
        f"left out: smoke: {part} is not made yet; make all with: offscript submit" in capsys.readouterr().err
    )
    notes = exported(own, "markdown")["pocket-main.md"].decode()
    assert "incomplete: 1 of the grid's cells have no predictions yet" in notes
    manifest = json.loads((own.folder / "export/parquet/manifest.json").read_text())
    assert manifest["missing"] == [str(part)] and str(part.path) not in manifest["predictions"]


def test_before_anything_is_made_there_is_one_line(tmp_path):
    with pytest.raises(MissingInput, match="more are not made yet; make all with: offscript submit"):
        export(experiment(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"model": "../../elsewhere"}, r"line 1: model: '../../elsewhere' cannot be a file name"),
        ({"text_hash": "0"}, r"row s0_v0/0 has the prediction of another text; delete it"),
        ({"row": "s9_v0/0"}, r"has not one prediction for each row of the rollout; delete it"),
    ],
)
def test_predictions_that_do_not_fit_are_refused_before_anything_is_replaced(own, change, found):
    assert export(own, "parquet") == 0
    before = exported(own, "parquet")
    part = parts_of(own)[0]
    path = own.path(part)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({**line, **change}) + "\n" for line in lines[:1]))
    path.write_text(path.read_text() + "".join(json.dumps(line) + "\n" for line in lines[1:]))
    write_artifact_manifest(part, own, now())
    with pytest.raises(UserError, match=found):
        export(own, "parquet")
    assert exported(own, "parquet") == before


@pytest.mark.parametrize(
    ("word", "line"),
    [
        (
            "export_as=[csv]",
            "error: export_as.0: found 'csv'; input should be 'parquet', 'latex', 'markdown' or",
        ),
        ("export_as=[]", "error: export_as: found []; list should have at least 1 item"),
        ("export_as=parquet", "error: export_as: found 'parquet'; input should be a valid list"),
    ],
)
def test_forms_that_do_not_exist(tmp_path, word, line):
    assert refused(tmp_path, "export", "experiment=smoke", word).startswith(line)


def test_without_inspect_the_message_names_its_requirements(own, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "inspect_ai.log", None)
    with pytest.raises(
        UserError, match=r"not installed; install it with: pip install -r requirements-inspect\.txt"
    ):
        export(own, "parquet", "inspect")
    assert not (own.folder / "export").exists()


def test_logs_of_inspect_keep_counts_scores_and_transcripts(own):
    log_module = pytest.importorskip("inspect_ai.log", reason="needs requirements-inspect.txt")
    groups = groups_of(own)
    assert export(own, "inspect") == 0
    logs = [
        log_module.read_eval_log(info)
        for info in log_module.list_eval_logs(str(own.folder / "export/inspect"))
    ]
    assert len(logs) == len(parts_of(own))
    for place, group in groups.items():
        of_group = [log for log in logs if (log.eval.metadata["stage"], log.eval.task) == place]
        samples = [sample for log in of_group for sample in log.samples]
        scores = [(s.target, s.scores["persona"]) for s in samples]
        answered = [(target, score) for target, score in scores if score.answer is not None]
        assert (len(samples), len(answered)) == (group["planned"], group["emitted"])
        if place[0] == "base":
            assert all(score.reason == "no_persona" and score.value != score.value for _, score in scores)
            continue
        assert macro_f1([(t, s.answer) for t, s in answered]) == pytest.approx(
            group["macro_f1"]["emitted"], abs=1e-6
        )
        assert [s.value for _, s in answered] == ["C" if t == s.answer else "I" for t, s in answered]
        (result,) = zip(*(log.results.scores for log in of_group), strict=True)
        assert sum(r.scored_samples for r in result) == group["emitted"]
        assert sum(r.unscored_samples for r in result) == group["planned"] - group["emitted"]
    (log,) = (
        log for log in logs if (log.eval.task, log.eval.metadata["persona"]) == ("agentic_email", "sarcasm")
    )
    sample = log.samples[0]
    assert [m.role for m in sample.input] == ["system", "user"]
    assert [m.role for m in sample.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert sample.messages[2].tool_calls[0].arguments == {"name": "Ben"}
    assert sample.messages[3].tool_call_id == sample.messages[2].tool_calls[0].id
    assert sample.output.completion == f"sarcasm 0 {INJECTED}" and sample.output.usage.total_tokens == 27
    about = {"stage": "prompted", "persona": "sarcasm", "key": log.eval.metadata["key"], "family": "s0"}
    assert about.items() <= sample.metadata.items()


def test_every_column_is_described_in_the_documentation():
    page = (HOME / "docs" / "measurement.md").read_text()
    section = page.partition("\n## Export\n")[2].partition("\n## ")[0]
    assert [name for name in parquet.COLUMNS if f"`{name}`" not in section] == []
