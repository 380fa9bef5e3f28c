"""The check of losses: functions of rows z (N, D) of any length and ids (N,)."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import gradcheck

from reptk.config.registry import with_defaults
from reptk.core import distributed, rng
from reptk.losses import Loss, local_rows
from reptk.testing.class_loss_checks import not_zero_without_labels, supplied_arguments, unlabeled_rows_count
from reptk.testing.requirements import (
    Outcome,
    Requirement,
    global_rng_moved,
    qualified_name,
    raise_violations,
    try_requirements,
)
from reptk.testing.simulated_ranks import run_on_ranks

LossFunction = Callable[[Tensor, Tensor], Tensor]

WORLD_SIZE = 2
"""Ranks that are simulated."""


def check_loss(factory_or_module: Any, *, rows: int = 24, dimension: int = 16) -> None:
    """Check a loss against `LOSS_REQUIREMENTS`, or `CLASS_LOSS_REQUIREMENTS` if its factory takes `num_classes`.

    Args:
        factory_or_module: a class or function that returns the loss when called with those of `num_classes` and
            `embedding_dim` that it takes, or the loss itself: an `nn.Module`, or any callable of (z (N, D), ids (N,)), which
            compares rows with rows.
        rows: N of the batches, at least 4.
        dimension: D, at least 2.

    Raises:
        AssertionError: one line for each violated requirement.
        ValueError: too few rows or dimensions.

    Example:
        >>> from reptk.losses import SupCon
        >>> check_loss(SupCon)
    """
    # The message names what the caller passed: a factory, if there is one.
    name = qualified_name(factory_or_module)
    raise_violations(try_loss(factory_or_module, rows=rows, dimension=dimension), "a loss", name)


def try_loss(factory_or_module: Any, *, rows: int = 24, dimension: int = 16) -> list[Outcome]:
    """Try the requirements, and return what came of each. The arguments are those of `check_loss`.

    Raises:
        ValueError: too few rows or dimensions.
    """
    if rows < 4 or dimension < 2:
        raise ValueError(f"rows must be at least 4 and dimension at least 2, got {rows} and {dimension}")
    z, ids = _random_batch(rows, dimension)
    # More classes than the batch has, as in training.
    supplied = supplied_arguments(factory_or_module, num_classes=int(ids.max()) + 2, embedding_dim=dimension)
    requirements = LOSS_REQUIREMENTS
    if "num_classes" in supplied:
        requirements = CLASS_LOSS_REQUIREMENTS
    with rng.seeded("check_loss"):
        loss = _build(factory_or_module, supplied)
        return try_requirements(loss, requirements, z, ids)


def _build(factory_or_module: Any, supplied: Mapping[str, int]) -> LossFunction:
    """Return the loss, built if a factory was passed."""
    if supplied:
        return factory_or_module(**supplied)
    if inspect.isclass(factory_or_module):
        return factory_or_module()
    if isinstance(factory_or_module, nn.Module):
        return factory_or_module
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    # A callable with required parameters takes (z, ids): it is the loss. One without builds it.
    for parameter in inspect.signature(factory_or_module).parameters.values():
        if parameter.default is parameter.empty and parameter.kind not in variadic:
            return factory_or_module
    return factory_or_module()


def _random_batch(rows: int, dimension: int) -> tuple[Tensor, Tensor]:
    """Return z in float64, rows of uneven lengths, and ids in groups of 1, 3, 5, ... rows and one of 1, in random order."""
    generator = rng.generator("check_loss", rows, dimension)
    lengths = 0.5 + torch.rand(rows, 1, generator=generator, dtype=torch.float64)
    z = lengths * torch.randn(rows, dimension, generator=generator, dtype=torch.float64)
    # The integer square root is k for 2k + 1 consecutive rows.
    ids = torch.arange(rows).double().sqrt().long()
    ids[-1] = rows
    order = torch.randperm(rows, generator=generator)
    # From 5 on: a loss that used ids as row numbers or class numbers would fail.
    return z, 5 + ids[order]


def _value_and_gradient(loss: LossFunction, z: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    z = z.detach().clone().requires_grad_()
    value = loss(z, ids)
    (gradient,) = torch.autograd.grad(value, z)
    return value.detach(), gradient


def _difference(value: Tensor, expected: Tensor, tolerance: float = 1e-7) -> str | None:
    if torch.allclose(value.double(), expected.double(), rtol=tolerance, atol=tolerance):
        return None
    return f"it gave {value.item():.9g} instead of {expected.item():.9g}"


def _not_a_scalar(loss: LossFunction, z: Tensor, ids: Tensor) -> str | None:
    value = loss(z.float().requires_grad_(), ids)
    if not isinstance(value, Tensor):
        return f"it gave {type(value).__name__}"
    if value.ndim or not value.is_floating_point():
        return f"it gave {tuple(value.shape)}"
    if not value.isfinite():
        return f"it gave {value.item()}"
    if not value.requires_grad:
        return "it is detached"
    return None


def _wrong_gradient(loss: LossFunction, z: Tensor, ids: Tensor) -> str | None:
    dtype = loss(z, ids).dtype
    if dtype != z.dtype:
        return f"{z.dtype} rows gave {dtype}"
    # gradcheck takes time with every value, and a few rows show as much.
    z, ids = z[:12], ids[:12]
    # One-hot rows have similarities of exactly 0 and 1, where a maximum or a clamp has a kink.
    one_hot = torch.eye(z.shape[1], dtype=z.dtype)[torch.arange(len(z)) % min(6, z.shape[1])]
    for name, batch in (("random", z), ("one-hot", one_hot)):
        if not gradcheck(lambda z: loss(z, ids), batch.requires_grad_(), fast_mode=True, raise_exception=False):
            return f"it is not differentiable at {name} rows: torch.autograd.gradcheck does not agree"
    return None


def _not_finite_on(change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Callable[..., str | None]:
    """Return a violation function: the value or the gradient is not finite for the batch that `change` returns."""

    def violation(loss: LossFunction, z: Tensor, ids: Tensor) -> str | None:
        value, gradient = _value_and_gradient(loss, *change(z.float(), ids))
        if not value.isfinite():
            return f"the value is {value.item()}"
        broken_rows = int((~gradient.isfinite().all(1)).sum())
        if broken_rows:
            return f"the gradient of {broken_rows} of {len(z)} rows is not finite"
        return None

    return violation


def _unchanged(z: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    return z, ids


def _in_pairs(z: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    return z, torch.arange(len(z)) % (len(z) // 2)


def _in_one_group(z: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    return z, torch.zeros_like(ids)


def _with_identical_rows(z: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    return z[:1].expand_as(z), ids


def _with_zero_row(z: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    first_of_largest_group = (ids == ids.mode().values).nonzero()[0]
    return z.index_fill(0, first_of_largest_group, 0.0), ids


def _wrong_in_half_precision(loss: LossFunction, z: Tensor, ids: Tensor) -> str | None:
    for dtype in (torch.bfloat16, torch.float16):
        value, gradient = _value_and_gradient(loss, z.to(dtype), ids)
        if torch.promote_types(value.dtype, torch.float32) != value.dtype:
            return f"{dtype} gave {value.dtype}"
        if not gradient.isfinite().all():
            return f"{dtype} gave a gradient that is not finite"
        observed = _difference(value, loss(z.to(dtype).float(), ids), 1e-4)
        if observed:
            return f"for {dtype} {observed}"
    return None


def _changed_by_autocast(loss: LossFunction, z: Tensor, ids: Tensor) -> str | None:
    def under_autocast(z: Tensor, ids: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return loss(z, ids)

    value, gradient = _value_and_gradient(under_autocast, z.float(), ids)
    expected, expected_gradient = _value_and_gradient(loss, z.float(), ids)
    if torch.promote_types(value.dtype, torch.float32) != value.dtype:
        return f"it gave {value.dtype}"
    observed = _difference(value, expected, 1e-4)
    if observed:
        return observed
    scale = expected_gradient.abs().max().item()
    if not torch.allclose(gradient, expected_gradient, rtol=1e-3, atol=1e-3 * scale):
        return "the gradient is another"
    return None


def _changed_by_row_order(loss: LossFunction, z: Tensor, ids: Tensor) -> str | None:
    order = torch.randperm(len(z), generator=rng.generator("order"))
    return _difference(loss(z[order], ids[order]), loss(z, ids))


def _changed_by_values_of_ids(loss: LossFunction, z: Tensor, ids: Tensor) -> str | None:
    expected = loss(z, ids)
    # -1 - ids are the ids of unlabeled images; near 2^62 consecutive integers are one number to a float.
    for other in (-1 - ids, 2**62 - ids, ids.int()):
        observed = _difference(loss(z, other), expected)
        if observed:
            return f"for ids {other.min().item()} to {other.max().item()} {observed}"
    return None


def _changed_by_length(loss: LossFunction, z: Tensor, ids: Tensor) -> str | None:
    factors = 10 ** torch.linspace(-3, 3, len(z), dtype=z.dtype)[:, None]
    return _difference(loss(z * factors, ids), loss(z, ids))


def _not_zero_without_positives(loss: LossFunction, z: Tensor, ids: Tensor) -> str | None:
    ids_without_pairs = torch.arange(len(z))
    value, gradient = _value_and_gradient(loss, z.float(), ids_without_pairs)
    if value != 0:
        return f"it gave {value.item():.6g}"
    if gradient.any():
        return "the gradient is not zero"
    return None


def _writes_to_input(loss: LossFunction, z: Tensor, ids: Tensor) -> str | None:
    z_input, ids_input = z.clone(), ids.clone()
    loss(z_input, ids_input)
    if not torch.equal(ids_input, ids):
        return "ids were written to"
    if not torch.equal(z_input, z):
        return "z was written to"
    return None


def _not_repeatable(loss: LossFunction, z: Tensor, ids: Tensor) -> str | None:
    first_value, first_gradient = _value_and_gradient(loss, z, ids)
    second_value, second_gradient = _value_and_gradient(loss, z, ids)
    if not torch.equal(first_value, second_value):
        return f"it gave {first_value.item():.9g}, then {second_value.item():.9g}"
    if not torch.equal(first_gradient, second_gradient):
        return "the gradients differ"
    return None


def _changed_by_ranks(loss: LossFunction, z: Tensor, ids: Tensor) -> str | None:
    """Divide the batch among two ranks, gather it as `Contrastive` does, and average the gradient as DDP does."""
    num_rows = len(z) // WORLD_SIZE * WORLD_SIZE  # all ranks have the same number of rows
    z, ids = z[:num_rows], ids[:num_rows]
    expected, *expected_gradients = _value_and_gradients(loss, z, ids)
    count = num_rows // WORLD_SIZE

    def value_and_gradients_on(loss: LossFunction, rank: int) -> list[Tensor]:
        rows = slice(rank * count, (rank + 1) * count)
        computes_local_rows = with_defaults(loss, Loss).computes_local_rows
        of_this_rank = nullcontext()
        if computes_local_rows:
            of_this_rank = local_rows(rows.start, count)

        def gathered_loss(z: Tensor, ids: Tensor) -> Tensor:
            z = distributed.all_gather(z, replicated_loss=computes_local_rows)
            with of_this_rank:
                return loss(z, distributed.all_gather(ids))

        return _value_and_gradients(gathered_loss, z[rows], ids[rows], _parameters(loss))

    gradients = []
    for rank, (value, *of_rank) in enumerate(run_on_ranks(loss, value_and_gradients_on, world_size=WORLD_SIZE)):
        observed = _difference(value, expected)
        if observed:
            return f"on rank {rank} {observed}; it must not gather rows itself, nor use the number of ranks"
        gradients.append(of_rank)
    of_rows, *of_parameters = zip(*gradients, strict=True)
    # DDP takes the mean over ranks, where the gradient of the global batch is the sum over its rows.
    observed = _gradient_difference(torch.cat(of_rows) / WORLD_SIZE, expected_gradients[0])
    if observed:
        return observed
    for of_parameter, expected_gradient in zip(of_parameters, expected_gradients[1:], strict=True):
        observed = _gradient_difference(torch.stack(of_parameter).mean(0), expected_gradient)
        if observed:
            return f"of a parameter of the loss, {observed}"
    return None


def _parameters(loss: LossFunction) -> list[nn.Parameter]:
    if isinstance(loss, nn.Module):
        return list(loss.parameters())
    return []


def _value_and_gradients(
    loss: LossFunction, z: Tensor, ids: Tensor, parameters: Sequence[nn.Parameter] | None = None
) -> list[Tensor]:
    """Return the value, its gradient with respect to z, and those with respect to the parameters; None for the loss's."""
    if parameters is None:
        parameters = _parameters(loss)
    z = z.detach().clone().requires_grad_()
    value = loss(z, ids)
    gradients = torch.autograd.grad(value, [z, *parameters], materialize_grads=True)
    return [value.detach(), *gradients]


def _gradient_difference(gradient: Tensor, expected: Tensor) -> str | None:
    """Return how a gradient differs: by a factor, which is what a wrong mean over ranks gives, or otherwise."""
    if torch.allclose(gradient, expected, rtol=1e-7, atol=1e-7):
        return None
    factor = ((gradient * expected).sum() / expected.square().sum()).item()
    if torch.allclose(gradient, factor * expected, rtol=1e-5, atol=1e-7):
        return f"the gradient is {factor:.3g} times that of one process"
    return "the gradient is another"


def _moves_global_rng(loss: LossFunction, z: Tensor, ids: Tensor) -> str | None:
    return global_rng_moved(lambda: _value_and_gradient(loss, z, ids))


LOSS_REQUIREMENTS = (
    Requirement(
        "the value is a finite scalar, attached to the graph",
        _not_a_scalar,
        "Training cannot call backward on it, and stops in the first step.",
    ),
    Requirement(
        "the gradient is that of finite differences in float64",
        _wrong_gradient,
        "Training follows a gradient that is not that of the loss: look for detach, item, rounding, or float32 inside.",
    ),
    Requirement(
        "groups of uneven size give a finite value and gradient",
        _not_finite_on(_unchanged),
        "Training stops (exit code 5) at the first batch whose classes differ in size.",
    ),
    Requirement(
        "pairs give a finite value and gradient",
        _not_finite_on(_in_pairs),
        "Training without labels stops (exit code 5): its positives are pairs of views.",
    ),
    Requirement(
        "a single group gives a finite value and gradient",
        _not_finite_on(_in_one_group),
        "Training stops (exit code 5) at a batch of one class, which has no negatives.",
    ),
    Requirement(
        "identical rows give a finite value and gradient",
        _not_finite_on(_with_identical_rows),
        "Training stops (exit code 5) when embeddings collapse, or at images that are all black.",
    ),
    Requirement(
        "a row of zeros gives a finite value and gradient",
        _not_finite_on(_with_zero_row),
        "Training stops (exit code 5) at an image whose embedding is zero: divide by a length that is clamped.",
    ),
    Requirement(
        "a batch without any positive gives 0, attached to the graph, with gradient 0",
        _not_zero_without_positives,
        "A batch in which no class occurs twice stops training, or trains something else.",
    ),
    Requirement(
        "half precision gives the value of the same rows in float32, in float32 or wider",
        _wrong_in_half_precision,
        "Training in bf16 or fp16 sees a rounded loss: convert the rows to float32 first.",
    ),
    Requirement(
        "autocast changes neither value nor gradient, and the value is float32 or wider",
        _changed_by_autocast,
        "On a GPU products are rounded to 8 bits: compute inside torch.autocast(z.device.type, enabled=False).",
    ),
    Requirement(
        "the order of the rows does not matter",
        _changed_by_row_order,
        "The result depends on the order in which images are read, and on the number of ranks.",
    ),
    Requirement(
        "only which ids are equal matters",
        _changed_by_values_of_ids,
        "Ids are row numbers, class numbers or negative: a loss that uses their values works for some data sets only.",
    ),
    Requirement(
        "the length of a row does not matter",
        _changed_by_length,
        "The encoder can lower the loss by scaling its embeddings, which retrieval does not see: normalize the rows.",
    ),
    Requirement(
        "the input is not written to",
        _writes_to_input,
        "What is computed from the embeddings afterwards, the health of every epoch included, is wrong.",
    ),
    Requirement(
        "the same input gives the same value and gradient",
        _not_repeatable,
        "A run that is repeated, or resumed, ends in other weights.",
    ),
    Requirement(
        "the random states of torch, NumPy and Python are left as they were",
        _moves_global_rng,
        "Dropout and other parts then draw other numbers, so that two losses cannot be compared at one seed.",
    ),
    Requirement(
        "on two ranks, of which each passes the rows of both, value and gradient are those of one process",
        _changed_by_ranks,
        "Training on several GPUs optimizes something else, or at another learning rate, than on one.",
    ),
)
"""What a loss must do, in the order in which it is tried."""

_OF_CLASS_LOSSES = {
    _changed_by_values_of_ids: Requirement(
        "rows without a label (negative ids) change neither the value nor get a gradient",
        unlabeled_rows_count,
        "Images without a label push classes around, or are taken for those of a class.",
    ),
    _not_zero_without_positives: Requirement(
        "a batch without any label gives 0, attached to the graph of z and of all parameters, with gradients 0",
        not_zero_without_labels,
        "A batch without labels stops training, or several ranks wait for a gradient.",
    ),
}
"""What takes the place of requirements on losses that compare rows with rows, by the functions that try those."""

CLASS_LOSS_REQUIREMENTS = tuple(
    _OF_CLASS_LOSSES.get(requirement.violation, requirement) for requirement in LOSS_REQUIREMENTS
)
"""What a loss whose factory takes `num_classes` must do."""
