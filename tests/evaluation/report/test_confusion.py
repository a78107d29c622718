"""For what each persona is taken where it is missed."""

from offscript.evaluation.metrics.scores import evaluate
from offscript.evaluation.predictions import check_rows, check_together
from offscript.evaluation.report.confusion import confusions, most_frequent_error
from offscript.evaluation.report.tables import WIDTH
from tests.rows import missing_row, row

LABELS = ("sarcasm", "humor", "remorse")


def section(rows, **options):
    predictions = check_together(check_rows(rows, "rows"))
    return confusions(evaluate(predictions, resamples=20, **options), predictions)


def rows(predicted, **names):
    """Texts of each persona with these predicted labels; None: a missing text."""
    return [
        {**(missing_row if label is None else row)(**names), "persona": persona, "scenario": f"s{i}"}
        | ({} if label is None else row(predicted=label) | names | {"persona": persona, "scenario": f"s{i}"})
        for persona, labels in predicted.items()
        for i, label in enumerate(labels)
    ]


def test_the_most_frequent_wrong_label_and_its_share_of_the_texts():
    found = section(
        rows(
            {
                "sarcasm": ["sarcasm", "humor", "humor", "remorse", None],
                "humor": ["humor", "humor"],
                "remorse": [None],
            }
        )
    )
    (table,) = found.tables
    assert table.rows == (
        ("sarcasm", "humor .50"), ("humor", ""), ("remorse", "n/a"), ("all personas", "humor .67")
    )  # fmt: skip
    assert found.data[0]["personas"] == {"sarcasm": {"label": "humor", "share": 0.5}}


def test_of_equally_frequent_labels_the_first_is_named():
    assert most_frequent_error((1, 2, 2, 0, 5), 0, LABELS) == ("humor", 2 / 5)
    assert most_frequent_error((0, 0, 0, 3, 5), 0, LABELS) == ("another", 1.0)
    assert most_frequent_error((4, 0, 0, 0, 5), 0, LABELS) is None


def test_base_texts_have_no_persona_to_be_taken_for_another():
    assert section(rows({"sarcasm": ["humor"], "humor": ["humor"]}, stage="base")) is None
    assert section([row(persona=None, stage="base")]) is None


def test_many_formats_are_divided_among_tables_that_fit_a_terminal():
    names = [
        "chat",
        "chat_email",
        "agentic_email",
        "break_character",
        "structured_form",
        "multi_agent_debate",
        "adversarial_roleplay",
    ]
    made = [r for fmt in names for r in rows({"sarcasm": ["humor"], "humor": ["humor"]}, format=fmt)]
    found = section(made)
    assert [len(table.header) - 1 for table in found.tables] == [3, 3, 1]
    assert max(len(line) for table in found.tables for line in table.text().splitlines()) <= WIDTH
