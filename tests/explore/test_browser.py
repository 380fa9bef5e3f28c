"""The page in headless Chromium: it draws, selects, searches and labels, loads nothing from elsewhere, and names stay text."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reptk.explore.server import ExploreServer

selenium = pytest.importorskip("selenium", reason="selenium is not installed: pip install 'reptk[test]'")
from selenium.webdriver import ActionChains, Keys  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.remote.webdriver import WebDriver  # noqa: E402

from headless_chromium import SOFTWARE_WEBGL, assert_quiet, needs_chromium, start_chromium, wait_until  # noqa: E402

DRIVER_NOTES = ("GPU stall due to ReadPixels", "GroupMarkerNotSet", "Automatic fallback to software WebGL")
"""What Chromium logs about drawing without a GPU."""

pytestmark = [pytest.mark.slow, needs_chromium]

SECONDS = 120
"""For which is waited: a busy machine compiles Plotly for minutes."""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebDriver]:
    downloads = tmp_path_factory.mktemp("downloads")
    # The test waits for the page itself.
    driver = start_chromium(tmp_path_factory.mktemp("profile"), SOFTWARE_WEBGL, downloads, page_load="none")
    driver.set_script_timeout(300)
    driver.downloads = downloads
    yield driver
    driver.quit()


@pytest.fixture(autouse=True, scope="module")
def opened(browser: WebDriver, server: ExploreServer) -> None:
    """The page, which all tests share."""
    browser.get(server.access.url)
    wait_until(lambda: js(browser, "document.documentElement?.dataset.state") == "ready", 300)


@pytest.fixture(autouse=True)
def no_errors_and_no_foreign_requests(browser: WebDriver, server: ExploreServer, opened: None) -> Iterator[None]:
    """After each test the browser's log has no error, and all requests were to this server."""
    yield
    assert_quiet(browser, f"http://127.0.0.1:{server.server_port}/", ignored=DRIVER_NOTES)


def js(browser: WebDriver, script: str, *arguments: Any) -> Any:
    return browser.execute_script(f"return {script}", *arguments)


def heading(browser: WebDriver) -> str:
    return js(browser, "document.getElementById('list-heading').textContent")


def rows(browser: WebDriver) -> list[int]:
    return js(browser, "[...document.querySelectorAll('#gallery button')].map(button => Number(button.dataset.row))")


def click(browser: WebDriver, name: str) -> None:
    browser.execute_script("document.getElementById(arguments[0]).click()", name)


def place(browser: WebDriver, row: int) -> tuple[float, float]:
    """Return where a row is drawn, in pixels from the center of the map."""
    script = """(() => {
      const map = document.getElementById("map"), { xaxis, yaxis } = map._fullLayout, { x, y } = map.data[0];
      const box = map.getBoundingClientRect();
      return [xaxis.l2p(x[arguments[0]]) - box.width / 2, yaxis.l2p(y[arguments[0]]) - box.height / 2];
    })()""".replace("arguments[0]", str(row))
    return tuple(js(browser, script))


def test_the_page_shows_the_collection_and_keeps_the_token_out_of_its_address(browser: WebDriver) -> None:
    assert "token" not in browser.current_url
    assert browser.title == "my photos \u2013 reptk explore"
    assert js(browser, "document.getElementById('map').data[0].x.length") == 240
    legend = js(browser, "[...document.querySelectorAll('#legend-items .name')].map(name => name.textContent)")
    assert legend == ["cats", "dogs <b>", "ünï"]
    assert js(browser, "document.getElementById('status').textContent") == ""


def test_a_lasso_lists_its_images(browser: WebDriver) -> None:
    click(browser, "mode-lasso")
    canvas = browser.find_element(By.ID, "map")
    places = np.array([place(browser, row) for row in range(240)])
    (left, top), (right, bottom) = places.min(0) - 6, np.median(places, 0)
    corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top + 2)]
    actions = ActionChains(browser, duration=30)
    actions.move_to_element_with_offset(canvas, int(left), int(top)).click_and_hold()
    for x, y in corners[1:]:
        actions.move_to_element_with_offset(canvas, int(x), int(y))
    actions.release().perform()
    wait_until(lambda: "in the lasso" in heading(browser), SECONDS)
    wait_until(lambda: len(rows(browser)) > 0, SECONDS)
    inside = ((places > (int(left) + 3, int(top) + 3)) & (places < (int(right) - 3, int(bottom) - 3))).all(1)
    found = set(rows(browser))
    assert inside.sum() > 5
    assert set(np.flatnonzero(inside).tolist()) <= found
    near = ((places > (int(left) - 3, int(top) - 3)) & (places < (int(right) + 3, int(bottom) + 3))).all(1)
    assert found <= set(np.flatnonzero(near).tolist())
    click(browser, "mode-pan")


def test_a_click_on_a_point_lists_its_neighbors(browser: WebDriver, client) -> None:
    canvas = browser.find_element(By.ID, "map")
    places = np.array([place(browser, row) for row in range(240)])
    distances = np.linalg.norm(places[:, None] - places[None], axis=-1) + 1e9 * np.eye(240)
    loneliest = int(distances.min(1).argmax())
    x, y = places[loneliest]
    actions = ActionChains(browser, duration=0).move_to_element_with_offset(canvas, int(x) + 20, int(y))
    actions.move_to_element_with_offset(canvas, round(x), round(y)).perform()
    wait_until(lambda: js(browser, "!document.getElementById('card').hidden"), SECONDS)
    wait_until(lambda: js(browser, "document.getElementById('card-image').naturalWidth") > 0, SECONDS)
    ActionChains(browser, duration=0).click().perform()
    wait_until(lambda: heading(browser) == "Nearest images", SECONDS)
    expected = client.get(f"/api/neighbors/{loneliest}").json["rows"]
    wait_until(lambda: rows(browser) == expected, SECONDS)
    wait_until(lambda: js(browser, "document.getElementById('chosen-image').naturalWidth") > 128, SECONDS)


def test_a_dropped_picture_is_searched(browser: WebDriver, many_photos: Path, collection) -> None:
    content = (many_photos / "ünï" / "002.png").read_bytes()
    browser.execute_script(
        """const transfer = new DataTransfer();
        transfer.items.add(new File([new Uint8Array(arguments[0])], "dropped.png", { type: "image/png" }));
        for (const name of ["dragover", "drop"]) {
          document.body.dispatchEvent(new DragEvent(name, { dataTransfer: transfer, bubbles: true, cancelable: true }));
        }""",
        list(content),
    )
    wait_until(lambda: heading(browser) == "Nearest to dropped.png", SECONDS)
    wait_until(lambda: len(rows(browser)) == 30, SECONDS)
    assert rows(browser)[0] == collection.embeddings.row_of("ünï/002.png")
    wait_until(lambda: js(browser, "document.getElementById('chosen-image').naturalWidth") > 0, SECONDS)


def test_near_duplicates_are_grouped(browser: WebDriver, collection) -> None:
    click(browser, "duplicates")
    wait_until(lambda: "near duplicates" in heading(browser), SECONDS)
    wait_until(lambda: collection.embeddings.row_of("ünï/copy.png") in rows(browser), SECONDS)
    assert js(browser, "document.querySelector('#gallery .group').textContent").startswith("Group 1: ")


def test_labels_of_a_class_are_exported(browser: WebDriver) -> None:
    browser.execute_script("document.querySelectorAll('#legend-items button')[1].click()")
    wait_until(lambda: heading(browser) == "dogs <b>: 80 images", SECONDS)
    text = browser.find_element(By.ID, "label-text")
    text.clear()
    text.send_keys('=SUM("1"), x', Keys.ENTER)
    assert js(browser, "document.getElementById('label-count').textContent") == "80 images labeled"
    click(browser, "export")
    file = browser.downloads / "labels.csv"
    wait_until(file.exists, SECONDS)
    lines = file.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "row,id,path,class,label"
    assert len(lines) == 81
    assert lines[1].startswith("80,dogs <b>/001.png,")
    assert lines[1].endswith('dogs <b>,"\'=SUM(""1""), x"')


def test_colors_layouts_and_keys_change_the_map(browser: WebDriver) -> None:
    choose = (
        "const e = document.getElementById(arguments[0]); e.value = arguments[1]; e.dispatchEvent(new Event('change'))"
    )
    for value, name in (("1", "prediction"), ("2", "error"), ("3", "similarity to the nearest"), ("-1", "Legend")):
        browser.execute_script(choose, "color", value)
        wait_until(
            lambda name=name: name in js(browser, "document.getElementById('legend-heading').textContent"), SECONDS
        )
    before = js(browser, "[...document.getElementById('map').data[0].x]")
    browser.execute_script(choose, "layout", "tsne")
    wait_until(lambda: js(browser, "[...document.getElementById('map').data[0].x]") != before, 180)
    canvas = browser.find_element(By.ID, "map")
    ranges = "JSON.stringify([map.layout.xaxis.range, map.layout.yaxis.range])"
    start = js(browser, ranges)
    browser.execute_script("arguments[0].focus()", canvas)
    for key in (Keys.ARROW_RIGHT, Keys.ARROW_UP, "+", "-"):
        now = js(browser, ranges)
        canvas.send_keys(key)
        wait_until(lambda now=now: js(browser, ranges) != now, SECONDS)
    canvas.send_keys("0")
    wait_until(lambda: js(browser, ranges) == start, SECONDS)


def test_images_are_found_by_name(browser: WebDriver, collection) -> None:
    text = browser.find_element(By.ID, "find-text")
    text.clear()
    text.send_keys("<img", Keys.ENTER)
    wait_until(lambda: heading(browser) == "1 image with \u201c<img\u201d", SECONDS)
    row = collection.embeddings.row_of('cats/<img src=x onerror="document.title=1">.png')
    wait_until(lambda: rows(browser) == [row], SECONDS)
    browser.execute_script("document.querySelector('#gallery button').click()")
    wait_until(lambda: heading(browser) == "Nearest images", SECONDS)
    wait_until(lambda: "onerror" in js(browser, "document.getElementById('chosen-values').textContent"), SECONDS)
    assert js(browser, "document.querySelectorAll('img[src=x]').length") == 0
    assert browser.title.startswith("my photos")


def test_theme(browser: WebDriver) -> None:
    colors = set()
    for _ in range(3):
        click(browser, "theme")
        colors.add(js(browser, "getComputedStyle(document.body).backgroundColor"))
    assert len(colors) == 2


@pytest.mark.parametrize("width", [320, 390, 1440])
def test_nothing_is_wider_than_the_page(browser: WebDriver, width: int) -> None:
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        wait_until(lambda: js(browser, "innerWidth") == width, SECONDS)
        assert js(browser, "document.documentElement.scrollWidth") <= width
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
