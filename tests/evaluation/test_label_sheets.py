"""Sheets of texts to label: what is drawn, what the labeller can see, and the labels that come back."""

import csv
import io
import json
import re
from collections import Counter

import pytest

from offscript.errors import UserError
from offscript.evaluation import label_sheets
from offscript.evaluation.label_sheets import (
    KEY,
    PAGE,
    SHEET,
    episodes_of,
    read_labels,
    sample,
    text_of,
    write,
)
from offscript.evaluation.predictions import check_rows
from tests.rows import PERSONAS, grid, row

DESCRIBED = {name: (name.title(), f"What {name} is.") for name in PERSONAS}


def rows(scenarios=6):
    return check_rows(
        [{**r, "text": f"text {i}" if r["predicted"] else None} for i, r in enumerate(grid(scenarios))], "p"
    )


def written(tmp_path, number=9):
    chosen = sample(rows(), number, seed=0)
    return chosen, write(chosen, tmp_path, DESCRIBED, "demo")


def sheet_rows(folder):
    text = (folder / SHEET).read_text(encoding="utf-8-sig")
    return list(csv.DictReader(io.StringIO(text, newline="")))


def fill(path, labels, separator=",", encoding="utf-8"):
    lines = [separator.join(("id", "label")), *(separator.join(pair) for pair in labels)]
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    return path


# ---------------------------------------------------------------- what is drawn


def test_texts_are_drawn_evenly_from_stages_formats_and_personas():
    chosen = sample(rows(), 27, seed=0)
    assert set(Counter((p.stage, p.format, p.persona) for p in chosen).values()) == {1}
    assert {p.persona for p in chosen} == set(PERSONAS) and {p.stage for p in chosen} == {
        "prompted",
        "distillation",
        "full",
    }
    few = sample(rows(), 9, seed=0)
    assert set(Counter((p.stage, p.format) for p in few).values()) == {1}
    assert set(Counter(p.persona for p in few).values()) == {3}


def test_the_sheet_depends_on_the_seed_and_not_on_the_order_of_rows():
    assert sample(rows(), 9, 0) == sample(rows()[::-1], 9, 0) != sample(rows(), 9, 1)


def test_no_text_is_drawn_twice_and_only_texts_of_a_persona():
    chosen = sample(rows(2), 1000, 0)
    assert len({p.episode for p in chosen}) == len(chosen) < 1000
    assert all(p.text and p.persona for p in chosen)
    assert sample(check_rows([row(persona=None, stage="base", text="x")], "p"), 5, 0) == []


# ---------------------------------------------------------------- what the labeller sees


def test_neither_form_of_the_sheet_shows_where_a_text_comes_from(tmp_path):
    chosen, folder = written(tmp_path)
    page = json.loads(re.search(r'id="sheet">(.*?)</script>', (folder / PAGE).read_text())[1])
    asked = [[r["id"], r["persona"], r["description"], r["text"]] for r in sheet_rows(folder)]
    assert page == {"name": folder.name, "questions": asked}
    assert [a[1:] for a in asked] == [[*DESCRIBED[p.persona], p.text] for p in chosen]
    for name in (PAGE, SHEET):
        shown = (folder / name).read_text()
        for hidden in ("prompted", "distillation", "agentic", "pocket", "mail1", "q1", "predicted"):
            assert hidden not in shown, (name, hidden)


def test_texts_that_a_spreadsheet_would_run_or_a_page_hide_are_harmless(tmp_path):
    evil = check_rows([row(text="=1+1\r\n<script>x</script>\u202e", persona="humor")], "p")
    folder = write(evil, tmp_path, {"humor": ("@Humor", "-1")}, "<b>demo</b>")
    (only,) = sheet_rows(folder)
    assert (only["text"][:5], only["persona"], only["description"]) == ("'=1+1", "'@Humor", "'-1")
    page = (folder / PAGE).read_text()
    assert "<script>x" not in page and "<b>demo" not in page and "U+202E" in page


# ---------------------------------------------------------------- what comes back


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_labels_of_any_spreadsheet_belong_to_the_episodes_of_the_sheet(tmp_path, separator, encoding):
    chosen, folder = written(tmp_path)
    answers = ["present", "ABSENT ", "1", "0", "", " present", "", "1", "0"]
    expected = [True, False, True, False, None, True, None, True, False]
    ids = [r["id"] for r in sheet_rows(folder)]
    path = fill(tmp_path / "back.csv", zip(ids, answers, strict=True), separator, encoding)
    labels = read_labels(path)
    assert (len(labels.given), labels.rows) == (7, 9)
    found = episodes_of(labels, tmp_path)
    assert [found.get(text_of(p)) for p in chosen] == expected


def test_the_whole_sheet_can_be_filled_in_and_is_then_never_overwritten(tmp_path):
    chosen, folder = written(tmp_path)
    before = (folder / SHEET).read_bytes()
    assert write(chosen, tmp_path, DESCRIBED, "demo") == folder and (folder / SHEET).read_bytes() == before
    content = sheet_rows(folder)
    with (folder / SHEET).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, label_sheets.COLUMNS)
        writer.writeheader()
        writer.writerows({**r, "label": "1"} for r in content)
    filled = (folder / SHEET).read_bytes()
    with pytest.raises(
        UserError, match="was changed, perhaps filled in, and is not overwritten; read it with"
    ):
        write(chosen, tmp_path, DESCRIBED, "demo")
    assert (folder / SHEET).read_bytes() == filled
    assert set(episodes_of(read_labels(folder / SHEET), tmp_path).values()) == {True}


def test_another_sheet_has_a_folder_and_ids_of_its_own(tmp_path):
    _, first = written(tmp_path, 9)
    _, second = written(tmp_path, 12)
    assert first != second
    assert not {r["id"] for r in sheet_rows(first)} & {r["id"] for r in sheet_rows(second)}


def test_a_text_that_has_changed_is_another_text(tmp_path):
    chosen, folder = written(tmp_path, 1)
    path = fill(tmp_path / "back.csv", [(r["id"], "1") for r in sheet_rows(folder)])
    (asked,) = episodes_of(read_labels(path), tmp_path)
    (changed,) = check_rows([{**row(), "text": "other"}], "p")
    assert asked == text_of(chosen[0]) != text_of(changed)


BAD = [
    ("", "its first line is ''; columns id and label are needed"),
    ("id,text\nt1,x\n", "its first line is 'id,text'; columns id and label are needed"),
    ("id,label\n", "no row has a label; allowed: present, absent, 1, 0"),
    ("id,label\nt1,\n", "no row has a label; allowed: present, absent, 1, 0"),
    ("id,label\nt1\n", "no row has a label; allowed: present, absent, 1, 0"),
    (
        "id,label\nt1,1\nt2,maybe\n",
        ", line 3: label is 'maybe'; allowed: present, absent, 1, 0, an empty field",
    ),
    ("id,label\nt1,1\nt1,1\n", ", line 3: id 't1' stands in line 2 too; one row an id"),
    ("id,label\nt1," + "x" * 200_000 + "\n", ", line 1: not CSV: field larger than field limit"),
    ("id;label\nt1;1\n", ", line 2: id 't1' is of no sheet of this experiment; the ids of "),
]


@pytest.mark.parametrize(("content", "message"), BAD, ids=[m[:30] for _, m in BAD])
def test_a_file_that_is_no_filled_sheet_is_refused_in_one_line(tmp_path, content, message):
    written(tmp_path)
    path = tmp_path / "back.csv"
    path.write_text(content)
    with pytest.raises(UserError) as error:
        episodes_of(read_labels(path), tmp_path)
    assert str(error.value).startswith(f"{path}{'' if message[0] == ',' else ': '}{message}")


def test_files_that_are_no_text_and_damaged_keys_are_refused(tmp_path):
    _, folder = written(tmp_path)
    path = fill(tmp_path / "back.csv", [(sheet_rows(folder)[0]["id"], "1")])
    (tmp_path / "utf16.csv").write_text("id\tlabel\n", encoding="utf-16")
    with pytest.raises(UserError, match=r"utf16.csv: is UTF-16; save it as UTF-8"):
        read_labels(tmp_path / "utf16.csv")
    with pytest.raises(UserError, match="cannot be read"):
        read_labels(tmp_path)
    (folder / KEY).write_text('{"texts": 3}')
    with pytest.raises(UserError, match=r"key.json: damaged: .*; write the sheet again"):
        episodes_of(read_labels(path), tmp_path)
