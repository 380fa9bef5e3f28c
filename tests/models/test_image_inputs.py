"""Images as people have them: every usual form gives the same embedding, or a sentence."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from reptk.core.errors import DataError
from reptk.models import encoder as encoder_module
from reptk.models.encoder import Encoder
from reptk.models.image_inputs import image_tensors

PIXELS = torch.randint(0, 256, (3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
LAST = PIXELS.permute(1, 2, 0)
WITH_ALPHA = torch.cat([PIXELS, torch.full((1, 32, 32), 255, dtype=torch.uint8)])

FORMS = {
    "tensor, channels first": PIXELS,
    "tensor, channels last": LAST,
    "batch": PIXELS[None],
    "batch, channels last": LAST[None],
    "floats": PIXELS / 255,
    "doubles": PIXELS.double() / 255,
    "half": (PIXELS / 255).half(),
    "integers": PIXELS.long(),
    "array": LAST.numpy(),
    "array, channels first": PIXELS.numpy(),
    "batch of arrays": LAST[None].numpy(),
    "array that is not contiguous": np.asfortranarray(LAST.numpy()),
    "array with alpha": WITH_ALPHA.permute(1, 2, 0).numpy(),
    "PIL image": Image.fromarray(LAST.numpy()),
    "PIL image with alpha": Image.fromarray(WITH_ALPHA.permute(1, 2, 0).numpy()),
    "list of tensors": [PIXELS],
    "tuple of PIL images": (Image.fromarray(LAST.numpy()),),
}


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder("test_resnet", size=32).eval()


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_embedding(form: str, encoder: Encoder) -> None:
    atol = 1e-3 if form == "half" else 1e-6
    torch.testing.assert_close(encoder.embed(FORMS[form]), encoder.embed(PIXELS[None]), atol=atol, rtol=0)


def test_paths_are_decoded(tmp_path: Path, encoder: Encoder) -> None:
    Image.fromarray(LAST.numpy()).save(tmp_path / "a.png")
    expected = encoder.embed(PIXELS)
    assert torch.equal(encoder.embed(str(tmp_path / "a.png")), expected)
    both = encoder.embed([tmp_path / "a.png", PIXELS])
    assert torch.allclose(both, expected.repeat(2, 1), atol=1e-6)
    with pytest.raises(DataError, match=r"cannot read .*gone\.png"):
        encoder.embed(tmp_path / "gone.png")


def test_images_of_different_sizes_are_one_batch(encoder: Encoder) -> None:
    wide = Image.new("RGB", (90, 40), "red")
    embeddings = encoder.embed([wide, PIXELS, np.zeros((50, 60), np.uint8)])
    assert embeddings.shape == (3, encoder.num_features)
    assert torch.allclose(embeddings[1:2], encoder.embed(PIXELS), atol=1e-6)


def test_a_long_list_is_encoded_in_parts(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_module, "MAX_LISTED_IMAGES", 2)
    images = [PIXELS, PIXELS.flip(1), PIXELS.flip(2), PIXELS.flip(0), PIXELS]
    expected = encoder.embed(torch.stack(images))
    assert torch.allclose(encoder.embed(images), expected, atol=1e-6)


def test_gray_arrays_have_three_equal_channels() -> None:
    gray = np.arange(100, dtype=np.uint8).reshape(10, 10)
    for array in (gray, gray[:, :, None], gray[None], torch.from_numpy(gray)):
        [batch] = image_tensors(array, 10)
        assert batch.shape == (1, 3, 10, 10)
        assert all(torch.equal(channel, torch.from_numpy(gray)) for channel in batch[0])


def test_a_palette_and_a_rotated_pil_image_are_as_viewers_show_them() -> None:
    image = Image.new("RGB", (20, 20), "red")
    image.paste("blue", (10, 0, 20, 20))
    [batch] = image_tensors(image.convert("P"), 20)
    assert batch[0, :, 0, 0].tolist() == [255, 0, 0]
    image.getexif()[0x0112] = 6
    [batch] = image_tensors(image, 20)
    assert batch[0, :, 0].T.tolist() == [[255, 0, 0]] * 20
    assert batch[0, :, -1].T.tolist() == [[0, 0, 255]] * 20


@pytest.mark.parametrize("size", [(90, 60), (60, 90), (900, 7), (1, 700), (1, 1)])
@pytest.mark.parametrize("resize", ["crop", "pad", "squash"])
@pytest.mark.parametrize("file_format", ["png", "jpeg"])
def test_a_file_and_the_image_that_pillow_opens_are_the_same(
    size: tuple[int, int], resize: str, file_format: str, tmp_path: Path
) -> None:
    encoder = Encoder("test_resnet", size=32).eval()
    path = tmp_path / "a"
    Image.fromarray(LAST.numpy()).resize(size).save(path, file_format)
    [from_file] = encoder.embed(path, 0.9, resize, "bicubic")
    [from_image] = encoder.embed(Image.open(path), 0.9, resize, "bicubic")
    torch.testing.assert_close(from_file, from_image, atol=1e-6, rtol=0)


def test_a_large_jpeg_file_is_not_reduced(tmp_path: Path) -> None:
    encoder = Encoder("test_resnet", size=16).eval()
    noise = torch.randint(0, 256, (96, 96, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    Image.fromarray(noise.numpy()).save(tmp_path / "a.jpg")
    from_file, from_image = encoder.embed([tmp_path / "a.jpg", Image.open(tmp_path / "a.jpg")])
    torch.testing.assert_close(from_file, from_image, atol=1e-6, rtol=0)


MISTAKES = {
    "0..255 floats": (PIXELS.float(), ValueError, r"float images must lie in 0\.\.1, got 0 to 255; divide by 255\?"),
    "NaN": (torch.full((3, 8, 8), torch.nan), ValueError, r"must lie in 0\.\.1, got nan"),
    "large integers": (torch.full((3, 8, 8), 300), ValueError, r"must lie in 0\.\.255, got 300"),
    "two channels": (
        torch.zeros(2, 8, 8),
        ValueError,
        r"must be \(3, H, W\), \(H, W, 3\) or a batch of such, got \(2, 8, 8\)",
    ),
    "five dimensions": (torch.zeros(1, 1, 3, 8, 8), ValueError, "or a batch of such"),
    "no pixels": (torch.zeros(0, 3, 8, 8), ValueError, "no pixels"),
    "empty list": ([], ValueError, "a sequence of at least one"),
    "batch in a list": ([torch.zeros(2, 3, 8, 8)], ValueError, "must be a single one"),
    "number": ([3], TypeError, "not int"),
    "nothing": (None, ValueError, "give an image"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_explained(mistake: str, encoder: Encoder) -> None:
    images, error, message = MISTAKES[mistake]
    with pytest.raises(error, match=message):
        encoder.embed(images)


def test_an_encoder_is_printed_in_a_line(encoder: Encoder) -> None:
    assert repr(encoder).startswith("Encoder(test_resnet, 32 px, ")
