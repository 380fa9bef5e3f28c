"""What the server answers: numbers, neighbors, names and pictures are those of the collection."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import reptk
from embedding_inputs import draw_image
from reptk.explore.image_collection import ImageCollection
from reptk.explore.map_layouts import positions_of

pytestmark = [pytest.mark.usefixtures("one_thread")]


def open_image(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def test_about(client, collection: ImageCollection) -> None:
    about = client.get("/api/about").json
    assert about["title"] == "my photos"
    assert about["count"] == len(collection) == 240
    assert about["layout"] == "pca"
    assert [column["name"] for column in about["columns"]] == [
        "class",
        "prediction",
        "error",
        "similarity to the nearest",
        "file size (KB)",
    ]
    assert about["columns"][0]["categories"] == ["cats", "dogs <b>", "ünï"]


def test_positions_and_columns_are_arrays(client, collection: ImageCollection) -> None:
    positions = np.frombuffer(client.get("/api/positions/pca").content, "<f4").reshape(-1, 2)
    assert np.array_equal(positions, positions_of("pca", collection.embeddings.vectors).numpy())
    labels = np.frombuffer(client.get("/api/column/0").content, "<i4")
    assert np.array_equal(labels, collection.embeddings.labels.numpy())
    predicted = np.frombuffer(client.get("/api/column/1").content, "<i4")
    wrong = np.frombuffer(client.get("/api/column/2").content, "<i4")
    assert np.array_equal(wrong == 1, predicted != labels)
    sizes = np.frombuffer(client.get("/api/column/4").content, "<f4")
    assert sizes[0] == pytest.approx(collection.embeddings.file(0).stat().st_size / 1000)


def test_neighbors_are_those_of_the_exact_search(client, collection: ImageCollection) -> None:
    [expected] = reptk.search(collection.index, [], ids=[collection.embeddings.ids[7]], k=5)
    found = client.get("/api/neighbors/7?k=5").json
    assert found["rows"] == [neighbor.row for neighbor in expected.neighbors]
    assert found["similarities"] == pytest.approx([neighbor.similarity for neighbor in expected.neighbors])
    assert len(client.get("/api/neighbors/7?k=500").json["rows"]) == 239


def test_a_picture_finds_itself(client, many_photos: Path, collection: ImageCollection) -> None:
    content = (many_photos / "dogs <b>" / "001.png").read_bytes()
    found = client.post("/api/search", content).json
    assert collection.embeddings.ids[found["rows"][0]] == "dogs <b>/001.png"
    assert found["similarities"][0] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"<html></html>", bytes(1000)])
def test_what_is_no_picture_is_one_message(client, content: bytes) -> None:
    answer = client.post("/api/search", content)
    assert answer.status == 422
    assert "as an image" in answer.json["error"]


def test_near_duplicates(client, collection: ImageCollection) -> None:
    found = client.get("/api/duplicates?threshold=0.9999").json
    names = [{collection.embeddings.ids[row] for row in group["rows"]} for group in found["groups"]]
    assert {"cats/000.png", "ünï/copy.png"} in names
    assert found["reason"] == "as requested"
    for threshold in ("0", "2", "-1", "nan", "x"):
        assert client.get(f"/api/duplicates?threshold={threshold}").status == 400


def test_names_of_rows(client, many_photos: Path, collection: ImageCollection) -> None:
    row = collection.embeddings.row_of("ünï/copy.png")
    [record] = client.post("/api/rows", f"[{row}]".encode()).json
    assert record["id"] == "ünï/copy.png"
    assert record["class"] == "ünï"
    assert record["path"] == str(many_photos / "ünï" / "copy.png")
    assert client.post("/api/rows", b"[]").json == []
    for body in (
        b"",
        b"{}",
        b"[240]",
        b"[-1]",
        b"[1.5]",
        b"[true]",
        b'["0"]',
        b"[[0]]",
        b"[" * 5000,
        b"[0" + b",0" * 10000,
    ):
        assert client.post("/api/rows", body + b"]" * (body[-1:] == b"0")).status == 400


def test_find(client, collection: ImageCollection) -> None:
    found = client.get("/api/find?text=COPY").json
    assert found == {"rows": [collection.embeddings.row_of("ünï/copy.png")], "count": 1}
    assert client.get("/api/find?text=.png").json["count"] == 240
    assert client.get("/api/find?text=nobody").json == {"rows": [], "count": 0}
    assert client.get("/api/find").status == 400


def test_pictures(client, collection: ImageCollection) -> None:
    answer = client.get("/image/0")
    picture = open_image(answer.content)
    assert answer.headers["Content-Type"] == f"image/{picture.format.lower()}"
    assert max(picture.size) == 128
    assert picture.width > picture.height, "the whole picture"
    assert max(open_image(client.get("/picture/0").content).size) == 640


def test_a_file_that_is_gone_has_no_picture(client, collection: ImageCollection) -> None:
    path = collection.embeddings.file(20)
    content = path.read_bytes()
    path.unlink()
    try:
        assert client.get("/image/20").status == 404
        path.write_text("no picture")
        assert client.get("/image/20").status == 404
    finally:
        path.write_bytes(content)
    assert client.get("/image/20").status == 200


def test_pictures_of_a_data_set() -> None:
    from reptk.explore.pictures import Pictures

    digits = reptk.data.digits()
    numbers = torch.tensor([5, 3])
    embeddings = reptk.Embeddings(torch.eye(2), ["query/5", "query/3"])
    picture = Pictures(embeddings, digits.query, numbers).read(1, 128)
    expected = digits.query.images.fetch(torch.tensor([3]))[0]
    decoded = torch.from_numpy(np.array(open_image(picture.content))).permute(2, 0, 1)
    assert torch.equal(decoded, expected)


def test_large_pictures_are_reduced(tmp_path: Path) -> None:
    from reptk.explore.pictures import Pictures

    draw_image(1, 900).save(tmp_path / "large.jpg")
    embeddings = reptk.Embeddings(
        torch.eye(2), ["large.jpg", "gone.jpg"], ["large.jpg", "gone.jpg"], about={"root": str(tmp_path)}
    )
    pictures = Pictures(embeddings)
    assert open_image(pictures.read(0, 640).content).size == (640, 633)
    assert pictures.read(1, 640) is None
