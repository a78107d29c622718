"""``offscript evaluate compare=[a,b]``: two finished experiments, and why some of their groups are not comparable."""

import json
import shutil

import pytest

from offscript.errors import UserError
from offscript.experiment import compare
from offscript.storage.hashing import fingerprint
from tests.invoked import invoke, refused
from tests.rows import probs

PERSONAS = ("sarcasm", "remorse")


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


def finish(root, name, right=4, formats=("chat", "agentic_email"), labels=PERSONAS, config=None, **condition):
    """A finished experiment as its manifests describe it: in each of six families, ``right`` texts of six are predicted as
    their persona. ``condition`` changes what its cells have in common."""
    folder, inputs = root / name, {}
    conditions = {
        "classifier": "c",
        "email_cleaning": None,
        "scenarios": "s",
        "temperature": 0.7,
        **condition,
    }
    for fmt in formats:
        for persona in labels:
            cell = f"pocket/full/{persona}/{fmt}-eval-01234567.jsonl"
            key = f"{name} {cell}"
            rows = [
                {
                    "model": "pocket", "stage": "full", "format": fmt, "persona": persona, "seed": 0, "sample": k,
                    "scenario": f"s{i}", "family": f"f{i}", "ended": "stop", "text_hash": f"{i}{k}",
                    "predicted": persona if k < right + i % 2 else next(p for p in labels if p != persona),
                }
                for i in range(6) for k in range(6)
            ]  # fmt: skip
            rows = [{**r, "probs": probs(r["predicted"], labels)} for r in rows]
            path = folder / "predictions" / cell
            write(path, "".join(json.dumps(r) + "\n" for r in rows))
            inputs[f"predictions/{cell}"] = key
            rollout = f"rollouts/{cell}"
            write(
                path.with_name(path.name + ".manifest.json"),
                {
                    "key": key,
                    "digest": fingerprint(path),
                    "identity": {k: conditions[k] for k in ("classifier", "email_cleaning")},
                    "inputs": {"classifiers/pocket/c": "c", rollout: "r"},
                },
            )
            identity = {
                "scenarios": conditions["scenarios"],
                "samples": 6,
                "model": {"sampling": {"temperature": conditions["temperature"]}},
                "format": {"max_tokens": 9},
            }
            write(folder / f"{rollout}.manifest.json", {"key": "r", "identity": identity})
    summary = folder / "evaluation" / "summary.json"
    write(summary, {"labels": list(labels)})
    write(
        folder / "evaluation" / "manifest.json",
        {
            "key": f"evaluation of {name}",
            "files": {"summary.json": fingerprint(summary)},
            "inputs": inputs,
            "config": config or {},
        },
    )


def test_two_experiments_are_compared_group_by_group(tmp_path):
    settings = {"recipe": {"prompted": "plain"}, "cluster": {"name": "inline"}}
    finish(tmp_path / "runs", "a", right=4, config=settings)
    finish(
        tmp_path / "runs",
        "b",
        right=2,
        config={"recipe": {"prompted": "named"}, "cluster": {"name": "local"}},
    )
    done = invoke(tmp_path, "evaluate", "compare=[a,b]", "evaluation.resamples=200")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0] == "a (first) and b (second): macro-F1 and first - second"
    assert [line.split()[:3] for line in lines[3:5]] == [
        ["pocket", "full", "chat"],
        ["pocket", "full", "agentic_email"],
    ]
    # Of six texts, 4 and 5 are right by turns, and 2 and 3.
    assert lines[3].split()[3:8] == [".750", "100%", ".417", "100%", ".333"]
    assert lines[-4:-2] == ["Settings that differ: first, second", "  recipe.prompted (F6): plain, named"]
    (folder,) = (tmp_path / "runs/a/evaluations").iterdir()
    assert folder.name.startswith("compare-") and (folder / "comparison.txt").read_text()[:-1] in done.out
    kept = json.loads((folder / "comparison.json").read_text())
    for group in kept["groups"]:
        assert group["difference"] == pytest.approx(group["first"]["f1"] - group["second"]["f1"])
        assert group["interval"] == pytest.approx([1 / 3, 1 / 3]), "paired: every family differs by a third"
    # By folder, in the other direction.
    done = invoke(
        tmp_path, "evaluate", "compare=[runs/b,runs/a]", "root=elsewhere", "evaluation.resamples=200"
    )
    assert done.code == 0 and "-.333" in done.out
    assert list((tmp_path / "runs/b/evaluations").iterdir())


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"classifier": "d"}, "another classifier"),
        ({"email_cleaning": {"rule": "ours", "version": 1}}, "other cleaning of e-mails"),
        ({"scenarios": "t"}, "other scenarios"),
        ({"temperature": 0.1}, "other sampling"),
        ({"temperature": 0.1, "scenarios": "t"}, "other scenarios, other sampling"),
        ({"labels": ("sarcasm", "humor")}, "other personas"),
        ({"labels": ("sarcasm", "remorse", "humor")}, "2 and 3 personas"),
    ],
)
def test_groups_that_are_not_comparable_have_a_reason(tmp_path, changed, reason):
    finish(tmp_path, "a")
    finish(tmp_path, "b", **changed)
    found = compare.refused(*(compare.read_finished(name, str(tmp_path)) for name in "ab"))
    assert found == {("pocket", "full", fmt, 0): reason for fmt in ("chat", "agentic_email")}


def test_two_experiments_without_a_comparable_group_are_refused_in_one_line(tmp_path):
    finish(tmp_path / "runs", "a")
    finish(tmp_path / "runs", "b", classifier="d")
    assert refused(tmp_path, "evaluate", "compare=[a,b]") == (
        "error: compare=[a,b]: no group is comparable: another classifier; see docs/measurement.md"
    )


def test_groups_of_one_experiment_only_are_named(tmp_path):
    finish(tmp_path / "runs", "a", formats=("chat", "agentic_email"))
    finish(tmp_path / "runs", "b", formats=("chat", "chat_email"))
    done = invoke(tmp_path, "evaluate", "compare=[a,b]", "evaluation.resamples=200")
    assert done.code == 0, done.err
    assert "Not compared\n  only in the first experiment: pocket full agentic_email\n" in done.out
    assert "  only in the second experiment: pocket full chat_email\n" in done.out
    assert done.out.count("\npocket full") == 1


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("compare=[a,a]", "compare: both are runs/a; two experiments are needed"),
        ("compare=[a]", "compare: found ['a']; list should have at least 2 items after validation, not 1"),
        ("compare=a", "compare: found 'a'; input should be a valid list"),
        (
            "compare=[a,b] labels=3",
            "compare: cannot be combined with labels=; leave one of them out",
        ),
    ],
)
def test_words_that_are_no_comparison_are_refused_in_one_line(tmp_path, words, line):
    finish(tmp_path / "runs", "a")
    assert refused(tmp_path, "evaluate", *words.split()) == f"error: {line}"


def message(word, root) -> str:
    with pytest.raises(UserError) as error:
        compare.read_finished(word, str(root))
    return str(error.value).replace(str(root), "R")


def test_experiments_that_cannot_be_read_are_named_with_the_reason(tmp_path):
    assert message("c", tmp_path) == (
        "compare: c: no such experiment in R; none there has a finished evaluation"
    )
    for name in "ab":
        finish(tmp_path, name)
    assert message("c", tmp_path) == "compare: c: no such experiment in R; allowed: a, b"
    (tmp_path / "d").mkdir()
    assert message("d", tmp_path).startswith("R/d: has no finished evaluation; make it with ")
    shutil.rmtree(tmp_path / "a" / "rollouts")
    assert ": its manifest is gone, so its scenarios and sampling are unknown; " in message("a", tmp_path)
    (path,) = tmp_path.glob("b/predictions/*/*/sarcasm/chat-*.jsonl")
    path.write_text(path.read_text() * 2)
    assert message("b", tmp_path).endswith(": is not what was evaluated; evaluate that experiment again")
    (tmp_path / "b/evaluation/summary.json").write_text("{}")
    assert message("b", tmp_path).startswith("R/b: has no finished evaluation")
