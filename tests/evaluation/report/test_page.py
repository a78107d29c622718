"""report.html as a file: what is in it, what is escaped, and where transcripts are written. tests/evaluation/report/test_browser.py opens it."""

import html.parser
import json
import re

import pytest

from offscript.evaluation.evaluate import evaluate_rows, result_files
from offscript.evaluation.report import page
from offscript.evaluation.report.answer import answers, percent
from offscript.evaluation.report.page import inline_svg
from offscript.evaluation.report.transcripts import Call, Transcript, Turn, transcript_of
from tests.evaluation.report.test_report import scored
from tests.rows import grid, missing_row, row

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\u2028\x00\x1b[31m\u202e&amp;"


def written(folder, rows, **options):
    evaluate_rows(rows, folder, quiet=True, resamples=50, **options)
    return (folder / "report.html").read_text()


def with_texts(rows):
    return [
        {**r, "text": f"text {i} of {r['scenario']}"} if r["predicted"] else r for i, r in enumerate(rows)
    ]


class Elements(html.parser.HTMLParser):
    """The start tags of a page, and the addresses that it loads."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [v for k, v in attributes if k in ("src", "href", "xlink:href", "action", "data")]


def test_the_page_loads_nothing_and_needs_no_other_file(tmp_path):
    text = written(tmp_path, with_texts(grid(scenarios=6)))
    elements = Elements(text)
    assert "img" not in elements.tags and "link" not in elements.tags and "svg" in elements.tags
    assert [address for address in elements.addresses if not address.startswith("#")] == []
    assert not re.search(r"url\((?!#)", text)
    assert sorted(p.name for p in result_files(tmp_path) if p.suffix == ".js") == []


def test_names_and_texts_of_rows_never_become_markup(tmp_path):
    names = {"model": EVIL, "stage": EVIL, "format": EVIL, "persona": EVIL, "predicted": EVIL, "ended": EVIL}
    rows = [row(**names, probs={EVIL: 1.0}, scenario=f"{EVIL}{i}", text=EVIL) for i in range(3)]
    rows[0]["messages"] = [
        {
            "role": EVIL,
            "content": EVIL,
            "tool_calls": [{"function": {"name": EVIL, "arguments": {EVIL: EVIL}}}],
        }
    ]
    evil = Elements(written(tmp_path / "evil", rows, title=EVIL))
    plain = Elements(
        written(tmp_path / "plain", [row(scenario=f"s{i}", text="t") for i in range(3)], title="t")
    )
    for tag in ("script", "img", "iframe", "a", "style"):
        assert evil.tags.count(tag) == plain.tags.count(tag), tag
    text = (tmp_path / "evil" / "report.html").read_text()
    assert "onerror=alert(2)>" not in text
    assert not re.search("[\x00\x1b\u2028\u202e]", text), "hidden characters are shown"
    assert "\u27e8U+202E\u27e9" in text


def test_the_index_and_the_chunks_hold_every_text(tmp_path):
    rows = with_texts(grid(scenarios=4))
    text = written(tmp_path, rows)
    scripts = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', text, flags=re.S)
    index, *chunks = map(json.loads, scripts)
    held = [episode for chunk in chunks for episode in chunk["episodes"]]
    assert len(held) == len(rows) == len(index["columns"]["model"]["rows"])
    assert sorted(e["text"] for e in held if e["text"]) == sorted(r["text"] for r in rows if r["predicted"])


def test_a_large_evaluation_has_its_transcripts_in_a_folder_beside_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "EPISODES_IN_PAGE", 50)
    monkeypatch.setattr("offscript.evaluation.report.texts.CHUNK_EPISODES", 40)
    rows = with_texts(grid(scenarios=6))
    text = written(tmp_path, rows)
    files = sorted(p.name for p in (tmp_path / "report_texts").iterdir())
    assert files == [*(f"{i:04d}.js" for i in range(-(-len(rows) // 40))), "index.js"]
    assert rows[0]["text"] not in text and '<script src="report_texts/index.js">' in text
    assert {p.name for p in result_files(tmp_path)} > set(files)
    # A smaller evaluation in the same folder leaves none of them.
    assert written(tmp_path, rows[:40]).count("text 0 of") and not (tmp_path / "report_texts").exists()


def test_many_bytes_are_a_large_evaluation_too(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "BYTES_IN_PAGE", 20_000)
    monkeypatch.setattr("offscript.evaluation.report.texts.CHUNK_EPISODES", 5)
    rows = [row(scenario=f"s{i}", text=f"{i} " * 500) for i in range(25)]
    text = written(tmp_path, rows)
    chunks = [p.read_text() for p in sorted((tmp_path / "report_texts").glob("0*.js"))]
    assert [int(re.search(r'", (\d+), ', c)[1]) for c in chunks] == [0, 1, 2, 3, 4]
    assert len(text) < 200_000 and sum(c.count('"read":true') for c in chunks) == 25


@pytest.mark.parametrize(
    ("messages", "calls"),
    [
        ([{"role": "assistant", "content": "```tool_call\n{\"tool\": \"a.b\", \"args\": {\"x\": [1]}}\n```"}, {"role": "tool", "content": "{}"}],
         (Call("a.b", (("x", "[\n 1\n]"),)),)),
        ([{"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "a", "arguments": {"x": "y"}}}]}],
         (Call("a", (("x", "y"),)),)),
        ([{"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "a", "arguments": "{\"x\": 1}"}}]}],
         (Call("a", (("arguments", "{\"x\": 1}"),)),)),
        ([{"role": "assistant", "content": "{\"tool\": \"a\"}"}], ()),
    ],
    ids=["in the text", "native", "of an endpoint", "no tools in the episode"],
)  # fmt: skip
def test_tool_calls_of_a_message(messages, calls):
    assert transcript_of({"text": "t", "messages": messages}).turns[0].calls == calls


@pytest.mark.parametrize(
    "odd",
    [
        {"messages": "none"},
        {"messages": [1, None, {"role": 5}]},
        {"text": 5, "messages": [{"content": {"a": 1}, "tool_calls": [{"function": 1}, 2]}]},
        {"messages": [{"role": "assistant", "content": "{" * 500, "tool_calls": 1}, {"role": "tool"}]},
    ],
)
def test_rows_of_others_may_have_anything_for_messages(odd, tmp_path):
    assert isinstance(transcript_of(odd), Transcript)
    assert "report" in written(tmp_path, [row(**odd)])


def test_the_published_layout_shows_the_body_of_the_email():
    assert transcript_of({"email_body": "Hi!", "base": "llama"}) == Transcript("Hi!")
    assert transcript_of({"messages": [{"role": "user", "content": "q"}]}).turns == (Turn("user", "q"),)
    shown = transcript_of({"examples": [3, 0], "messages": [{"role": "user", "content": "q"}]})
    assert shown.turns == (Turn("examples", "numbers 4, 1 of the persona"), Turn("user", "q"))
    assert transcript_of({"examples": "all"}).turns == () == transcript_of({"examples": []}).turns


def test_the_mean_over_seeds_stands_before_them(tmp_path):
    rows = [{**r, "seed": seed} for seed in (0, 1) for r in grid(scenarios=6, seed=seed)]
    text = written(tmp_path, [r for r in rows if r["stage"] == "full"])
    assert re.findall(r'<tr><th scope="row">(full/\w+)</th>\n<td><a', text) == [
        "full/mean",
        "full/0",
        "full/1",
    ]


@pytest.mark.parametrize(("value", "shown"), [(-0.004, "0%"), (0.415, "42%"), (-0.2, "-20%"), (None, "n/a")])
def test_shares_are_whole_percentages(value, shown):
    assert percent(value) == shown


def test_the_answer_names_the_least_retention():
    (answer,) = answers(scored(grid(scenarios=40)))
    assert re.fullmatch(
        r"pocket, full: -?\d+% \(95% interval: -?\d+% to -?\d+%\) of the persona that the classifier recognizes in chat above "
        r"chance remains in agentic_email, the least of 2 formats \(macro-F1 0\.\d\d, in chat 0\.\d\d\)\.",
        answer,
    )


@pytest.mark.parametrize(
    ("stages", "named"),
    [(("distillation", "full", "mixed"), "full"), (("prompted", "distillation"), "distillation")],
)
def test_the_answer_is_about_the_published_training_or_else_the_last_stage(stages, named):
    texts = [r for r in grid(scenarios=8) if r["stage"] == "full"]
    (answer,) = answers(scored([{**r, "stage": stage} for stage in stages for r in texts]))
    assert answer.startswith(f"pocket, {named}: ")


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([r for r in grid(scenarios=8) if r["format"] == "chat"], "there is no format but chat; macro-F1: chat 0."),
        ([r for r in grid(scenarios=8) if r["format"] != "chat"], "there are no chat texts to compare with; macro-F1: "),
        ([missing_row(scenario=f"s{i}") for i in range(3)], "there is no format but chat."),
        ([r for r in grid(scenarios=8) if r["stage"] == "base"], "there are base texts alone, which know nothing of a persona; macro-F1: "),
    ],
    ids=["chat alone", "no chat", "no texts", "base alone"],
)  # fmt: skip
def test_the_answer_says_why_there_is_none(rows, says):
    (answer,) = answers(scored(rows))
    assert says in answer


def test_a_figure_is_in_the_colours_of_the_page_and_has_no_comments(tmp_path):
    path = tmp_path / "a.svg"
    path.write_text(
        '<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9pt"><!-- a\x1b --><clipPath id="p"/>'
        '<path style="fill: #000000" clip-path="url(#p)"/></svg>'
    )
    assert str(inline_svg(path, "one")) == (
        '<svg xmlns="http://www.w3.org/2000/svg" fill="currentColor" role="img" aria-labelledby="one-text">'
        '<clipPath id="one-p" /><path style="fill: currentColor" clip-path="url(#one-p)" /></svg>'
    )
