"""The data set my_dataset: generated stripes, in place of your images.

Source and license of the images, and who defined the splits.
"""

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from reptk import DATASETS, rng
from reptk.data import Data, Images, Split

CLASSES = ("2 px", "3 px", "4 px", "5 px")


class MyDataset(Images):
    """Images of 32 x 32 px with lines of different spacing and noise.

    Required are `__len__` and `fetch`. Optional are the other members of `reptk.data.Images`, e.g. `path(number)`, the file
    of an image, which the report shows and a resumed run compares; and `is_gray`.

    Args:
        labels: (n,) int64, the class of each image; -1 for none.
        first: number of the first image among those of all splits, so that no two are equal.
    """

    is_gray = True

    def __init__(self, labels: Tensor, first: int) -> None:
        self.labels = labels
        self.first = first

    def __len__(self) -> int:
        return len(self.labels)

    def fetch(self, numbers: Tensor) -> Tensor:
        """Return the images with these numbers, in their order: (n,) int64 to (n, 3, H, W) uint8, of one size in all splits.

        An image depends on its number alone. Several threads call this at once: open files here, and share none of them.
        A file becomes such an image by `PIL.Image.open(path).convert("RGB")`, `.resize((64, 64))`, and
        `torch.from_numpy(numpy.array(picture)).permute(2, 0, 1)`.
        """
        images = []
        for number in numbers.tolist():
            noise = torch.rand(32, 32, generator=rng.generator("my_dataset", self.first + number))
            is_line = torch.arange(32) % (2 + self.labels[number]) == 0  # (32,)
            pixels = 55 * noise + 200 * is_line[:, None]
            images.append(pixels.to(torch.uint8).expand(3, -1, -1))
        return torch.stack(images)


@DATASETS.register("my_dataset")
def my_dataset(
    train: Annotated[int, Ge(1)] = 400, bank: Annotated[int, Ge(1)] = 200, query: Annotated[int, Ge(1)] = 100
) -> Data:
    """Stripes of four widths, generated.

    The parameters are what the recipe's [data] table may set; names, types, ranges and defaults are those of this
    signature. A parameter without a default, such as `root: str`, has to be set: `data.root=photos`.

    Args:
        train: number of images to train on. Their labels may all be -1.
        bank: number of labeled images that evaluation searches.
        query: number of labeled images whose neighbors in the bank are measured. Without labels there is neither bank nor
            query (None); with `query` the same `Split` object as `bank`, each query is left out of its own search.

    Raises:
        OSError: files are missing (`FileNotFoundError`), which is reported in one line.
    """
    splits = []
    first = 0
    for count in (train, bank, query):
        labels = torch.arange(count) % len(CLASSES)
        splits.append(Split(MyDataset(labels, first), labels))
        first += count
    return Data(*splits, classes=CLASSES, protocol="generated stripes, classes in turn")
