"""Positions on the map: PCA, t-SNE or UMAP, computed once for each set of vectors and stored in the user's cache."""

import hashlib
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from reptk.core.errors import ReptkError
from reptk.core.files import write_bytes
from reptk.core.foreign_files import open_regular
from reptk.core.user_folders import default_folder
from reptk.report.layouts import LAYOUTS, TITLES, map_positions

STORED = "stored"
"""The positions that a Parquet file of embeddings holds."""

MAX_TSNE = 20_000
"""scikit-learn's t-SNE takes minutes for so many points, on two cores."""

MAX_TSNE_AT_START = 5_000
"""So many take less than a minute, which one waits for without having requested it."""

VERSION = "1"
"""Changes when the same vectors would get other positions."""


def available_layouts(count: int, *, has_stored: bool) -> dict[str, str]:
    """Return the layouts that `count` points can have, and their titles."""
    layouts = {}
    if has_stored:
        layouts[STORED] = "as stored"
    for layout in LAYOUTS:
        if layout == "umap" and find_spec("umap") is None:
            continue
        if layout == "tsne" and count > MAX_TSNE:
            continue
        layouts[layout] = TITLES[layout]
    return layouts


def default_layout(count: int, *, has_stored: bool) -> str:
    """Return the layout that shows most without a long wait: stored positions, UMAP, t-SNE of few points, or PCA."""
    if has_stored:
        return STORED
    if find_spec("umap") is not None:
        return "umap"
    if count <= MAX_TSNE_AT_START:
        return "tsne"
    return "pca"


def positions_of(layout: str, vectors: Tensor) -> Tensor:
    """Return positions (n, 2) of vectors (n, F), centered, from -1 to 1 on the longer axis.

    They are read from the cache, or written to it; a cache that cannot be written is none.
    """
    path = default_folder() / "maps" / f"{_digest(vectors)}-{layout}-{VERSION}.safetensors"
    positions = _read(path, len(vectors))
    if positions is None:
        positions = scaled(map_positions(layout, vectors.float()))
        _write(path, positions)
    return positions


def scaled(positions: Tensor) -> Tensor:
    """Return positions (n, 2) centered, from -1 to 1 on the longer axis, with one scale for both."""
    low, high = positions.amin(0), positions.amax(0)
    span = (high - low).max().clamp_min(1e-12)
    return ((positions - (low + high) / 2) / span * 2).float().contiguous()


def _digest(vectors: Tensor) -> str:
    digest = hashlib.sha256(f"{tuple(vectors.shape)} {vectors.dtype}\n".encode())
    for block in vectors.split(65_536):  # a memory-mapped file is not read as a whole
        digest.update(block.contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


def _read(path: Path, count: int) -> Tensor | None:
    try:
        with open_regular(path, max_bytes=16 * count + 4096) as file:
            positions = load(file.read()).get("positions")
    except (OSError, SafetensorError, ValueError):
        return None
    if positions is None or positions.shape != (count, 2) or not positions.isfinite().all():
        return None
    return positions


def _write(path: Path, positions: Tensor) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, save({"positions": positions}))
    except (OSError, ReptkError):
        return
