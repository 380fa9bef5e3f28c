"""Rows of unit length in float32 or wider, whatever their scale, and the gradient through that."""

from typing import NamedTuple

import torch
from torch import Tensor

from reptk.core.errors import NonFiniteRows, NumericalError
from reptk.core.name_lists import first_names


class NormalizedRows(NamedTuple):
    """Unit rows (N, D), and the two (N, 1) divisors that z was divided by one after the other.

    There are two because their product may overflow, as the sum of squares of large entries does.
    """

    unit: Tensor
    largest_entry: Tensor
    norm: Tensor


def normalize(z: Tensor) -> Tensor:
    """Return rows of unit length, in float32 or wider, without overflow or underflow; zero rows stay zero."""
    return normalize_rows(z).unit


def normalize_rows(z: Tensor) -> NormalizedRows:
    """Return the unit rows of z (N, D) and their divisors."""
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    # Detached: the unit row does not depend on the first divisor, so that has no gradient.
    largest_entry = _zeros_to_ones(z.detach().abs().amax(1, keepdim=True))
    z = z / largest_entry
    norm = _zeros_to_ones(torch.linalg.vector_norm(z, dim=1, keepdim=True))
    return NormalizedRows(z / norm, largest_entry, norm)


def backward_through_normalization_(grad_unit: Tensor, rows: NormalizedRows) -> Tensor:
    """Turn the gradient with respect to unit rows, in place, into the gradient with respect to the rows before."""
    # The length of a row has no effect on its unit row, so the part of the gradient along the row vanishes.
    along_row = (rows.unit * grad_unit).sum(1, keepdim=True)
    grad_unit.addcmul_(rows.unit, along_row, value=-1)
    return grad_unit.div_(rows.norm).div_(rows.largest_entry)


def nonfinite_error(unit: Tensor, keys: Tensor) -> NumericalError:
    """Return the error about rows of z, or else of keys, that hold NaN or infinity; for z, it lists their numbers."""
    for name, rows in (("z", unit), ("keys", keys)):
        numbers = (~rows.isfinite().all(1)).nonzero().flatten().tolist()
        if not numbers:
            continue
        listed = first_names(list(map(str, numbers)), 5)
        message = f"{len(numbers)} of {len(rows)} rows of {name} hold NaN or infinity: {listed}"
        if name == "z":
            return NonFiniteRows(message, numbers, len(rows))
        return NumericalError(message)
    return NumericalError("the temperature or a weight of the loss is NaN")


def _zeros_to_ones(divisors: Tensor) -> Tensor:
    return divisors.masked_fill(divisors == 0, 1.0)
