"""The report opened in headless Chromium: it draws, answers to pointer and keys, asks nobody, and names stay text."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from report_runs import make_run
from reptk.report import write

selenium = pytest.importorskip("selenium", reason="selenium is not installed: pip install 'reptk[test]'")
from selenium import webdriver  # noqa: E402
from selenium.webdriver import ActionChains, Keys  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.remote.webdriver import WebDriver  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--window-size=1280,900",
]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
OWN_PAGES = ("chrome:", "chrome-untrusted:")
"""The browser's own, such as a new tab."""
EVIL = ('<img src=x onerror="document.title=1">', "two\nlines", "</script><b>bold</b>", "plain")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="there is no chromium with its chromedriver"),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebDriver]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("runs")
    runs = [make_run(base / name, seed=at, noise=1.4 + at, classes=EVIL) for at, name in enumerate(("a & b", "<i>c"))]
    return write(runs, base / "page.html", map="tsne")


@pytest.fixture(autouse=True, scope="module")
def opened(browser: WebDriver, path: Path) -> None:
    """The page, for all tests in turn."""
    browser.get(path.as_uri())
    until(lambda: browser.execute_script("return document.readyState") == "complete")


@pytest.fixture(autouse=True)
def quiet(browser: WebDriver, path: Path, opened: None) -> Iterator[None]:
    """Nothing is complained of, and nothing asked for."""
    yield
    assert [entry for entry in browser.get_log("browser") if entry["level"] != "INFO"] == []
    asked = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [call["params"]["request"]["url"] for call in asked if call["method"] == "Network.requestWillBeSent"]
    assert [url for url in urls if not url.startswith(("data:", "blob:", path.as_uri(), *OWN_PAGES))] == []


def until(holds: Any, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.03)


def js(browser: WebDriver, script: str, *arguments: Any) -> Any:
    return browser.execute_script(f"return {script}", *arguments)


def pixels(browser: WebDriver) -> tuple[int, int]:
    """Of the map, after the next frame: how many pixels are drawn, and a sum that tells pictures apart."""
    return tuple(
        browser.execute_async_script(
            """const done = arguments[0], canvas = document.getElementById("map");
            requestAnimationFrame(() => requestAnimationFrame(() => {
              const copy = new OffscreenCanvas(canvas.width, canvas.height);
              const pen = copy.getContext("2d", { willReadFrequently: true });
              pen.drawImage(canvas, 0, 0);
              const data = pen.getImageData(0, 0, canvas.width, canvas.height).data;
              let count = 0, sum = 0;
              for (let at = 3; at < data.length; at += 4) if (data[at]) {
                count += 1; sum = (sum * 31 + at + data[at - 1] + 7 * data[at - 2] + 13 * data[at - 3]) % 2147483647;
              }
              done([count, sum]);
            }));"""
        )
    )


def choose(browser: WebDriver, name: str, value: str) -> None:
    browser.execute_script(
        "const it = document.getElementById(arguments[0]); it.value = arguments[1]; it.dispatchEvent(new Event('change'))",
        name,
        value,
    )


def press(browser: WebDriver, what: Any) -> None:
    """Click without bringing the pointer there, under which things light up."""
    browser.execute_script("arguments[0].click()", what)


def the_map(browser: WebDriver) -> Any:
    canvas = browser.find_element(By.ID, "map")
    ActionChains(browser, duration=0).move_to_element(browser.find_element(By.CSS_SELECTOR, ".home")).perform()
    browser.execute_script(
        "arguments[0].blur(); arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", canvas
    )
    until(lambda: js(browser, "document.getElementById('map').width") > 300)
    return canvas


def test_pictures_of_the_gallery_are_there(browser: WebDriver) -> None:
    until(lambda: js(browser, "[...document.images].filter(image => !image.complete).length") == 0)
    widths = js(browser, "[...document.querySelectorAll('#gallery img, #views img')].map(image => image.naturalWidth)")
    assert len(widths) > 100
    assert min(widths) > 0


def test_the_map_is_drawn_and_classes_switch(browser: WebDriver) -> None:
    the_map(browser)
    whole = pixels(browser)
    assert whole[0] > 500
    box = browser.find_element(By.CSS_SELECTOR, "#legend-items input")
    press(browser, box)
    fewer = pixels(browser)
    assert fewer[0] < whole[0]
    press(browser, box)
    assert pixels(browser) == whole
    press(browser, browser.find_element(By.ID, "legend-none"))
    assert pixels(browser)[0] == 0
    press(browser, browser.find_element(By.ID, "legend-all"))
    assert pixels(browser) == whole


def test_colours_layouts_and_runs_redraw_the_map(browser: WebDriver) -> None:
    the_map(browser)
    seen = [pixels(browser)]
    for name, value in (("map-colour", "predicted"), ("map-colour", "right"), ("map-layout", "tsne"), ("map-run", "1")):
        choose(browser, name, value)
        seen.append(pixels(browser))
    assert len(set(seen)) == len(seen)
    for name, value in (("map-colour", "label"), ("map-layout", "pca"), ("map-run", "0")):
        choose(browser, name, value)
    assert pixels(browser) == seen[0]


def test_hovering_shows_a_thumbnail(browser: WebDriver) -> None:
    canvas = the_map(browser)
    card = browser.find_element(By.ID, "map-card")
    assert not card.is_displayed()
    width, height = canvas.size["width"], canvas.size["height"]
    places = [
        (x, y)
        for x in range(-width // 2 + 40, width // 2 - 20, 60)
        for y in range(-height // 2 + 40, height // 2 - 20, 40)
    ]
    for x, y in places:
        ActionChains(browser, duration=0).move_to_element_with_offset(canvas, x, y).perform()
        if card.is_displayed():
            break
    assert card.is_displayed()
    drawn = "[...arguments[0].getContext('2d').getImageData(0, 0, 112, 112).data].filter(Boolean).length"
    assert js(browser, drawn, card.find_element(By.TAG_NAME, "canvas")) > 10_000
    assert "no. " in card.text
    assert "votes" in card.text


def test_the_map_by_keys(browser: WebDriver) -> None:
    canvas = the_map(browser)
    before = pixels(browser)
    browser.execute_script("arguments[0].focus()", canvas)
    canvas.send_keys(Keys.ARROW_RIGHT)
    first = js(browser, "document.getElementById('map-said').textContent")
    assert "no. " in first
    for key in (Keys.ARROW_RIGHT, Keys.ARROW_UP, Keys.ARROW_LEFT):
        canvas.send_keys(key)
    assert js(browser, "document.getElementById('map-said').textContent") != first
    canvas.send_keys("+", "+", "+", "+")
    assert pixels(browser) != before
    canvas.send_keys(Keys.SHIFT, Keys.ARROW_LEFT)
    canvas.send_keys("0")
    assert pixels(browser) == before


def test_wheel_and_drag_move_it(browser: WebDriver) -> None:
    canvas = the_map(browser)
    before = pixels(browser)
    ActionChains(browser, duration=0).click_and_hold(canvas).move_by_offset(40, 25).release().perform()
    moved = pixels(browser)
    assert moved != before
    script = "arguments[0].dispatchEvent(new WheelEvent('wheel', {deltaY: -400, cancelable: true, clientX: 300, clientY: 300}))"
    browser.execute_script(script, canvas)
    assert pixels(browser) != moved
    browser.find_element(By.ID, "map-all").click()
    browser.execute_script("document.getElementById('map').blur()")
    assert pixels(browser) == before


def test_tabs_by_keys(browser: WebDriver) -> None:
    tabs = browser.find_elements(By.CSS_SELECTOR, "#g0-panel-0, #g0-panel-1")
    assert [tab.is_displayed() for tab in tabs] == [True, False]
    first = browser.find_element(By.ID, "g0-tab-0")
    browser.execute_script("arguments[0].focus()", first)
    first.send_keys(Keys.ARROW_RIGHT)
    assert [tab.is_displayed() for tab in tabs] == [False, True]
    assert browser.switch_to.active_element.get_attribute("id") == "g0-tab-1"
    browser.switch_to.active_element.send_keys(Keys.END)
    assert browser.switch_to.active_element.get_attribute("aria-selected") == "true"


def test_headings_sort(browser: WebDriver) -> None:
    column = "[...document.querySelectorAll('#classes table')][0].querySelectorAll('tbody tr > :nth-child(3)')"
    values = f"[...{column}].map(cell => Number(cell.firstElementChild.dataset.value))"
    worst_first = js(browser, values)
    assert worst_first == sorted(worst_first)
    head = browser.find_elements(By.CSS_SELECTOR, "#classes thead button")[2]
    press(browser, head)
    assert js(browser, values) == worst_first[::-1]
    assert js(browser, "arguments[0].closest('th').getAttribute('aria-sort')", head) == "descending"


def test_curves_are_read_out(browser: WebDriver) -> None:
    curve = browser.find_element(By.CSS_SELECTOR, ".curve svg")
    said = browser.find_element(By.CSS_SELECTOR, ".curve output")
    rest = said.get_attribute("textContent")
    browser.execute_script("arguments[0].focus({preventScroll: true})", curve)
    curve.send_keys(Keys.ARROW_LEFT)
    assert said.get_attribute("textContent").startswith("epoch 3:")
    browser.execute_script("arguments[0].blur()", curve)
    assert said.get_attribute("textContent") == rest


def test_the_theme_can_be_chosen(browser: WebDriver) -> None:
    button = browser.find_element(By.ID, "theme")
    colours = set()
    for _ in range(3):
        button.click()
        colours.add((button.text, js(browser, "getComputedStyle(document.body).backgroundColor")))
    assert {name for name, _ in colours} == {"auto", "light", "dark"}
    assert len({colour for _, colour in colours}) == 2


@pytest.mark.parametrize("width", [320, 390, 1440])
def test_nothing_is_wider_than_the_page(browser: WebDriver, width: int) -> None:
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        assert js(browser, "innerWidth") == width
        assert js(browser, "document.documentElement.scrollWidth") <= width
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_names_stay_text(browser: WebDriver) -> None:
    the_map(browser)
    assert browser.title.endswith("reptk")
    assert js(browser, "document.querySelectorAll('img[src=x], main b b, main i').length") == 0
    listed = js(browser, "[...document.querySelectorAll('#legend-items span')].map(name => name.textContent)")
    assert listed == [name.replace("\n", "\u240a") for name in EVIL]
    heads = js(browser, "[...document.querySelectorAll('#classes tbody th')].map(name => name.textContent)")
    assert EVIL[0] in heads
