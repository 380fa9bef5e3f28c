"""The images of the README: a report, its map and a gallery, of a run on the photographs data set.

    python -m reptk.recipe tcl_sup_adapt_photos                 # or any other run on the data set `photos`
    python docs/readme_images.py runs/tcl_sup_adapt_photos/1

writes docs/images/report.png, map.png and gallery.png: screenshots by headless Chromium, 1200 px wide, reduced to 256 colors
and made narrower until each has less than 150 kB. The photographs are those that scikit-image contains; no other images are in
them. It needs Chromium with its driver, and `pip install 'reptk[test]'`.
"""

import argparse
import base64
import io
import shutil
import tempfile
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver

from reptk.embeddings import Embeddings, search
from reptk.embeddings.viewing import gallery
from reptk.evaluate.predictions import Predictions
from reptk.report import write
from reptk.report.run_files import read_results

OUT = Path("docs/images")
MAX_BYTES = 150_000
WIDTHS_PX = (1200, 1080, 960, 840, 720)
REPORT_HEIGHT_PX = 1700
GALLERY_HEIGHT_PX = 1150
QUERIES = ("motorcycle", "flower", "coffee")
"""Classes of the queries in the gallery."""
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run")


def main() -> None:
    """Write the three images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run on the photographs data set")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    data_part = read_results(args.run / "results.json").protocol["data"]
    if data_part["name"] != "photos":
        parser.error(f"{args.run} is a run on {data_part['name']}; the README shows the photographs data set alone")
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        report_page = write(args.run, folder / "report.html", map="tsne")
        gallery_page = folder / "gallery.html"
        gallery.write(gallery_page, _gallery(args.run, data_part))
        browser = _start()
        try:
            _draw_report(browser, report_page, args.out)
            _draw_gallery(browser, gallery_page, args.out)
        finally:
            browser.quit()


def _gallery(run: Path, data_part: dict[str, object]) -> str:
    """Return the page of a search among the queries of an evaluation, whose features the run has stored."""
    predictions = Predictions.load(run)
    split = predictions.query_split
    ids = tuple(f"{split}/{number}" for number in predictions.index.tolist())
    embeddings = Embeddings(
        predictions.features.float(), ids, None, predictions.labels, predictions.classes, {"data": data_part}
    )
    chosen = []
    for name in QUERIES:
        of_class = (predictions.labels == predictions.classes.index(name)).nonzero().flatten()
        chosen.append(ids[int(of_class[len(of_class) // 2])])
    results = search(embeddings, ids=chosen, k=10)
    return gallery.results_page(results, embeddings, f"{len(ids)} patches of photographs.")


def _start() -> WebDriver:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    for flag in FLAGS:
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    size = {"width": WIDTHS_PX[0], "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    light = {"name": "prefers-color-scheme", "value": "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [light]})
    return browser


def _draw_report(browser: WebDriver, page: Path, out: Path) -> None:
    browser.get(page.as_uri())
    # Right and wrong answers in the proportion in which they occur.
    browser.find_element(By.ID, "g0-tab-3").click()
    browser.execute_script(
        "const layout = document.getElementById('map-layout');"
        "layout.value = 'tsne'; layout.dispatchEvent(new Event('change')); scrollTo(0, 0)"
    )
    _save(_screenshot(browser, 0, 0, WIDTHS_PX[0], REPORT_HEIGHT_PX), out / "report.png")
    box = browser.execute_script(
        "const box = document.querySelector('.map-and-legend').getBoundingClientRect();"
        "return [box.left - 16, box.top + scrollY - 16, box.width + 32, box.height + 32]"
    )
    _save(_screenshot(browser, *box), out / "map.png")


def _draw_gallery(browser: WebDriver, page: Path, out: Path) -> None:
    browser.get(page.as_uri())
    # The bar would lie over the images.
    browser.execute_script("document.getElementById('ticked').hidden = true")
    _save(_screenshot(browser, 0, 0, WIDTHS_PX[0], GALLERY_HEIGHT_PX), out / "gallery.png")


def _screenshot(browser: WebDriver, x: float, y: float, width: float, height: float) -> Image.Image:
    """Return a part of the page, in CSS pixels from its upper left corner."""
    clip = {"x": x, "y": y, "width": width, "height": height, "scale": 1}
    options = {"format": "png", "captureBeyondViewport": True, "clip": clip}
    content = browser.execute_cdp_cmd("Page.captureScreenshot", options)["data"]
    return Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB")


def _save(image: Image.Image, path: Path) -> None:
    """Write an image as large as `MAX_BYTES` allow."""
    for width in WIDTHS_PX:
        if width <= image.width:
            reduced = image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
            reduced.quantize(256).save(path, optimize=True)
            if path.stat().st_size < MAX_BYTES:
                break
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
