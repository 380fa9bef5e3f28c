"""Where a feature lies on the map: PCA at once; t-SNE or UMAP where they are asked for."""

from importlib.util import find_spec

import torch
from torch import Tensor

from reptk.core.errors import EnvironmentProblem, UsageError

KINDS = ("pca", "tsne", "umap")
TITLES = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}
BEFORE = 50
"""Principal components that t-SNE and UMAP begin with (van der Maaten and Hinton 2008 use 30)."""


def check(kinds: tuple[str, ...]) -> None:
    """Refuse a layout that does not exist, or one whose package is missing, before anything is computed.

    Raises:
        UsageError: no such layout.
        EnvironmentProblem: UMAP without umap-learn.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise UsageError(f"--map must be one of {', '.join(KINDS)}, got {kind!r}")
    if "umap" in kinds and find_spec("umap") is None:
        raise EnvironmentProblem("--map umap needs umap-learn, which is not installed: pip install 'reptk[viz]'")


def layout(kind: str, features: Tensor) -> Tensor:
    """(q, F) -> (q, 2). The same features give the same map. Fewer than four points are all laid out by PCA."""
    components = principal(features, BEFORE)[0]
    if kind == "pca" or len(features) < 4:
        return principal(features, 2)[0]
    return torch.from_numpy((_tsne if kind == "tsne" else _umap)(components.numpy())).float()


def principal(features: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Coordinates (q, count) along the directions of largest variance, and the share (count,) of it that each has.

    Directions point to where their largest entry is positive. What the features do not have, is filled with zeros.
    """
    centred = features.double() - features.double().mean(0)
    values, directions = torch.linalg.eigh(centred.T @ centred)
    values, directions = values.flip(0).clamp_min(0)[:count], directions.flip(1)[:, :count]
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    made = centred @ (directions * largest.sign())
    share = values / values.new_tensor(float(centred.square().sum())).clamp_min(1e-30)
    missing = count - made.shape[1]
    return torch.nn.functional.pad(made, (0, missing)).float(), torch.nn.functional.pad(share, (0, missing)).float()


def quantised(points: Tensor) -> Tensor:
    """(q, 2) -> (q, 2) whole numbers 0..65535, both axes to the same scale, centred."""
    points = points.double()
    low, high = points.amin(0), points.amax(0)
    span = (high - low).max().clamp_min(1e-12)
    return ((points - (low + high) / 2) / span * 65535 + 32767.5).round().clamp(0, 65535).to(torch.int64)


def _tsne(components):
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(components) - 1) / 3)
    return TSNE(2, init="pca", perplexity=perplexity, random_state=0).fit_transform(components)


def _umap(components):
    from umap import UMAP

    return UMAP(n_neighbors=min(15, len(components) - 1), random_state=0, n_jobs=1).fit_transform(components)
