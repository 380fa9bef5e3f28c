"""Fixtures for the tests of losses."""

from collections.abc import Iterator

import pytest

from reptk.losses.core import positive_blocks, tiled


@pytest.fixture(scope="module")
def small_tiles() -> Iterator[None]:
    """Make tiles and blocks so small that a handful of rows needs several."""
    default_sizes = tiled.TILE, positive_blocks.BLOCK_PAIRS
    tiled.TILE, positive_blocks.BLOCK_PAIRS = 3, 6
    yield
    tiled.TILE, positive_blocks.BLOCK_PAIRS = default_sizes
