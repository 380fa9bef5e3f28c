"""The atlas of thumbnails: its size in bytes and pixels."""

import pytest
import torch

from report_pages import decode_data_uri
from reptk.data import InMemory, Split
from reptk.report.thumbnail_atlas import MAX_PIXELS, build_atlas


@pytest.mark.parametrize("max_bytes", [1_500_000, 60_000])
def test_an_atlas_stays_within_its_bytes(max_bytes: int) -> None:
    noise = torch.randint(256, (500, 3, 120, 120), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    atlas = build_atlas(Split(InMemory(noise), torch.zeros(500)), torch.arange(500), max_bytes)
    assert len(atlas.uri) <= max_bytes
    sheet = decode_data_uri(atlas.uri)
    assert sheet.shape[0] * sheet.shape[1] <= MAX_PIXELS
    assert sheet.shape[1] == atlas.columns * atlas.cell
    assert max(atlas.width, atlas.height) <= atlas.cell
