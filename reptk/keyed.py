"""Randomness as a function of a key: nothing in reptk draws from a stream that somebody else may have advanced.

Letters used for tensors everywhere: B images, V views, N = V * B * ranks rows, D embedding, F features, C classes;
`z` embeddings, `h` features, `ids` what makes two rows positives of each other.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def fold(*parts: int | str) -> int:
    """A 63-bit key from any sequence of integers and strings; the same on every machine and in every process."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator of its own, started from `fold(*parts)` (of which torch's CPU generators use 32 bits)."""
    return torch.Generator().manual_seed(fold(*parts))


@contextmanager
def keyed(*parts: int | str) -> Iterator[None]:
    """Let torch's CPU generator start from `fold(*parts)` inside the block, and put it back afterwards."""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(fold(*parts))
    try:
        yield
    finally:
        torch.set_rng_state(state)
