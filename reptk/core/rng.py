"""Randomness as a function of a key: nothing in reptk draws from a stream that somebody else may have advanced.

Letters used for tensors everywhere: B images, V views, N = V * B * ranks rows, D embedding, F features, C classes;
`z` embeddings, `h` features, `ids` what makes two rows positives of each other.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# Odd multipliers and shifts of SplitMix64 (Steele et al. 2014) as signed 64-bit integers.
STEP, FIRST, SECOND = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15


def key(*parts: int | str) -> int:
    """A 63-bit key from any sequence of integers and strings; the same on every machine and in every process."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator of its own, started from `key(*parts)` (of which torch's CPU generators use 32 bits)."""
    return torch.Generator().manual_seed(key(*parts))


@contextmanager
def seeded(*parts: int | str) -> Iterator[None]:
    """Let torch's CPU generator start from `key(*parts)` inside the block, and put it back afterwards."""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(key(*parts))
    try:
        yield
    finally:
        torch.set_rng_state(state)


def uniform(key: int, salts: Tensor, rows: Tensor) -> Tensor:
    """Numbers in [0, 1), each a function of (key, salt of its column, row) alone.

    The same on every device, for any selection and order of the rows, and with no state and no wait for a GPU. 24 bits each.

    Args:
        key: of 63 bits.
        salts: (k,) int64, of 63 bits; tell apart what is drawn under one key.
        rows: (n,) int64, numbers of the rows, on the same device.

    Returns:
        (n, k) float32.
    """
    # A compiler that knows the rows to be counted would multiply them as it does indices, in 32 bits: `& -1` hides it.
    bits = _mixed(_mixed((rows[:, None] & -1) * STEP + salts) + key)
    return _shifted(bits, 40).float() * 2**-24


def _mixed(bits: Tensor) -> Tensor:
    bits = (bits ^ _shifted(bits, 30)) * FIRST
    bits = (bits ^ _shifted(bits, 27)) * SECOND
    return bits ^ _shifted(bits, 31)


def _shifted(bits: Tensor, by: int) -> Tensor:
    """Shifted right as unsigned numbers are."""
    return (bits >> by) & ((1 << (64 - by)) - 1)
