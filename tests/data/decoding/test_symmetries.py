"""Turned and mirrored pictures are recognized by their pixels."""

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from reptk.data.decoding.symmetries import (
    BY_NAME,
    IDENTITY,
    SYMMETRIES,
    find_symmetry,
    invariant_signatures,
    may_be_turned,
)
from reptk.data.sources.photos import load_photographs


@pytest.fixture(scope="module")
def photographs() -> dict[str, Image.Image]:
    pytest.importorskip("skimage")
    names = ("astronaut", "cat", "coffee", "gravel", "palace")
    loaded = load_photographs()
    return {name: loaded[name].crop((0, 0, 300, 300)) for name in names}


def small(image: Image.Image, size_px: int = 64) -> NDArray[np.uint8]:
    return np.asarray(image.resize((size_px, size_px), Image.Resampling.BILINEAR, reducing_gap=3.0))


def jpeg_copy(image: Image.Image) -> Image.Image:
    content = io.BytesIO()
    image.resize((220, 220)).save(content, "JPEG", quality=75)
    return Image.open(content)


def test_names_say_what_pillow_does() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
    transposes = {
        "mirrored": Image.Transpose.FLIP_LEFT_RIGHT,
        "turned_90": Image.Transpose.ROTATE_270,  # Pillow turns counterclockwise
        "turned_180": Image.Transpose.ROTATE_180,
        "turned_270": Image.Transpose.ROTATE_90,
        "mirrored_turned_180": Image.Transpose.FLIP_TOP_BOTTOM,
    }
    for name, transpose in transposes.items():
        assert np.array_equal(BY_NAME[name].apply(np.asarray(picture)), np.asarray(picture.transpose(transpose))), name


@pytest.mark.parametrize("symmetry", SYMMETRIES, ids=lambda symmetry: symmetry.name or "identity")
def test_a_reencoded_and_resized_copy_is_recognized(symmetry, photographs: dict[str, Image.Image]) -> None:
    for name, photograph in photographs.items():
        pixels = np.asarray(photograph)
        changed = symmetry.apply(pixels)
        assert np.array_equal(symmetry.inverse().apply(changed), pixels)
        copy = small(jpeg_copy(Image.fromarray(np.ascontiguousarray(changed))))
        assert find_symmetry(copy, small(photograph)) == symmetry, name
        gray = [
            np.asarray(Image.fromarray(image).convert("L").resize((16, 16)))[None]
            for image in (copy, small(photograph))
        ]
        assert may_be_turned(*gray)[0] == (symmetry != IDENTITY)
        signatures = [invariant_signatures(image) for image in gray]
        assert np.linalg.norm(signatures[0] - signatures[1]) < 16


def test_other_pictures_are_none(photographs: dict[str, Image.Image]) -> None:
    for name, photograph in photographs.items():
        for other_name, other in photographs.items():
            if name != other_name:
                assert find_symmetry(small(photograph), small(other)) is None


def test_signatures_are_the_same_for_all_symmetries() -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (5, 16, 16), np.uint8)
    expected = invariant_signatures(pictures)
    for symmetry in SYMMETRIES:
        assert np.allclose(invariant_signatures(symmetry.apply(pictures, (1, 2))), expected, atol=1e-3)
    assert not np.allclose(invariant_signatures(pictures[:1]), expected[1:])


def test_a_symmetric_picture_is_not_mirrored(photographs: dict[str, Image.Image]) -> None:
    half = small(photographs["cat"])
    symmetric = np.where(np.arange(64)[None, :, None] < 32, half, half[:, ::-1])
    noise = np.random.default_rng(0).integers(-3, 4, symmetric.shape)
    nearly = (symmetric + noise).clip(0, 255).astype(np.uint8)
    assert find_symmetry(nearly[:, ::-1], nearly) == IDENTITY


def test_pictures_that_are_the_same_in_part_are_different(photographs: dict[str, Image.Image]) -> None:
    picture = small(photographs["cat"])
    other = picture.copy()
    # Details of the right half are those of another part of the picture; its colors are the same.
    details = picture[:, :32].astype(int) - np.asarray(small(photographs["cat"], 8).repeat(8, 0).repeat(8, 1))[:, :32]
    other[:, 24:] = (
        small(photographs["cat"], 8).repeat(8, 0).repeat(8, 1)[:, 24:] + np.roll(details, 5, 0).repeat(2, 1)[:, :40]
    ).clip(0, 255)
    assert find_symmetry(other[:, ::-1], picture) is None


def test_outlines_alone_are_not_enough() -> None:
    """Two discs with different contents: mirrored, their outlines agree."""
    rows, columns = np.mgrid[:64, :64]
    is_disc = np.hypot(rows - 20, columns - 64) < 45
    random = np.random.default_rng(0)
    first, second = (
        np.where(is_disc, random.normal(160, 6, (64, 64)), 0).clip(0, 255).astype(np.uint8)[..., None].repeat(3, 2)
        for _ in range(2)
    )
    assert find_symmetry(first[:, ::-1], second) is None
    assert find_symmetry(first[:, ::-1], first) == BY_NAME["mirrored"]


def test_blank_pictures_tell_nothing() -> None:
    blank = np.full((64, 64, 3), 200, np.uint8)
    assert find_symmetry(blank, blank) is None
    assert not may_be_turned(blank[None, :16, :16, 0], blank[None, :16, :16, 0])[0]
