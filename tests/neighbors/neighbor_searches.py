"""Rows to search, and a search written out in NumPy."""

import numpy as np
import torch
from torch import Tensor

from reptk.neighbors import search

Neighbors = tuple[Tensor, Tensor]

# count, width, largest integer (0: normal numbers)
BANKS = {
    "all different": (700, 12, 0),
    "many ties": (700, 6, 2),
    "hundreds of copies": (900, 3, 1),
    "two values": (400, 1, 1),
}


def draw(count: int, width: int, seed: int, largest: int = 0) -> Tensor:
    """Integers of -largest..largest, whose inner products are exact and often equal, or normal numbers."""
    generator = torch.Generator().manual_seed(seed)
    if largest:
        return torch.randint(-largest, largest + 1, (count, width), generator=generator).float()
    return torch.randn(count, width, generator=generator)


def search_all(*args: object, **options: object) -> Neighbors:
    """All blocks of `search` as one."""
    similarities, rows = zip(*search(*args, **options), strict=True)
    return torch.cat(similarities), torch.cat(rows)


def brute_force(bank: Tensor, queries: Tensor, k: int, exclude: Tensor | None = None) -> Neighbors:
    """A stable sort of all similarities."""
    similarities = (queries.double().numpy() @ bank.double().numpy().T).astype(np.float32)
    if exclude is not None:
        for query, row in enumerate(exclude.tolist()):
            if row >= 0:
                similarities[query, row] = -np.inf
    rows = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
    return torch.from_numpy(np.take_along_axis(similarities, rows, 1)), torch.from_numpy(rows)


def same(one: Neighbors, other: Neighbors) -> bool:
    return torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
