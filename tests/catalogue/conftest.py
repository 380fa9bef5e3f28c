"""A folder of images, a run, and embeddings to look for them in."""

from pathlib import Path

import pytest
import torch

import reptk
from catalogue_parts import picture
from reptk import Encoder
from reptk.core import rng
from reptk.embeddings import Embeddings


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 images of 3 classes, with names to stumble over."""
    root = tmp_path_factory.mktemp("photos")
    for number in range(12):
        folder = root / ("cats", "dogs <b>", "ünï")[number % 3]
        folder.mkdir(exist_ok=True)
        picture(number).save(folder / f"{number:02}.png")
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What of a finished run is needed here."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    with rng.seeded(7, "weights"):
        Encoder("test_vit", size=32).save(folder / "model")
    (folder / "recipe.toml").write_text('name = "mine"\n[data]\nname = "digits"\ntrain = 1700\n')
    return folder


@pytest.fixture(scope="module")
def embedded(photos: Path, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("embedded") / "photos.safetensors"
    reptk.embed(photos, encoder=run, out=out)
    return out


@pytest.fixture(scope="module")
def many() -> Embeddings:
    centres = torch.randn(20, 16, generator=rng.generator("many"))
    drawn = centres.repeat(32, 1) + 0.3 * torch.randn(640, 16, generator=rng.generator("more"))
    return Embeddings(torch.nn.functional.normalize(drawn, dim=1), [f"{number}" for number in range(640)])
