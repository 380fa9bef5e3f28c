"""The page in headless Chromium: it draws, reacts to pointer and keys, requests nothing, and names stay text."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("selenium", reason="selenium is not installed: pip install 'reptk[test]'")
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.remote.webelement import WebElement

from headless_chromium import assert_quiet, needs_chromium, start_chromium, wait_until
from report_runs import make_run
from reptk.report import write

HOSTILE_NAMES = ('<img src=x onerror="document.title=1">', "two\nlines", "</script><b>bold</b>", "plain")

pytestmark = [pytest.mark.slow, needs_chromium]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebDriver]:
    driver = start_chromium(tmp_path_factory.mktemp("profile"))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("runs")
    runs = []
    for seed, name in enumerate(("a & b", "<i>c")):
        runs.append(make_run(base / name, seed=seed, noise=1.4 + seed, classes=HOSTILE_NAMES))
    return write(runs, base / "page.html", map="tsne")


@pytest.fixture(autouse=True, scope="module")
def opened(browser: WebDriver, path: Path) -> None:
    """The page, which all tests share."""
    browser.get(path.as_uri())
    wait_until(lambda: browser.execute_script("return document.readyState") == "complete")


@pytest.fixture(autouse=True)
def no_errors_and_no_requests(browser: WebDriver, path: Path, opened: None) -> Iterator[None]:
    """After each test the browser's log has no error, and no request but for the page itself."""
    yield
    assert_quiet(browser, path.as_uri())


def js(browser: WebDriver, script: str, *arguments: Any) -> Any:
    return browser.execute_script(f"return {script}", *arguments)


def pixels(browser: WebDriver) -> tuple[int, int]:
    """Return how many pixels of the map are drawn after the next frame, and a checksum of them."""
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
        "const element = document.getElementById(arguments[0]);"
        "element.value = arguments[1]; element.dispatchEvent(new Event('change'))",
        name,
        value,
    )


def press(browser: WebDriver, element: WebElement) -> None:
    """Click without moving the pointer, under which points are highlighted."""
    browser.execute_script("arguments[0].click()", element)


def scroll_to_map(browser: WebDriver) -> WebElement:
    canvas = browser.find_element(By.ID, "map")
    ActionChains(browser, duration=0).move_to_element(browser.find_element(By.CSS_SELECTOR, ".home")).perform()
    browser.execute_script(
        "arguments[0].blur(); arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", canvas
    )
    wait_until(lambda: js(browser, "document.getElementById('map').width") > 300)
    return canvas


def test_images_are_loaded(browser: WebDriver) -> None:
    wait_until(lambda: js(browser, "[...document.images].filter(image => !image.complete).length") == 0)
    widths = js(browser, "[...document.querySelectorAll('#gallery img, #views img')].map(image => image.naturalWidth)")
    assert len(widths) > 100
    assert min(widths) > 0


def test_the_map_is_drawn_and_classes_can_be_hidden(browser: WebDriver) -> None:
    scroll_to_map(browser)
    all_classes = pixels(browser)
    assert all_classes[0] > 500
    box = browser.find_element(By.CSS_SELECTOR, "#legend-items input")
    press(browser, box)
    without_one = pixels(browser)
    assert without_one[0] < all_classes[0]
    press(browser, box)
    assert pixels(browser) == all_classes
    press(browser, browser.find_element(By.ID, "legend-none"))
    assert pixels(browser)[0] == 0
    press(browser, browser.find_element(By.ID, "legend-all"))
    assert pixels(browser) == all_classes


def test_colorings_layouts_and_runs_redraw_the_map(browser: WebDriver) -> None:
    scroll_to_map(browser)
    drawn = [pixels(browser)]
    for name, value in (("map-color", "predicted"), ("map-color", "right"), ("map-layout", "tsne"), ("map-run", "1")):
        choose(browser, name, value)
        drawn.append(pixels(browser))
    assert len(set(drawn)) == len(drawn)
    for name, value in (("map-color", "label"), ("map-layout", "pca"), ("map-run", "0")):
        choose(browser, name, value)
    assert pixels(browser) == drawn[0]


def test_hovering_shows_a_thumbnail(browser: WebDriver) -> None:
    canvas = scroll_to_map(browser)
    card = browser.find_element(By.ID, "map-card")
    assert not card.is_displayed()
    width, height = canvas.size["width"], canvas.size["height"]
    offsets = [
        (x, y)
        for x in range(-width // 2 + 40, width // 2 - 20, 60)
        for y in range(-height // 2 + 40, height // 2 - 20, 40)
    ]
    for x, y in offsets:
        ActionChains(browser, duration=0).move_to_element_with_offset(canvas, x, y).perform()
        if card.is_displayed():
            break
    assert card.is_displayed()
    num_pixels = "[...arguments[0].getContext('2d').getImageData(0, 0, 112, 112).data].filter(Boolean).length"
    assert js(browser, num_pixels, card.find_element(By.TAG_NAME, "canvas")) > 10_000
    assert "no. " in card.text
    assert "votes" in card.text


def test_keys_move_the_map(browser: WebDriver) -> None:
    canvas = scroll_to_map(browser)
    before = pixels(browser)
    browser.execute_script("arguments[0].focus()", canvas)
    canvas.send_keys(Keys.ARROW_RIGHT)
    first = js(browser, "document.getElementById('map-announcement').textContent")
    assert "no. " in first
    for key in (Keys.ARROW_RIGHT, Keys.ARROW_UP, Keys.ARROW_LEFT):
        canvas.send_keys(key)
    assert js(browser, "document.getElementById('map-announcement').textContent") != first
    canvas.send_keys("+", "+", "+", "+")
    assert pixels(browser) != before
    canvas.send_keys(Keys.SHIFT, Keys.ARROW_LEFT)
    canvas.send_keys("0")
    assert pixels(browser) == before


def test_wheel_and_drag_move_the_map(browser: WebDriver) -> None:
    canvas = scroll_to_map(browser)
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


def test_keys_change_tabs(browser: WebDriver) -> None:
    tabs = browser.find_elements(By.CSS_SELECTOR, "#g0-panel-0, #g0-panel-1")
    assert [tab.is_displayed() for tab in tabs] == [True, False]
    first = browser.find_element(By.ID, "g0-tab-0")
    browser.execute_script("arguments[0].focus()", first)
    first.send_keys(Keys.ARROW_RIGHT)
    assert [tab.is_displayed() for tab in tabs] == [False, True]
    assert browser.switch_to.active_element.get_attribute("id") == "g0-tab-1"
    browser.switch_to.active_element.send_keys(Keys.END)
    assert browser.switch_to.active_element.get_attribute("aria-selected") == "true"


def test_headings_sort_the_table(browser: WebDriver) -> None:
    column = "[...document.querySelectorAll('#classes table')][0].querySelectorAll('tbody tr > :nth-child(3)')"
    values = f"[...{column}].map(cell => Number(cell.firstElementChild.dataset.value))"
    worst_first = js(browser, values)
    assert worst_first == sorted(worst_first)
    head = browser.find_elements(By.CSS_SELECTOR, "#classes thead button")[2]
    press(browser, head)
    assert js(browser, values) == worst_first[::-1]
    assert js(browser, "arguments[0].closest('th').getAttribute('aria-sort')", head) == "descending"


def test_keys_read_out_curves(browser: WebDriver) -> None:
    curve = browser.find_element(By.CSS_SELECTOR, ".curve svg")
    readout = browser.find_element(By.CSS_SELECTOR, ".curve output")
    text_before = readout.get_attribute("textContent")
    browser.execute_script("arguments[0].focus({preventScroll: true})", curve)
    curve.send_keys(Keys.ARROW_LEFT)
    assert readout.get_attribute("textContent").startswith("epoch 3:")
    browser.execute_script("arguments[0].blur()", curve)
    assert readout.get_attribute("textContent") == text_before


def test_the_theme_can_be_chosen(browser: WebDriver) -> None:
    button = browser.find_element(By.ID, "theme")
    themes = set()
    for _ in range(3):
        button.click()
        themes.add((button.text, js(browser, "getComputedStyle(document.body).backgroundColor")))
    assert {name for name, _ in themes} == {"auto", "light", "dark"}
    assert len({color for _, color in themes}) == 2


def test_an_image_is_enlarged_and_keys_go_to_its_neighbors(browser: WebDriver) -> None:
    press(browser, browser.find_element(By.ID, "g0-tab-0"))  # another test may have left another tab open
    button = browser.find_element(By.CSS_SELECTOR, "#g0-panel-0 button.enlarge")
    dialog = browser.find_element(By.ID, "enlarged")
    browser.execute_script(
        "arguments[0].scrollIntoView({block: 'center', behavior: 'instant'}); arguments[0].focus()", button
    )
    button.send_keys(Keys.ENTER)
    assert dialog.is_displayed()
    title = "document.querySelector('#enlarged b').textContent"
    assert js(browser, title).startswith("query ")
    shown = dialog.find_element(By.TAG_NAME, "img")
    assert shown.size["width"] > 300
    assert js(browser, "getComputedStyle(arguments[0]).objectFit", shown) == "contain"
    browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    assert js(browser, title).startswith("neighbor 1: ")
    browser.switch_to.active_element.send_keys(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert js(browser, title).startswith("neighbor 8: ")
    browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not dialog.is_displayed()
    assert browser.switch_to.active_element == button


def test_a_phone_has_the_navigation(browser: WebDriver) -> None:
    size = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        navigation = browser.find_element(By.CSS_SELECTOR, "body > header nav")
        assert navigation.is_displayed()
        assert js(browser, "arguments[0].scrollWidth > arguments[0].clientWidth", navigation)
        last = navigation.find_elements(By.TAG_NAME, "a")[-1]
        press(browser, last)
        wait_until(lambda: js(browser, "document.querySelector('#repeat').getBoundingClientRect().top < innerHeight"))
        wait_until(lambda: js(browser, "arguments[0].scrollLeft", navigation) > 0)
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_first_column_stays_while_a_table_scrolls(browser: WebDriver) -> None:
    size = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        box = browser.find_element(By.CSS_SELECTOR, "#numbers .scrolled")
        left = "arguments[0].querySelector('tbody th').getBoundingClientRect().left"
        before = js(browser, left, box)
        browser.execute_script("arguments[0].scrollLeft = 80", box)
        assert js(browser, "arguments[0].scrollLeft", box) == 80
        assert js(browser, left, box) == pytest.approx(before, abs=1)
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


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
    scroll_to_map(browser)
    assert browser.title.endswith("reptk")
    assert js(browser, "document.querySelectorAll('img[src=x], main b b, main i').length") == 0
    legend_names = js(browser, "[...document.querySelectorAll('#legend-items span')].map(name => name.textContent)")
    assert legend_names == [name.replace("\n", "\u240a") for name in HOSTILE_NAMES]
    row_heads = js(browser, "[...document.querySelectorAll('#classes tbody th')].map(name => name.textContent)")
    assert HOSTILE_NAMES[0] in row_heads
