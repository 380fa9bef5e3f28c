"""Random orders of any number of images that are computed where they are needed, in place of a permutation in memory.

Every order is a function of a key. Up to `MAX_PERMUTED` numbers it is `torch.randperm`; above, a Feistel network with cycle
walking (Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains"), which needs no memory and gives the number at any
position.
"""

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reptk.core import rng

MAX_PERMUTED = 1 << 23
"""Numbers of which a permutation is drawn, 64 MB. Another limit would change the orders of data sets between the two."""

ROUNDS = 8
"""Of the Feistel network; each mixes one half of the bits into the other."""

DEFAULT_BLOCK = 1024
"""Consecutive images that are read together, of collections without shards."""


class EpochBatches:
    """The batches of an epoch: item `step` is the numbers (batch_size,) of its images.

    Args:
        order: of all images; the remainder that does not fill a batch is dropped.
        steps: number of batches.
        batch_size: images of a batch.
    """

    def __init__(self, order: "FeistelOrder | WindowOrder", steps: int, batch_size: int) -> None:
        self.order = order
        self.steps = steps
        self.batch_size = batch_size

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Tensor:
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} of {self.steps}")
        return self.order.at(torch.arange(step * self.batch_size, (step + 1) * self.batch_size))


class FeistelOrder:
    """A bijection of the numbers below `size`, as a function of a key.

    Args:
        size: how many numbers.
        key: of the order, as `rng.key` takes it.
    """

    def __init__(self, size: int, *key: int | str) -> None:
        self.size = size
        bits = max(2, (size - 1).bit_length())
        self._low_bits = bits // 2
        self._low_mask = (1 << self._low_bits) - 1
        self._high_mask = (1 << (bits - self._low_bits)) - 1
        self._round_keys = [rng.key(*key, "round", number) for number in range(ROUNDS)]

    def at(self, positions: Tensor) -> Tensor:
        """Return the numbers (n,) int64 at positions (n,) int64 of the order."""
        numbers = self._encrypt(positions)
        # Cycle walking: the network permutes up to twice as many numbers; one that is too large is encrypted again.
        outside = (numbers >= self.size).nonzero()[:, 0]
        while len(outside):
            numbers[outside] = self._encrypt(numbers[outside])
            outside = outside[numbers[outside] >= self.size]
        return numbers

    def _encrypt(self, numbers: Tensor) -> Tensor:
        low = numbers & self._low_mask
        high = numbers >> self._low_bits
        for number, key in enumerate(self._round_keys):
            if number % 2:
                low = low ^ (rng.hash_numbers(key, high) & self._low_mask)
            else:
                high = high ^ (rng.hash_numbers(key, low) & self._high_mask)
        return (high << self._low_bits) | low


def random_order(size: int, *key: int | str) -> "FeistelOrder | PermutedOrder":
    """Return a random order of the numbers below `size`, as a function of a key."""
    if size <= MAX_PERMUTED:
        return PermutedOrder(torch.randperm(size, generator=rng.generator(*key)))
    return FeistelOrder(size, *key)


class PermutedOrder:
    """An order that is in memory.

    Args:
        order: (n,) the numbers.
    """

    def __init__(self, order: Tensor) -> None:
        self.order = order

    def at(self, positions: Tensor) -> Tensor:
        """Return the numbers (n,) int64 at positions (n,) int64 of the order."""
        return self.order[positions]


class WindowOrder:
    """Images in windows of some shards: the shards in a random order, and the images of each window in a random order.

    A process reads from one window at a time, and each shard is in one window of an epoch, so that a disk in the network reads
    it as a whole.

    Args:
        starts: (b,) ascending numbers at which the shards begin, from 0.
        size: number of all images.
        per_window: shards of a window.
        seed, epoch: which the order is a function of.
    """

    def __init__(self, starts: NDArray[np.int64], size: int, *, per_window: int, seed: int, epoch: int) -> None:
        self._key = (seed, "order", "window", epoch)
        order = random_order(len(starts), seed, "order", "shards", epoch)
        self._blocks = order.at(torch.arange(len(starts)))
        starts = torch.from_numpy(np.asarray(starts, np.int64))
        sizes = torch.diff(starts, append=torch.tensor([size]))
        self._starts = starts[self._blocks]
        # Where each shard begins in the order, and where the last one ends.
        self._offsets = torch.cat([torch.zeros(1, dtype=torch.long), sizes[self._blocks].cumsum(0)])
        self._per_window = per_window
        self._window_offsets = torch.cat([self._offsets[:-1:per_window], self._offsets[-1:]])
        self._order_in = lru_cache(maxsize=2)(self._order_of_window)

    def at(self, positions: Tensor) -> Tensor:
        """Return the numbers (n,) int64 at positions (n,) int64 of the order."""
        numbers = torch.empty_like(positions)
        windows = torch.searchsorted(self._window_offsets, positions, right=True) - 1
        for window in windows.unique().tolist():
            is_inside = windows == window
            first = int(self._window_offsets[window])
            shuffled = first + self._order_in(window).at(positions[is_inside] - first)
            blocks = torch.searchsorted(self._offsets, shuffled, right=True) - 1
            numbers[is_inside] = self._starts[blocks] + shuffled - self._offsets[blocks]
        return numbers

    def _order_of_window(self, window: int) -> "FeistelOrder | PermutedOrder":
        size = int(self._window_offsets[window + 1] - self._window_offsets[window])
        return random_order(size, *self._key, window)


def default_blocks(size: int) -> NDArray[np.int64]:
    """Return the starts of blocks of consecutive images, for collections without shards."""
    return np.arange(0, size, DEFAULT_BLOCK)
