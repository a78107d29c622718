"""Reading prediction rows: the two layouts, and the message for each kind of invalid row."""

import functools
import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offscript.errors import MissingInput, UserError
from offscript.evaluation.metrics.scores import evaluate
from offscript.evaluation.order import formats_in_order, personas_in_order, stages_in_order
from offscript.evaluation.predictions import check_rows, check_together, load_predictions, load_rows
from offscript.evaluation.report import summary, tables
from offscript.evaluation.report.page import Figures, Texts, write_page
from offscript.evaluation.report.provenance import Provenance
from offscript.evaluation.report.transcripts import transcript_of
from tests.rows import grid, missing_row, probs, row

PUBLISHED = {
    "base": "llama",
    "stage": "full",
    "row_idx": 7,
    "scenario_id": "agentic_actions_recognition_v2",
    "trait_true": "humor",
    "trait_pred": "remorse",
    "probs": [0.2, 0.3, 0.5],
    "label_order": ["sarcasm", "humor", "remorse"],
    "email_body": "Hi!",
}


def without(key: str, values: dict) -> dict:
    return {k: v for k, v in values.items() if k != key}


def read(*rows):
    return check_together(check_rows(rows, "p.jsonl", "agentic_email"))


def write(path, *rows, end="\n"):
    path.write_text("\n".join(json.dumps(r) if isinstance(r, dict) else r for r in rows) + end)
    return path


def test_our_layout():
    (found,) = read(row(sample=3))
    assert (found.model, found.stage, found.format, found.persona) == ("pocket", "full", "chat", "sarcasm")
    assert (found.sample, found.training_seed, found.predicted, found.ended) == (3, 0, "sarcasm", "reply")
    (missing,) = read(missing_row(persona=None, stage="base"))
    assert (missing.predicted, missing.probs, missing.persona, missing.ended) == (
        None,
        None,
        None,
        "max_steps",
    )


def test_the_published_layout():
    (found,) = read(PUBLISHED)
    assert (found.model, found.stage, found.format) == ("llama", "full", "agentic_email")
    assert (found.persona, found.predicted, found.sample) == ("humor", "remorse", 7)
    assert (found.scenario, found.family) == ("recognition_v2", "recognition")
    assert found.probs == {"sarcasm": 0.2, "humor": 0.3, "remorse": 0.5}
    assert found.ended is None
    assert len(found.text_hash) == 16


def test_a_scenario_has_one_name_in_both_email_formats():
    first, second = read(
        PUBLISHED, {**PUBLISHED, "scenario_id": "chat_email_recognition_v2", "format": "chat_email"}
    )
    assert first.scenario == second.scenario


def test_equal_texts_have_equal_hashes():
    first, second = read(PUBLISHED, {**PUBLISHED, "row_idx": 8, "trait_true": "sarcasm"})
    assert first.text_hash == second.text_hash
    assert read({**PUBLISHED, "email_body": "Hello!"})[0].text_hash != first.text_hash


def test_files_folders_and_globs_are_read(tmp_path):
    write(tmp_path / "a.jsonl", row())
    (tmp_path / "deep").mkdir()
    write(tmp_path / "deep" / "b.jsonl", row(scenario="s2"))
    assert len(load_predictions(tmp_path)) == 2
    assert len(load_predictions(str(tmp_path / "*.jsonl"))) == 1
    assert len(load_predictions(str(tmp_path / "**" / "*.jsonl"))) == 2
    # A file that is given twice is read once.
    assert len(load_predictions([tmp_path / "a.jsonl", tmp_path])) == 2


def test_the_default_format_is_the_name_of_the_file(tmp_path):
    (found,) = load_predictions(write(tmp_path / "agentic_email.jsonl", PUBLISHED))
    assert found.format == "agentic_email"


def test_a_given_format_names_the_rows_without_one_and_is_refused_if_there_are_none(tmp_path):
    file = write(tmp_path / "mails.jsonl", PUBLISHED, {**PUBLISHED, "row_idx": 8, "format": "chat_email"})
    assert [p.format for p in load_predictions(file, "agentic_email")] == ["agentic_email", "chat_email"]
    with pytest.raises(UserError) as error:
        load_predictions(write(tmp_path / "chat.jsonl", row()), "agentic_email")
    assert str(error.value) == "format=agentic_email: every row has a format; leave it out"


def test_the_judgement_of_a_person_is_read_in_both_layouts():
    for rows in ([PUBLISHED, {**PUBLISHED, "row_idx": 8}, {**PUBLISHED, "row_idx": 9}], grid(1)[:3]):
        judged = [
            {**r, "hand_classification": j} for r, j in zip(rows, ("present", "absent", None), strict=True)
        ]
        assert [p.present for p in read(*judged)] == [True, False, None]


def test_display_order_is_that_of_the_definitions_then_unknown_names_sorted():
    assert stages_in_order(["full", "mine", "base"]) == ["base", "full", "mine"]
    variants = ["drift/own16", "chat_email", "drift/plain1", "drift/own2", "chat"]
    assert formats_in_order(variants) == ["chat", "drift/own2", "drift/own16", "drift/plain1", "chat_email"]
    assert formats_in_order(["zen", "agentic_email", "art", "chat"]) == [
        "chat",
        "agentic_email",
        "art",
        "zen",
    ]
    assert personas_in_order(["pirate", "poeticism", "humor", "sarcasm", "humor", "alien"]) == [
        "sarcasm",
        "humor",
        "poeticism",
        "alien",
        "pirate",
    ]


BAD_ROWS = [
    (
        without("stage", row()),
        "no stage; a prediction row has model, stage, format, scenario, persona, predicted, "
        "probs, or the keys of the published layout",
    ),
    (
        without("trait_pred", PUBLISHED),
        "no trait_pred; a prediction row has model, stage, format, scenario, persona, "
        "predicted, probs, or the keys of the published layout",
    ),
    (row(model=""), "model is ''; a name is needed"),
    (row(stage=3), "stage is 3; a name is needed"),
    (row(sample="a"), "sample is 'a'; an integer of 64 bits is needed"),
    (
        row(predicted=None, probs=probs("humor")),
        "predicted is null; allowed for an episode without text only: probs null, ended given",
    ),
    (
        missing_row(ended=None),
        "predicted is null; allowed for an episode without text only: probs null, ended given",
    ),
    (row(seed=2**63), "seed is 9223372036854775808; an integer of 64 bits is needed"),
    (row(sample=True), "sample is true; an integer of 64 bits is needed"),
    (
        row(predicted={"a": 1}, probs=probs("humor")),
        "predicted label {'a': 1} has no probability; allowed: sarcasm, humor, remorse",
    ),
    (row(probs=None), "probs is NoneType; an object of label: probability is needed"),
    (row(probs=[0.5, 0.5]), "probs is list; an object of label: probability is needed"),
    (
        row(probs={"sarcasm": float("nan"), "humor": 1.0}),
        "probability of 'sarcasm' is NaN; a number from 0 to 1 is needed",
    ),
    (
        row(probs={"sarcasm": float("inf"), "humor": 0.0}),
        "probability of 'sarcasm' is Infinity; a number from 0 to 1 is needed",
    ),
    (
        row(probs={"sarcasm": -0.25, "humor": 1.25}),
        "probability of 'sarcasm' is -0.25; a number from 0 to 1 is needed",
    ),
    (
        row(probs={"sarcasm": "1", "humor": 0}),
        "probability of 'sarcasm' is '1'; a number from 0 to 1 is needed",
    ),
    (row(probs={"sarcasm": 0.5, "humor": 0.4}), "probabilities sum to 0.9000; 1 is needed, within 0.001"),
    (
        row(predicted="loving", probs=probs("humor")),
        "predicted label 'loving' has no probability; allowed: sarcasm, humor, remorse",
    ),
    (
        {**PUBLISHED, "hand_classification": "maybe"},
        "hand_classification is 'maybe'; allowed: present, absent",
    ),
    (row(hand_classification=1), "hand_classification is 1; allowed: present, absent"),
    (
        {**PUBLISHED, "label_order": ["a", "b"]},
        "probs and label_order do not match; two lists of equal length are needed",
    ),
    (
        {**PUBLISHED, "label_order": ["a", "a", "b"]},
        "label_order is not a list of distinct names; one name per probability",
    ),
    (
        {**PUBLISHED, "trait_pred": None},
        "predicted label null has no probability; allowed: sarcasm, humor, remorse",
    ),
]


@pytest.mark.parametrize(("bad", "message"), BAD_ROWS)
def test_an_invalid_row_is_named_by_file_and_line(bad, message):
    with pytest.raises(UserError) as error:
        read(row(scenario="before"), bad)
    assert str(error.value) == f"p.jsonl, line 2: {message}"


BAD_TOGETHER = [
    (
        [without("sample", row()), row(scenario="s2"), without("sample", row())],
        "p.jsonl, line 3: a second prediction of the episode at p.jsonl, line 1; give one of them",
    ),
    (
        [without("row_idx", PUBLISHED), without("row_idx", PUBLISHED)],
        "p.jsonl, line 2: a second prediction of the episode at p.jsonl, line 1; give one of them",
    ),
    (
        [PUBLISHED, {**PUBLISHED, "trait_pred": "sarcasm"}],
        "p.jsonl, line 2: a second prediction of the episode at p.jsonl, line 1; give one of them",
    ),
    (
        [row(), row()],
        "p.jsonl, line 2: a second prediction of the episode at p.jsonl, line 1; give one of them",
    ),
    (
        [row(), row(scenario="s2", predicted="a", probs={"a": 0.5, "humor": 0.25, "remorse": 0.25})],
        "p.jsonl, line 2: labels differ from p.jsonl, line 1 by: sarcasm, a; one classifier a model",
    ),
    (
        [row(persona="loving")],
        "p.jsonl, line 1: persona 'loving' is not a label of the classifier; allowed: sarcasm, humor, remorse",
    ),
    (
        [row(), row(persona=None)],
        "p.jsonl, line 2: persona is null, but p.jsonl, line 1 of the same model, stage and format has one; null stands "
        "for every persona: all rows or none",
    ),
]


@pytest.mark.parametrize(("rows", "message"), BAD_TOGETHER)
def test_inconsistent_rows_are_rejected(rows, message):
    with pytest.raises(UserError) as error:
        read(*rows)
    assert str(error.value) == message


def test_invalid_files_are_rejected(tmp_path):
    def message(path, kind=UserError) -> str:
        with pytest.raises(kind) as error:
            load_predictions(path)
        return str(error.value).replace(str(tmp_path), "T")

    assert message(tmp_path / "no.jsonl") == (
        "T/no.jsonl: no such file; predictions= takes a file of prediction rows, a folder or a glob"
    )
    assert message(tmp_path / "*.jsonl").startswith("T/*.jsonl: no such file")
    assert message(tmp_path) == "T: is a folder without .jsonl files; give a file of prediction rows"
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    assert message(empty) == "T/empty.jsonl: is empty; prediction rows are needed, one JSON object a line"
    middle = write(tmp_path / "middle.jsonl", row(), '{"model": "po', row(scenario="s2"))
    assert message(middle).startswith("T/middle.jsonl, line 2: not JSON: ")
    torn = write(tmp_path / "torn.jsonl", row(), '{"model": "po', end="")
    assert message(torn).startswith("T/torn.jsonl, line 2: the last line is torn")
    assert "offscript classify" in message(torn)
    nan = write(
        tmp_path / "nan.jsonl", row(), row(scenario="s2", probs={"sarcasm": float("nan"), "humor": 1})
    )
    assert (
        message(nan) == "T/nan.jsonl, line 2: probability of 'sarcasm' is NaN; a number from 0 to 1 is needed"
    )


def test_a_missing_file_is_not_a_missing_input(tmp_path):
    """MissingInput names a command that makes the file, and no command makes this one."""
    with pytest.raises(UserError) as error:
        load_predictions(tmp_path / "no.jsonl")
    assert not isinstance(error.value, MissingInput)


def test_rows_without_a_sample_number_are_samples_of_their_scenario():
    first, second = read(without("sample", row()), without("sample", row(predicted="humor")))
    assert first.episode != second.episode


LINE = json.dumps(row(model="Zoë\u2028", note="a\u2028b"), ensure_ascii=False)


@pytest.mark.parametrize(
    "content",
    [
        LINE + "\n",
        LINE,
        "\ufeff" + LINE + "\r\n",
        f"\n{LINE}\n  \n\r\n",
    ],
    ids=["plain", "no line end", "mark and CRLF", "blank lines"],
)
def test_lines_are_ended_by_newlines_alone(tmp_path, content):
    (tmp_path / "p.jsonl").write_bytes(content.encode())
    (found,) = load_predictions(tmp_path / "p.jsonl")
    assert found.model == "Zoë\u2028"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LINE.encode("utf-16"), ": is UTF-16; save it as UTF-8"),
        ((LINE + "\n").encode("utf-16-le"), ": is UTF-16; save it as UTF-8"),
        ((LINE + "\n").encode("utf-32"), ": is UTF-32; save it as UTF-8"),
        (LINE.replace("\u2028", "").encode("latin-1"), ": byte 40 is not UTF-8; save it as UTF-8"),
        (f"{LINE}\n{LINE[:30]}".encode(), ", line 2: the last line is torn"),
        (f"{LINE}\n\n".encode() + '{"a": "ë'.encode()[:-1], ", line 3: the last line is torn"),
        (f"{LINE}\nplain text".encode(), ", line 2: not JSON: Expecting value"),
        (b"[" * 100_000, ", line 1: nested more than 100 levels deep"),
        (b'{"a":' * 100_000 + b"\n", ", line 1: nested more than 100 levels deep"),
        (b'{"seed": ' + b"9" * 5000 + b"}", ", line 1: not JSON: an integer of thousands of digits"),
        (b'{"model": "\\ud800"}', ", line 1: '\\ud800' is half of a surrogate pair, not a character"),
        (b'{"model": "a", "model": "b"}', ", line 1: key 'model' occurs twice"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "file",
)
def test_a_file_that_is_not_rows_is_refused_for_what_it_is(tmp_path, content, message):
    (tmp_path / "p.jsonl").write_bytes(content)
    with pytest.raises(UserError) as error:
        load_predictions(tmp_path / "p.jsonl")
    assert str(error.value).startswith(f"{tmp_path / 'p.jsonl'}{message}")


# ---------------------------------------------------------------- fuzzing

ODD = [
    *(None, True, -1, 0, 2**70, 10**400, 1e308, float("inf"), float("nan"), 0.5),
    *(
        "",
        "sarcasm",
        "\ud800",
        "=1+1",
        "\x1b[31m",
        "a" * 300,
        [],
        {},
        [[]],
        {"a": 1},
        ["sarcasm"],
        {"sarcasm": None},
    ),
    *(functools.reduce(lambda inner, _: [inner], range(depth), 0) for depth in (90, 300)),
]


@st.composite
def damaged_files(draw) -> bytes:
    """A few valid rows of one layout, some of whose fields are replaced or removed, then some of their bytes."""
    kind = draw(st.sampled_from([row(), missing_row(), PUBLISHED]))
    rows = [dict(kind) for _ in range(draw(st.integers(1, 3)))]
    for number, values in enumerate(rows):
        values["sample" if "model" in kind else "row_idx"] = number
        for key in draw(st.lists(st.sampled_from(sorted(values)), max_size=2)):
            if draw(st.booleans()):
                values[key] = draw(st.sampled_from(ODD))
            else:
                values.pop(key, None)
    content = bytearray("\n".join(map(json.dumps, rows)).encode())
    for place in draw(st.lists(st.integers(0, len(content) - 1), max_size=2)):
        content[place : place + draw(st.integers(0, 3))] = draw(
            st.sampled_from(
                [b"", b"\n", b"\0", b"\xff", b'"', b"{", b"]", b"\\ud800", b"9" * 5000, b"1e400", b"[" * 2000]
            )
        )
    return bytes(content)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(content=damaged_files())
def test_any_file_is_evaluated_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "chat.jsonl"
    path.write_bytes(content)
    try:
        found = load_rows(path)
        predictions = [prediction for prediction, _ in found]
        scores = evaluate(predictions, resamples=5)
    except UserError as error:
        str(error).encode()
    else:
        json.dumps(summary.summary(scores), allow_nan=False)
        for text in (tables.text(scores), summary.cells_csv(scores)):
            text.encode()
        figure = path.with_name("figure.svg")
        figure.write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
        texts = Texts(predictions, lambda i: transcript_of(found[i][1]))
        write_page(scores, path.parent, Figures(figure), "", texts, Provenance())


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "rows.jsonl")
    for place in (tmp_path / "rows.jsonl", tmp_path):
        with pytest.raises(UserError, match=r"rows.jsonl: is not a regular file"):
            load_predictions(place)
