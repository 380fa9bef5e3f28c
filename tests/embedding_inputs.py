"""Images, a run and embeddings for the tests of embedding, indexing and searching, as functions and fixtures.

Nothing of reptk that imports torch is imported at the top: a conftest imports this file before tests/conftest.py has hidden
the GPUs.
"""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image

import reptk
from reptk.cli import main
from reptk.core import rng
from reptk.core.file_records import manifest_text

needs_faiss = pytest.mark.skipif(find_spec("faiss") is None, reason="approximate indexes need FAISS")
needs_pyarrow = pytest.mark.skipif(find_spec("pyarrow") is None, reason="pyarrow is not installed")
both_formats = pytest.mark.parametrize("suffix", [".safetensors", pytest.param(".parquet", marks=needs_pyarrow)])

TIMM_BACKBONE = {"encoder": "test_resnet", "size": 32, "workers": 2}

NON_UTF8 = "cat\udcff.jpg"
"""A file name whose bytes are not valid UTF-8."""

NAMES = ["a.jpg", "", "ünï/çödé 🐈.png", "new\nline.png", '"quoted", <b>.png', "a.jpg", "c:\\x.gif"]


def draw_image(number: int, side_px: int = 40) -> Image.Image:
    """Return low-frequency colored noise, different for every number."""
    noise = torch.randint(0, 256, (4, 4, 3), generator=rng.generator("picture", number), dtype=torch.uint8)
    return Image.fromarray(noise.numpy()).resize((side_px + 10, side_px), Image.Resampling.BICUBIC)


def unit_vectors(count: int, width: int = 5, key: int = 0) -> torch.Tensor:
    vectors = torch.randn(count, width, generator=rng.generator("test_embeddings", key))
    return torch.nn.functional.normalize(vectors, dim=1)


def make_embeddings(names: list[str] = NAMES, *, half: bool = False, kind: str = "files") -> "reptk.Embeddings":
    """Return embeddings of files, of "files with ids" that are not their paths, or of "no files"."""
    vectors = unit_vectors(len(names))
    if half:
        vectors = vectors.half()
    labels = torch.arange(len(names)) % 3 - 1
    metadata = {"root": "/photos \udcfe", "encoder": {"backbone": "x"}, "list": [1, None, 2.5]}
    ids = names
    if kind == "files with ids":
        ids = [str(row) for row in range(len(names))]
    paths = None if kind == "no files" else names
    return reptk.Embeddings(vectors, ids, paths, labels, ("cat", "<b>\n&"), metadata)


def assert_same_embeddings(actual: "reptk.Embeddings", expected: "reptk.Embeddings") -> None:
    assert torch.equal(actual.vectors, expected.vectors)
    assert actual.vectors.dtype == expected.vectors.dtype
    assert torch.equal(actual.labels, expected.labels)
    assert list(actual.ids) == list(expected.ids)
    assert (actual.paths is None) == (expected.paths is None)
    assert actual.paths is None or list(actual.paths) == list(expected.paths)
    assert actual.classes == expected.classes
    assert actual.metadata == expected.metadata


def run_command(arguments: list[object], capsys: pytest.CaptureFixture, exit_code: int = 0) -> str:
    """Run `reptk` and return its output, or the one message of a mistake."""
    assert main([str(argument) for argument in arguments]) == exit_code
    captured = capsys.readouterr()
    assert (exit_code == 0) == (not captured.err.startswith("error:")), captured.err
    return captured.out if exit_code == 0 else captured.err


def change_manifest(index: Path, **changes: object) -> None:
    """Change a manifest on purpose: it has the hash of what it holds then."""
    manifest = json.loads((index / "manifest.json").read_text())
    (index / "manifest.json").write_text(manifest_text(manifest | changes))


@pytest.fixture(scope="module")
def photo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 images of 3 classes, whose names need care."""
    root = tmp_path_factory.mktemp("photos")
    for number in range(12):
        folder = root / ("cats", "dogs <b>", "ünï")[number % 3]
        folder.mkdir(exist_ok=True)
        draw_image(number).save(folder / f"{number:02}.png")
    return root


@pytest.fixture(scope="module")
def encoder_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a finished run that embedding needs: a small encoder with fixed weights, and a recipe."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    with rng.seeded(7, "weights"):
        reptk.Encoder("test_vit", size=32).save(folder / "model")
    (folder / "recipe.toml").write_text('name = "mine"\n[data]\nname = "digits"\ntrain = 1700\n')
    return folder


@pytest.fixture
def photos(photo_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(photo_folder, tmp_path / "photos"))


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each batch that is encoded has."""
    from reptk.embeddings import Embedder

    sizes: list[int] = []
    embed_images = Embedder.embed_images

    def count(self: Embedder, images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        return embed_images(self, images)

    monkeypatch.setattr(Embedder, "embed_images", count)
    return sizes


@pytest.fixture(scope="module")
def photo_embeddings(photo_folder: Path, encoder_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photos, embedded by the run."""
    out = tmp_path_factory.mktemp("embedded") / "photos.safetensors"
    reptk.embed(encoder_run, photo_folder, out=out)
    return out


@pytest.fixture(scope="module")
def clustered() -> "reptk.Embeddings":
    """640 vectors around 20 centers."""
    centers = torch.randn(20, 16, generator=rng.generator("many"))
    vectors = centers.repeat(32, 1) + 0.3 * torch.randn(640, 16, generator=rng.generator("more"))
    ids = [str(row) for row in range(640)]
    return reptk.Embeddings(torch.nn.functional.normalize(vectors, dim=1), ids)
