"""From a picture of any shape to a square: the same pixels as torchvision and timm, with a cache and without."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, InterpolationMode, Resize

from image_files import BLUE, GREEN, RED, every_decoder, photograph, same_data
from reptk.data import Loader, folder
from reptk.data.decoding.decode import decode
from reptk.data.decoding.resize import BORDER_COLOR, Preprocessing, SquareOptions, resize_picture, write_square
from reptk.models.preprocessing import preprocessing_of, with_preprocessing

SIZE = 48


def striped(size: tuple[int, int]) -> Image.Image:
    """A red, a green and a blue third along the longer side."""
    image = Image.new("RGB", (90, 10), GREEN)
    image.paste(RED, (0, 0, 30, 10))
    image.paste(BLUE, (60, 0, 90, 10))
    if size[1] > size[0]:
        image = image.transpose(Image.Transpose.ROTATE_270)
    return image.resize(size, Image.Resampling.NEAREST)


def square_of(image: Image.Image, resize: str, size: int = SIZE) -> torch.Tensor:
    picture = resize_picture(image, size, "crop", "bilinear")
    square = np.empty((size, size, 3), np.uint8)
    write_square(picture, square, SquareOptions(resize))
    return torch.from_numpy(square).permute(2, 0, 1)


# The same pixels as others


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(640, 427), (427, 640), (101, 100), (100, 101), (64, 64), (400, 90)])
@pytest.mark.parametrize(("decode_px", "crop_px"), [(256, 224), (235, 224), (73, 64), (64, 64)])
def test_the_center_crop_is_torchvisions(size, interpolation, decode_px, crop_px):
    image = photograph().resize(size)
    expected = CenterCrop(crop_px)(Resize(decode_px, InterpolationMode(interpolation))(image))
    square = np.empty((decode_px, decode_px, 3), np.uint8)
    write_square(resize_picture(image, decode_px, "crop", interpolation), square, SquareOptions(crop_px=crop_px))
    start = round((decode_px - crop_px) / 2)
    center = square[start : start + crop_px, start : start + crop_px]
    assert np.array_equal(center, np.asarray(expected))


@pytest.mark.parametrize(("crop_mode", "resize"), [("center", "crop"), ("squash", "squash"), ("border", "pad")])
@pytest.mark.parametrize("size", [(300, 200), (200, 300), (200, 201)])
def test_files_become_what_timms_transform_makes_of_them(tmp_path, size, crop_mode, resize):
    from timm.data import create_transform

    photograph().resize(size).save(tmp_path / "a.png")
    transform = create_transform(
        (3, 64, 64), interpolation="bicubic", crop_mode=crop_mode, crop_pct=1.0, mean=(0.5, 0.5, 0.5), std=(1, 1, 1)
    )
    expected = (transform(Image.open(tmp_path / "a.png")) + 0.5) * 255
    decoded = decode(
        tmp_path / "a.png",
        64,
        square=SquareOptions(resize, "bicubic", crop_px=64, border_color=(128, 128, 128)),
    )
    # The border of a picture with an odd margin may be a pixel further.
    assert (decoded - expected).abs().mean() < 0.1


def test_pictures_longer_than_two_to_one_keep_their_middle():
    picture = resize_picture(striped((600, 100)), SIZE, "crop", "bilinear")
    assert picture.shape == (SIZE, 2 * SIZE, 3)
    # The middle third is green, and is exactly 2:1.
    assert np.abs(picture[:, 2:-2].astype(int) - GREEN).max() <= 2


def test_a_line_of_pixels_takes_no_memory_to_speak_of():
    picture = resize_picture(Image.new("RGB", (60000, 1), RED), 256, "crop", "bilinear")
    assert picture.shape == (256, 512, 3)


# Kinds of squares


@pytest.mark.parametrize("size", [(90, 60), (60, 90)])
def test_a_whole_picture_is_padded_or_squashed(size):
    along = 2 if size[0] > size[1] else 1
    # Of 90 px, 15 to 75 are in the center square: half of the red and of the blue third, and all of the green one.
    cropped = square_of(striped(size), "crop").transpose(along, 2)
    assert [cropped[:, 24, place].tolist() for place in (4, 24, 44)] == [list(RED), list(GREEN), list(BLUE)]
    assert cropped[:, 24, 14].tolist() == list(GREEN)
    squashed = square_of(striped(size), "squash").transpose(along, 2)
    assert squashed[:, 24, 8].tolist() == list(RED)
    assert squashed[:, 24, 40].tolist() == list(BLUE)
    padded = square_of(striped(size), "pad").transpose(along, 2)
    assert padded[:, 24, 4].tolist() == list(RED)
    assert padded[:, 24, 44].tolist() == list(BLUE)
    # 48 px wide, 32 px high: 8 px of border above and below.
    assert (padded[:, [0, 7, 40, 47]] == torch.tensor(BORDER_COLOR)[:, None, None]).all()
    assert (padded[:, 8, 24] == torch.tensor(GREEN)).all()


def test_squares_are_the_same_however_they_are_made():
    image = photograph().resize((200, 200))
    assert torch.equal(square_of(image, "crop"), square_of(image, "pad"))
    assert torch.equal(square_of(image, "crop"), square_of(image, "squash"))


# Data sets


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(12):
        size = [(120, 60), (60, 100), (80, 80), (300, 60)][number % 4]
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number:02}.{'jpg' if number % 3 else 'png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph().crop((10 * number, 0, 10 * number + 300, 200)).resize(size).save(path)
    return tmp_path / "photos"


@every_decoder
@pytest.mark.parametrize("resize", ["crop", "pad", "squash"])
def test_a_cache_gives_the_same_squares_and_aspect_ratios(photos, resize, jpeg):
    plain = folder(str(photos), size=SIZE, jpeg=jpeg)
    cached = folder(str(photos), size=SIZE, jpeg=jpeg, cache=str(photos.parent / "cache"))
    numbers = torch.arange(len(plain.train))
    for data in (plain, cached, cached):
        images = data.train.images.resized(resize)
        assert torch.equal(images.fetch(numbers), plain.train.images.resized(resize).fetch(numbers))
        aspect_ratios = images.aspect_ratios(numbers)
        assert (aspect_ratios is None) == (resize != "squash")
        if resize == "squash":
            expected = [min(max(0.5, w / h), 2.0) for w, h in map(size_of, map(images.path, numbers.tolist()))]
            torch.testing.assert_close(aspect_ratios, torch.tensor(expected), atol=0.03, rtol=0)
    assert same_data(plain, cached)


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_training_batches_hold_full_images_if_they_are_requested(photos):
    data = folder(str(photos), size=SIZE)
    [squares] = Loader(data.train, batch_size=8, seed=0).batches(0, 1)
    [whole] = Loader(data.train.resized("squash"), batch_size=8, seed=0).batches(0, 1)
    assert len(squares) == 3
    images, labels, index, aspect_ratios = whole
    assert torch.equal(index, squares[2])
    assert torch.equal(labels, squares[1])
    is_square = aspect_ratios == 1
    assert 0 < int(is_square.sum()) < 8
    assert torch.equal(images[is_square], squares[0][is_square])
    assert not torch.equal(images, squares[0])


def test_a_substitute_for_an_unreadable_picture_has_its_own_aspect_ratio(photos):
    (photos / "a" / "00.png").write_bytes(b"no image")
    data = folder(str(photos), size=SIZE)
    loader = Loader(data.train.resized("squash"), batch_size=len(data.train), seed=0)
    [(images, _, index, aspect_ratios)] = loader.batches(0, 1)
    assert torch.equal(images, loader.images.fetch(index))
    assert torch.equal(aspect_ratios, loader.images.aspect_ratios(index))


# Preprocessing


def test_a_backbone_has_timms_preprocessing():
    lite0 = preprocessing_of("tf_efficientnet_lite0")
    assert lite0 == Preprocessing(crop=0.875, resize="crop", interpolation="bicubic", reduce_jpeg=False)
    assert preprocessing_of("dm_nfnet_f0").resize == "squash"
    assert lite0.decode_px(224) == 256
    assert Preprocessing(crop=0.95).decode_px(224) == 235


def test_only_what_a_table_leaves_unset_is_the_backbones():
    table = {"name": "folder", "crop": None, "resize": None, "interpolation": None, "reduce_jpeg": None}
    assert with_preprocessing(table, "tf_efficientnet_lite0", has_weights=True)["interpolation"] == "bicubic"
    assert with_preprocessing(table, "tf_efficientnet_lite0", has_weights=False)["interpolation"] == "bilinear"
    assert not with_preprocessing(table, "tf_efficientnet_lite0", has_weights=True)["reduce_jpeg"]
    assert with_preprocessing(table, "tf_efficientnet_lite0", has_weights=True, is_trained=True)["reduce_jpeg"]
    squashed = with_preprocessing({**table, "resize": "squash"}, "tf_efficientnet_lite0", has_weights=True)
    assert squashed["crop"] == 1.0
    assert squashed["interpolation"] == "bicubic"
    photos_table = {"name": "photos"}
    assert with_preprocessing(photos_table, "tf_efficientnet_lite0", has_weights=True) == photos_table


def test_the_evaluation_of_a_folder_is_what_its_arguments_say(photos):
    data = folder(str(photos), size=SIZE, resize="squash", interpolation="bicubic")
    assert (data.crop, data.resize, data.interpolation) == (1.0, "squash", "bicubic")
    assert (folder(str(photos)).crop, folder(str(photos)).resize) == (0.875, "crop")
