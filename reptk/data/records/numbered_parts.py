"""Consecutive numbers of the images in several parts, such as files, and ids that name the part and the row in it."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray


class NumberedParts:
    """Parts of a record source whose images are numbered from 0 through all parts.

    Args:
        sizes: number of images of each part.
        ids: names of the parts in the ids of images.

    Attributes:
        starts: (parts + 1,) number of the first image of each part, and of all images.
    """

    def __init__(self, sizes: Iterable[int], ids: Sequence[str] = ()) -> None:
        self.starts: NDArray[np.int64] = np.array([0, *sizes], np.int64).cumsum()
        self.ids = list(ids)

    @property
    def num_images(self) -> int:
        return int(self.starts[-1])

    def find_row(self, number: int) -> tuple[int, int]:
        """Return the part of an image, and its row in this part, from 0."""
        part = int(np.searchsorted(self.starts, number, side="right")) - 1
        return part, number - int(self.starts[part])

    def image_id(self, number: int) -> str:
        """Return the id of an image: that of its part and the row, as in train/17."""
        part, row = self.find_row(number)
        return f"{self.ids[part]}/{row}"

    def find(self, image_id: str) -> int | None:
        """Return the number of the image with this id; None if there is none."""
        name, _, row = image_id.rpartition("/")
        if name not in self.ids or not row.isdecimal():
            return None
        part = self.ids.index(name)
        number = int(self.starts[part]) + int(row)
        if number >= self.starts[part + 1]:
            return None
        return number
