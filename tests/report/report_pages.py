"""Read a report page in tests."""

import base64
import io
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

VOID_ELEMENTS = ("meta", "img", "input", "br", "wbr")

HOSTILE_NAMES = (
    '</script><img src=x onerror="alert(1)">',
    "two\nlines & \"quotes' <b>",
    "\u202eedocu \ud800",
    "{{x}} ${y} <!--",
)
"""Class names that would become markup, break a script or turn the text around if they were not escaped."""


class Page(HTMLParser):
    """The elements, texts, scripts and data of a page.

    `open` lists the elements that are not closed, which are none after a well-formed page.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.scripts: list[str] = []
        self.is_after_wbr = False
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.data = json.loads(next(text for text in self.scripts if text.startswith("{")))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.is_after_wbr = tag == "wbr"
        if tag not in VOID_ELEMENTS:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            self.scripts.append(data)
        elif self.is_after_wbr:
            # A word that may be broken here is one word.
            self.texts[-1] += data
        else:
            self.texts.append(data)
        self.is_after_wbr = False

    def text(self) -> str:
        """Return all text of the page, with single spaces."""
        return " ".join(" ".join(self.texts).split())

    def ids(self, *tags: str) -> list[str]:
        """Return the ids of all elements, or of those with one of the tags, in order."""
        return [attrs["id"] for tag, attrs in self.elements if "id" in attrs and (not tags or tag in tags)]


def decode_data_uri(uri: str) -> NDArray[np.uint8]:
    """Return the image in a data URI as (H, W, 3)."""
    kind, _, text = uri.partition(";base64,")
    with Image.open(io.BytesIO(base64.b64decode(text))) as image:
        assert kind == f"data:image/{image.format.lower()}"
        return np.array(image.convert("RGB"))
