"""Columns of a Parquet file for programs that show embeddings."""

import io
import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import reptk
from embedding_inputs import needs_pyarrow, run_command
from reptk.core.errors import UsageError
from reptk.embeddings import Embeddings
from reptk.embeddings.viewing.viewer_columns import ViewerColumns, add_viewer_columns
from reptk.report.layouts import map_positions

pytestmark = [needs_pyarrow, pytest.mark.usefixtures("one_thread")]

OPTIONS = ["--thumbnails", "--projection", "--neighbors", 3]


@pytest.fixture(scope="module")
def viewer_file(photo_folder: Path, encoder_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photos as one file with all columns."""
    out = tmp_path_factory.mktemp("viewer") / "photos.parquet"
    reptk.embed(encoder_run, photo_folder, out=out)
    add_viewer_columns(out, ViewerColumns(thumbnails=True, projection="pca", neighbors=3))
    return out


def test_the_command_adds_the_columns(
    viewer_file: Path, photo_folder: Path, encoder_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    import pyarrow.parquet

    out = tmp_path / "photos.parquet"
    run_command(["embed", encoder_run, "--data", photo_folder, "--out", out, *OPTIONS], capsys)
    table, expected = (pyarrow.parquet.read_table(path) for path in (out, viewer_file))
    assert table.equals(expected)


def test_reptk_reads_the_same_embeddings(viewer_file: Path, photo_folder: Path, encoder_run: Path) -> None:
    embeddings = Embeddings.load(viewer_file, verify=True)
    expected = reptk.embed(encoder_run, photo_folder)
    assert torch.equal(embeddings.vectors, expected.vectors)
    assert torch.equal(embeddings.labels, expected.labels)
    assert torch.equal(embeddings.file_stats, expected.file_stats)
    assert list(embeddings.ids) == list(expected.ids)
    assert embeddings.classes == expected.classes
    assert embeddings.metadata["encoder"] == expected.metadata["encoder"]


def test_columns_are_what_they_say(viewer_file: Path, photo_folder: Path) -> None:
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(viewer_file)
    rows = table.to_pylist()
    vectors = torch.tensor([row["vector"] for row in rows])
    positions = torch.tensor([[row["projection_x"], row["projection_y"]] for row in rows])
    torch.testing.assert_close(positions, map_positions("pca", vectors))
    distances = 1 - vectors.double() @ vectors.double().T
    distances.fill_diagonal_(9.0)
    for number, row in enumerate(rows):
        assert row["neighbors"]["ids"] == distances[number].argsort()[:3].tolist()
        expected = distances[number].sort().values[:3].float()
        torch.testing.assert_close(torch.tensor(row["neighbors"]["distances"]), expected, atol=1e-5, rtol=0)
        assert row["image"]["path"] == row["id"]
        with (
            Image.open(io.BytesIO(row["image"]["bytes"])) as thumbnail,
            Image.open(photo_folder / row["path"]) as photo,
        ):
            small = photo.convert("RGB").resize((8, 8), Image.Resampling.BOX)
            # It is padded to a square: 40 of 50 rows are the picture.
            box = (0, thumbnail.height // 10, thumbnail.width, thumbnail.height - thumbnail.height // 10)
            shown = thumbnail.convert("RGB").crop(box).resize((8, 8), Image.Resampling.BOX)
        assert np.abs(np.asarray(small, float) - np.asarray(shown, float)).mean() < 6


def test_metadata_names_the_features_for_the_hub(viewer_file: Path) -> None:
    import pyarrow.parquet

    schema = pyarrow.parquet.read_schema(viewer_file)
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert list(features) == schema.names
    assert features["image"] == {"_type": "Image"}
    assert features["vector"] == {"feature": {"dtype": "float32", "_type": "Value"}, "length": 64, "_type": "List"}
    assert features["neighbors"]["ids"] == {"feature": {"dtype": "int64", "_type": "Value"}, "_type": "List"}


@pytest.mark.skipif(find_spec("datasets") is None, reason="datasets is not installed")
@pytest.mark.filterwarnings("ignore")
def test_datasets_opens_the_file(viewer_file: Path, tmp_path: Path) -> None:
    import datasets

    rows = datasets.Dataset.from_parquet(str(viewer_file), cache_dir=str(tmp_path))
    assert isinstance(rows.features["image"], datasets.Image)
    assert rows[0]["image"].size == (128, 128)
    assert len(rows[0]["vector"]) == 64


def test_images_of_a_data_set_and_images_that_are_gone(
    encoder_run: Path, photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    import pyarrow.parquet

    out = tmp_path / "digits.parquet"
    command = ["embed", encoder_run, "--split", "query", "--out", out, "--half", "--thumbnails"]
    run_command(command, capsys)
    images = pyarrow.parquet.read_table(out).column("image").to_pylist()
    assert len(images) == 97
    assert all(Image.open(io.BytesIO(image["bytes"])).size == (128, 128) for image in images[:3])
    copy = tmp_path / "photos"
    shutil.copytree(photo_folder, copy)
    out = tmp_path / "photos.parquet"
    reptk.embed(encoder_run, copy, out=out)
    (copy / "cats" / "00.png").unlink()
    add_viewer_columns(out, ViewerColumns(thumbnails=True))
    table = pyarrow.parquet.read_table(out)
    assert table.column("image").null_count == 1
    # --update writes the rows anew; the file is one of embeddings as before.
    add_viewer_columns(out, ViewerColumns(neighbors=2))
    assert pyarrow.parquet.read_schema(out).names[-1] == "neighbors"
    assert len(reptk.embed(encoder_run, copy, out=out, update=True)) == 11


def test_mistakes(photo_folder: Path, encoder_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["embed", encoder_run, "--data", photo_folder, "--out", tmp_path / "e.safetensors", "--thumbnails"]
    assert "are columns of a Parquet file; --out is 'e.safetensors'" in run_command(command, capsys, 2)
    command = ["embed", encoder_run, "--data", photo_folder, "--out", tmp_path / "e.parquet", "--projection", "mds"]
    assert "--projection must be one of pca, tsne, umap, got 'mds'" in run_command(command, capsys, 2)
    assert list(tmp_path.iterdir()) == []
    reptk.embed(encoder_run, photo_folder, out=tmp_path / "e.parquet")
    with pytest.raises(UsageError, match="--neighbors must be below the number of images, which is 12, got 12"):
        add_viewer_columns(tmp_path / "e.parquet", ViewerColumns(neighbors=12))
