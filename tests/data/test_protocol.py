"""Images as data sets provide them: required and optional members, images in memory, subsets."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from image_files import fetch_all, relative_paths, write_images
from reptk.data import Data, Images, InMemory, Split, WritableImages, digits, folder, generated, subsample
from reptk.data.protocol import subset

pytestmark = pytest.mark.filterwarnings("ignore:no class of .* is held out")


class Constant(Images):
    """Images whose pixels are their number, with the defaults of everything optional."""

    def __len__(self) -> int:
        return 9

    def fetch(self, numbers: Tensor) -> Tensor:
        return numbers.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)


class WritableConstant(WritableImages):
    size = 2

    def __len__(self) -> int:
        return 9

    def fetch_into(self, numbers: Tensor, out: np.ndarray) -> None:
        out[:] = numbers.view(-1, 1, 1, 1).numpy()


# Members


@pytest.mark.parametrize("images", [Constant(), WritableConstant()])
def test_optional_members_have_defaults(images):
    assert images.is_gray is False
    assert images.decoded_by is None
    assert images.path(3) is None


def test_fetch_follows_from_fetch_into():
    images = WritableConstant().fetch(torch.tensor([7, 2]))
    assert torch.equal(images, Constant().fetch(torch.tensor([7, 2])))
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_image_files_have_paths_and_decoders(tmp_path):
    images = folder(str(write_images(tmp_path, cat=2, dog=1)), size=8, jpeg="pillow").train.images
    assert images.path(2) == tmp_path / "dog" / "00.png"
    assert images.decoded_by.startswith("pillow ")


# Images in memory


def test_gray_images_are_fetched_with_three_equal_channels():
    pixels = torch.randint(0, 256, (5, 1, 4, 4), dtype=torch.uint8)
    images = InMemory(pixels)
    assert images.is_gray
    assert torch.equal(images.fetch(torch.tensor([4, 0])), torch.cat([pixels[[4, 0]]] * 3, dim=1))


def test_channels_of_gray_images_share_their_memory():
    images = InMemory(torch.zeros(9, 1, 4, 4, dtype=torch.uint8)).fetch(torch.tensor([1, 2]))
    assert images.shape == (2, 3, 4, 4)
    assert images.stride(1) == 0


def test_pixels_are_unchanged():
    for channels in (1, 3):
        pixels = torch.randint(0, 256, (5, channels, 4, 6), dtype=torch.uint8)
        images = InMemory(pixels)
        assert torch.equal(images.pixels, pixels)
        assert torch.equal(images.fetch(torch.tensor([3, 3, 0])), pixels[[3, 3, 0]].expand(-1, 3, -1, -1))
        assert images.to("cpu") is images


@pytest.mark.parametrize(
    "pixels", [torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4).byte(), torch.zeros(2, 2, 4, 4).byte()]
)
def test_images_in_memory_must_be_uint8_with_one_or_three_channels(pixels):
    with pytest.raises(ValueError, match="images must be uint8"):
        InMemory(pixels)


# Subsets


@pytest.mark.parametrize("images", [Constant(), WritableConstant()])
def test_subset_selects_images_and_labels(images):
    numbers = torch.tensor([5, 1, 8])
    part = subset(Split(images, torch.arange(9) * 10), numbers)
    assert isinstance(part.images, WritableImages) == isinstance(images, WritableImages)
    assert len(part) == len(part.images) == 3
    assert part.labels.tolist() == [50, 10, 80]
    assert torch.equal(fetch_all(part), images.fetch(numbers))
    assert torch.equal(part.images.fetch(torch.tensor([2])), images.fetch(torch.tensor([8])))


def test_subset_retains_optional_members(tmp_path):
    train = folder(str(write_images(tmp_path, cat=4, dog=3)), size=8).train
    part = subset(train, torch.tensor([6, 0]))
    assert part.images.decoded_by == train.images.decoded_by
    assert relative_paths(part, tmp_path) == ["dog/02.png", "cat/00.png"]
    assert subset(digits().train, torch.tensor([0])).images.is_gray
    assert not subset(generated().train, torch.tensor([0])).images.is_gray


def test_subsample_limits_every_split_and_draws_the_same_images_each_time():
    data = generated(train=30, bank=20, query=4)
    limited, again = subsample(data, 10), subsample(data, 10)
    assert [len(split) for split in (limited.train, limited.bank, limited.query)] == [10, 10, 4]
    assert limited.query is data.query
    assert torch.equal(fetch_all(limited.train), fetch_all(again.train))
    assert data.protocol in limited.protocol
    assert "at most 10" in limited.protocol


def test_subsample_leaves_one_split_one():
    shared = subsample(digits(), 10)
    assert shared.train is shared.bank
    train = digits().train
    leave_one_out = subsample(Data(train, train, train, ("0",), "leave-one-out"), 10)
    assert leave_one_out.query is leave_one_out.bank is leave_one_out.train


def test_subsample_without_labels_has_no_bank(tmp_path: Path):
    limited = subsample(folder(str(write_images(tmp_path, **{"": 5})), size=8), 3)
    assert (limited.bank, limited.query) == (None, None)
    assert len(limited.train) == 3
