"""The linear probe: multinomial logistic regression on frozen features, fitted to its optimum by L-BFGS."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from reptk.core import rng
from reptk.evaluate.mean import Mean
from reptk.neighbors import check_vectors

DECAYS = (10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4)
CHUNK = 1 << 16


@dataclass(frozen=True)
class Linear:
    """A fitted probe: standardise, multiply, add. `decay` was chosen by the accuracy `held_out` on rows kept back."""

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor
    decay: float
    held_out: float

    def __call__(self, h: Tensor) -> Tensor:
        """(b, F) features -> (b, C) scores."""
        return functional.linear((h.to(self.weight) - self.mean) / self.scale, self.weight, self.bias)


def linear(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    *,
    decays: Sequence[float] = DECAYS,
    device: torch.device | str = "cpu",
) -> dict[str, Mean]:
    """Accuracy of logistic regression fitted to the bank: `{"linear": ...}`, with its `interval()`.

    Args:
        bank: (n, F) features to fit; rows with label -1 are left out.
        bank_labels: (n,) classes.
        queries: (q, F) features to classify; those with label -1 are passed over.
        query_labels: (q,) classes.
        decays: see `fit`.
        device: where to compute.

    Raises:
        ValueError: no labels, or values that are not finite.
    """
    check_vectors("queries", queries)
    known, asked = bank_labels >= 0, query_labels >= 0
    if not asked.any():
        raise ValueError("no query row has a label")
    probe = fit(bank[known], bank_labels[known], decays=decays, device=device)
    return {"linear": right(probe, queries[asked], query_labels[asked])}


def right(probe: Linear, queries: Tensor, labels: Tensor) -> Mean:
    """Which of the (q, F) queries the probe classifies as labelled."""
    answers = [probe(part.to(probe.weight.device)).argmax(1).cpu() for part in queries.split(CHUNK)]
    return Mean((torch.cat(answers) == labels.cpu()).float())


def fit(
    h: Tensor,
    labels: Tensor,
    *,
    decays: Sequence[float] = DECAYS,
    device: torch.device | str = "cpu",
    steps: int = 100,
    tolerance: float = 1e-4,
) -> Linear:
    """Fit the probe. Features are standardised by their own mean and deviation.

    Args:
        h: (n, F) features.
        labels: (n,) classes from 0.
        decays: lambda in mean cross-entropy + lambda / 2 |W|^2. Of several, the one that does best on a fifth of the rows,
            kept back and drawn once for all, is taken, and the probe fitted again to all rows; between equals the larger.
            They are tried from the largest down, until two in a row do worse than the best.
        device: where to compute.
        steps: at most so many L-BFGS steps for each.
        tolerance: largest component of the gradient at which a fit counts as done (scikit-learn's default).

    Raises:
        ValueError: fewer than two classes, or values that are not finite.
    """
    check_vectors("bank", h)
    classes = int(labels.max()) + 1 if len(labels) else 0
    if len(labels.unique()) < 2:
        raise ValueError(f"a linear probe needs at least 2 classes in the bank, got {len(labels.unique())}")
    wide = torch.float64 if h.dtype == torch.float64 else torch.float32
    h, labels = h.to(device, wide), labels.to(device).long()
    mean, scale = h.mean(0), h.std(0, unbiased=False)
    scale = torch.where(scale > 1e-6 * scale.max(), scale, torch.inf)
    axes, spread = _principal((h - mean) / scale)
    h = ((h - mean) / scale) @ axes
    decays = sorted(set(decays), reverse=True)
    start = torch.zeros(classes, h.shape[1] + 1, device=h.device, dtype=h.dtype)
    best, held_out = decays[0], float("nan")
    if len(decays) > 1:
        best, held_out, start = _choose(h, labels, spread, decays, start, steps, tolerance)
    solution = _solve(h, labels, spread, best, start, steps, tolerance)
    return Linear(mean, scale, solution[:, :-1] @ axes.T, solution[:, -1], best, held_out)


def _principal(h: Tensor) -> tuple[Tensor, Tensor]:
    """Principal axes (F, r) of (n, F) centred rows and the variances (r,) along them; axes without any are left out.

    Weights never leave the span of the rows, and their norm does not depend on the axes, so the optimum is the same.
    """
    wide = len(h) < h.shape[1]
    variances, vectors = torch.linalg.eigh((h @ h.T if wide else h.T @ h) / len(h))
    kept = variances > variances[-1] * (1e-6 if h.dtype == torch.float32 else 1e-12)
    variances, vectors = variances[kept], vectors[:, kept]
    return (h.T @ vectors / (variances * len(h)).sqrt() if wide else vectors), variances


def _choose(
    h: Tensor, labels: Tensor, spread: Tensor, decays: Sequence[float], start: Tensor, steps: int, tolerance: float
) -> tuple[float, float, Tensor]:
    """The decay that does best on rows kept back, how well, and its solution; each fit starts where the last one ended."""
    order = torch.randperm(len(h), generator=rng.generator("linear probe", len(h))).to(h.device)
    apart, rest = order[: max(1, len(h) // 5)], order[max(1, len(h) // 5) :]
    kept, kept_labels = h[rest], labels[rest]
    best, reached, found, worse, solution = decays[0], -1.0, start, 0, start
    for decay in decays:
        solution = _solve(kept, kept_labels, spread, decay, solution, steps, tolerance)
        answers = functional.linear(h[apart], solution[:, :-1], solution[:, -1]).argmax(1)
        share = (answers == labels[apart]).double().mean().item()
        worse = 0 if share >= reached else worse + 1
        if share > reached:
            best, reached, found = decay, share, solution
        if worse == 2:
            break
    return best, reached, found


def _solve(
    h: Tensor, labels: Tensor, spread: Tensor, decay: float, start: Tensor, steps: int, tolerance: float
) -> Tensor:
    """(C, r + 1) weights and biases at the minimum. Loss and gradient are summed over chunks of rows.

    Along the principal axes half the variance bounds the curvature of the cross-entropy (Boehning 1992), so in units of
    its root all directions are about as steep, and L-BFGS needs tens of steps whatever the decay.
    """
    unit = torch.cat([(spread / 2 + decay).rsqrt(), spread.new_full((1,), 2**0.5)])
    scaled = (start / unit).requires_grad_()
    optimum = torch.optim.LBFGS(
        [scaled], max_iter=steps, history_size=20, line_search_fn="strong_wolfe", tolerance_grad=tolerance
    )

    @torch.no_grad()
    def closure() -> Tensor:
        solution = scaled * unit
        weight, bias = solution[:, :-1], solution[:, -1]
        loss = decay / 2 * weight.square().sum()
        gradient = torch.cat([decay * weight, torch.zeros_like(bias)[:, None]], dim=1)
        for rows, classes in zip(h.split(CHUNK), labels.split(CHUNK), strict=True):
            scores = functional.linear(rows, weight, bias).log_softmax(1)
            loss = loss - scores.gather(1, classes[:, None]).sum() / len(h)
            apart = scores.exp_().scatter_add_(1, classes[:, None], scores.new_full((len(rows), 1), -1.0)).div_(len(h))
            gradient[:, :-1].addmm_(apart.T, rows)
            gradient[:, -1] += apart.sum(0)
        scaled.grad = gradient * unit
        return loss

    optimum.step(closure)
    return scaled.detach() * unit
