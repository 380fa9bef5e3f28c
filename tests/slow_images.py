"""Images that record who fetches them, for the tests of batches."""

import threading
import time

import torch
from torch import Tensor

from reptk.data import Images, InMemory, Split, WritableImages


def numbered_split(count: int) -> Split:
    """Images in memory whose pixels are their number; labels that are ten times it."""
    pixels = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2).contiguous()
    return Split(InMemory(pixels), torch.arange(count) * 10)


class SlowImages(Images):
    """Images whose pixels are their number, as a plugin would implement them.

    Args:
        count: how many.
        bad: number of an image that raises LookupError.
    """

    def __init__(self, count: int, bad: int | None = None) -> None:
        self.count = count
        self.bad = bad
        self.threads: set[int] = set()
        self.fetched: list[int] = []

    def __len__(self) -> int:
        return self.count

    def fetch(self, numbers: Tensor) -> Tensor:
        self.threads.add(threading.get_ident())
        self.fetched += numbers.tolist()
        time.sleep(0.001)
        if self.bad in numbers.tolist():
            raise LookupError(f"image {self.bad}")
        return numbers.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4).contiguous()


class SlowWritableImages(WritableImages):
    """The same images, written into the batch."""

    size = 4

    def __init__(self, count: int) -> None:
        self.images = SlowImages(count)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def fetched(self) -> list[int]:
        return self.images.fetched

    def fetch_into(self, numbers: Tensor, out: object) -> None:
        out[:] = self.images.fetch(numbers).permute(0, 2, 3, 1).numpy()
