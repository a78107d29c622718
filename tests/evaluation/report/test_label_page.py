"""The page of a label sheet in a browser: keys and buttons label, the saved file holds what was pressed, texts stay text."""

import csv
import time

import pytest

from offscript.evaluation.label_sheets import read_labels
from offscript.evaluation.report.label_page import Question, render
from tests.evaluation.report.test_page import EVIL
from tools.browser import DESKTOP, PHONE, open_browser, resize, why_no_browser

pytestmark = pytest.mark.skipif(why_no_browser() is not None, reason=why_no_browser() or "")

PLANTED = f"{EVIL}<script>window.planted = 1</script><img src=x onerror='window.planted = 1'><b>bold</b>"
WORD = "unbroken" * 30
QUESTIONS = [Question(f"t{i}", PLANTED, PLANTED, f"text {i} {PLANTED}\n\nsecond {WORD}") for i in range(5)]


@pytest.fixture(scope="module")
def browser():
    with open_browser() as opened:
        yield opened


@pytest.fixture
def page(browser, tmp_path):
    """A freshly loaded sheet of five texts, whose downloads are in ``tmp_path``."""
    path = tmp_path / "sheet.html"
    path.write_text(render(QUESTIONS, PLANTED, f"labels-{tmp_path.name}"), encoding="utf-8")
    browser.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)}
    )
    browser.get(path.as_uri())
    return browser


def press(browser, *keys):
    browser.switch_to.active_element.send_keys(*keys)


def shown(browser, name):
    return browser.find_element("id", name).text


def saved(browser, folder):
    """The rows of the file that the page saves."""
    (folder / f"labels-{folder.name}.csv").unlink(missing_ok=True)
    browser.find_element("id", "save").click()
    path, end = folder / f"labels-{folder.name}.csv", time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    return path, [row["label"] for row in csv.DictReader(path.open(encoding="utf-8"))]


def test_keys_label_and_the_saved_file_holds_what_was_pressed(page, tmp_path):
    from selenium.webdriver.common.keys import Keys

    assert shown(page, "count") == "0 of 5 labelled" and shown(page, "place") == "Text 1 of 5"
    press(page, "1", "0", Keys.ARROW_RIGHT, "1")
    assert shown(page, "count") == "3 of 5 labelled" and shown(page, "place") == "Text 5 of 5"
    press(page, Keys.ARROW_RIGHT, Keys.ARROW_LEFT)
    assert page.find_element("id", "present").get_attribute("aria-pressed") == "true"
    path, labels = saved(page, tmp_path)
    assert labels == ["present", "absent", "", "present", ""]
    assert dict(read_labels(path).given) == {"t0": True, "t1": False, "t3": True}
    # The label is removed, then given anew; the last key labels the last text.
    press(page, Keys.BACKSPACE)
    assert saved(page, tmp_path)[1] == ["present", "absent", "", "", ""]
    press(page, "0", "1", Keys.ARROW_LEFT, Keys.ARROW_LEFT, "0")
    assert saved(page, tmp_path)[1] == ["present", "absent", "absent", "absent", "present"]


def test_buttons_label_too_and_labels_outlive_the_page(page, tmp_path):
    for name in ("absent", "present", "next", "absent"):
        page.find_element("id", name).click()
    page.refresh()
    assert shown(page, "count") == "3 of 5 labelled"
    assert shown(page, "place") == "Text 3 of 5", "the first text without a label"
    press(page, "1", "1", "0")
    assert shown(page, "count") == "All 5 are labelled: save them"
    assert saved(page, tmp_path)[1] == ["absent", "present", "present", "present", "absent"]


def test_markup_in_texts_stays_text(page):
    assert shown(page, "text").startswith("text 0 ") and "<b>bold</b>" in shown(page, "text")
    assert "<b>bold</b>" in shown(page, "persona") and "<b>bold</b>" in shown(page, "description")
    assert "\u27e8U+202E\u27e9" in shown(page, "text")
    assert page.execute_script("return window.planted === undefined && !document.querySelector('img, b')")
    assert [entry["message"] for entry in page.get_log("browser")] == []


def test_a_phone_shows_the_page_without_scrolling_sideways(page):
    resize(page, PHONE)
    try:
        assert page.execute_script("return document.documentElement.scrollWidth") == PHONE[0]
        for name in ("previous", "absent", "present", "next"):
            assert page.find_element("id", name).size["height"] >= 44
    finally:
        resize(page, DESKTOP)


def test_a_key_that_is_held_down_labels_one_text(page):
    hold = "for (let i = 0; i < 4; i++) document.dispatchEvent(new KeyboardEvent('keydown', {key: '1', repeat: i > 0}))"
    page.execute_script(hold)
    assert shown(page, "count") == "1 of 5 labelled"
    page.execute_script("document.dispatchEvent(new KeyboardEvent('keydown', {key: '1', ctrlKey: true}))")
    assert shown(page, "count") == "1 of 5 labelled"
