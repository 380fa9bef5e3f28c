"""The retrieval gallery: queries with their nearest images, the most confident failures first."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reptk.core import rng
from reptk.core.counts import format_count
from reptk.core.metric_names import display_name
from reptk.evaluate.predictions import Predictions
from reptk.report.embedded_images import EmbeddedImages, PlacedImage
from reptk.report.formatting import class_name, format_percent
from reptk.report.run_files import Run
from reptk.report.run_images import RunImages

MAX_BYTES = 5_000_000
"""Of the images of all runs, in a page of at most 15 MB; see also `section_map.MAX_THUMBNAIL_BYTES`."""
MAX_QUERIES, MAX_NEIGHBORS = 12, 8
MAX_PER_CONFUSION = 2
"""Queries of one confusion among the most confident failures, so that several confusions are shown."""


@dataclass(frozen=True)
class VoteResult:
    """What the neighbors voted for: `kind` is "right" or "wrong"; `predicted` is empty if right."""

    kind: str
    predicted: str
    share: str


@dataclass(frozen=True)
class NeighborCard:
    """A neighbor: `kind` is "right", "wrong", or "plain" if one of the two has no label."""

    image: PlacedImage
    kind: str
    name: str
    similarity: str


@dataclass(frozen=True)
class QueryCard:
    """A query and its neighbors; `title` is its file name or number, `vote` is None without labels."""

    image: PlacedImage
    title: str
    name: str
    vote: VoteResult | None
    neighbors: list[NeighborCard]


@dataclass(frozen=True)
class GalleryTab:
    """Some queries, and how they were selected."""

    title: str
    about: str
    queries: list[QueryCard]


@dataclass(frozen=True)
class RunGallery:
    """The tabs of one run; `title` is its name."""

    title: str
    id: str
    tabs: list[GalleryTab]


@dataclass(frozen=True)
class GallerySection:
    """What templates/gallery.html.j2 shows; `problems` say why there are no images."""

    note: str
    problems: list[str]
    runs: list[RunGallery]


@dataclass(frozen=True)
class Selection:
    """Rows (n,) of the predictions under one tab."""

    title: str
    about: str
    rows: Tensor


def gallery_section(
    runs: Sequence[Run], images: Sequence[RunImages], embedded: EmbeddedImages
) -> GallerySection | None:
    """Return the gallery of the runs that have predictions, and embed its images; None if no run has any."""
    shown = []
    for run, run_images in zip(runs, images, strict=True):
        if run.predictions is not None:
            shown.append((run, run_images))
    if not shown:
        return None
    galleries = []
    for number, (run, run_images) in enumerate(shown):
        # Every run has its share of the bytes, so that the first does not use them up.
        embedded.set_max_bytes(MAX_BYTES * (number + 1) // len(shown))
        galleries.append(_run_gallery(run, run_images, embedded, f"g{number}"))
    problems: dict[str, None] = {}  # a dict lists each reason once, in order
    for _, run_images in shown:
        if run_images.missing_reason:
            problems[run_images.missing_reason] = None
    first_run, _ = shown[0]
    return GallerySection(_note(first_run.predictions), list(problems), galleries)


def select_queries(predictions: Predictions) -> list[Selection]:
    """Return the queries to show, by whether the vote was right; without labels a random selection alone."""
    is_labeled = predictions.labels >= 0
    random_rows = _draw(torch.ones_like(is_labeled), "random")
    if not bool(is_labeled.any()) or not predictions.vote:
        return [Selection("Random", "Queries drawn at random, with their nearest images.", random_rows)]
    is_correct = predictions.predicted == predictions.labels
    is_wrong = is_labeled & ~is_correct
    is_right = is_labeled & is_correct
    labeled = format_count(int(is_labeled.sum()), "query", "queries")
    return [
        Selection(
            "Most confident failures",
            f"Wrong answers with the largest share of the votes, at most {MAX_PER_CONFUSION} of each pair of classes.",
            _most_confident(predictions, is_wrong),
        ),
        Selection(
            "Failures",
            f"Drawn at random from the {int(is_wrong.sum()):,} wrong answers of {labeled}.",
            _draw(is_wrong, "failures"),
        ),
        Selection(
            "Right",
            f"Drawn at random from the {int(is_right.sum()):,} right answers of {labeled}.",
            _draw(is_right, "right"),
        ),
        Selection("Random", f"Drawn at random from all, {labeled}.", random_rows),
    ]


def _note(predictions: Predictions) -> str:
    """Return what the marks mean."""
    note = "Each query and its nearest images, with their cosine similarity."
    if not bool((predictions.labels >= 0).any()):
        return note
    num_neighbors = format_count(predictions.neighbors.shape[1], "neighbor")
    return (
        f"{note} A tick: of the query's class; a cross: of another. "
        f"The answer is the vote of {display_name(predictions.vote)}; stored: {num_neighbors}."
    )


def _run_gallery(run: Run, images: RunImages, embedded: EmbeddedImages, id: str) -> RunGallery:
    predictions = run.predictions
    selections = select_queries(predictions)
    # All queries are embedded before the first neighbor: if the bytes do not suffice, neighbors are missing.
    for selection in selections:
        embedded.add(images, predictions.query_split, predictions.index[selection.rows])
    for selection in selections:
        neighbors = predictions.neighbors[selection.rows][:, :MAX_NEIGHBORS]
        embedded.add(images, predictions.bank_split, neighbors.flatten())
    tabs = []
    for selection in selections:
        queries = [_query_card(predictions, images, embedded, row) for row in selection.rows.tolist()]
        tabs.append(GalleryTab(selection.title, selection.about, queries))
    return RunGallery(run.name, id, tabs)


def _query_card(predictions: Predictions, images: RunImages, embedded: EmbeddedImages, row: int) -> QueryCard:
    number = int(predictions.index[row])
    name = _class_name(predictions, int(predictions.labels[row]))
    description = f"query {number:,} {name}".strip()
    neighbors = []
    for rank in range(min(MAX_NEIGHBORS, predictions.neighbors.shape[1])):
        neighbors.append(_neighbor_card(predictions, images, embedded, row, rank))
    return QueryCard(
        image=embedded.placed_image(images, predictions.query_split, number, description),
        title=images.file_name(predictions.query_split, number) or f"no. {number:,}",
        name=name,
        vote=_vote_result(predictions, row),
        neighbors=neighbors,
    )


def _vote_result(predictions: Predictions, row: int) -> VoteResult | None:
    label = int(predictions.labels[row])
    predicted = int(predictions.predicted[row])
    if label < 0 or predicted < 0:
        return None
    share = format_percent(float(predictions.confidence[row]), 0)
    if label == predicted:
        return VoteResult("right", "", share)
    return VoteResult("wrong", class_name(predictions.classes, predicted), share)


def _neighbor_card(
    predictions: Predictions, images: RunImages, embedded: EmbeddedImages, row: int, rank: int
) -> NeighborCard:
    number = int(predictions.neighbors[row, rank])
    label = int(predictions.neighbor_labels[row, rank])
    query_label = int(predictions.labels[row])
    name = _class_name(predictions, label)
    shown_name = name or images.file_name(predictions.bank_split, number) or f"no. {number:,}"
    description = f"neighbor {rank + 1}: {shown_name}"
    if query_label < 0 or label < 0:
        kind = "plain"
    elif label == query_label:
        kind = "right"
    else:
        kind = "wrong"
    if kind != "plain":
        description += f", {kind}"
    return NeighborCard(
        image=embedded.placed_image(images, predictions.bank_split, number, description),
        kind=kind,
        name=name,
        similarity=f"{float(predictions.similarities[row, rank]):.2f}",
    )


def _class_name(predictions: Predictions, label: int) -> str:
    """Return the name of a class; empty without a label."""
    if label < 0:
        return ""
    return class_name(predictions.classes, label)


def _most_confident(predictions: Predictions, is_wrong: Tensor) -> Tensor:
    """Return rows of failures, the most confident first, at most `MAX_PER_CONFUSION` of each confusion."""
    failures = is_wrong.nonzero().flatten()
    # Stable: with few neighbors many confidences are equal.
    order = predictions.confidence[failures].argsort(descending=True, stable=True)
    num_of_confusion: Counter[tuple[int, int]] = Counter()
    selected = []
    for row in failures[order].tolist():
        confusion = int(predictions.labels[row]), int(predictions.predicted[row])
        num_of_confusion[confusion] += 1
        if num_of_confusion[confusion] <= MAX_PER_CONFUSION:
            selected.append(row)
        if len(selected) == MAX_QUERIES:
            break
    return torch.tensor(selected, dtype=torch.long)


def _draw(candidates: Tensor, key: str) -> Tensor:
    """Return at most `MAX_QUERIES` rows where `candidates` (q,) is true, in random order; the same for the same key."""
    rows = candidates.nonzero().flatten()
    order = torch.randperm(len(rows), generator=rng.generator("report", key, len(rows)))
    return rows[order[:MAX_QUERIES]]
