"""Unit rows of a batch for losses in plain torch operations, and blocks of anchors that bound their memory."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from reptk.losses.core.normalization import nonfinite_error, normalize
from reptk.losses.core.row_statistics import check_batch

BLOCK_ELEMENTS = 2**24
"""Elements of the largest matrix that is stored for the backward pass: 64 MiB in float32."""


def unit_rows(z: Tensor, ids: Tensor, *, rows_name: str = "z", ids_name: str = "ids") -> Tensor:
    """Return rows (N, D) of unit length in float32 or wider.

    Args:
        z: (N, D) embeddings of any scale and floating type.
        ids: (N,) integers, which are checked alone.
        rows_name, ids_name: of the two in messages.

    Raises:
        TypeError, ValueError: wrong shapes or types.
        NumericalError: on the CPU: rows that hold NaN or infinity, named. (Looking would wait for another device.)
    """
    check_batch(rows_name, ids_name, z, ids)
    unit = normalize(z)
    if unit.device.type == "cpu" and not unit.isfinite().all():
        raise nonfinite_error(unit.detach(), unit.detach()[:0])
    return unit


def candidates(unit: Tensor, ids: Tensor, keys: Tensor | None, key_ids: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the unit rows (M, D) that anchors are compared with, and their ids (M,): those of the batch, then the keys.

    Args:
        unit: (N, D) from `unit_rows`.
        ids: (N,).
        keys: (K, D) further rows of any scale, which get no gradient; None for none.
        key_ids: (K,) their ids.

    Raises:
        ValueError: only one of keys and key_ids, or of another width.
    """
    if (keys is None) != (key_ids is None):
        raise ValueError("keys and key_ids come together: give both or neither")
    if keys is None or key_ids is None or not len(keys):
        return unit, ids
    unit_keys = unit_rows(keys.detach(), key_ids, rows_name="keys", ids_name="key_ids")
    if unit_keys.shape[1] != unit.shape[1]:
        raise ValueError(f"keys must be as wide as z, got {unit_keys.shape[1]} and {unit.shape[1]}")
    return torch.cat([unit, unit_keys.to(unit.dtype)]), torch.cat([ids.long(), key_ids.long()])


def by_blocks_of_anchors(function: Callable[[int, int], Tensor], num_anchors: int, elements_per_anchor: int) -> Tensor:
    """Return the values (N,) of all anchors, computed block by block, and again in the backward pass if there are several.

    Args:
        function: (first, last) -> (last - first,) values of these anchors.
        num_anchors: N.
        elements_per_anchor: of the largest matrix that `function` stores for its backward pass.
    """
    size = max(1, BLOCK_ELEMENTS // max(1, elements_per_anchor))
    if num_anchors <= size:
        return function(0, num_anchors)
    values = []
    for first in range(0, num_anchors, size):
        last = min(first + size, num_anchors)
        values.append(checkpoint(function, first, last, use_reentrant=False, preserve_rng_state=False))
    return torch.cat(values)
