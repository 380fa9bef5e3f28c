"""Frames per second and memory of the page of `reptk explore` with 100,000 real points, in headless Chromium.

python benchmarks/explore.py [--points 100000] [--seconds 5] [--gpu]

The points are the 70,000 images of Fashion-MNIST and patches of photographs of the same size, as vectors of pixels, laid out by
PCA. In every frame one event of the pointer arrives, of a drag, of the wheel or of a pointer that passes over the points; the
frames that the browser shows are counted, which are 60 a second at most. By default WebGL is drawn by
the CPU (SwiftShader), the slowest case; --gpu leaves the choice to Chromium. The row says which renderer it was. Memory is the
proportional set size of all processes of the browser, of which the page's JavaScript heap is a part.
"""

import argparse
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from selenium import webdriver
from torch import Tensor
from torch.nn.functional import normalize

from measuring import versions_line
from processes import process_tree, read_process_file
from reptk.core import rng
from reptk.core.environment import git_commit
from reptk.data import fashion_mnist
from reptk.data.sources.photos import load_photographs
from reptk.embeddings import Embedder, Embeddings, Index
from reptk.explore.api import Api, Request
from reptk.explore.columns import embedding_columns
from reptk.explore.image_collection import ImageCollection
from reptk.explore.pictures import Pictures
from reptk.explore.server import ExploreServer

FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--no-first-run",
    "--disable-background-networking",
    "--window-size=1440,900",
]
SOFTWARE_FLAGS = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader"]

READY_SECONDS = 600

GESTURES = {
    "drag": """
        if (step === 0) send("mousedown", x, y, map.querySelector(".nsewdrag"));
        send("mousemove", x + 80 * Math.sin(step / 15), y + 60 * Math.sin(step / 22), document);
        if (isLast) send("mouseup", x, y, document);
    """,
    "wheel": """
        const deltaY = Math.sin(step / 20) > 0 ? -40 : 40;
        const event = { deltaY, clientX: x, clientY: y, bubbles: true, cancelable: true };
        map.querySelector(".nsewdrag").dispatchEvent(new WheelEvent("wheel", event));
    """,
    "hover": """
        send("mousemove", x + 200 * Math.sin(step / 31), y + 150 * Math.sin(step / 17), map.querySelector(".nsewdrag"));
    """,
}
"""What arrives in each frame, by the name of the row."""

MEASURE = """
const [seconds, done] = arguments, map = document.getElementById("map"), box = map.getBoundingClientRect();
const x = box.left + box.width / 2, y = box.top + box.height / 2, times = [];
const send = (name, clientX, clientY, target) => target.dispatchEvent(
  new MouseEvent(name, { clientX, clientY, bubbles: true, cancelable: true, view: window, buttons: 1 }));
let step = 0;
function frame(now) {
  times.push(now);
  const isLast = now - times[0] > 1000 * seconds;
  GESTURE
  step += 1;
  if (isLast) done(times);
  else requestAnimationFrame(frame);
}
requestAnimationFrame(frame);
"""

RENDERER = """
const gl = document.createElement("canvas").getContext("webgl");
const info = gl && gl.getExtension("WEBGL_debug_renderer_info");
return info ? gl.getParameter(info.UNMASKED_RENDERER_WEBGL) : "unknown";
"""


def main(argv: list[str] | None = None) -> int:
    args = _parse(argv)
    print(versions_line(["plotly", "torch", "selenium"]), f"commit {git_commit()}", sep=", ")
    collection = collect(args.points)
    with served(collection) as address, opened_browser(args.gpu) as browser:
        start = time.perf_counter()
        browser.get(address)
        while browser.execute_script("return document.documentElement?.dataset.state") != "ready":
            if time.perf_counter() - start > READY_SECONDS:
                raise SystemExit(browser.execute_script("return document.getElementById('status').textContent"))
            time.sleep(0.05)
        seconds = time.perf_counter() - start
        count = browser.execute_script("return document.getElementById('map').data[0].x.length")
        print(f"{browser.capabilities['browserVersion']}, {browser.execute_script(RENDERER)}")
        print(f"{count:,} points, ready after {seconds:.1f} s")
        print("\n| | frames/s | median ms | 95 % of the frames within ms |\n|---|---|---|---|")
        for name, gesture in GESTURES.items():
            print(frame_row(name, frame_milliseconds(browser, gesture, args.seconds)), flush=True)
        print(f"\nJavaScript heap {heap_mb(browser):,.0f} MB, the browser's processes {browser_mb(browser):,.0f} MB")
    return 0


def collect(count: int) -> ImageCollection:
    """Return a collection of `count` images as vectors of pixels."""
    data = fashion_mnist()
    vectors, labels, ids = [], [], []
    for name in ("train", "query"):
        split = data.splits[name]
        numbers = torch.arange(min(len(split), count - len(ids)))
        images = split.images.fetch(numbers)[:, 0].float()
        vectors.append(images.flatten(1))
        labels.append(split.labels[numbers])
        ids += [f"{name}/{number}" for number in numbers.tolist()]
    patches = photograph_patches(count - len(ids), vectors[0].shape[1])
    vectors.append(patches)
    labels.append(torch.full((len(patches),), len(data.classes)))
    ids += [f"patch/{number}" for number in range(len(patches))]
    embeddings = Embeddings(
        vectors=normalize(torch.cat(vectors) + 1),  # no vector is zero
        ids=ids,
        labels=torch.cat(labels),
        classes=(*data.classes, "patch of a photograph"),
        metadata={"data": {"name": "fashion_mnist"}},
    )
    return ImageCollection(
        title=f"{count:,} images",
        index=Index(embeddings),
        pictures=Pictures(embeddings),
        columns=embedding_columns(embeddings),
        open_embedder=_no_embedder,
    )


def photograph_patches(count: int, width: int) -> Tensor:
    """Return gray patches (count, width) at random places of photographs, of as many pixels as the other images have."""
    side_px = round(width**0.5)
    if count == 0:
        return torch.empty(0, width)
    grays = [np.array(image.convert("L")) for image in load_photographs().values()]
    photographs = [torch.from_numpy(gray).float() for gray in grays]
    stream = rng.generator("patches", count)
    patches = []
    for number in range(count):
        image = photographs[number % len(photographs)]
        top = int(torch.randint(image.shape[0] - side_px, (1,), generator=stream))
        left = int(torch.randint(image.shape[1] - side_px, (1,), generator=stream))
        patches.append(image[top : top + side_px, left : left + side_px].flatten())
    return torch.stack(patches)


def _no_embedder() -> Embedder:
    raise NotImplementedError


@contextmanager
def served(collection: ImageCollection) -> Iterator[str]:
    """Serve the page while the block runs. Yields its address."""
    api = Api(collection, "pca")
    api.respond(Request("GET", "/api/positions/pca", {}))
    server = ExploreServer(api)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.access.url
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def opened_browser(gpu: bool) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    flags = FLAGS if gpu else [*FLAGS, *SOFTWARE_FLAGS]
    with tempfile.TemporaryDirectory(prefix="reptk-explore-", ignore_cleanup_errors=True) as profile:
        for flag in (*flags, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        # Named, because selenium would download what it does not find.
        options.binary_location = program("chromium", "chromium-browser", "google-chrome")
        options.page_load_strategy = "none"  # the page says when it is ready
        browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(program("chromedriver")))
        try:
            browser.set_script_timeout(READY_SECONDS)
            yield browser
        finally:
            browser.quit()


def program(*names: str) -> str:
    """Return the path of the first program that is installed.

    Raises:
        SystemExit: none is.
    """
    for name in names:
        path = shutil.which(name)
        if path is not None:
            return path
    raise SystemExit(f"none of {', '.join(names)} is installed")


def frame_milliseconds(browser: webdriver.Chrome, gesture: str, seconds: float) -> list[float]:
    """Return the milliseconds between the frames while an event arrives in each."""
    times = browser.execute_async_script(MEASURE.replace("GESTURE", gesture), seconds)
    return [later - earlier for earlier, later in pairwise(times)]


def frame_row(name: str, milliseconds: list[float]) -> str:
    """Return a row of the table."""
    ordered = sorted(milliseconds)
    slow = ordered[int(0.95 * (len(ordered) - 1))]
    per_second = 1000 / statistics.mean(milliseconds)
    return f"| {name} | {per_second:.1f} | {statistics.median(milliseconds):.1f} | {slow:.1f} |"


def heap_mb(browser: webdriver.Chrome) -> float:
    """Return the used JavaScript heap, after a collection of garbage."""
    for command in ("HeapProfiler.enable", "HeapProfiler.collectGarbage", "Performance.enable"):
        browser.execute_cdp_cmd(command, {})
    metrics: list[dict[str, Any]] = browser.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
    values = {metric["name"]: metric["value"] for metric in metrics}
    return values["JSHeapUsedSize"] / 1e6


def browser_mb(browser: webdriver.Chrome) -> float:
    """Return the proportional set size of the driver and all processes of the browser."""
    total_kb = 0
    for process in process_tree(browser.service.process.pid):
        for line in read_process_file(Path(f"/proc/{process}/smaps_rollup")).splitlines():
            if line.startswith("Pss:"):
                total_kb += int(line.split()[1])
    return total_kb / 1000


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each gesture")
    parser.add_argument("--gpu", action="store_true", help="draw as Chromium chooses, instead of by the CPU")
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
