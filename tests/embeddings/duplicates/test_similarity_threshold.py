"""The threshold of near duplicates, measured for the encoder and the images."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

import reptk
from embedding_inputs import TIMM_BACKBONE, draw_image, unit_vectors
from reptk.core import rng
from reptk.core.errors import DataError
from reptk.embeddings import Embeddings, near_duplicates
from reptk.embeddings.duplicates.similarity_threshold import measure_threshold

pytestmark = [pytest.mark.usefixtures("one_thread")]


def embeddings_of(vectors: torch.Tensor) -> Embeddings:
    return Embeddings(normalize(vectors, dim=1), [str(row) for row in range(len(vectors))])


def narrow_vectors(count: int, spread: float) -> torch.Tensor:
    """Vectors around one direction, as an encoder with random weights gives them."""
    return torch.ones(count, 64) + spread * torch.randn(count, 64, generator=rng.generator("narrow"))


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("drawings")
    for number in range(30):
        draw_image(number, side_px=96).save(root / f"{number:02}.png")
    return root


@pytest.fixture(scope="module")
def embedded_drawings(drawings: Path, encoder_run: Path) -> Embeddings:
    return reptk.embed(encoder_run, drawings)


def test_it_is_the_usual_one_where_random_pairs_are_not_similar() -> None:
    assert measure_threshold(embeddings_of(unit_vectors(300, 64))).value == 0.95


@pytest.mark.parametrize("spread", [0.1, 0.02])
def test_it_is_above_the_similarity_of_random_pairs(spread: float) -> None:
    embeddings = embeddings_of(narrow_vectors(500, spread))
    similarities = embeddings.vectors @ embeddings.vectors.T
    pairs = similarities[tuple(torch.triu_indices(500, 500, 1))]
    measured = measure_threshold(embeddings)
    assert pairs.quantile(0.999) < measured.value < 1
    assert measured == measure_threshold(embeddings), "the draws are the same"
    # What is printed is what is used.
    assert float(f"{measured.value:g}") == measured.value
    share, below = re.match(r"([\d.]+) % of random pairs are below ([\d.]+)", measured.reason).groups()
    assert float((pairs < float(below) + 1e-4).double().mean()) >= float(share) / 100 - 1e-3
    assert near_duplicates(embeddings).count < 50
    copies = torch.cat([embeddings.vectors, embeddings.vectors[:7] + 1e-4])
    assert near_duplicates(embeddings_of(copies)).count >= 14


def test_between_sets() -> None:
    first, second = embeddings_of(narrow_vectors(300, 0.05)), embeddings_of(narrow_vectors(400, 0.05)[200:])
    duplicates = near_duplicates(first, second)
    assert 0.99 < duplicates.threshold < 1
    # The first 100 rows of the second set are rows of the first.
    assert {leak.row for leak in duplicates.leaks} >= set(range(100))
    assert len(duplicates.leaks) < 110


def test_changed_copies_reach_it(
    drawings: Path, embedded_drawings: Embeddings, encoder_run: Path, tmp_path: Path
) -> None:
    measured = measure_threshold(embedded_drawings)
    assert re.match(
        r"90 % of 60 re-encoded or resized copies of the images reach 0\.\d+, and twice that", measured.reason
    )
    for number in range(30):
        image = draw_image(number, side_px=96)
        image.resize((3 * image.width // 4, 3 * image.height // 4)).save(tmp_path / f"{number:02}.jpg", quality=85)
    leaks = near_duplicates(embedded_drawings, reptk.embed(encoder_run, tmp_path)).leaks
    assert sum(leak.row == leak.nearest for leak in leaks) >= 20, (
        "most copies, though JPEG quality is lower than that of the measured ones"
    )


def test_images_with_many_copies_are_still_near_duplicates(drawings: Path, encoder_run: Path, tmp_path: Path) -> None:
    for number in range(10):
        for copy in range(10):
            shutil.copy(drawings / f"{number:02}.png", tmp_path / f"{number}_{copy}.png")
    embeddings = reptk.embed(encoder_run, tmp_path)
    measured = measure_threshold(embeddings)
    assert "are below 1" in measured.reason, "most of the highest similarities are those of copies"
    assert measured.value < 1


def test_without_the_encoder_random_pairs_remain(
    drawings: Path, embedded_drawings: Embeddings, encoder_run: Path, tmp_path: Path
) -> None:
    moved = {**embedded_drawings.metadata["encoder"], "origin": {"run": str(tmp_path / "gone")}}
    embeddings = Embeddings(
        embedded_drawings.vectors,
        embedded_drawings.ids,
        embedded_drawings.paths,
        metadata=embedded_drawings.metadata | {"encoder": moved},
    )
    measured = measure_threshold(embeddings)
    assert "no longer at" in measured.reason
    assert measured.value >= 0.95
    assert measure_threshold(embeddings, encoder=encoder_run) == measure_threshold(embedded_drawings)
    with rng.seeded(8, "weights"):
        other = reptk.Encoder("test_vit", size=32)
    with pytest.raises(DataError, match="is not the encoder"):
        near_duplicates(embeddings, encoder=other)


def test_images_that_are_gone_or_small_are_not_copied(photo_folder: Path, encoder_run: Path, tmp_path: Path) -> None:
    small = measure_threshold(reptk.embed(encoder_run, photo_folder))
    assert small.value == 0.95
    assert "fewer than 20 images" in small.reason
    assert "sides of at least 64 px" in small.reason
    shutil.copytree(photo_folder, tmp_path / "photos")
    embeddings = reptk.embed(encoder_run, tmp_path / "photos")
    shutil.rmtree(tmp_path / "photos")
    assert "no image can be opened" in measure_threshold(embeddings).reason


def test_random_weights_are_warned_of(drawings: Path) -> None:
    with pytest.warns(UserWarning, match="random weights"):
        embeddings = reptk.embed(data=drawings, **TIMM_BACKBONE)
    with pytest.warns(UserWarning, match="test_resnet, has random weights: its similarities are near 1 for all images"):
        near_duplicates(embeddings, threshold=0.9)
