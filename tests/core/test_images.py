"""Images as the encoder receives them: the resize and center crop of evaluation, and which images are refused."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as reference

from reptk.core.images import resize_center_crop, to_float


def smooth_images(*shape: int) -> Tensor:
    """Smooth random images with a little noise, uint8."""
    low_resolution = torch.rand(shape[0], 3, 12, 17, generator=torch.Generator().manual_seed(0))
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    smooth = torch.nn.functional.interpolate(low_resolution, shape[2:], mode="bicubic").clamp(0, 1)
    return (255 * (0.8 * smooth + 0.2 * noise)).to(torch.uint8)


@pytest.mark.parametrize("crop", [1.0, 0.875])
@pytest.mark.parametrize("size", [56, 112, 224, 448])
@pytest.mark.parametrize(("height", "width"), [(420, 630), (400, 400), (420, 280)])
def test_resize_center_crop_equals_torchvision(height, width, size, crop):
    images = smooth_images(2, 3, height, width)
    short = round(size / crop)
    for batch in (images, images.transpose(2, 3)):
        resized = reference.resize(batch.float() / 255, [short], antialias=True)
        cropped = resize_center_crop(batch, size, crop)
        torch.testing.assert_close(cropped, reference.center_crop(resized, [size, size]), atol=1e-5, rtol=0)
        assert torch.equal(cropped, resize_center_crop(batch.float() / 255, size, crop))


def test_longer_side_is_rounded_down_as_in_torchvision():
    images = smooth_images(1, 3, 427, 640)
    resized = reference.resize(images.float() / 255, [224, int(224 * 640 / 427)], antialias=True)
    left = round((resized.shape[-1] - 224) / 2)
    torch.testing.assert_close(resize_center_crop(images, 224), resized[..., left : left + 224], atol=1e-5, rtol=0)


def test_image_of_the_requested_size_is_unchanged():
    images = smooth_images(3, 3, 32, 32)
    assert torch.equal(resize_center_crop(images, 32), images.float() / 255)


REFUSED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "floats in 0..255": (lambda images: images.float(), r"must lie in 0\.\.1, got \d"),
    "centered floats": (lambda images: images / 255 - 0.5, r"must lie in 0\.\.1, got -0\.\d"),
    "int64": (lambda images: images.long(), "got torch.int64"),
    "bool": (lambda images: images > 128, "got torch.bool"),
    "int8": (lambda images: images.to(torch.int8), "got torch.int8"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize(
    "function", [to_float, lambda images: resize_center_crop(images, 32)], ids=["to_float", "crop"]
)
def test_images_of_another_range_or_type_are_refused(function, kind):
    change, message = REFUSED[kind]
    with pytest.raises(ValueError, match=message):
        function(change(smooth_images(2, 3, 32, 32)))


def test_to_float_accepts_uint8_and_floats_in_0_to_1():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8)
    torch.testing.assert_close(to_float(images), torch.tensor([0.0, 0.2, 1.0]), atol=0, rtol=0)
    unit = torch.tensor([0.0, 0.2, 1.0])
    assert to_float(unit) is unit
    assert to_float(torch.empty(0, 3, 4, 4)).shape == (0, 3, 4, 4)


def test_a_line_of_pixels_takes_no_memory_to_speak_of():
    """Resized as a whole, it would have 64 * 64 * 3,000,000 pixels."""
    line = torch.zeros(1, 3, 1, 3_000_000, dtype=torch.uint8)
    line[..., 1_499_000:1_501_000] = 255
    assert resize_center_crop(line, 64).min() == 1
    assert resize_center_crop(line.transpose(2, 3), 64).min() == 1
