"""Queries and their neighbors, or near duplicates, as one HTML page that needs no network.

This file prepares what the page shows; `reptk/report/templates/embeddings.html.j2` lays it out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from reptk.core.counts import format_count
from reptk.core.disk_space import explain_write_errors
from reptk.core.errors import UsageError
from reptk.core.files import write_text
from reptk.core.foreign_files import open_regular
from reptk.embeddings.duplicates.duplicate_groups import Duplicate, Duplicates
from reptk.embeddings.retrieval.search_images import Neighbor, SearchResult
from reptk.embeddings.retrieval.search_index import ImageRecords
from reptk.embeddings.viewing.embedding_images import SIDE_PX, EmbeddingImages
from reptk.report.content_security import content_security_policy
from reptk.report.file_link import file_link
from reptk.report.templating import read_asset, render

GENERATOR = "reptk search"
MAX_IMAGES, MAX_MEMBERS = 800, 24
"""Images of a page, about, and of a group on it, at most; the table that --out writes has them all."""
SIDES_PX = ((80, 384), (300, 256))
"""Pairs (number of images, longest side in pixels): a page of at most that number has images of that size, a larger one
`embedding_images.SIDE_PX`."""
HEAD_CHARACTERS = 1000
"""The name of the generator is within this many characters from the start of the page."""


@dataclass(frozen=True)
class Card:
    """An image with its texts.

    Args:
        image: data URI, empty if the image is gone.
        description: the text in place of the image.
        title: the line in bold.
        lines: further lines.
        note: what is unusual about the image; may be empty.
        is_query: whether the image is what was searched for.
        link: address of its file, relative to the page; empty if it is not in a file.
        id, label, similarity: what the exported table says about the image; the similarity is empty for a query.
        is_first: whether it is the first image of a group of near duplicates.
    """

    image: str
    description: str
    title: str
    lines: list[str] = field(default_factory=list)
    note: str = ""
    is_query: bool = False
    link: str = ""
    id: str = ""
    label: str = ""
    similarity: str = ""
    is_first: bool = False


@dataclass(frozen=True)
class CardGroup:
    """Images that belong together; `remark` may be empty. Those of a search are ranked."""

    heading: str
    cards: list[Card]
    is_ranked: bool = False
    remark: str = ""


class _ShownImages:
    """The images of a set as they are on the page: their data URIs, and links to their files from `folder`."""

    def __init__(self, embeddings: ImageRecords, num_images: int, folder: Path | None) -> None:
        self.embeddings = embeddings
        self._images = EmbeddingImages(embeddings, _side_px(num_images))
        self._folder = folder

    def data_uri(self, row: int) -> str:
        return self._images.data_uri(row)

    def data_uri_of_file(self, path: Path) -> str:
        return self._images.data_uri_of_file(path)

    def link(self, path: Path | None) -> str:
        if path is None or self._folder is None:
            return ""
        return file_link(path, self._folder)


def _side_px(num_images: int) -> int:
    """Return how large images are embedded: the fewer, the larger, so that a page has at most about 10 MB."""
    for max_images, side_px in SIDES_PX:
        if num_images <= max_images:
            return side_px
    return SIDE_PX


def results_page(results: list[SearchResult], embeddings: ImageRecords, about: str, folder: Path | None = None) -> str:
    """Return the page of a search; `about` says what was searched.

    Links to the files of images begin from `folder`, in which the page will be; without it there are none.
    """
    num_images = sum(1 + len(result.neighbors) for result in results)
    images = _ShownImages(embeddings, num_images, folder)
    groups = [_result_group(result, embeddings, images) for result in results]
    return _render(format_count(len(results), "query", "queries"), about, groups, kind="results")


def duplicates_page(duplicates: Duplicates, about: str, folder: Path | None = None) -> str:
    """Return the page of near duplicates: the largest groups within a set, or the most similar pairs of two sets.

    Links to the files of images begin from `folder`, in which the page will be; without it there are none.
    """
    shown_groups, shown_leaks = _first_duplicates(duplicates)
    num_images = sum(min(len(members), MAX_MEMBERS) for members in shown_groups) + 2 * len(shown_leaks)
    first_images = _ShownImages(duplicates.first, num_images, folder)
    second_images = first_images
    if duplicates.second is not None:
        second_images = _ShownImages(duplicates.second, num_images, folder)
    groups = []
    for number, members in enumerate(shown_groups, 1):
        groups.append(_duplicates_group(number, members, duplicates, first_images))
    for number, leak in enumerate(shown_leaks, 1):
        groups.append(_leak_group(number, leak, duplicates, first_images, second_images))
    num_all = len(duplicates.groups) + len(duplicates.leaks)
    if len(groups) < num_all:
        about += f" The first {len(groups):,} of {num_all:,} are shown; the table that --out FILE.csv writes has all of them."
    if duplicates.blank:
        groups.append(_blank_group(duplicates))
    return _render(_duplicates_heading(duplicates), about, groups, kind="pairs" if duplicates.leaks else "duplicates")


def _first_duplicates(duplicates: Duplicates) -> tuple[list[list[Duplicate]], list[Duplicate]]:
    """Return the groups and leaks that are on the page: from the first on, until it has `MAX_IMAGES`."""
    num_images = 0
    groups = []
    for members in duplicates.groups:
        if num_images >= MAX_IMAGES:
            break
        num_images += min(len(members), MAX_MEMBERS)
        groups.append(members)
    return groups, duplicates.leaks[: MAX_IMAGES // 2]


def _duplicates_heading(duplicates: Duplicates) -> str:
    """Return how many near duplicates there are; within a set, how many images could be removed."""
    heading = format_count(duplicates.count, "near duplicate")
    if not duplicates.groups:
        return heading
    candidates = format_count(duplicates.count - len(duplicates.groups), "candidate")
    groups = format_count(len(duplicates.groups), "group")
    return f"{heading} in {groups}: {candidates} for removal"


def check(path: Path) -> None:
    """Check that the page may be written to `path`: nothing is there, or an earlier page.

    Raises:
        UsageError: something else is there.
    """
    if path.is_dir():
        raise UsageError(f"--html {path} is a folder; name a file")
    if not path.exists():
        return
    # Only an earlier page is replaced: --html notes.html must not destroy somebody's notes.
    with open_regular(path) as file:
        head = file.read(HEAD_CHARACTERS).decode("utf-8", "replace")
    if f'content="{GENERATOR}"' not in head:
        raise UsageError(f"--html {path} exists and was not written by reptk search; choose another name")


def write(path: Path, text: str) -> None:
    """Write the page, in place of an earlier one.

    Raises:
        EnvironmentProblem: it cannot be written.
    """
    with explain_write_errors(path, advice="Choose another --html"):
        write_text(path, text)


def _result_group(result: SearchResult, embeddings: ImageRecords, images: _ShownImages) -> CardGroup:
    image, label, path = "", "", result.path
    if result.row is not None:
        image = images.data_uri(result.row)
        label = embeddings.class_of(result.row)
        path = embeddings.file(result.row)
    elif path is not None:
        image = images.data_uri_of_file(path)
    query = Card(
        image,
        f"query: {result.query}",
        "query",
        _lines(label),
        is_query=True,
        link=images.link(path),
        id=result.query,
        label=label,
    )
    cards = [query]
    for neighbor in result.neighbors:
        cards.append(_neighbor_card(neighbor, images))
    return CardGroup(result.query, cards, is_ranked=True)


def _duplicates_group(number: int, members: list[Duplicate], duplicates: Duplicates, images: _ShownImages) -> CardGroup:
    cards = []
    for position, member in enumerate(members[:MAX_MEMBERS]):
        cards.append(_member_card(member, duplicates, images, is_first=position == 0))
    remark = ""
    if len(members) > MAX_MEMBERS:
        remark = f"and {len(members) - MAX_MEMBERS:,} more"
    return CardGroup(f"Group {number}: {len(members):,} images", cards, remark=remark)


def _blank_group(duplicates: Duplicates) -> CardGroup:
    """Return the names of blank images, which nobody has to see."""
    images = duplicates.searched
    names = [images.ids[row] for row in duplicates.blank[:MAX_MEMBERS]]
    if len(duplicates.blank) > MAX_MEMBERS:
        names.append("...")
    heading = format_count(len(duplicates.blank), "blank image")
    return CardGroup(heading, [], remark=", ".join(names))


def _leak_group(
    number: int, leak: Duplicate, duplicates: Duplicates, first_images: _ShownImages, second_images: _ShownImages
) -> CardGroup:
    """Return an image of the second set next to its near duplicate in the first."""
    first = duplicates.first
    id, label = first.ids[leak.nearest], first.class_of(leak.nearest)
    nearest = Card(
        first_images.data_uri(leak.nearest),
        f"in the index: {id}",
        "in the index",
        _lines(label, id),
        link=first_images.link(first.file(leak.nearest)),
        id=id,
        label=label,
        is_first=True,
    )
    return CardGroup(f"Pair {number}", [_member_card(leak, duplicates, second_images), nearest])


def _neighbor_card(neighbor: Neighbor, images: _ShownImages) -> Card:
    similarity = f"{neighbor.similarity:.3f}"
    title = f"{neighbor.rank}.  {similarity}"
    return Card(
        images.data_uri(neighbor.row),
        f"neighbor {neighbor.rank}: {neighbor.id or similarity}",
        title,
        _lines(neighbor.label, neighbor.id),
        neighbor.note,
        link=images.link(neighbor.path),
        id=neighbor.id,
        label=neighbor.label,
        similarity=similarity,
    )


def _member_card(member: Duplicate, duplicates: Duplicates, images: _ShownImages, *, is_first: bool = False) -> Card:
    similarity = duplicates.format_similarity(member.similarity)
    return Card(
        images.data_uri(member.row),
        member.id or similarity,
        similarity,
        _lines(member.label, member.id),
        member.describe_copy(duplicates.first),
        link=images.link(member.path),
        id=member.id,
        label=member.label,
        similarity=similarity,
        is_first=is_first,
    )


def _lines(*texts: str) -> list[str]:
    return [text for text in texts if text]


def _render(heading: str, about: str, groups: Sequence[CardGroup], *, kind: str) -> str:
    """Return the page; `kind` is "results", "duplicates" or "pairs"."""
    style = read_asset("gallery.css") + read_asset("enlarge.css")
    script = read_asset("gallery.js") + read_asset("enlarge.js")
    return render(
        "embeddings.html.j2",
        generator=GENERATOR,
        content_security_policy=content_security_policy(style, script),
        style=style,
        script=script,
        heading=heading,
        about=about,
        groups=groups,
        kind=kind,
    )
