"""What can be opened: folders, embeddings, indexes and the queries of runs; and what is refused in one sentence."""

import io
from pathlib import Path

import pytest
from PIL import Image

import reptk
from embedding_inputs import draw_image, encoder_run, needs_pyarrow, photo_embeddings, photo_folder
from reptk.core.errors import DataError, UsageError
from reptk.embeddings.viewing.viewer_columns import ViewerColumns, add_viewer_columns
from reptk.evaluate.predictions import Predictions
from reptk.explore.sources import Options, open_collection

__all__ = ["encoder_run", "photo_embeddings", "photo_folder"]

pytestmark = [pytest.mark.usefixtures("one_thread")]


def test_a_folder_of_images(photo_folder: Path, encoder_run: Path) -> None:
    lines: list[str] = []
    collection = open_collection(str(photo_folder), Options(str(encoder_run), device="cpu", report=lines.append))
    assert len(collection) == 12
    assert any(line.startswith("embeddings: ") for line in lines)
    content = (photo_folder / "cats" / "00.png").read_bytes()
    rows, similarities = collection.neighbors_of_picture(content, 3)
    assert collection.embeddings.ids[rows[0]] == "cats/00.png"
    assert similarities[0] == pytest.approx(1, abs=1e-4)


def test_embeddings_and_an_index(photo_embeddings: Path, tmp_path: Path) -> None:
    index = tmp_path / "photos.index"
    reptk.index(photo_embeddings, out=index)
    for path in (photo_embeddings, index):
        collection = open_collection(str(path), Options(device="cpu"))
        assert len(collection) == 12
        assert "embedded by test_vit" in collection.notes
        assert len(collection.neighbors_of_row(0, 99)[0]) == 11


@needs_pyarrow
def test_the_positions_of_a_parquet_file(photo_folder: Path, encoder_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "e.parquet"
    reptk.embed(encoder_run, photo_folder, out=out)
    add_viewer_columns(out, ViewerColumns(projection="pca"))
    collection = open_collection(str(out), Options(device="cpu"))
    assert collection.stored_positions.shape == (12, 2)


def test_the_queries_of_a_run(encoder_run: Path, tmp_path: Path) -> None:
    run = make_evaluated_run(tmp_path / "run", encoder_run)
    collection = open_collection(str(run), Options(device="cpu"))
    predictions = Predictions.load(run)
    assert list(collection.embeddings.ids[:2]) == [f"query/{number}" for number in predictions.index[:2].tolist()]
    columns = {column.name: column for column in collection.columns}
    assert columns["prediction"].values.tolist() == predictions.predicted.tolist()
    wrong = predictions.predicted != predictions.labels
    assert (columns["error"].values == 1).tolist() == wrong.tolist()
    assert Image.open(io.BytesIO(collection.pictures.read(0, 128).content)).size == (16, 16)
    buffer = io.BytesIO()
    draw_image(1).save(buffer, "PNG")
    rows, _ = collection.neighbors_of_picture(buffer.getvalue(), 3)
    assert len(rows) == 3


def make_evaluated_run(folder: Path, encoder: Path) -> Path:
    """Return a run of a small encoder with predictions, as evaluation leaves it."""
    import json
    import shutil

    import torch

    shutil.copytree(encoder, folder)
    data = {"name": "generated", "train": 8, "bank": 8, "query": 20, "classes": 4, "size": 16}
    lines = [f"{key} = {json.dumps(value)}" for key, value in data.items()]
    (folder / "recipe.toml").write_text("\n".join(['name = "mine"', "[data]", *lines]) + "\n")
    results = {"metrics": {"trained": {"knn@1": 0.5}}, "protocol": {"data": data}}
    (folder / "results.json").write_text(json.dumps(results))
    dataset = reptk.data.generated(**{key: value for key, value in data.items() if key != "name"})
    features = reptk.Encoder.from_run(folder).embed(dataset.query.images.fetch(torch.arange(20)))
    neighbors = torch.zeros(20, 1, dtype=torch.long)
    Predictions(
        row="trained",
        vote="knn@1",
        query_split="query",
        bank_split="bank",
        classes=tuple(dataset.classes),
        index=torch.arange(20),
        labels=dataset.query.labels,
        predicted=(dataset.query.labels + torch.arange(20) % 2) % 4,
        confidence=torch.full((20,), 0.5),
        neighbors=neighbors,
        similarities=torch.ones(20, 1),
        neighbor_labels=neighbors,
        features=features.cpu(),
    ).save(folder)
    return folder


def test_what_cannot_be_opened(encoder_run: Path, photo_embeddings: Path, photo_folder: Path, tmp_path: Path) -> None:
    for named, error, words in (
        ("gone", DataError, "there is no folder or file gone"),
        (str(tmp_path), DataError, "holds neither images nor embeddings"),
        ("postgresql://me:secret@localhost/x?table=t", UsageError, "not of stores"),
    ):
        with pytest.raises(error, match=words) as raised:
            open_collection(named, Options())
        assert "secret" not in str(raised.value)
    with pytest.raises(UsageError, match="embedded already"):
        open_collection(str(photo_embeddings), Options(force=True))
    with pytest.raises(UsageError, match="name it by --encoder"):
        open_collection(str(photo_folder), Options(weights="x.pth"))
    with pytest.raises(UsageError, match="is a folder"):
        open_collection(str(photo_folder), Options(str(encoder_run), weights="x.pth"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "results.json").write_text('{"metrics": {"trained": {"knn@1": 0.5}}}')
    with pytest.raises(UsageError, match="no predictions"):
        open_collection(str(tmp_path / "run"), Options())
