"""The images that the page contains as data URIs, each once, however often it is shown."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from reptk.report.data_uri import image_data_uri
from reptk.report.file_link import file_link
from reptk.report.run_images import RunImages, read_images


@dataclass(frozen=True)
class PlacedImage:
    """A place of the page where an image is shown.

    Args:
        description: the text in place of the image.
        name: under which the page's data has the image; empty if it has none.
        link: address of the image's file, relative to the page; empty if it is not in a file.
    """

    description: str
    name: str = ""
    link: str = ""


@dataclass
class EmbeddedImages:
    """Data URIs by name; the page's script puts them where they are shown.

    Args:
        max_bytes: images are added until the URIs together are this long.
        folder: of the page, from which links to files begin; None for no links.
    """

    max_bytes: int = 0
    folder: Path | None = None
    uris: dict[str, str] = field(default_factory=dict)
    _is_full: bool = False

    def set_max_bytes(self, max_bytes: int) -> None:
        """Allow this many bytes in all from now on."""
        self.max_bytes = max_bytes
        self._is_full = False

    def add(self, images: RunImages, split_name: str, numbers: Tensor) -> None:
        """Read and add the images that are not embedded yet. Unreadable ones are left out."""
        missing = []
        for number in numbers.unique().tolist():
            if _name(images, split_name, number) not in self.uris:
                missing.append(number)
        if not missing or images.data is None:
            return
        # Characters are bytes, since base64 is ASCII.
        total_bytes = sum(len(uri) for uri in self.uris.values())
        pixels = read_images(images.split(split_name), torch.tensor(missing))
        for number, image in zip(missing, pixels, strict=True):
            if image is None:
                continue
            uri = image_data_uri(image)
            total_bytes += len(uri)
            if total_bytes > self.max_bytes:
                self._is_full = True  # for smaller images too, so that what is shown does not depend on chance
            if not self._is_full:
                self.uris[_name(images, split_name, number)] = uri

    def add_view(self, name: str, image: Tensor) -> None:
        """Add an image (3, H, W) uint8 that is not in the data set; it does not count against `max_bytes`."""
        self.uris[name] = image_data_uri(image)

    def placed_image(self, images: RunImages, split_name: str, number: int, description: str) -> PlacedImage:
        """Return the place of an image of the data set, which is empty if the image is not embedded."""
        name = _name(images, split_name, number)
        if name not in self.uris:
            return PlacedImage(description)
        link = ""
        path = images.file(split_name, number)
        if path is not None and self.folder is not None:
            link = file_link(path, self.folder)
        return PlacedImage(description, name, link)


def _name(images: RunImages, split_name: str, number: int) -> str:
    return f"{images.key}/{split_name}/{number}"
