"""reptk embed and its function: from images to vectors in a file."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import reptk
from catalogue_parts import TINY, needs_pyarrow, picture, said
from reptk import Encoder
from reptk.cli import main
from reptk.core import rng
from reptk.core.errors import DataError, NumericalError
from reptk.data import Data, InMemory, Split, digits
from reptk.data.decode import decode
from reptk.embeddings import Embedder, Embeddings, sources

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:.*has random weights")]


def test_a_folder_is_embedded_as_evaluation_sees_it(photos: Path, run: Path, embedded: Path) -> None:
    made = Embeddings.load(embedded)
    assert made.classes == ("cats", "dogs <b>", "ünï")
    assert made.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert list(made.ids) == sorted(str(path.relative_to(photos)) for path in photos.rglob("*.png"))
    images = torch.stack([decode(photos / name, 256, "auto") for name in made.ids])
    assert torch.allclose(made.vectors, Encoder.from_run(run).embed(images, 0.875), atol=1e-5)
    assert [made.file(number).is_file() for number in range(12)] == [True] * 12


def test_a_run_and_its_model_folder_are_one_encoder(photos: Path, run: Path, embedded: Path) -> None:
    model = reptk.embed(photos, encoder=run / "model")
    assert torch.equal(model.vectors, Embeddings.load(embedded).vectors)
    assert model.about["encoder"]["sha256"] == Embeddings.load(embedded).about["encoder"]["sha256"]
    assert reptk.embed(photos, **TINY).about["encoder"]["sha256"] != model.about["encoder"]["sha256"]


@pytest.mark.parametrize("changed", [{"batch_size": 1}, {"batch_size": 5, "workers": 0}, {"workers": 3}])
def test_batches_and_workers_change_nothing(changed: dict, photos: Path) -> None:
    one, other = reptk.embed(photos, **TINY), reptk.embed(photos, **(TINY | changed))
    assert torch.allclose(one.vectors, other.vectors, atol=1e-5)
    assert list(one.ids) == list(other.ids)


@pytest.mark.parametrize("suffix", ["safetensors", pytest.param("parquet", marks=needs_pyarrow)])
@pytest.mark.parametrize("half", [False, True])
def test_streamed_is_at_once(suffix: str, half: bool, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / f"e.{suffix}"
    streamed, at_once = (
        reptk.embed(photos, out=out, half=half, batch_size=5, **TINY),
        reptk.embed(photos, half=half, **TINY),
    )
    assert torch.allclose(streamed.vectors.float(), at_once.vectors.float(), atol=1e-3 if half else 1e-6)
    assert list(streamed.ids) == list(at_once.ids)
    assert streamed.labels.tolist() == at_once.labels.tolist()
    assert streamed.about.keys() == at_once.about.keys()


def test_half_is_full_to_a_thousandth(photos: Path) -> None:
    full, half = reptk.embed(photos, **TINY), reptk.embed(photos, half=True, **TINY)
    assert half.vectors.dtype == torch.float16
    similarities = full.vectors @ full.vectors.T
    assert (half.vectors.float() @ half.vectors.float().T - similarities).abs().max() < 1e-3


def test_a_data_set_and_its_splits(run: Path) -> None:
    everything, query = reptk.embed("digits", encoder=run), reptk.embed("digits", encoder=run, split="query")
    assert len(everything) == 1797
    assert [everything.ids[0], everything.ids[-1], query.ids[0]] == ["train/0", "query/796", "query/0"]
    assert everything.paths is None
    data = digits()
    assert query.labels.tolist() == data.query.labels.tolist()
    assert torch.allclose(
        query.vectors[:9], Encoder.from_run(run).embed(data.query.images.fetch(torch.arange(9))), atol=1e-5
    )
    assert torch.allclose(everything.vectors[-797:], query.vectors, atol=1e-5)


def test_a_bank_within_the_training_images_is_not_embedded_twice(photos: Path, run: Path) -> None:
    picture(99).save(photos / "loose.png")
    try:
        made = reptk.embed(photos, encoder=run)
    finally:
        (photos / "loose.png").unlink()
    assert len(made) == 13
    assert made.class_of(list(made.ids).index("loose.png")) == ""


def test_images_that_two_splits_share_are_embedded_once() -> None:
    images = torch.randint(0, 256, (9, 3, 4, 4), generator=rng.generator("splits"), dtype=torch.uint8)
    train, query = Split(InMemory(images[:6]), torch.arange(6)), Split(InMemory(images[6:]), torch.arange(3))
    within, other = Split(InMemory(images[2:5].clone()), torch.arange(3)), Split(InMemory(images[4:8]), torch.arange(4))
    for bank, expected in (
        (train, "train query"),
        (within, "train query"),
        (other, "train query bank"),
        (None, "train query"),
    ):
        assert list(sources._distinct(Data(train, bank, query, (), ""))) == expected.split()


@pytest.mark.parametrize("size", [48, 200])
def test_a_query_goes_the_way_the_images_went(size: int, photos: Path, run: Path) -> None:
    made = reptk.embed({"name": "folder", "root": str(photos), "size": size}, encoder=run)
    answers = reptk.search(made, [photos / name for name in made.ids], k=1)
    assert [answer.neighbours[0].similarity for answer in answers] == pytest.approx([1] * 12, abs=1e-6)


def test_images_in_memory(run: Path) -> None:
    images = torch.stack([torch.from_numpy(np.array(picture(one))).permute(2, 0, 1) for one in range(3)])
    made = reptk.embed(images, encoder=Encoder.from_run(run))
    assert torch.allclose(made.vectors, Encoder.from_run(run).embed(images), atol=1e-6)
    with pytest.raises(DataError, match="uint8"):
        reptk.embed(images.float(), encoder=run)


TABLES = {
    "positions": 'b.png,cat,x\n"c,ü.png",dog,y\n',
    "headings": 'id,label,path,more\nx,cat,b.png,1\ny,dog,"c,ü.png",2\n',
    "byte order mark": '\ufeffpath,label,id\r\nb.png,cat,x\r\n"c,ü.png",dog,y\r\n\r\n',
}


@pytest.mark.parametrize("text", TABLES.values(), ids=TABLES)
def test_a_table_of_images(text: str, run: Path, tmp_path: Path) -> None:
    for name in ("b.png", "c,ü.png"):
        picture(len(name)).save(tmp_path / name)
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    made = reptk.embed(tmp_path / "t.csv", encoder=run)
    assert (list(made.ids), list(made.paths), made.classes) == (["x", "y"], ["b.png", "c,ü.png"], ("cat", "dog"))
    assert made.file(1) == tmp_path / "c,ü.png"


def test_a_table_of_paths_alone_and_of_numbers(run: Path, tmp_path: Path) -> None:
    for number in range(3):
        picture(number).save(tmp_path / f"{number}.png")
    (tmp_path / "t.csv").write_text(f"0.png,10\n{tmp_path}/1.png,\n2.png,9\n")
    made = reptk.embed(tmp_path / "t.csv", encoder=run)
    assert (made.classes, made.labels.tolist()) == (("9", "10"), [1, -1, 0])
    assert list(made.ids) == ["0.png", f"{tmp_path}/1.png", "2.png"]
    assert made.file(1) == tmp_path / "1.png"


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "lists no images"),
        ("path,label\n", "lists no images"),
        ("a,b,c,d\n", "more than 3 columns"),
        (",cat\n", "without a path, first row 1"),
        ("a.png,c,x\nb.png,c,x\n", "the id 'x' twice"),
        ('a.png,"open\n', "as CSV"),
        ("a.png\nb.png\n", "none of 2 images can be embedded"),
    ],
)
def test_tables_that_are_wrong(text: str, wrong: str, run: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=wrong):
        reptk.embed(tmp_path / "t.csv", encoder=run)


def test_unreadable_images_cost_only_themselves(
    photos: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(photos, tmp_path / "mixed")
    for number in range(7):
        (tmp_path / "mixed" / "cats" / f"05-{number}.jpg").write_bytes(b"no image")
    arguments = ["embed", run, "--data", tmp_path / "mixed", "--out", tmp_path / "e.safetensors"]
    printed = said(arguments, capsys)
    assert "left out: 7" in printed
    assert "and 2 more" in printed
    assert "05-0.jpg" in printed
    made, without = Embeddings.load(tmp_path / "e.safetensors"), reptk.embed(photos, encoder=run)
    assert torch.allclose(made.vectors, without.vectors, atol=1e-5)
    assert (list(made.ids), made.labels.tolist()) == (list(without.ids), without.labels.tolist())
    assert made.about["skipped"]["count"] == 7
    assert "05-0.jpg" in said([*arguments, "--strict", "--force"], capsys, code=3)
    assert len(Embeddings.load(tmp_path / "e.safetensors")) == 12, "what was there is there still"


@pytest.mark.parametrize(("value", "why"), [(float("nan"), "is not finite"), (0.0, "is zero")])
def test_vectors_that_are_none_are_left_out(
    value: float, why: str, photos: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded = Embedder.vectors

    def spoiled(self: Embedder, images: Tensor) -> Tensor:
        made = embedded(self, images)
        made[2] = value
        return made

    monkeypatch.setattr(Embedder, "vectors", spoiled)
    made = reptk.embed(photos, encoder=run)
    assert (len(made), made.about["skipped"]["count"]) == (11, 1)
    assert why in made.about["skipped"]["first"][0]
    with pytest.raises(NumericalError, match=why):
        reptk.embed(photos, encoder=run, strict=True)


def test_interrupted_nothing_is_left(photos: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedded, calls = Embedder.vectors, []

    def interrupted(self: Embedder, images: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return embedded(self, images)

    monkeypatch.setattr(Embedder, "vectors", interrupted)
    out = str(tmp_path / "e.safetensors")
    assert main(["embed", str(run), "--data", str(photos), "--out", out, "--batch-size", "3"]) == 130
    assert not list(tmp_path.iterdir())


def test_the_command_does_what_the_function_does(
    photos: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    printed = said(["embed", run, "--data", photos, "--out", tmp_path / "e.safetensors", "--half"], capsys)
    assert "12 embeddings of" in printed
    by_command, by_function = Embeddings.load(tmp_path / "e.safetensors"), reptk.embed(photos, encoder=run, half=True)
    assert torch.equal(by_command.vectors, by_function.vectors)
    for about in (by_command.about, by_function.about):
        about.pop("made"), about.pop("seconds")
    assert by_command.about == by_function.about


def test_the_runs_own_data_and_other_arguments(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    said(["embed", run, "--split", "query", "--out", tmp_path / "own.safetensors"], capsys)
    assert len(Embeddings.load(tmp_path / "own.safetensors")) == 97
    said(
        ["embed", run, "--data", "data.name=digits", "--split", "query", "--out", tmp_path / "other.safetensors"],
        capsys,
    )
    assert len(Embeddings.load(tmp_path / "other.safetensors")) == 797
