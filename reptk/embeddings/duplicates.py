"""Near duplicates: pairs of images at least so similar, within one set (as groups) or between two (as leaks). All pairs
are looked at, a block of them at a time."""

import csv
import io
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reptk.core.errors import EnvironmentProblem, UsageError
from reptk.core.files import write_text
from reptk.embeddings.embeddings import Embeddings, comparable
from reptk.embeddings.progress import progress
from reptk.embeddings.searching import sha256

BLOCK = 2048
"""Images whose similarities with so many others are in hand at once."""


class Member(NamedTuple):
    """An image of a group: its number and id, class, file, the similarity to the nearest of the group (or, between two sets,
    of the other set), which that is, and whether its file holds the same bytes as another's."""

    number: int
    id: str
    label: str
    path: Path | None
    similarity: float
    nearest: int
    is_identical: bool


@dataclass(frozen=True)
class Duplicates:
    """Near duplicates.

    Args:
        first, second: the embeddings; second is None within one set.
        threshold: the similarity from which on two images count.
        groups: within a set: images that are joined by chains of near duplicates, largest group first.
        leaks: between sets: the images of `second` that have a near duplicate in `first`, most similar first.
    """

    first: Embeddings
    second: Embeddings | None
    threshold: float
    groups: list[list[Member]]
    leaks: list[Member]

    @property
    def count(self) -> int:
        """Images that belong to a group, or leak."""
        return len(self.leaks) + sum(map(len, self.groups))

    def identical(self) -> int:
        """How many of them hold the same bytes as another."""
        return sum(member.is_identical for group in [*self.groups, self.leaks] for member in group)

    def contradictions(self) -> int:
        """Groups whose images carry different labels; between sets, leaks whose label is another there."""
        mixed = sum(len({member.label for member in group if member.label}) > 1 for group in self.groups)
        there = [self.first.class_of(member.nearest) for member in self.leaks]
        return mixed + sum(
            bool(member.label and name) and member.label != name for member, name in zip(self.leaks, there, strict=True)
        )

    def save(self, path: Path) -> None:
        """Write a line an image, as CSV."""
        text = io.StringIO(newline="")
        table = csv.writer(text, lineterminator="\n")
        table.writerow(
            ["group", "id", "label", "path", "similarity", "nearest", "nearest_label", "nearest_path", "identical"]
        )
        for number, group in enumerate(self.groups or [[leak] for leak in self.leaks], 1):
            for one in group:
                other = (
                    self.first.ids[one.nearest],
                    self.first.class_of(one.nearest),
                    self.first.file(one.nearest) or "",
                )
                own = (one.id, one.label, one.path or "", f"{one.similarity:.4f}")
                table.writerow([number, *own, *other, "yes" if one.is_identical else "no"])
        try:
            write_text(path, text.getvalue())
        except OSError as cause:
            raise EnvironmentProblem(f"cannot write {path}: {cause.strerror or cause}. Choose another --out") from cause


def near_duplicates(first: Embeddings, second: Embeddings | None = None, *, threshold: float = 0.95) -> Duplicates:
    """Find images that are nearly the same, by all pairs. Memory goes with the images, not with the pairs.

    Args:
        first: a set.
        second: another one of the same encoder, which is held against the first; by default the first against itself.
        threshold: the cosine similarity from which on two count as the same.

    Raises:
        UsageError: a threshold that is none.
        DataError: vectors that cannot be compared, or sets of different encoders.
    """
    if not 0 < threshold <= 1:
        raise UsageError(f"--threshold must lie above 0 and at most at 1, got {threshold:g}")
    first = comparable(first, "the index")
    if second is None:
        best, nearest, groups = _within(first.vectors, threshold)
        made = [_group(first, group.tolist(), best, nearest) for group in groups]
        return Duplicates(first, None, threshold, made, [])
    first.check_comparable(second)
    second = comparable(second, "the other set")
    best, nearest = _between(second.vectors, first.vectors, threshold)
    hits = (nearest >= 0).nonzero().flatten()
    hits = hits[best[hits].argsort(descending=True, stable=True)]
    leaks = [
        _member(second, one, best, nearest, _is_copy(second.file(one), first.file(int(nearest[one]))))
        for one in hits.tolist()
    ]
    return Duplicates(first, second, threshold, [], leaks)


def _within(vectors: Tensor, threshold: float) -> tuple[Tensor, Tensor, list[NDArray[np.int64]]]:
    """Per image the best other one (similarity and number, -1 without any), and the groups, largest first."""
    count = len(vectors)
    best, nearest = torch.full((count,), -torch.inf), torch.full((count,), -1)
    parent = np.arange(count)
    with progress("comparing", -(-count // BLOCK)) as advance:
        for top in range(0, count, BLOCK):
            rows = vectors[top : top + BLOCK].float()
            for left in range(top, count, BLOCK):
                similarities = rows @ vectors[left : left + BLOCK].float().T
                if left == top:
                    similarities.fill_diagonal_(-torch.inf)
                if similarities.amax() < _reached(threshold):
                    continue
                _better(best, nearest, top, similarities, left)
                _better(best, nearest, left, similarities.T, top)
                pairs = (similarities >= _reached(threshold)).nonzero().numpy()
                _join(parent, pairs[:, 0] + top, pairs[:, 1] + left)
            advance(1)
    nearest[best < _reached(threshold)] = -1
    return best, nearest, _groups(parent)


def _between(queries: Tensor, bank: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    best, nearest = torch.full((len(queries),), -torch.inf), torch.full((len(queries),), -1)
    with progress("comparing", -(-len(queries) // BLOCK)) as advance:
        for top in range(0, len(queries), BLOCK):
            rows = queries[top : top + BLOCK].float()
            for left in range(0, len(bank), BLOCK):
                similarities = rows @ bank[left : left + BLOCK].float().T
                if similarities.amax() >= _reached(threshold):
                    _better(best, nearest, top, similarities, left)
            advance(1)
    nearest[best < _reached(threshold)] = -1
    return best, nearest


def _reached(threshold: float) -> float:
    """Vectors are of unit length to within rounding, so a threshold of 1 asks for a little less."""
    return threshold - 1e-3 if threshold > 1 - 1e-3 else threshold - 1e-6


def _better(best: Tensor, nearest: Tensor, first: int, similarities: Tensor, offset: int) -> None:
    """Keep the best of each row, the earlier one of equals."""
    values, places = similarities.max(dim=1)
    part = slice(first, first + len(values))
    wins = (values > best[part]) | ((values == best[part]) & (places + offset < nearest[part]))
    best[part] = torch.where(wins, values, best[part])
    nearest[part] = torch.where(wins, places + offset, nearest[part])


def _join(parent: NDArray[np.int64], one: NDArray[np.int64], other: NDArray[np.int64]) -> None:
    """Union-find over many pairs at once: the larger root of each pair is hung below the smaller, until none differ."""
    while True:
        roots = np.stack([_root(parent, one), _root(parent, other)])
        low, high = roots.min(0), roots.max(0)
        if (low == high).all():
            return
        np.minimum.at(parent, high, low)


def _root(parent: NDArray[np.int64], of: NDArray[np.int64]) -> NDArray[np.int64]:
    root = parent[of]
    while (parent[root] != root).any():
        root = parent[root]
    parent[of] = root
    return root


def _groups(parent: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The numbers of each group of at least two, larger groups first, then in the order of their first image."""
    group = _root(parent, np.arange(len(parent)))
    order = np.argsort(group, kind="stable")
    cuts = np.flatnonzero(np.diff(group[order])) + 1
    found = [part for part in np.split(order, cuts) if len(part) > 1]
    return sorted(found, key=lambda part: (-len(part), part[0]))


def _group(of: Embeddings, numbers: list[int], best: Tensor, nearest: Tensor) -> list[Member]:
    """The members of a group; their files are read only where several have one length."""
    lengths = {number: _length(of.file(number)) for number in numbers}
    shared = Counter(length for length in lengths.values() if length is not None)
    hashes = {number: sha256(of.file(number)) for number, length in lengths.items() if shared[length] > 1}
    copies = Counter(hashes.values())
    return [_member(of, number, best, nearest, copies[hashes.get(number)] > 1) for number in numbers]


def _member(of: Embeddings, number: int, best: Tensor, nearest: Tensor, same: bool) -> Member:
    similarity = min(1.0, float(best[number]))
    return Member(number, of.ids[number], of.class_of(number), of.file(number), similarity, int(nearest[number]), same)


def _is_copy(path: Path | None, other: Path | None) -> bool:
    length = _length(path)
    return length is not None and length == _length(other) and sha256(path) == sha256(other)


def _length(path: Path | None) -> int | None:
    """Of a file that can be read."""
    try:
        return path.stat().st_size if path is not None and os.access(path, os.R_OK) else None
    except OSError:
        return None


def sizes(found: Duplicates) -> str:
    """`12 of 2 images, 1 of 17 images`: how many groups of which size."""
    counts = sorted(Counter(map(len, found.groups)).items())
    return ", ".join(f"{number:,} of {size:,} images" for size, number in counts)
