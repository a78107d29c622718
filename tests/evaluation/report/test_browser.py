"""report.html in a browser: that nothing of the rows runs, and that filters, keys and transcripts work."""

import json
import shutil
import time

import pytest

from offscript.evaluation.evaluate import evaluate_rows
from offscript.evaluation.report import page
from tests.evaluation.report.test_page import EVIL, with_texts
from tests.rows import grid, row
from tools.browser import PHONE, open_browser, resize, why_no_browser

pytestmark = pytest.mark.skipif(why_no_browser() is not None, reason=why_no_browser() or "")

PLANTED = f"{EVIL}<script>window.planted = 1</script><img src=x onerror='window.planted = 1'><b>bold</b>"


@pytest.fixture(scope="module")
def browser():
    with open_browser() as opened:
        yield opened


def opened(browser, folder):
    """The page in ``folder``, freshly loaded."""
    browser.get("about:blank")
    browser.get((folder / "report.html").as_uri())
    return browser


def wait_for(browser, test, seconds=20):
    end = time.monotonic() + seconds
    while not browser.execute_script(f"return {test}"):
        assert time.monotonic() < end, test
        time.sleep(0.05)


def press(browser, key):
    browser.switch_to.active_element.send_keys(key)


def errors(browser):
    return [entry["message"] for entry in browser.get_log("browser")]


def transcript(browser, i):
    """Opens the transcript of row ``i`` of the list, and returns its text."""
    browser.execute_script(f"document.querySelectorAll('#rows tr')[{i}].click()")
    wait_for(browser, "document.querySelector('#reader h3')")
    return browser.find_element("id", "reader").text


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Folder of a page with its texts inside."""
    folder = tmp_path_factory.mktemp("small")
    evaluate_rows(with_texts(grid(scenarios=6)), folder, quiet=True, resamples=50)
    return folder


@pytest.mark.parametrize("in_page", [True, False], ids=["in the page", "beside the page"])
def test_markup_and_scripts_in_rows_are_shown_as_text_and_never_run(browser, tmp_path, monkeypatch, in_page):
    monkeypatch.setattr(page, "EPISODES_IN_PAGE", 100 if in_page else 0)
    names = dict.fromkeys(("model", "stage", "format", "persona", "predicted", "ended"), PLANTED)
    call = {"function": {"name": PLANTED, "arguments": {PLANTED: PLANTED, "__proto__": "x"}}}
    messages = [
        {"role": "system", "content": PLANTED},
        {"role": PLANTED, "content": PLANTED},
        {"role": "assistant", "content": PLANTED, "tool_calls": [call]},
    ]
    rows = [
        row(**names, probs={PLANTED: 1.0}, scenario=f"{PLANTED}{i}", text=PLANTED, messages=messages)
        for i in range(3)
    ]
    evaluate_rows(rows, tmp_path, quiet=True, resamples=50, title=PLANTED)
    opened(browser, tmp_path)
    wait_for(browser, "document.querySelectorAll('#rows tr').length === 3")
    shown = transcript(browser, 0)
    assert shown.count("<b>bold</b>") >= 5 and "\u27e8U+202E\u27e9" in shown and "\u27e8U+001B\u27e9" in shown
    assert "__proto__" in shown
    assert browser.execute_script("return window.planted === undefined && !document.querySelector('img, b')")
    assert errors(browser) == []


def test_texts_are_filtered_by_their_columns_and_words(browser, small):
    opened(browser, small)
    wait_for(browser, "document.querySelectorAll('#rows tr').length > 0")
    rows = with_texts(grid(scenarios=6))
    expected = [r for r in rows if (r["stage"], r["format"], r["persona"]) == ("full", "chat", "humor")]
    for column, value in (("stage", "full"), ("format", "chat"), ("persona", "humor")):
        options = browser.find_elements("css selector", f"#choice-{column} option")
        next(o for o in options if o.text.startswith(f"{value} (")).click()
    wait_for(
        browser,
        f"document.getElementById('found').textContent === '1 to {len(expected)} of {len(expected)} episodes'",
        5,
    )
    words = browser.find_element("id", "words")
    words.send_keys(f"text of {expected[2]['scenario']}")
    assert browser.find_element("id", "found").text == "1 to 1 of 1 episodes"
    assert expected[2]["text"] in transcript(browser, 0)
    words.send_keys(" nowhere")
    assert browser.find_element("id", "found").text == "No episode has all of these."
    assert errors(browser) == []


def test_the_page_is_worked_by_keys_alone(browser, small):
    from selenium.webdriver.common.keys import Keys

    opened(browser, small)
    wait_for(browser, "document.querySelectorAll('#rows tr').length > 0")
    press(browser, "/")
    assert browser.switch_to.active_element.get_attribute("id") == "words"
    press(browser, Keys.ESCAPE)
    browser.execute_script("document.querySelector('#rows tr').focus()")
    press(browser, Keys.ARROW_DOWN)
    press(browser, Keys.ENTER)
    wait_for(browser, "document.querySelector('#reader h3')")
    second = browser.find_element("id", "reader").text
    press(browser, Keys.ARROW_RIGHT)
    wait_for(browser, "document.querySelectorAll('#rows tr')[2].getAttribute('aria-current') === 'true'")
    wait_for(browser, f"document.querySelector('#reader').innerText !== {json.dumps(second)}")
    press(browser, "c")
    wait_for(browser, "document.querySelectorAll('#stages > section').length === 4")
    press(browser, Keys.ESCAPE)
    wait_for(browser, "document.querySelector('#reader').hidden")
    link = browser.find_elements("css selector", ".grid a")[-1]
    browser.execute_script("arguments[0].focus()", link)
    press(browser, Keys.ARROW_UP)
    press(browser, Keys.ENTER)
    open_cells = browser.find_elements("css selector", ".cell.open h4")
    assert [cell.text for cell in open_cells] == ["pocket, distillation, agentic_email"]
    press(browser, Keys.ESCAPE)
    assert browser.find_elements("css selector", ".cell.open") == []


def test_stages_are_compared_by_scenario_and_persona_and_by_sample_where_they_share_it(browser, tmp_path):
    rows = [
        row(stage=stage, sample=first + s, persona=persona, text=f"{stage} {persona} sample {first + s}")
        for stage, first, persona in (
            ("distillation", 0, "sarcasm"),
            ("distillation", 0, "humor"),
            ("full", 1, "sarcasm"),
            ("full", 1, "humor"),
        )
        for s in (0, 1)
    ]
    evaluate_rows(rows, tmp_path, quiet=True, resamples=50)
    opened(browser, tmp_path)
    wait_for(browser, "document.querySelectorAll('#rows tr').length === 8")
    expected = {
        "full humor sample 1": ["distillation humor sample 1", "full humor sample 1"],
        "full sarcasm sample 2": ["distillation sarcasm sample 0", "full sarcasm sample 2"],
    }
    for text, compared in expected.items():
        beginnings = [e.text for e in browser.find_elements("css selector", "#rows td:last-child")]
        transcript(browser, beginnings.index(text))
        browser.execute_script("document.getElementById('compare').click()")
        wait_for(browser, "document.querySelectorAll('#stages .text').length === 2")
        assert [e.text for e in browser.find_elements("css selector", "#stages .text")] == compared
        browser.execute_script("document.querySelector('#reader button').click()")


def test_the_texts_of_a_cell_are_found_from_the_grid(browser, small):
    opened(browser, small)
    wait_for(browser, "document.querySelectorAll('#rows tr').length > 0")
    browser.find_elements("css selector", ".grid a")[-1].click()
    browser.execute_script("document.querySelector('.cell.open .show-texts').click()")
    count = sum((r["stage"], r["format"]) == ("full", "agentic_email") for r in grid(scenarios=6))
    wait_for(browser, f"document.getElementById('found').textContent.endsWith('of {count} episodes')")


def test_transcripts_beside_the_page_are_loaded_and_their_absence_is_said(browser, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "EPISODES_IN_PAGE", 10)
    monkeypatch.setattr("offscript.evaluation.report.texts.CHUNK_EPISODES", 7)
    rows = with_texts(grid(scenarios=3))
    evaluate_rows(rows, tmp_path / "one", quiet=True, resamples=50)
    evaluate_rows(with_texts(grid(scenarios=4)), tmp_path / "two", quiet=True, resamples=50)
    opened(browser, tmp_path / "one")
    wait_for(browser, "document.querySelectorAll('#rows tr').length > 0")
    for i in (0, 8, 50):
        shown = browser.execute_script(
            f"return document.querySelectorAll('#rows tr')[{i}].lastElementChild.textContent"
        )
        transcript(browser, i)
        wait_for(browser, f"document.querySelector('#reader .text').textContent === '{shown}'")
    assert errors(browser) == []
    (tmp_path / "one" / "report_texts" / "0001.js").unlink()
    opened(browser, tmp_path / "one")
    wait_for(browser, "document.querySelectorAll('#rows tr').length > 0")
    assert "report_texts/0001.js cannot be loaded" in transcript(browser, 8)
    shutil.rmtree(tmp_path / "one" / "report_texts")
    opened(browser, tmp_path / "one")
    assert "in the folder report_texts, which is not beside" in browser.find_element("id", "no-texts").text
    shutil.copytree(tmp_path / "two" / "report_texts", tmp_path / "one" / "report_texts")
    opened(browser, tmp_path / "one")
    assert "is that of another evaluation" in browser.find_element("id", "no-texts").text


def test_a_phone_scrolls_the_page_in_one_direction_only(browser, small):
    resize(browser, PHONE)
    try:
        opened(browser, small)
        wait_for(browser, "document.querySelectorAll('#rows tr').length > 0")
        assert browser.execute_script("return document.documentElement.scrollWidth") == PHONE[0]
        transcript(browser, 0)
        assert browser.execute_script("return document.getElementById('reader').clientWidth") == PHONE[0]
    finally:
        resize(browser, (1400, 900))


def test_every_control_and_picture_has_a_name(browser, small):
    opened(browser, small)
    wait_for(browser, "document.querySelectorAll('#rows tr').length > 0")
    transcript(browser, 0)
    browser.execute_cdp_cmd("Accessibility.enable", {})
    nodes = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    roles = ("button", "link", "combobox", "searchbox", "image", "img", "search", "complementary")
    found = [n for n in nodes if not n["ignored"] and n["role"]["value"] in roles]
    assert {n["role"]["value"] for n in found} >= {"button", "link", "combobox", "searchbox"}
    assert [n["role"]["value"] for n in found if not n.get("name", {}).get("value")] == []
