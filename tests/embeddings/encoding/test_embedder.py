"""The encoder of embeddings is found again for queries, and verified."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import reptk
from reptk import Encoder
from reptk.core.errors import DataError
from reptk.embeddings import Embeddings

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:.*has random weights")]


def test_a_moved_run_is_named_and_verified(photo_folder: Path, encoder_run: Path, tmp_path: Path) -> None:
    shutil.copytree(encoder_run, tmp_path / "run")
    query = photo_folder / "cats" / "00.png"
    embeddings = reptk.embed(tmp_path / "run", photo_folder)
    moved = tmp_path / "moved"
    (tmp_path / "run").rename(moved)
    with pytest.raises(DataError, match=r"no longer at .*run\. Name its path: --encoder"):
        reptk.search(embeddings, query)
    [result] = reptk.search(embeddings, query, encoder=str(moved))
    assert result.neighbors[0].note == "the same file"
    Encoder("test_vit", size=32).save(moved / "model")
    with pytest.raises(DataError, match="is not the encoder that computed these embeddings"):
        reptk.search(embeddings, query, encoder=str(moved))


def test_embeddings_without_an_encoder_take_no_images(photo_folder: Path) -> None:
    with pytest.raises(DataError, match="do not say which encoder"):
        reptk.search(Embeddings(torch.eye(3), list("abc")), photo_folder / "cats" / "00.png")


def test_a_timm_backbone_is_opened_again_with_its_weights(photo_folder: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    torch.save(Encoder("test_resnet", size=32).backbone.state_dict(), weights)
    query = photo_folder / "cats" / "00.png"
    embeddings = reptk.embed("test_resnet", photo_folder, size=32, weights=str(weights))
    assert reptk.search(embeddings, query)[0].neighbors[0].similarity == pytest.approx(1, abs=1e-5)
    moved = weights.rename(tmp_path / "moved.pth")
    with pytest.raises(DataError, match="no longer at"):
        reptk.search(embeddings, query)
    assert reptk.search(embeddings, query, encoder=str(moved))[0].neighbors[0].note == "the same file"


def test_random_weights_are_drawn_alike_again(photo_folder: Path) -> None:
    embeddings = reptk.embed("test_resnet", photo_folder, size=32)
    [result] = reptk.search(embeddings, photo_folder / "cats" / "00.png")
    assert result.neighbors[0].similarity == pytest.approx(1, abs=1e-5)


def test_queries_are_decoded_as_the_index_was(tmp_path: Path) -> None:
    """12 bits in 16-bit files: read with the full range, the query would be nearly black."""
    generator = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for number in range(4):
        pixels = generator.integers(0, 4096, (32, 32)).astype(np.uint16)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
    table = {"name": "folder", "root": str(tmp_path / "photos"), "range": (0, 4095)}
    embeddings = reptk.embed("test_resnet", table, size=32)
    [result] = reptk.search(embeddings, tmp_path / "photos" / "2.png", k=1)
    assert result.neighbors[0].row == 2
    assert result.neighbors[0].similarity > 0.9999
