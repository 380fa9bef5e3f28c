"""Rows to search, and a search written out in NumPy."""

import numpy as np
import torch
from torch import Tensor

from reptk.neighbors import search

Found = tuple[Tensor, Tensor]


def drawn(count: int, width: int, seed: int, most: int = 0) -> Tensor:
    """Integers of -most..most, whose inner products are exact and often equal, or normal numbers."""
    generator = torch.Generator().manual_seed(seed)
    if most:
        return torch.randint(-most, most + 1, (count, width), generator=generator).float()
    return torch.randn(count, width, generator=generator)


def found(*given: object, **options: object) -> Found:
    similarities, rows = zip(*search(*given, **options), strict=True)
    return torch.cat(similarities), torch.cat(rows)


def brute(bank: Tensor, queries: Tensor, k: int, own: Tensor | None = None) -> Found:
    similarities = (queries.double().numpy() @ bank.double().numpy().T).astype(np.float32)
    for number, row in enumerate([] if own is None else own.tolist()):
        if row >= 0:
            similarities[number, row] = -np.inf
    rows = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
    return torch.from_numpy(np.take_along_axis(similarities, rows, 1)), torch.from_numpy(rows)


def same(one: Found, other: Found) -> bool:
    return torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
