"""Queries and their neighbors, or near duplicates, as one HTML page without script or network.

This file prepares what the page shows; `reptk/report/templates/embeddings.html.j2` lays it out.
"""

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
from reptk.embeddings.viewing.embedding_images import EmbeddingImages
from reptk.report.templating import render

GENERATOR = "reptk search"
MAX_GROUPS, MAX_MEMBERS = 100, 24
"""Groups of a page, and images of a group, at most; the table that --out writes has them all."""
HEAD_CHARACTERS = 1000
"""The name of the generator is within this many characters from the start of the page."""


@dataclass(frozen=True)
class Card:
    """An image with its texts.

    Args:
        picture: data URI, empty if the image is gone.
        description: the text in place of the image.
        title: the line in bold.
        lines: further lines.
        note: what is unusual about the image; may be empty.
        is_query: whether the image is what was searched for.
    """

    picture: str
    description: str
    title: str
    lines: list[str] = field(default_factory=list)
    note: str = ""
    is_query: bool = False


@dataclass(frozen=True)
class CardGroup:
    """Images that belong together; `heading` and `remark` may be empty."""

    heading: str
    cards: list[Card]
    is_ranked: bool = False
    remark: str = ""


def results_page(results: list[SearchResult], embeddings: ImageRecords, about: str) -> str:
    """Return the page of a search; `about` says what was searched."""
    images = EmbeddingImages(embeddings)
    groups = [_result_group(result, embeddings, images) for result in results]
    return _render(format_count(len(results), "query", "queries"), about, groups)


def duplicates_page(duplicates: Duplicates, about: str) -> str:
    """Return the page of near duplicates: the largest groups within a set, or the most similar pairs of two sets."""
    first_images = EmbeddingImages(duplicates.first)
    second_images = first_images
    if duplicates.second is not None:
        second_images = EmbeddingImages(duplicates.second)
    groups = []
    for number, members in enumerate(duplicates.groups[:MAX_GROUPS], 1):
        groups.append(_duplicates_group(number, members, duplicates, first_images))
    for leak in duplicates.leaks[:MAX_GROUPS]:
        groups.append(_leak_group(leak, duplicates, first_images, second_images))
    num_found = len(duplicates.groups) + len(duplicates.leaks)
    if len(groups) < num_found:
        about += f" The first {len(groups)} are shown."
    if duplicates.blank:
        groups.append(_blank_group(duplicates))
    return _render(format_count(duplicates.count, "near duplicate"), about, groups)


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


def _result_group(result: SearchResult, embeddings: ImageRecords, images: EmbeddingImages) -> CardGroup:
    picture = ""
    label = ""
    if result.row is not None:
        picture = images.data_uri(result.row)
        label = embeddings.class_of(result.row)
    elif result.path is not None:
        picture = images.data_uri_of_file(result.path)
    cards = [Card(picture, "query", "query", _lines(label), is_query=True)]
    for neighbor in result.neighbors:
        cards.append(_neighbor_card(neighbor, images.data_uri(neighbor.row)))
    return CardGroup(result.query, cards, is_ranked=True)


def _duplicates_group(
    number: int, members: list[Duplicate], duplicates: Duplicates, images: EmbeddingImages
) -> CardGroup:
    cards = []
    for member in members[:MAX_MEMBERS]:
        cards.append(_member_card(member, duplicates, images.data_uri(member.row)))
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
    leak: Duplicate, duplicates: Duplicates, first_images: EmbeddingImages, second_images: EmbeddingImages
) -> CardGroup:
    """Return an image of the second set next to its near duplicate in the first."""
    first = duplicates.first
    title = f"in the index: {first.ids[leak.nearest]}"
    nearest = Card(first_images.data_uri(leak.nearest), title, title, _lines(first.class_of(leak.nearest)))
    return CardGroup("", [_member_card(leak, duplicates, second_images.data_uri(leak.row)), nearest])


def _neighbor_card(neighbor: Neighbor, picture: str) -> Card:
    title = f"{neighbor.rank}.  {neighbor.similarity:.3f}"
    return Card(picture, neighbor.id or title, title, _lines(neighbor.label, neighbor.id), neighbor.note)


def _member_card(member: Duplicate, duplicates: Duplicates, picture: str) -> Card:
    note = member.describe_copy(duplicates.first)
    title = duplicates.format_similarity(member.similarity)
    return Card(picture, member.id or title, title, _lines(member.label, member.id), note)


def _lines(*texts: str) -> list[str]:
    return [text for text in texts if text]


def _render(heading: str, about: str, groups: list[CardGroup]) -> str:
    return render("embeddings.html.j2", generator=GENERATOR, heading=heading, about=about, groups=groups)
