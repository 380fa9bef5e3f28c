"""Files of the repository that are pages as well, and the links to them."""

import os
import posixpath
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]

PAGES = {
    "plugins/README.md": "generated/plugins.md",
    "benchmarks/README.md": "generated/benchmarks.md",
    "SECURITY.md": "generated/security.md",
    "CONTRIBUTING.md": "generated/contributing.md",
    "CHANGELOG.md": "generated/changelog.md",
}
"""The pages of files by their paths in the repository; the pages are in `docs`."""

LINK = re.compile(r"(?<!!)\[([^\]\n]+)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def repository_pages() -> dict[str, str]:
    """Return the pages by their paths in `generated`."""
    pages = {}
    for file, page in PAGES.items():
        text = (ROOT / file).read_text(encoding="utf-8")
        pages[page.removeprefix("generated/")] = with_site_links(text, file, page)
    return pages


def with_site_links(text: str, file: str, page: str) -> str:
    """Return Markdown whose links to files of the repository lead to their pages.

    Text that links to a file without a page is no link then. Links within the documentation stay as they are, so that a
    missing page is an error of the build.

    Args:
        text: of a file.
        file: its path in the repository.
        page: the path of its page in `docs`.
    """

    def with_site_link(match: re.Match) -> str:
        label, target, anchor = match[1], match[2], match[3] or ""
        if "://" in target or target.startswith("mailto:"):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(file), target))
        if path in PAGES:
            target_page = PAGES[path]
        elif path.startswith("docs/") and path.endswith(".md"):
            target_page = path.removeprefix("docs/")
        elif (ROOT / path).exists():
            return label
        else:
            return match[0]
        relative = os.path.relpath(target_page, posixpath.dirname(page) or ".")
        return f"[{label}]({Path(relative).as_posix()}{anchor})"

    return LINK.sub(with_site_link, text)
