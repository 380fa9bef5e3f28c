"""The linear probe: multinomial logistic regression on frozen features, fitted to its optimum by L-BFGS."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from annotated_types import Gt, MinLen
from torch import Tensor
from torch.nn import functional

from reptk.config.registry import EVALUATORS
from reptk.core import rng
from reptk.core.arrays import as_tensor
from reptk.data import Data
from reptk.evaluate.features import FeatureStore
from reptk.evaluate.intervals import QueryMean
from reptk.evaluate.protocol import EvalResult, Evaluator
from reptk.neighbors import check_vectors

# From strong regularization to almost none.
DECAYS = (10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4)

CHUNK = 1 << 16
"""Rows that are computed on at a time."""

HELD_OUT_FRACTION = 5
"""One row in so many is held out to choose the decay."""

PATIENCE = 2
"""Decays in a row that do worse than the best before the search ends."""

Decays = Annotated[tuple[Annotated[float, Gt(0)], ...], MinLen(1)]


def linear(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    *,
    decays: Sequence[float] = DECAYS,
    device: torch.device | str = "cpu",
) -> dict[str, QueryMean]:
    """Compute the accuracy of logistic regression fitted to the bank: `{"linear": ...}`, with an `interval()`.

    Args:
        bank: (n, F) features to fit; rows with label -1 are left out.
        bank_labels: (n,) classes.
        queries: (q, F) features to classify; those with label -1 are skipped.
        query_labels: (q,) classes.
        decays: see `fit`.
        device: where to compute.

    Raises:
        ValueError: no labels, or values that are not finite.
    """
    bank, bank_labels = as_tensor("bank", bank), as_tensor("bank_labels", bank_labels)
    queries, query_labels = as_tensor("queries", queries), as_tensor("query_labels", query_labels)
    check_vectors("queries", queries)
    in_bank, in_queries = bank_labels >= 0, query_labels >= 0
    if not in_queries.any():
        raise ValueError("no query row has a label")
    probe = fit(bank[in_bank], bank_labels[in_bank], decays=decays, device=device)
    return {"linear": _accuracy(probe, queries[in_queries], query_labels[in_queries])}


@dataclass(frozen=True)
class FittedProbe:
    """A linear classifier of standardized features.

    Args:
        mean, scale: (F,) of the features that it was fitted to.
        weight: (C, F).
        bias: (C,).
        decay: weight of the regularization.
        held_out_accuracy: by which `decay` was chosen; NaN if there was nothing to choose.
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor
    decay: float
    held_out_accuracy: float

    def __call__(self, h: Tensor) -> Tensor:
        """(b, F) features -> (b, C) scores."""
        standardized = (h.to(self.weight) - self.mean) / self.scale
        return functional.linear(standardized, self.weight, self.bias)


def fit(
    h: Tensor,
    labels: Tensor,
    *,
    decays: Sequence[float] = DECAYS,
    device: torch.device | str = "cpu",
    steps: int = 100,
    tolerance: float = 1e-4,
) -> FittedProbe:
    """Fit the probe. Features are standardized by their own mean and deviation.

    Args:
        h: (n, F) features.
        labels: (n,) classes from 0.
        decays: lambda in mean cross-entropy + lambda / 2 |W|^2. Of several, the one with the best accuracy on a fifth of
            the rows, held out by a fixed draw, is chosen, and the probe is fitted again to all rows; of equal ones the
            largest. They are tried from the largest down, until two in a row do worse than the best.
        device: where to compute.
        steps: at most so many L-BFGS steps for each fit.
        tolerance: largest component of the gradient at which a fit has converged (scikit-learn's default).

    Raises:
        ValueError: fewer than two classes, or values that are not finite.
    """
    check_vectors("bank", h)
    if len(labels.unique()) < 2:
        raise ValueError(f"a linear probe needs at least 2 classes in the bank, got {len(labels.unique())}")
    dtype = torch.float64 if h.dtype == torch.float64 else torch.float32
    h, labels = h.to(device, dtype), labels.to(device).long()
    mean, scale = h.mean(0), h.std(0, unbiased=False)
    # A constant feature becomes 0 and takes no part.
    scale = torch.where(scale > 1e-6 * scale.max(), scale, torch.inf)
    axes, variances = _principal_axes((h - mean) / scale)
    rows = _Rows(((h - mean) / scale) @ axes, labels, variances)
    solver = _Solver(steps, tolerance)
    num_classes = int(labels.max()) + 1
    start = torch.zeros(num_classes, rows.h.shape[1] + 1, device=h.device, dtype=h.dtype)
    decays = sorted(set(decays), reverse=True)
    decay, accuracy = decays[0], float("nan")
    if len(decays) > 1:
        decay, accuracy, start = _choose_decay(rows, decays, start, solver)
    solution = solver(rows, decay, start)
    return FittedProbe(mean, scale, solution[:, :-1] @ axes.T, solution[:, -1], decay, accuracy)


class _Rows(NamedTuple):
    """Rows (n, r) along principal axes, their classes (n,), and the variances (r,) along the axes."""

    h: Tensor
    labels: Tensor
    variances: Tensor


def _principal_axes(h: Tensor) -> tuple[Tensor, Tensor]:
    """Principal axes (F, r) of centered rows (n, F) and the variances (r,) along them; axes without variance are dropped.

    The optimal weights are in the span of the rows, and their norm does not depend on the axes, so the optimum is the same.
    """
    is_wide = len(h) < h.shape[1]
    # With fewer rows than features, the (n, n) matrix of products has the same non-zero eigenvalues.
    products = h @ h.T if is_wide else h.T @ h
    variances, vectors = torch.linalg.eigh(products / len(h))
    # Well above the rounding error of the eigenvalues.
    threshold = 1e-6 if h.dtype == torch.float32 else 1e-12
    has_variance = variances > variances[-1] * threshold
    variances, vectors = variances[has_variance], vectors[:, has_variance]
    if is_wide:
        vectors = h.T @ vectors / (variances * len(h)).sqrt()
    return vectors, variances


def _choose_decay(
    rows: _Rows, decays: Sequence[float], start: Tensor, solver: "_Solver"
) -> tuple[float, float, Tensor]:
    """The decay with the best accuracy on held-out rows, that accuracy, and the solution; each fit starts from the last."""
    count = len(rows.h)
    order = torch.randperm(count, generator=rng.generator("linear probe", count)).to(rows.h.device)
    num_held_out = max(1, count // HELD_OUT_FRACTION)
    held_out, fitted = order[:num_held_out], order[num_held_out:]
    fitted_rows = _Rows(rows.h[fitted], rows.labels[fitted], rows.variances)
    best_decay, best_accuracy, best_solution = decays[0], -1.0, start
    solution = start
    worse_in_a_row = 0
    for decay in decays:
        # Neighboring decays have similar optima: starting from the last one saves most of the steps.
        solution = solver(fitted_rows, decay, solution)
        predicted = functional.linear(rows.h[held_out], solution[:, :-1], solution[:, -1]).argmax(1)
        accuracy = (predicted == rows.labels[held_out]).double().mean().item()
        # A decay that does as well as the best neither replaces it nor counts as worse.
        if accuracy < best_accuracy:
            worse_in_a_row += 1
        else:
            worse_in_a_row = 0
        if accuracy > best_accuracy:
            best_decay, best_accuracy, best_solution = decay, accuracy, solution
        if worse_in_a_row == PATIENCE:
            break
    return best_decay, best_accuracy, best_solution


@dataclass(frozen=True)
class _Solver:
    """Minimizes mean cross-entropy + decay / 2 |W|^2 by at most so many L-BFGS steps.

    Along principal axes half the variance bounds the curvature of the cross-entropy (Boehning 1992). Weights are therefore
    scaled by the square root of that bound, so that all directions are about equally steep, and L-BFGS needs tens of steps
    whatever the decay.
    """

    steps: int
    tolerance: float

    def __call__(self, rows: _Rows, decay: float, start: Tensor) -> Tensor:
        """(C, r + 1) weights and biases at the minimum."""
        # The same for the constant 1 that a bias multiplies, without decay: (1 / 2) ** -0.5.
        bias_unit = rows.variances.new_full((1,), 2**0.5)
        unit = torch.cat([(rows.variances / 2 + decay).rsqrt(), bias_unit])
        scaled = (start / unit).requires_grad_()
        optimizer = torch.optim.LBFGS(
            [scaled],
            max_iter=self.steps,
            history_size=20,
            line_search_fn="strong_wolfe",
            tolerance_grad=self.tolerance,
        )

        @torch.no_grad()
        def closure() -> Tensor:
            loss, gradient = _loss_and_gradient(rows, scaled * unit, decay)
            scaled.grad = gradient * unit  # chain rule: the solution is `scaled * unit`
            return loss

        optimizer.step(closure)
        return scaled.detach() * unit


def _loss_and_gradient(rows: _Rows, solution: Tensor, decay: float) -> tuple[Tensor, Tensor]:
    """The objective at `solution` (C, r + 1) and its gradient, summed over chunks of rows."""
    count = len(rows.h)
    weight, bias = solution[:, :-1], solution[:, -1]
    loss = decay / 2 * weight.square().sum()
    gradient = torch.cat([decay * weight, torch.zeros_like(bias)[:, None]], dim=1)
    for h, labels in zip(rows.h.split(CHUNK), rows.labels.split(CHUNK), strict=True):
        log_probabilities = functional.linear(h, weight, bias).log_softmax(1)
        loss = loss - log_probabilities.gather(1, labels[:, None]).sum() / count
        # The gradient of the scores: probabilities, less 1 at the true class.
        minus_one = log_probabilities.new_full((len(h), 1), -1.0)
        grad_scores = log_probabilities.exp_().scatter_add_(1, labels[:, None], minus_one).div_(count)
        gradient[:, :-1].addmm_(grad_scores.T, h)
        gradient[:, -1] += grad_scores.sum(0)
    return loss, gradient


def _accuracy(probe: FittedProbe, queries: Tensor, labels: Tensor) -> QueryMean:
    """Which of the (q, F) queries the probe classifies as labeled."""
    device = probe.weight.device
    predicted = []
    for chunk in queries.split(CHUNK):
        predicted.append(probe(chunk.to(device)).argmax(1).cpu())
    return QueryMean((torch.cat(predicted) == labels.cpu()).float())


@EVALUATORS.register("linear")
class LinearProbe(Evaluator):
    """Accuracy of logistic regression on the features, fitted to its optimum; see `reptk.evaluate.linear`.

    Args:
        decays: weights of the regularization to choose from, by the accuracy on a held-out fifth of the bank.
    """

    def __init__(self, decays: Decays = DECAYS) -> None:
        self.decays = decays

    def __call__(self, features: FeatureStore, data: Data) -> EvalResult:
        in_bank, in_queries = data.bank.labels >= 0, data.query.labels >= 0
        if data.bank is data.query:
            in_bank, in_queries = _alternate(in_bank)
        bank, queries = features.features(data.bank), features.features(data.query)
        probe = fit(bank[in_bank], data.bank.labels[in_bank], decays=self.decays, device=features.device)
        accuracy = _accuracy(probe, queries[in_queries], data.query.labels[in_queries])
        note = {"decay": probe.decay, "held_out_accuracy": probe.held_out_accuracy}
        return EvalResult({"linear": accuracy}, {"linear": note})


def _alternate(is_labeled: Tensor) -> tuple[Tensor, Tensor]:
    """Every second labeled row to fit, the others as queries, for a bank that is also the queries."""
    rows = is_labeled.nonzero()[:, 0]
    in_bank, in_queries = torch.zeros_like(is_labeled), torch.zeros_like(is_labeled)
    in_bank[rows[::2]] = True
    in_queries[rows[1::2]] = True
    return in_bank, in_queries
