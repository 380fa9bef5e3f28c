"""Fixtures for the tests of implementations."""

import pytest

from reptk.losses.core import positive_blocks, tiled


@pytest.fixture(params=[(16, 2**18), (16, 40), (512, 2**18)], ids=["several tiles", "small blocks", "one tile"])
def tiles(request, monkeypatch):
    tile, block_pairs = request.param
    monkeypatch.setattr(tiled, "TILE", tile)
    monkeypatch.setattr(positive_blocks, "BLOCK_PAIRS", block_pairs)
