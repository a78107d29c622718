"""A headless Chromium for tests and screenshots of report.html: Debian's packages chromium and chromium-driver, and selenium.

make browser      # installs the packages, as root on Debian
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

PROGRAMS = ("chromium", "chromedriver")
DESKTOP = (1400, 900)
PHONE = (390, 844)


def why_no_browser() -> str | None:
    """Why no browser can be started; None if one can."""
    absent = [program for program in PROGRAMS if shutil.which(program) is None]
    if absent:
        return f"{' and '.join(absent)} not installed (make browser)"
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "selenium is not installed (requirements-dev.txt)"
    return None


@contextmanager
def open_browser() -> "Iterator[Chrome]":
    """A browser without network, whose console messages are kept (``get_log("browser")``)."""
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    options = ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    # Chromium has no sandbox for root, as in containers, and /dev/shm may be small there.
    arguments = ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "hide-scrollbars")
    for argument in (*arguments, "proxy-server=127.0.0.1:9", "force-device-scale-factor=1"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = Chrome(options, ChromeService(shutil.which("chromedriver")))
    try:
        resize(browser, DESKTOP)
        yield browser
    finally:
        browser.quit()


def resize(browser: "Chrome", size: tuple[int, int]) -> None:
    """Sets width and height of the page. A window of Chromium is at least 500 pixels wide."""
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size[0] < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def set_dark(browser: "Chrome", dark: bool) -> None:
    """Whether the system prefers dark colours."""
    features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
