"""The map of the embedding: each query a point, which the page's script (map.js) draws from packed numbers."""

import base64
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from reptk.core.counts import format_count
from reptk.evaluate.predictions import Predictions
from reptk.report.formatting import class_name, format_percent
from reptk.report.layouts import TITLES, map_positions, principal_components, quantize
from reptk.report.run_files import Run
from reptk.report.run_images import RunImages
from reptk.report.thumbnail_atlas import build_atlas

MAX_THUMBNAIL_BYTES = 7_000_000
"""Of the thumbnails of all runs, in a page of at most 15 MB; see also `section_gallery.MAX_BYTES`."""
SMALL_SHARE = 0.3
"""Share of the variance below which the page says that there are other layouts than PCA."""
COLORINGS = {"label": "class", "predicted": "prediction", "right": "right or wrong"}
"""What the points can be colored by, and what the page calls it."""


@dataclass(frozen=True)
class MapSection:
    """What templates/map.html.j2 shows: the choices above the map, and a sentence on the layout."""

    runs: list[str]
    layouts: dict[str, str]
    colorings: dict[str, str]
    about: str


@dataclass
class MapData:
    """What map.js draws: `maps` holds one table for each run, `atlases` the thumbnails by name, None without images."""

    maps: list[dict[str, Any]] = field(default_factory=list)
    atlases: dict[str, dict[str, Any] | None] = field(default_factory=dict)


def map_data(runs: Sequence[Run], images: Sequence[RunImages], layouts: Sequence[str]) -> MapData:
    """Return the points and thumbnails of the runs that have predictions. Runs of the same images share an atlas."""
    data = MapData()
    shown = _runs_with_points(runs, images)
    atlas_names = _atlas_names(shown)
    # All atlases share the bytes.
    max_bytes = MAX_THUMBNAIL_BYTES // max(1, len(set(atlas_names)))
    for (run, run_images), atlas_name in zip(shown, atlas_names, strict=True):
        if atlas_name not in data.atlases:
            data.atlases[atlas_name] = _thumbnails(run.predictions, run_images, max_bytes)
        data.maps.append(_packed_map(run, layouts, atlas_name))
    return data


def map_section(data: MapData) -> MapSection | None:
    """Return the controls of the map; None if there is no map."""
    if not data.maps:
        return None
    first = data.maps[0]
    has_values = {
        "label": first["labels"] is not None,
        "predicted": first["predicted"] is not None,
        "right": first["predicted"] is not None,
    }
    colorings = {}
    for key, title in COLORINGS.items():
        if has_values[key]:
            colorings[key] = title
    return MapSection(
        runs=[packed["name"] for packed in data.maps],
        layouts=first["titles"],
        colorings=colorings,
        about=first["about"]["pca"],
    )


def _runs_with_points(runs: Sequence[Run], images: Sequence[RunImages]) -> list[tuple[Run, RunImages]]:
    shown = []
    for run, run_images in zip(runs, images, strict=True):
        if run.predictions is not None and len(run.predictions.index):
            shown.append((run, run_images))
    return shown


def _atlas_names(shown: Sequence[tuple[Run, RunImages]]) -> list[str]:
    """Return a name for each run's atlas: that of the first run whose queries are the same images."""
    names = []
    for run, run_images in shown:
        for position, (other_run, other_images) in enumerate(shown):
            if _have_same_images(run, run_images, other_run, other_images):
                names.append(f"a{position}")
                break
    return names


def _have_same_images(run: Run, images: RunImages, other_run: Run, other_images: RunImages) -> bool:
    predictions = run.predictions
    other = other_run.predictions
    same_split = images.key == other_images.key and predictions.query_split == other.query_split
    return same_split and predictions.index.equal(other.index)


def _thumbnails(predictions: Predictions, images: RunImages, max_bytes: int) -> dict[str, Any] | None:
    split = images.split(predictions.query_split)
    if split is None:
        return None
    return asdict(build_atlas(split, predictions.index, max_bytes))


def _packed_map(run: Run, layouts: Sequence[str], atlas_name: str) -> dict[str, Any]:
    """Return what map.js needs of one run."""
    predictions = run.predictions
    is_labeled = bool((predictions.labels >= 0).any())
    positions = {}
    about = {}
    for layout in layouts:
        positions[layout] = _pack(quantize(map_positions(layout, predictions.features)), "<u2")
        about[layout] = _about(layout, predictions, is_alone=len(layouts) == 1)
    labels = None
    predicted = None
    if is_labeled:
        labels = _pack(predictions.labels, "<i4")
    if is_labeled and predictions.vote:
        predicted = _pack(predictions.predicted, "<i4")
    classes = [class_name(predictions.classes, label) for label in range(_num_classes(predictions))]
    # In a byte for each query: whole percents are what the card shows.
    confidence_percent = (predictions.confidence.nan_to_num() * 100).round().clamp(0, 100)
    return {
        "name": run.name,
        "count": len(predictions.index),
        "classes": classes,
        "layouts": positions,
        "titles": {layout: TITLES[layout] for layout in layouts},
        "about": about,
        "index": _pack(predictions.index, "<i4"),
        "labels": labels,
        "predicted": predicted,
        "confidence": _pack(confidence_percent, "<u1"),
        "atlas": atlas_name,
    }


def _about(layout: str, predictions: Predictions, *, is_alone: bool) -> str:
    """Return a sentence on what a layout shows; if it is alone, on others as well."""
    count = format_count(len(predictions.index), "query", "queries")
    if layout != "pca":
        return f"{TITLES[layout]} of {count}: near points are alike; distances between groups mean little."
    _, shares = principal_components(predictions.features, 2)
    share = shares.sum().item()
    about = f"The two directions of largest variance, which hold {format_percent(share, 0)} % of it; {count}."
    if is_alone and share < SMALL_SHARE:
        about += " A layout that keeps neighbors together is added by reptk report RUN --map tsne."
    return about


def _num_classes(predictions: Predictions) -> int:
    # A label may have no name; it needs an entry all the same.
    highest = max(int(predictions.labels.max()), int(predictions.predicted.max()))
    return max(len(predictions.classes), highest + 1)


def _pack(values: Tensor, dtype: str) -> str:
    """Return the values in base64, as little-endian numbers of a NumPy dtype."""
    return base64.b64encode(values.contiguous().numpy().astype(np.dtype(dtype)).tobytes()).decode()
