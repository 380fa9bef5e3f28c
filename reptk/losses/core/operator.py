"""The operator under every loss, `reptk::row_statistics`: forward, backward, and how PyTorch calls them.

For rows z_i of unit length and s_ij = z_i . z_j it computes, for every row i,

    mean_i = mean of s_ip over the positives p of i                              from class sums: O(N D)
    L_i    = log sum_j exp(scale * s_ij), j over positives, negatives or others  for any number of such sums

The second is expensive and has three implementations of one interface: `dense.py`, `tiled.py` and `triton_backend.py`
(`implementations.py` chooses). Being a `torch.library` operator, it is one node of the graph under `torch.compile`, however
many tiles there are. Without a compiler the same functions run as a `torch.autograd.Function`, which has less overhead.

The gradient needs one number for each row and sum, L_i, and nothing of size N x N. With g_i = dloss/dL_i and
x_ij = scale * s_ij,

    dloss/dz_i = scale * sum_j H_ij z_j,      H_ij = g_i exp(x_ij - L_i) + g_j exp(x_ij - L_j),   H_ii = 0

H is symmetric and holds both roles of a row, as an anchor and as a candidate of other anchors. Under `local_rows`, a rank
computes L and dloss/dz for its own rows alone. L is gathered in the forward pass; g is then the same on every rank, and
the backward pass needs no communication.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reptk.core import distributed
from reptk.losses.core import implementations
from reptk.losses.core.key_blocks import CANDIDATES, Candidates, KeyBlock, LogSums, compared_rows, make_exp_sums
from reptk.losses.core.normalization import (
    NormalizedRows,
    backward_through_normalization_,
    nonfinite_error,
    normalize_rows,
)
from reptk.losses.core.positives import Groups, add_gradient_of_means, class_sums, mean_over_positives


class _Inputs(NamedTuple):
    """Arguments of the operator, in the order of its schema.

    Attributes:
        z: (N, D) rows of any length.
        keys: (K, D) unit rows that are never anchors.
        group: (N + K,) as in `Groups`.
        num_positives: (N,) as in `Groups`.
        logit_scales: (T,) float64, of each sum.
        candidates: T positions in `CANDIDATES`, since operators take no lists of strings.
        first: the first row that this rank computes.
        count: how many rows it computes.
        with_means: whether the means over positives are computed.
        with_expectation: whether the logit scales need a gradient.
        implementation: an `ImplementationName`.
    """

    z: Tensor
    keys: Tensor
    group: Tensor
    num_positives: Tensor
    logit_scales: Tensor
    candidates: Sequence[int]
    first: int
    count: int
    with_means: bool
    with_expectation: bool
    implementation: str


class _Outputs(NamedTuple):
    """What the operator returns: two results, and what the backward pass needs of the rest. Empty tensors where unused."""

    log_sums: Tensor  # (T, N)
    means: Tensor  # (N,)
    expected_similarity: Tensor  # (T, N)
    cache: Tensor  # of the implementation
    class_sums: Tensor  # (N + K, D)
    unit: Tensor  # (N, D)
    largest_entry: Tensor  # (N, 1)
    norm: Tensor  # (N, 1)


class _Saved(NamedTuple):
    """Tensors kept for the backward pass; fields as in `_Outputs` and `_Inputs`."""

    log_sums: Tensor
    expected_similarity: Tensor
    cache: Tensor
    class_sums: Tensor
    unit: Tensor
    largest_entry: Tensor
    norm: Tensor
    keys: Tensor
    group: Tensor
    num_positives: Tensor
    logit_scales: Tensor


class _BackwardInputs(NamedTuple):
    """Arguments of the backward operator, in the order of its schema.

    Attributes:
        grad_log_sums: (T, N) gradient of the loss with respect to the log-sums, if there is one.
        grad_means: (N,) gradient of the loss with respect to the means, if there is one.
        saved: the tensors of `_Saved`, in a list.
        candidates, first, count, implementation: as in `_Inputs`.
        z_dtype: type of z.
        needs_z, needs_logit_scales: which gradients are needed.
    """

    grad_log_sums: Tensor | None
    grad_means: Tensor | None
    saved: Sequence[Tensor]
    candidates: Sequence[int]
    first: int
    count: int
    implementation: str
    z_dtype: torch.dtype
    needs_z: bool
    needs_logit_scales: bool


def row_statistics(
    z: Tensor,
    keys: Tensor,
    groups: Groups,
    logit_scales: Sequence[float | Tensor],
    candidates: Sequence[Candidates],
    with_means: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return (T, N) log-sums, minus infinity where a row has no candidate, and (N,) means over positives.

    Args:
        z: (N, D) rows of any length and floating type. On a GPU, products of bfloat16 rows stay in bfloat16.
        keys: (K, D) further unit rows; K may be 0.
        groups: of rows and keys.
        logit_scales: T numbers, or scalar tensors that get their gradient.
        candidates: what each of the T sums is taken over.
        with_means: whether the means are needed; without, they are empty.
    """
    first, count = implementations.current_local_rows(len(z))
    inputs = _Inputs(
        z=z,
        keys=keys,
        group=groups.group,
        num_positives=groups.num_positives,
        logit_scales=_stack_scalars(logit_scales),
        candidates=[CANDIDATES.index(name) for name in candidates],
        first=first,
        count=count,
        with_means=with_means,
        with_expectation=any(isinstance(scale, Tensor) and scale.requires_grad for scale in logit_scales),
        implementation=implementations.current_implementation(),
    )
    if torch.compiler.is_compiling():
        outputs = _Outputs(*_forward_operator(*inputs))
    else:
        outputs = _Outputs(*_Function.apply(*inputs))
    return outputs.log_sums, outputs.means


def _stack_scalars(scalars: Sequence[float | Tensor]) -> Tensor:
    """Return (T,) in float64, on the device of the first tensor among them, or on the CPU if there is none."""
    tensors = [scalar for scalar in scalars if isinstance(scalar, Tensor)]
    if not tensors:
        return torch.tensor(scalars, dtype=torch.float64)
    device = tensors[0].device
    return torch.stack([_scalar(scalar, device) for scalar in scalars])


def _scalar(scalar: float | Tensor, device: torch.device) -> Tensor:
    if isinstance(scalar, Tensor):
        return scalar.to(device, torch.float64)
    # A number is filled in on the device: copying it there would wait.
    return torch.full((), scalar, dtype=torch.float64, device=device)


# Forward


def _forward(inputs: _Inputs) -> _Outputs:
    z, keys, group = inputs.z, inputs.keys, inputs.group
    # Autocast would multiply the rows in half precision.
    with torch.autocast(z.device.type, enabled=False):
        rows = normalize_rows(z)
        unit = rows.unit
        if inputs.with_means:
            sums = class_sums(unit, keys, group)
            means = mean_over_positives(unit, sums, group, inputs.num_positives)
        else:
            sums, means = unit.new_empty(0), unit.new_empty(0)
        if inputs.candidates:
            sums_of_exp = _log_sums(inputs, unit)
        else:
            sums_of_exp = LogSums(unit.new_empty(0, z.shape[0]), unit.new_empty(0), unit.new_empty(0))
    log_sums = sums_of_exp.log_sum
    # A row that is NaN shows in its norm even if it has no candidate. Reading the result from a GPU would wait for it.
    if not z.is_cuda and (rows.norm.isnan().any() or log_sums.isnan().any()):
        raise nonfinite_error(unit, keys)
    return _Outputs(
        log_sums=log_sums,
        means=means,
        expected_similarity=sums_of_exp.expected_similarity,
        cache=sums_of_exp.cache,
        class_sums=sums,
        unit=unit,
        largest_entry=rows.largest_entry,
        norm=rows.norm,
    )


def _log_sums(inputs: _Inputs, unit: Tensor) -> LogSums:
    """Return the log-sums of all rows; if this rank computes some of them, the others come from the other ranks."""
    num_rows = unit.shape[0]
    chosen = implementations.choose(inputs.implementation, unit, inputs.count, inputs.group.shape[0])
    dtype = implementations.operand_dtype(chosen, inputs.z.dtype, unit.dtype)
    rows = KeyBlock(unit.to(dtype), inputs.group[:num_rows], None, None)
    anchors, key_blocks = compared_rows(rows, inputs.keys.to(dtype), inputs.group, inputs.first, inputs.count)
    exp_sums = make_exp_sums(inputs.logit_scales, inputs.candidates, unit.dtype)
    result = chosen.forward(anchors, key_blocks, exp_sums, inputs.with_expectation)
    if inputs.count == num_rows:
        return result
    result = result._replace(log_sum=_gather(result.log_sum, num_rows))
    if inputs.with_expectation:
        result = result._replace(expected_similarity=_gather(result.expected_similarity, num_rows))
    return result


def _gather(values: Tensor, num_rows: int) -> Tensor:
    """Return (T, N) from the (T, n) of every rank."""
    gathered = distributed.all_gather(values.T).T.contiguous()
    if gathered.shape[1] != num_rows:
        raise ValueError(
            f"local_rows: {distributed.world_size()} ranks of {values.shape[1]} rows are not the {num_rows} rows of z; a "
            "loss with computes_local_rows = True has to pass the z and ids it is called with to RowStatistics, all of "
            "them in their order"
        )
    return gathered


def _forward_shapes(*inputs: Any) -> tuple[Tensor, ...]:
    """Return empty tensors of the shapes and types that `_forward` returns: what a compiler computes with."""
    inputs = _Inputs(*inputs)
    num_rows, width = inputs.z.shape
    num_keys = num_rows + inputs.keys.shape[0]
    num_sums = len(inputs.candidates)
    unit = inputs.z.new_empty(inputs.z.shape, dtype=torch.promote_types(inputs.z.dtype, torch.float32))
    is_cached = num_sums > 0 and implementations.is_dense(inputs.implementation, inputs.count * num_keys)
    outputs = _Outputs(
        log_sums=unit.new_empty(num_sums, num_rows),
        means=unit.new_empty(num_rows if inputs.with_means else 0),
        expected_similarity=unit.new_empty((num_sums, num_rows) if inputs.with_expectation and num_sums else (0,)),
        cache=unit.new_empty((num_sums, inputs.count, num_keys) if is_cached else (0,)),
        class_sums=unit.new_empty((num_keys, width) if inputs.with_means else (0,)),
        unit=unit,
        largest_entry=unit.new_empty(num_rows, 1),
        norm=unit.new_empty(num_rows, 1),
    )
    return tuple(outputs)


# Backward


def _gradients(inputs: _BackwardInputs) -> tuple[Tensor, Tensor]:
    """Return the gradients with respect to z and to the logit scales; empty where not needed."""
    saved = _Saved(*inputs.saved)
    if inputs.needs_logit_scales:
        grad_scales = (inputs.grad_log_sums * saved.expected_similarity).sum(1).to(saved.logit_scales)
    else:
        grad_scales = saved.logit_scales.new_empty(0)
    if inputs.needs_z:
        grad_z = _gradient_of_z(inputs, saved)
    else:
        grad_z = saved.unit.new_empty(0, dtype=inputs.z_dtype)
    return grad_z, grad_scales


def _gradient_of_z(inputs: _BackwardInputs, saved: _Saved) -> Tensor:
    """Return (N, D): the gradient of this rank's rows, zero elsewhere."""
    unit, first, count = saved.unit, inputs.first, inputs.count
    local = slice(first, first + count)
    has_log_sums = inputs.grad_log_sums is not None and len(inputs.candidates) > 0
    has_means = inputs.grad_means is not None and inputs.grad_means.numel() > 0
    if not has_log_sums and not has_means:
        return unit.new_zeros(unit.shape, dtype=inputs.z_dtype)
    with torch.autocast(unit.device.type, enabled=False):
        if has_log_sums:
            grad = _gradient_of_log_sums(inputs, saved)
        else:
            grad = torch.zeros_like(unit[local])
        if has_means:
            sums, group, num_positives = saved.class_sums, saved.group, saved.num_positives
            add_gradient_of_means(grad, inputs.grad_means, unit, sums, group, num_positives, first)
        local_rows = NormalizedRows(unit[local], saved.largest_entry[local], saved.norm[local])
        grad = backward_through_normalization_(grad, local_rows)
    if count == unit.shape[0]:
        return grad.to(inputs.z_dtype)
    grad_z = unit.new_zeros(unit.shape, dtype=inputs.z_dtype)
    grad_z[local] = grad
    return grad_z


def _gradient_of_log_sums(inputs: _BackwardInputs, saved: _Saved) -> Tensor:
    """Return (n, D): what the log-sums contribute to the gradient of this rank's unit rows."""
    unit, num_rows = saved.unit, saved.unit.shape[0]
    # A row without candidates has no gradient, and no finite logarithm to compute one with.
    is_empty = saved.log_sums == -torch.inf
    g = inputs.grad_log_sums.masked_fill(is_empty, 0.0)
    lse = saved.log_sums.masked_fill(is_empty, 0.0)
    # The same choice as in the forward pass, whose cache only its own implementation can read.
    chosen = implementations.choose(inputs.implementation, unit, inputs.count, saved.group.shape[0])
    dtype = implementations.operand_dtype(chosen, inputs.z_dtype, unit.dtype)
    rows = KeyBlock(unit.to(dtype), saved.group[:num_rows], g, lse)
    anchors, key_blocks = compared_rows(rows, saved.keys.to(dtype), saved.group, inputs.first, inputs.count)
    exp_sums = make_exp_sums(saved.logit_scales, inputs.candidates, unit.dtype)
    return chosen.backward(anchors, key_blocks, exp_sums, saved.cache)


def _gradient_shapes(*inputs: Any) -> tuple[Tensor, Tensor]:
    """Return empty tensors of the shapes and types that `_gradients` returns."""
    inputs = _BackwardInputs(*inputs)
    saved = _Saved(*inputs.saved)
    grad_z = saved.unit.new_empty(saved.unit.shape if inputs.needs_z else (0,), dtype=inputs.z_dtype)
    grad_scales = saved.logit_scales.new_empty(saved.logit_scales.shape if inputs.needs_logit_scales else (0,))
    return grad_z, grad_scales


# How PyTorch calls them


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    inputs, outputs = _Inputs(*inputs), _Outputs(*output)
    ctx.mark_non_differentiable(*outputs[2:])  # all but log_sums and means
    # An output that the loss does not use then has the gradient None, and its part of the backward pass is skipped.
    ctx.set_materialize_grads(False)
    saved = _Saved(
        log_sums=outputs.log_sums,
        expected_similarity=outputs.expected_similarity,
        cache=outputs.cache,
        class_sums=outputs.class_sums,
        unit=outputs.unit,
        largest_entry=outputs.largest_entry,
        norm=outputs.norm,
        keys=inputs.keys,
        group=inputs.group,
        num_positives=inputs.num_positives,
        logit_scales=inputs.logit_scales,
    )
    ctx.save_for_backward(*saved)
    ctx.options = {
        "candidates": inputs.candidates,
        "first": inputs.first,
        "count": inputs.count,
        "implementation": inputs.implementation,
        "z_dtype": inputs.z.dtype,
    }


def _backward(ctx: Any, *grad_outputs: Tensor | None, gradients: Any) -> tuple[Tensor | None, ...]:
    """Return one gradient for each of `_Inputs`; `gradients` is the backward operator or the function behind it."""
    grads = _Outputs(*grad_outputs)
    needs_grad = _Inputs(*ctx.needs_input_grad)
    needs_logit_scales = needs_grad.logit_scales and grads.log_sums is not None
    no_grads = _Inputs(*[None] * len(_Inputs._fields))
    has_no_grad = grads.log_sums is None and grads.means is None
    if has_no_grad or not (needs_grad.z or needs_logit_scales):
        return tuple(no_grads)
    inputs = _BackwardInputs(
        grad_log_sums=grads.log_sums,
        grad_means=grads.means,
        saved=list(ctx.saved_tensors),
        **ctx.options,
        needs_z=needs_grad.z,
        needs_logit_scales=needs_logit_scales,
    )
    grad_z, grad_scales = gradients(*inputs)
    input_grads = no_grads._replace(
        z=grad_z if needs_grad.z else None,
        logit_scales=grad_scales if needs_logit_scales else None,
    )
    return tuple(input_grads)


def _backward_function(*inputs: Any) -> tuple[Tensor, Tensor]:
    return _gradients(_BackwardInputs(*inputs))


def _forward_function(*inputs: Any) -> tuple[Tensor, ...]:
    return tuple(_forward(_Inputs(*inputs)))


def _refuse_second_derivative(*_: Any) -> None:
    raise RuntimeError(
        "reptk's losses have no second derivative: their backward pass keeps nothing to differentiate. Penalise a gradient "
        "by finite differences, or write that term in plain PyTorch"
    )


_backward_operator = torch.library.custom_op(
    "reptk::row_statistics_backward",
    _backward_function,
    mutates_args=(),
    schema="(Tensor? grad_log_sums, Tensor? grad_means, Tensor[] saved, SymInt[] candidates, SymInt first, SymInt count, "
    "str implementation, ScalarType z_dtype, bool needs_z, bool needs_logit_scales) -> (Tensor, Tensor)",
)
_backward_operator.register_fake(_gradient_shapes)
_backward_operator.register_autograd(_refuse_second_derivative)

_forward_operator = torch.library.custom_op(
    "reptk::row_statistics",
    _forward_function,
    mutates_args=(),
    schema="(Tensor z, Tensor keys, Tensor group, Tensor num_positives, Tensor logit_scales, SymInt[] candidates, "
    "SymInt first, SymInt count, bool with_means, bool with_expectation, str implementation) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
_forward_operator.register_fake(_forward_shapes)
_forward_operator.register_autograd(partial(_backward, gradients=_backward_operator), setup_context=_save_for_backward)


class _Function(torch.autograd.Function):
    """The operator without PyTorch's dispatcher, which costs a measurable part of the time of small batches."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Any:
        output = _forward_function(*inputs)
        _save_for_backward(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        # With create_graph, a second derivative may follow; the operator refuses it.
        gradients = _backward_operator if torch.is_grad_enabled() else _backward_function
        return _backward(ctx, *grad_outputs, gradients=gradients)
