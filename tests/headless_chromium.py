"""Start headless Chromium for tests of pages, and see what a page has requested and complained about."""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

selenium = pytest.importorskip("selenium", reason="selenium is not installed: pip install 'reptk[test]'")
from selenium import webdriver  # noqa: E402
from selenium.webdriver.remote.webdriver import WebDriver  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
FLAGS = ["--headless=new", "--no-sandbox", "--disable-quic", "--no-first-run", "--window-size=1280,900"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
NO_GPU = ("--disable-gpu",)
SOFTWARE_WEBGL = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader")
BROWSER_PAGES = ("chrome:", "chrome-untrusted:")
"""Pages of the browser itself, such as a new tab."""

needs_chromium = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="there is no chromium with its chromedriver")


def start_chromium(
    profile: Path, drawing: Sequence[str] = NO_GPU, downloads: Path | None = None, page_load: str = "normal"
) -> WebDriver:
    """Return a browser with logs of what pages say and request; the caller ends it with `quit`.

    Args:
        profile: an empty folder.
        drawing: flags, `NO_GPU` or `SOFTWARE_WEBGL`.
        downloads: the folder of downloads.
        page_load: for what `get` waits, as Selenium calls it: normal or none.
    """
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, *drawing, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    if downloads is not None:
        options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.page_load_strategy = page_load
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))


def assert_quiet(browser: WebDriver, address: str, ignored: Sequence[str] = ()) -> None:
    """Check that the log has no error, and no request but for the page itself.

    Args:
        browser: of `start_chromium`.
        address: what the addresses of the page's own requests begin with.
        ignored: parts of messages that are no errors of the page.
    """
    entries = [entry for entry in browser.get_log("browser") if entry["level"] != "INFO"]
    assert [entry for entry in entries if not any(text in entry["message"] for text in ignored)] == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert [url for url in urls if not url.startswith(("data:", "blob:", address, *BROWSER_PAGES))] == []


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Wait until the condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition never held"
        time.sleep(0.03)
