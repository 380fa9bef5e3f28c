"""The position of each feature on the map: PCA always, t-SNE or UMAP on request."""

from importlib.util import find_spec

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from reptk.core.errors import EnvironmentProblem, UsageError

LAYOUTS = ("pca", "tsne", "umap")
TITLES = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}
INITIAL_COMPONENTS = 50
"""Principal components that t-SNE and UMAP are given (van der Maaten and Hinton 2008 use 30)."""
MAX_COORDINATE = 65535


def check_layouts(layouts: tuple[str, ...]) -> None:
    """Check that the layouts exist and their packages are installed, before anything is computed.

    Raises:
        UsageError: no such layout.
        EnvironmentProblem: UMAP without umap-learn.
    """
    for layout in layouts:
        if layout not in LAYOUTS:
            raise UsageError(f"--map must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    if "umap" in layouts and find_spec("umap") is None:
        raise EnvironmentProblem("--map umap needs umap-learn, which is not installed: pip install 'reptk[viz]'")


def map_positions(layout: str, features: Tensor) -> Tensor:
    """Return positions (q, 2) for features (q, F). The same features give the same positions.

    Fewer than four features are laid out by PCA, whatever the layout.
    """
    if layout == "pca" or len(features) < 4:
        return principal_components(features, 2)[0]
    components = principal_components(features, INITIAL_COMPONENTS)[0].numpy()
    if layout == "tsne":
        positions = _tsne(components)
    else:
        positions = _umap(components)
    return torch.from_numpy(positions).float()


def principal_components(features: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return coordinates (q, count) along the directions of largest variance, and the share (count,) of each in it.

    The sign of a direction is chosen so that its largest entry is positive. If the features have fewer than `count`
    dimensions, zeros fill the rest.
    """
    # In float64: the features are stored in half precision, and squares of small deviations would vanish.
    centered = features.double() - features.double().mean(0)
    # The eigenvectors of the (F, F) matrix take less memory than a singular value decomposition of (q, F).
    variances, directions = torch.linalg.eigh(centered.T @ centered)  # in ascending order
    variances = variances.flip(0).clamp_min(0)[:count]
    directions = directions.flip(1)[:, :count]
    # Eigenvectors have no sign of their own; without a rule the map would be mirrored on another machine.
    largest_entries = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    coordinates = centered @ (directions * largest_entries.sign())
    total_variance = variances.new_tensor(float(centered.square().sum())).clamp_min(1e-30)
    padding = (0, count - coordinates.shape[1])
    shares = functional.pad(variances / total_variance, padding)
    return functional.pad(coordinates, padding).float(), shares.float()


def quantize(positions: Tensor) -> Tensor:
    """Return positions (q, 2) as integers from 0 to 65535, centered, with the same scale for both axes."""
    positions = positions.double()
    low = positions.amin(0)
    high = positions.amax(0)
    # One scale for both axes, since distances are compared.
    span = (high - low).max().clamp_min(1e-12)
    scaled = (positions - (low + high) / 2) / span * MAX_COORDINATE + MAX_COORDINATE / 2
    return scaled.round().clamp(0, MAX_COORDINATE).to(torch.int64)


def _tsne(components: NDArray) -> NDArray:
    from sklearn.manifold import TSNE

    # scikit-learn wants it below the number of points; 30 is its default.
    perplexity = min(30.0, (len(components) - 1) / 3)
    return TSNE(2, init="pca", perplexity=perplexity, random_state=0).fit_transform(components)


def _umap(components: NDArray) -> NDArray:
    from umap import UMAP

    # With a random state UMAP runs as one job in any case, and warns unless one is requested.
    return UMAP(n_neighbors=min(15, len(components) - 1), random_state=0, n_jobs=1).fit_transform(components)
