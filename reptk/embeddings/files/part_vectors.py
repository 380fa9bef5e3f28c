"""The vectors of several files as one tensor (n, F), of which only those rows are read that are used."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

ATEN = torch.ops.aten


class PartVectors(Tensor):
    """Rows of several memory-mapped tensors, one after another, without a copy.

    Slices of rows, single rows and rows by their numbers are plain tensors, for which no other part is read. Every other
    operation works as well, on a copy of all rows in memory. The strides are those of rows with gaps, so that no code takes
    the rows for one piece of memory.

    Args:
        parts: tensors (n_i, F) of one type, at least one.
    """

    @staticmethod
    def __new__(cls, parts: Sequence[Tensor]) -> "PartVectors":
        count = sum(map(len, parts))
        width = parts[0].shape[1]
        return Tensor._make_wrapper_subclass(cls, (count, width), strides=(2 * width, 1), dtype=parts[0].dtype)

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self.parts = list(parts)
        self.starts = torch.tensor([0, *map(len, parts)]).cumsum(0)

    def __repr__(self) -> str:
        return f"PartVectors({len(self.parts)} parts, shape={tuple(self.shape)}, dtype={self.dtype})"

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation of torch that has a `PartVectors` among its arguments."""
        kwargs = kwargs or {}
        vectors = args[0]
        if isinstance(vectors, PartVectors):
            if function is ATEN.detach.default:
                return PartVectors(vectors.parts)
            if function is ATEN.slice.Tensor:
                return vectors._slice(*args[1:])
            if function is ATEN.select.int and args[1] == 0:
                return vectors._row(args[2])
            if function is ATEN.index.Tensor and _selects_rows(args[1]):
                return vectors._rows(args[1][0])
            if function is ATEN.index_select.default and args[1] == 0:
                return vectors._rows(args[2])
        return function(*tree_map(_in_memory, args), **tree_map(_in_memory, kwargs))

    def between(self, first: int, last: int) -> "PartVectors":
        """Return rows `first` to `last`, without a copy: pieces of the same parts."""
        return PartVectors([self.parts[0][:0], *self._pieces(first, last)])

    def _pieces(self, first: int, last: int) -> list[Tensor]:
        """Return what each part holds of rows `first` to `last`, without those that hold none."""
        pieces = []
        for part, part_start in zip(self.parts, self.starts.tolist(), strict=False):
            low, high = max(0, first - part_start), min(len(part), last - part_start)
            if low < high:
                pieces.append(part[low:high])
        return pieces

    def _slice(self, dim: int = 0, start: int | None = None, stop: int | None = None, step: int = 1) -> Tensor:
        if dim != 0:
            return torch.cat([part.narrow(1, 0, self.shape[1])[:, start:stop:step] for part in self.parts])
        first, last, step = slice(start, stop, step).indices(len(self))
        pieces = self._pieces(first, last)
        if len(pieces) == 1:
            return pieces[0][::step]
        return torch.cat([self.parts[0][:0], *pieces])[::step]

    def _row(self, row: int) -> Tensor:
        row = range(len(self))[row]  # resolves negative numbers
        part = self._part_of(torch.tensor([row]))
        return self.parts[int(part)][row - int(self.starts[part])]

    def _rows(self, selected: Tensor) -> Tensor:
        """Return rows by their numbers, or by a mask (n,)."""
        rows = selected.cpu()
        if rows.dtype == torch.bool:
            rows = rows.nonzero().flatten()
        rows = torch.where(rows < 0, rows + len(self), rows)
        if rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < len(self):
            raise IndexError(f"rows {int(rows.min())} to {int(rows.max())} of {len(self)}")
        out = torch.empty(*rows.shape, self.shape[1], dtype=self.dtype)
        part_of_row = self._part_of(rows)
        for part in part_of_row.unique().tolist():
            is_here = part_of_row == part
            out[is_here] = self.parts[part][rows[is_here] - self.starts[part]]
        return out

    def _part_of(self, rows: Tensor) -> Tensor:
        return torch.searchsorted(self.starts, rows, right=True) - 1


def rows_between(vectors: Tensor, first: int, last: int) -> Tensor:
    """Return rows `first` to `last` of vectors (n, F), without a copy even if they are in several parts."""
    if isinstance(vectors, PartVectors):
        return vectors.between(first, last)
    return vectors[first:last]


def _selects_rows(indices: Sequence[Tensor | None]) -> bool:
    """Return whether an index is that of rows alone, or a mask of rows."""
    if len(indices) != 1 or indices[0] is None:
        return False
    return indices[0].dtype != torch.bool or indices[0].ndim == 1


def _in_memory(value: Any) -> Any:
    if isinstance(value, PartVectors):
        return torch.cat(value.parts)
    return value
