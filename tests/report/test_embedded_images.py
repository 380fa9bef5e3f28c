"""Images in the page: their size in pixels and in bytes."""

import torch

from report_pages import decode_data_uri
from reptk.data import Data, InMemory, Split
from reptk.report.data_uri import image_data_uri
from reptk.report.embedded_images import EmbeddedImages, PlacedImage
from reptk.report.run_images import RunImages


def test_embedded_images_stay_within_their_bytes() -> None:
    noise = torch.randint(256, (40, 3, 90, 90), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    split = Split(InMemory(noise), torch.zeros(40))
    images = RunImages("d0", Data(split, split, split, (), ""))
    embedded = EmbeddedImages()
    for max_bytes in (30_000, 60_000):
        embedded.set_max_bytes(max_bytes)
        embedded.add(images, "query", torch.arange(40))
        assert max_bytes / 2 < sum(map(len, embedded.uris.values())) <= max_bytes
    assert embedded.placed_image(images, "query", 0, "it") == PlacedImage("it", "d0/query/0")
    assert embedded.placed_image(images, "query", 39, "it") == PlacedImage("it")


def test_small_images_are_lossless_and_large_ones_reduced() -> None:
    image = torch.randint(256, (3, 40, 40), dtype=torch.uint8)
    assert (decode_data_uri(image_data_uri(image)) == image.permute(1, 2, 0).numpy()).all()
    large_image = torch.randint(256, (3, 300, 200), dtype=torch.uint8)
    assert decode_data_uri(image_data_uri(large_image)).shape == (128, 85, 3)
