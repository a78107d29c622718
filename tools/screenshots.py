"""Screenshots of a report, for looking at it and for the documentation.

    python -m tools.screenshots runs/demo/evaluation/report.html /tmp/screenshots

writes desktop.png, phone.png, dark.png, cell.png, transcript.png, stages.png and phone-transcript.png. Of experiment=demo,
cell.png and transcript.png are docs/report_cell.png and docs/report_transcript.png.
"""

import argparse
import base64
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tools.browser import PHONE, open_browser, resize, set_dark

DOCUMENTATION = (1100, 680)
"""Width and height of the screenshots of a cell, of a transcript and of stages, two of which are in docs/."""

if TYPE_CHECKING:
    from selenium.webdriver import Chrome


def shot(browser: "Chrome", path: Path, whole: bool = False) -> None:
    """Writes what the browser shows; ``whole``: the whole page."""
    time.sleep(0.3)
    found = browser.execute_cdp_cmd(
        "Page.captureScreenshot", {"format": "png", "captureBeyondViewport": whole, **_clip(browser, whole)}
    )
    path.write_bytes(base64.b64decode(found["data"]))


def _clip(browser: "Chrome", whole: bool) -> dict[str, object]:
    if not whole:
        return {}
    size = browser.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
    return {"clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}}


def take(page: Path, folder: Path) -> None:
    """All screenshots of ``page``."""
    folder.mkdir(parents=True, exist_ok=True)
    address = page.resolve().as_uri()
    with open_browser() as browser:
        browser.get(address)
        shot(browser, folder / "desktop.png", whole=True)
        set_dark(browser, True)
        shot(browser, folder / "dark.png", whole=True)
        set_dark(browser, False)
        resize(browser, DOCUMENTATION)
        browser.find_elements("css selector", ".grid a")[-1].click()
        browser.execute_script("document.getElementById('grid').scrollIntoView()")
        shot(browser, folder / "cell.png")
        last = browser.find_elements("css selector", ".show-texts")[-1]
        browser.execute_script("arguments[0].click()", last)
        time.sleep(0.5)
        browser.find_element("css selector", "#rows tr").click()
        time.sleep(0.5)
        shot(browser, folder / "transcript.png")
        browser.find_element("id", "compare").click()
        time.sleep(0.5)
        shot(browser, folder / "stages.png")
        resize(browser, PHONE)
        browser.get("about:blank")
        browser.get(address)
        shot(browser, folder / "phone.png", whole=True)
        browser.execute_script("document.querySelector('#rows tr').click()")
        time.sleep(0.5)
        shot(browser, folder / "phone-transcript.png")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("page", type=Path, help="report.html of an evaluation")
    parser.add_argument("folder", type=Path, help="folder of the screenshots")
    arguments = parser.parse_args()
    take(arguments.page, arguments.folder)


if __name__ == "__main__":
    main()
