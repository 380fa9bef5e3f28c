"""Whatever the files of a run or of embeddings say, a page stays text, loads nothing, and runs no code of theirs."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from report_pages import Page
from report_runs import make_run
from reptk.cli import main
from reptk.embeddings import Embeddings
from reptk.report import write

pytestmark = pytest.mark.usefixtures("one_thread")

HOSTILE_TEXTS = (
    "<script>alert(1)</script>",
    '"></style><script>alert(1)</script>',
    "</script></title></textarea><svg onload=alert(1)>",
    "javascript:alert(1)",
    "' onmouseover='alert(1)",
    "url(http://localhost/x)",
    "\u202egpj.exe\u2066",
    "{{ 7 * 7 }}{% include '/etc/passwd' %}",
    "<!--",
    "\x1b]0;x\x07",
)
LONG_TEXT = "<b>" * 3_000


class Elements(HTMLParser):
    """The elements of a page with their attributes."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def assert_harmless(source: str, num_scripts: int) -> None:
    elements = Elements(source).found
    assert sum(tag == "script" for tag, _ in elements) == num_scripts
    for tag, attributes in elements:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        for name in ("href", "src", "srcset", "action", "data", "style"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/", "./", "../")), (tag, attributes)
    assert not any(letter in source for letter in "\u202e\u2066\x1b\x07")
    assert "<b><b>" not in source
    assert "Content-Security-Policy" in source


@pytest.mark.parametrize("number", range(len(HOSTILE_TEXTS) + 1))
def test_a_hostile_run_gives_a_harmless_page(number: int, tmp_path: Path) -> None:
    texts = [*HOSTILE_TEXTS, LONG_TEXT]
    texts = texts[number:] + texts[:number]
    run = make_run(tmp_path / "run", classes=tuple(texts[:4]))
    results = json.loads((run / "results.json").read_text())
    # The names of rows and metrics are keys.
    results |= {"metrics": {row: {"knn@1": 0.5, texts[0]: 0.25} for row in (texts[0], texts[1], "trained")}}
    results |= {"intervals": {}, "gains": {}, "health": {texts[0]: {texts[1]: 1.0}}, "headline": texts[0]}
    results["classes"] = [{"name": texts[0], "queries": 3, "knn@1": 0.5, texts[1]: 0.5}]
    results["confusions"] = [{"class": texts[0], "taken_for": texts[1], "count": 1, "of": 2}]
    results["protocol"]["note"] = texts[0]
    results["verdict"] = {"level": texts[0], "sentence": texts[1], "advice": [texts[2]]}
    (run / "results.json").write_text(json.dumps(results))
    log = json.dumps({"step": 1, "loss": 2.0, texts[0]: 1.0, "knn@1": 0.5}) + "\n"
    (run / "metrics.jsonl").write_text(log + json.dumps({"step": 2, "loss": 1.0, texts[1]: texts[2]}) + "\n")
    (run / "status.json").write_text(json.dumps({"status": texts[3]}))
    recipe = (run / "recipe.toml").read_text().replace('"tiny"', json.dumps(texts[0][:1000]))
    (run / "recipe.toml").write_text(recipe)
    page = write(run, tmp_path / "page.html")
    assert_harmless(page.read_text(encoding="utf-8"), num_scripts=2)
    assert not Page(page).open


@pytest.mark.parametrize("number", range(len(HOSTILE_TEXTS)))
def test_hostile_embeddings_give_a_harmless_page(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    texts = [HOSTILE_TEXTS[number], LONG_TEXT, "c"]
    metadata = {
        "root": HOSTILE_TEXTS[number],
        "encoder": {"backbone": HOSTILE_TEXTS[number]},
        "data": {"name": texts[0]},
    }
    Embeddings(torch.eye(3), texts, texts, torch.arange(3), tuple(texts), metadata).save("e.safetensors")
    assert main(["search", "e.safetensors", "--id", "2", "--k", "2"]) == 0
    assert_harmless(Path("found.html").read_text(encoding="utf-8"), num_scripts=1)


@pytest.mark.parametrize(
    "source", ["<script>", "<a href='javascript:1'>", "<img src=x onerror=alert(1)>", "\u202e", "x"]
)
def test_what_is_not_harmless_is_detected(source: str) -> None:
    with pytest.raises(AssertionError):
        assert_harmless(source, num_scripts=0)
