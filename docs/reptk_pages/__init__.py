"""An extension of Sphinx: pages that are written from the code, and links to files of the repository.

The pages are written into `docs/generated` whenever the documentation is built, so that they cannot differ from the code.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from reptk_pages.api_pages import api_pages
from reptk_pages.command_pages import command_pages
from reptk_pages.docstrings import as_restructured_text
from reptk_pages.part_pages import part_pages
from reptk_pages.recipe_pages import recipe_pages
from reptk_pages.repository_pages import repository_pages, with_site_links
from reptk_pages.schema_page import schema_pages

if TYPE_CHECKING:
    from sphinx.application import Sphinx  # the pages can be written without it

FOLDER = "generated"
"""Of the pages, in the folder of the documentation."""

BEFORE_NAPOLEON = 100
"""Sphinx calls handlers with a smaller number first; that of napoleon has 500."""


def all_pages() -> dict[str, str]:
    """Return the text of every page by its path in `FOLDER`."""
    pages = {}
    for write in (schema_pages, part_pages, command_pages, recipe_pages, api_pages, repository_pages):
        pages |= write()
    return pages


def write_pages(folder: Path) -> None:
    """Write the pages that have changed, so that Sphinx reads only these again, and remove those that are no more."""
    pages = all_pages()
    for old in folder.rglob("*.md"):
        if old.relative_to(folder).as_posix() not in pages:
            old.unlink()
    for name, text in pages.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def _on_start(app: "Sphinx") -> None:
    write_pages(Path(app.srcdir) / FOLDER)


def _on_read(app: "Sphinx", page: str, source: list[str]) -> None:
    if not page.startswith(FOLDER):
        source[0] = with_site_links(source[0], f"docs/{page}.md", f"{page}.md")


def _on_docstring(app: "Sphinx", kind: str, name: str, part: Any, options: Any, lines: list[str]) -> None:
    lines[:] = as_restructured_text(lines)


def setup(app: "Sphinx") -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("builder-inited", _on_start)
    app.connect("source-read", _on_read)
    app.connect("autodoc-process-docstring", _on_docstring, priority=BEFORE_NAPOLEON)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
