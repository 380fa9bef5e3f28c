"""A page, read."""

import base64
import io
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image

EVIL = (
    '</script><img src=x onerror="alert(1)">',
    "two\nlines & \"quotes' <b>",
    "\u202eedocu \ud800",
    "{{x}} ${y} <!--",
)


class Page(HTMLParser):
    """Elements, texts and data of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.scripts: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.data = json.loads(next(text for text in self.scripts if text.startswith("{")))

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "input", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        (self.scripts if self.open[-1:] == ["script"] else self.texts).append(data)

    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def ids(self, *among: str) -> list[str]:
        return [attrs["id"] for tag, attrs in self.elements if "id" in attrs and (not among or tag in among)]


def opened(uri: str) -> np.ndarray:
    kind, _, text = uri.partition(";base64,")
    with Image.open(io.BytesIO(base64.b64decode(text))) as image:
        assert kind == f"data:image/{image.format.lower()}"
        return np.array(image.convert("RGB"))
