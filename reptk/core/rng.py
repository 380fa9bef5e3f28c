"""Random numbers as functions of a key, as in JAX: they do not depend on what other code has drawn before.

    rng.key(seed, "views", step)            a 63-bit integer
    rng.generator(seed, "order", epoch)     a torch.Generator seeded with that key
    with rng.seeded(seed, "weights"): ...   torch's global CPU generator, seeded inside the block and restored after it

Letters used for tensors throughout the package: B images, V views, N = V * B * ranks rows, D embedding, F features,
C classes; `z` embeddings, `h` features, `ids` (rows that share an id are positives of each other).
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from reptk.core.numba_jit import compile_exact

# SplitMix64 (Steele et al. 2014): the increment and the two multipliers of its finaliser, as signed 64-bit integers.
INCREMENT = -0x61C8864680B583EB
MULTIPLIER_1 = -0x40A7B892E31B1A47
MULTIPLIER_2 = -0x6B2FB644ECCEEE15


def key(*parts: int | str) -> int:
    """Return a 63-bit key of a sequence of integers and strings; the same on every machine and in every process."""
    # Not hash(): Python's hashes of strings differ from process to process.
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """Return a new CPU generator seeded with `key(*parts)` (of which torch's CPU generators use 32 bits)."""
    return torch.Generator().manual_seed(key(*parts))


@contextmanager
def seeded(*parts: int | str) -> Iterator[None]:
    """Seed torch's global CPU generator with `key(*parts)` inside the block; restore its state afterwards."""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(key(*parts))
    try:
        yield
    finally:
        torch.set_rng_state(state)


@contextmanager
def seeded_numpy(*parts: int | str) -> Iterator[None]:
    """Seed NumPy's global generator with 32 bits of `key(*parts)` inside the block, for libraries that draw from it."""
    state = np.random.get_state()
    np.random.seed(key(*parts) & 0xFFFFFFFF)
    try:
        yield
    finally:
        np.random.set_state(state)


def uniform(key: int, salts: Tensor, rows: Tensor) -> Tensor:
    """Return numbers in [0, 1) that depend on (key, salt of the column, row number) alone: a counter-based generator.

    The values are the same on every device, for any subset and order of the rows. There is no state, and a GPU needs no
    synchronisation. Each has 24 random bits.

    Args:
        key: 63 bits.
        salts: (k,) int64 of 63 bits; one column each, so that several quantities can be drawn under one key.
        rows: (n,) int64 row numbers, on the same device.

    Returns:
        (n, k) float32.
    """
    if rows.device.type == "cpu" and not torch.compiler.is_compiling():
        fill_uniform = compile_exact(_fill_uniform)
        if fill_uniform is not None:
            out = np.empty((len(rows), len(salts)), np.float32)
            constants = [np.uint64(value % 2**64) for value in (key, INCREMENT, MULTIPLIER_1, MULTIPLIER_2)]
            fill_uniform(out, rows.numpy().view(np.uint64), salts.numpy().view(np.uint64), *constants)
            return torch.from_numpy(out)
    # torch.compile multiplies what it knows to be index arithmetic in 32 bits; `& -1` hides that these are row numbers.
    bits = _mix((rows[:, None] & -1) * INCREMENT + salts)
    bits = _mix(bits + key)
    return _shift_right(bits, 40).float() * 2**-24  # 24 bits, which float32 represents exactly


def _fill_uniform(out, rows, salts, key, increment, multiplier_1, multiplier_2):
    """The operations of `uniform` as one loop, compiled with numba.

    As torch operations they are fifteen passes over all numbers, which take a tenth of the time of small views on a CPU.
    """
    for row in range(len(rows)):
        for column in range(len(salts)):
            bits = rows[row] * increment + salts[column]
            bits = (bits ^ (bits >> np.uint64(30))) * multiplier_1
            bits = (bits ^ (bits >> np.uint64(27))) * multiplier_2
            bits = (bits ^ (bits >> np.uint64(31))) + key
            bits = (bits ^ (bits >> np.uint64(30))) * multiplier_1
            bits = (bits ^ (bits >> np.uint64(27))) * multiplier_2
            bits = bits ^ (bits >> np.uint64(31))
            out[row, column] = np.float32(bits >> np.uint64(40)) * np.float32(2**-24)


def hash_numbers(key: int, numbers: Tensor) -> Tensor:
    """Return 64 random bits for each of these numbers (n,) int64, as int64: a function of the key and the number."""
    return _mix(_mix(numbers * INCREMENT + key) + INCREMENT)


def _mix(bits: Tensor) -> Tensor:
    """SplitMix64's finaliser."""
    bits = (bits ^ _shift_right(bits, 30)) * MULTIPLIER_1
    bits = (bits ^ _shift_right(bits, 27)) * MULTIPLIER_2
    return bits ^ _shift_right(bits, 31)


def _shift_right(bits: Tensor, count: int) -> Tensor:
    """Shift right and fill with zeros: torch's `>>` on int64 repeats the sign bit."""
    return (bits >> count) & ((1 << (64 - count)) - 1)
