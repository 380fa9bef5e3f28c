"""The gallery in headless Chromium: images are whole and can be enlarged, and the ticked ones become a table."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

pytest.importorskip("selenium", reason="selenium is not installed: pip install 'reptk[test]'")
from selenium.webdriver import Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver

from headless_chromium import assert_quiet, needs_chromium, start_chromium
from reptk.embeddings import Embeddings
from reptk.embeddings.duplicates.duplicate_groups import Duplicate, Duplicates
from reptk.embeddings.duplicates.similarity_threshold import SimilarityThreshold
from reptk.embeddings.viewing import gallery

pytestmark = [pytest.mark.slow, needs_chromium, pytest.mark.usefixtures("one_thread")]

NAMES = ('=1+1,"x".png', "a b.png", "c.png", "d.png")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two groups of two wide images."""
    folder = tmp_path_factory.mktemp("gallery")
    for name in NAMES:
        Image.new("RGB", (300, 100), "teal").save(folder / name)
    embeddings = Embeddings(
        torch.eye(4), NAMES, NAMES, torch.zeros(4, dtype=torch.long), ("-dogs",), {"root": str(folder)}
    )
    members = [Duplicate(row, NAMES[row], "-dogs", embeddings.file(row), 0.987, 0, "") for row in range(4)]
    duplicates = Duplicates(embeddings, None, SimilarityThreshold(0.9, "as requested"), [members[:2], members[2:]], [])
    path = folder / "page.html"
    gallery.write(path, gallery.duplicates_page(duplicates, "about", folder))
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory, page: Path) -> Iterator[WebDriver]:
    driver = start_chromium(tmp_path_factory.mktemp("profile"))
    driver.get(page.as_uri())
    yield driver
    driver.quit()


def test_images_are_whole_and_enlarged(browser: WebDriver, page: Path) -> None:
    image = browser.find_element(By.CSS_SELECTOR, ".card img")
    assert browser.execute_script("return getComputedStyle(arguments[0]).objectFit", image) == "contain"
    dialog = browser.find_element(By.ID, "enlarged")
    image.click()
    assert dialog.is_displayed()
    link = dialog.find_element(By.TAG_NAME, "a")
    assert link.get_attribute("href") == (page.parent / NAMES[0]).as_uri()
    browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    assert dialog.find_element(By.TAG_NAME, "b").text == NAMES[1]
    browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not dialog.is_displayed()
    assert_quiet(browser, page.as_uri())


def test_ticked_images_become_a_table(browser: WebDriver, page: Path) -> None:
    save = browser.find_element(By.ID, "export")
    assert not save.is_enabled()
    browser.find_element(By.ID, "tick-others").click()
    boxes = browser.find_elements(By.CSS_SELECTOR, ".tick input")
    assert [box.is_selected() for box in boxes] == [False, True, False, True]
    boxes[0].send_keys(Keys.SPACE)
    assert browser.find_element(By.CSS_SELECTOR, "#ticked output").text == "3 ticked"
    text = browser.execute_async_script(
        """const done = arguments[0], create = URL.createObjectURL;
        URL.createObjectURL = (blob) => { blob.text().then(done); return create(blob); };
        document.getElementById("export").click();
        URL.createObjectURL = create;"""
    )
    rows = list(csv.reader(io.StringIO(text)))
    assert rows == [
        ["group", "id", "label", "similarity", "file"],
        # A spreadsheet would run the name and the label as formulas.
        ["Group 1: 2 images", f"'{NAMES[0]}", "'-dogs", "0.987", f"./{NAMES[0]}"],
        ["Group 1: 2 images", NAMES[1], "'-dogs", "0.987", f"./{NAMES[1]}"],
        ["Group 2: 2 images", NAMES[3], "'-dogs", "0.987", f"./{NAMES[3]}"],
    ]
    browser.find_element(By.ID, "untick").click()
    assert not save.is_enabled()
    assert_quiet(browser, page.as_uri())


@pytest.mark.parametrize("width", [320, 1200])
def test_nothing_is_wider_than_the_page(browser: WebDriver, width: int) -> None:
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
