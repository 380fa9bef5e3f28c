"""reptk embed, index and search, and the functions of these names: from images to neighbours, duplicates and pages."""

import csv
import json
import os
import re
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import reptk
from reptk import Encoder, neighbours
from reptk.catalogue import Embedder, Embeddings, Index, duplicates, indexing, near_duplicates, sources
from reptk.commands import main
from reptk.data import Data, InMemory, Split, digits
from reptk.data.decode import decode
from reptk.errors import DataError, EnvironmentProblem, NumericalError, UsageError
from reptk.keyed import generator, keyed

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:.*has random weights")]
needs_faiss = pytest.mark.skipif(find_spec("faiss") is None, reason="approximate indexes need FAISS")
needs_pyarrow = pytest.mark.skipif(find_spec("pyarrow") is None, reason="pyarrow is not installed")
TINY = {"encoder": "test_resnet", "size": 32, "workers": 2}


def picture(number: int, side: int = 40) -> Image.Image:
    """Something that no other number gives: coarse noise in colour."""
    coarse = torch.randint(0, 256, (4, 4, 3), generator=generator("picture", number), dtype=torch.uint8)
    return Image.fromarray(coarse.numpy()).resize((side + 10, side), Image.Resampling.BICUBIC)


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
    with keyed(7, "weights"):
        Encoder("test_vit", size=32).save(folder / "model")
    (folder / "recipe.toml").write_text('name = "mine"\n[data]\nname = "digits"\ntrain = 1700\n')
    return folder


@pytest.fixture(scope="module")
def embedded(photos: Path, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("embedded") / "photos.safetensors"
    reptk.embed(photos, encoder=run, out=out)
    return out


def said(arguments: list[object], capsys: pytest.CaptureFixture, code: int = 0) -> str:
    """What a command printed; mistakes are one message and no traceback."""
    assert main([str(word) for word in arguments]) == code
    printed = capsys.readouterr()
    assert (code == 0) == (not printed.err.startswith("error:")), printed.err
    return printed.out if code == 0 else printed.err


# embed


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
    images = torch.randint(0, 256, (9, 3, 4, 4), generator=generator("splits"), dtype=torch.uint8)
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


# index


@pytest.mark.parametrize("source", ["safetensors", pytest.param("parquet", marks=needs_pyarrow), "memory"])
def test_an_index_holds_the_embeddings(source: str, embedded: Path, tmp_path: Path) -> None:
    made = Embeddings.load(embedded)
    given = made if source == "memory" else made.save(tmp_path / f"e.{source}")
    index = reptk.index(given, out=tmp_path / "e.index")
    (tmp_path / "e.index").rename(tmp_path / "moved.index")
    moved = Index.open(tmp_path / "moved.index", verify=True)
    for one in (index, moved):
        assert torch.equal(one.embeddings.vectors, made.vectors)
        assert list(one.embeddings.ids) == list(made.ids)
        assert (one.kind, one.recall, one.embeddings.about) == ("Flat", 1.0, made.about)


def test_vectors_of_any_length_are_compared_by_direction(tmp_path: Path) -> None:
    drawn = torch.randn(20, 6, generator=generator("lengths"))
    index = reptk.index(Embeddings(drawn, list("abcdefghijklmnopqrst")), out=tmp_path / "e.index")
    unit = torch.nn.functional.normalize(drawn, dim=1)
    similarities, rows = index.search(unit, 20)
    expected = (unit @ unit.T).sort(descending=True)
    assert torch.allclose(similarities, expected.values, atol=1e-6)
    assert torch.equal(rows[:, 0], torch.arange(20))


KINDS = ["IVF4,Flat", "HNSW8", "IVF4,PQ4x4"]


@pytest.fixture(scope="module")
def many() -> Embeddings:
    centres = torch.randn(20, 16, generator=generator("many"))
    drawn = centres.repeat(32, 1) + 0.3 * torch.randn(640, 16, generator=generator("more"))
    return Embeddings(torch.nn.functional.normalize(drawn, dim=1), [f"{number}" for number in range(640)])


@needs_faiss
@pytest.mark.parametrize("kind", KINDS)
def test_approximate_kinds(kind: str, many: Embeddings, tmp_path: Path) -> None:
    reptk.index(many, out=tmp_path / "e.index", kind=kind)
    index = Index.open(tmp_path / "e.index")
    assert index.kind == kind
    similarities, rows = index.search(many.vectors[:50], 10)
    _, expected = indexing._exact(many.vectors, many.vectors[:50], 10)
    assert torch.equal(rows[:, 0], torch.arange(50)), "an image finds itself"
    found = (rows[:, :, None] == expected[:, None]).any(2)
    assert found.float().mean() > 0.9
    assert index.recall > 0.9
    pairs = (many.vectors[:50, None] * many.vectors[rows]).sum(2)
    assert torch.allclose(similarities, pairs, atol=1e-5), "similarities are those of the stored vectors"
    _, others = index.search(many.vectors[:50], 10, torch.arange(50))
    assert not (others == torch.arange(50)[:, None]).any()


@needs_faiss
def test_recall_is_measured(many: Embeddings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = reptk.index(many, out=tmp_path / "e.index", kind="IVF4,Flat")
    assert indexing.recall(index)["value"] == index.recall
    monkeypatch.setattr(index.approximate, "search", lambda queries, k: (None, torch.arange(k).expand(len(queries), k)))
    assert indexing.recall(index)["value"] < 0.5


def spoil(path: Path, at: int = -5) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def manifest(path: Path, **change: object) -> None:
    words = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(words | change))


DAMAGE = {
    "another hash": (lambda path: spoil(path / "embeddings.safetensors"), "another hash"),
    "cut": (lambda path: (path / "embeddings.safetensors").write_bytes(b"x"), "another length"),
    "gone": (lambda path: (path / "embeddings.safetensors").unlink(), "is missing"),
    "no manifest": (lambda path: (path / "manifest.json").unlink(), "is no index"),
    "no JSON": (lambda path: (path / "manifest.json").write_text("{"), "cannot be read"),
    "foreign": (lambda path: (path / "manifest.json").write_text('{"step": 3}'), "something else"),
    "newer": (lambda path: manifest(path, version=2), "newer reptk"),
    "incomplete": (lambda path: manifest(path, count=None), "is incomplete"),
    "another count": (lambda path: manifest(path, count=3), "is 12 x"),
}


@pytest.mark.parametrize(("damage", "wrong"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_index(
    damage: object, wrong: str, embedded: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    reptk.index(embedded, out=tmp_path / "e.index")
    damage(tmp_path / "e.index")
    assert wrong in said(["search", tmp_path / "e.index", "--id", "0", "--no-html"], capsys, code=3)


@needs_faiss
def test_faiss_never_sees_what_was_not_hashed(
    many: Embeddings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reptk.index(many, out=tmp_path / "e.index", kind="IVF4,Flat")
    monkeypatch.setattr(neighbours.Approximate, "from_bytes", lambda _: pytest.fail("bytes of another hash were read"))
    spoil(tmp_path / "e.index" / "index.faiss")
    with pytest.raises(DataError, match="another hash"):
        Index.open(tmp_path / "e.index")
    (tmp_path / "e.index" / "index.faiss").unlink()
    with pytest.raises(DataError, match="is missing"):
        Index.open(tmp_path / "e.index")


def test_flat_needs_no_faiss(embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert reptk.index(embedded, out=tmp_path / "e.index").recall == 1


def test_what_an_index_may_replace(embedded: Path, tmp_path: Path) -> None:
    place = tmp_path / "e.index"
    reptk.index(embedded, out=place)
    with pytest.raises(UsageError, match="--force"):
        reptk.index(embedded, out=place)
    (place / "manifest.json").write_text("{")
    reptk.index(embedded, out=place, force=True)
    bad = Embeddings(torch.full((2, 3), torch.nan), ["a", "b"])
    with pytest.raises(DataError, match="2 of 2 embeddings"):
        reptk.index(bad, out=place, force=True)
    assert len(Index.open(place)) == 12, "what was there stays until the new one stands"
    reptk.index(Embeddings(torch.eye(3), list("abc")), out=place, force=True)
    assert len(Index.open(place)) == 3
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="is no index"):
        reptk.index(embedded, out=tmp_path / "mine", force=True)
    with pytest.raises(EnvironmentProblem, match="there is no folder"):
        reptk.index(embedded, out=tmp_path / "no" / "e.index")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.index", "mine"]


# search


@pytest.mark.parametrize("exclude", [None, torch.tensor([0, -1, 7])], ids=["all", "but some"])
def test_candidates_are_ranked_as_exact_search_ranks_them(exclude: Tensor | None) -> None:
    bank, queries = (torch.randn(count, 4, generator=generator("ranked", count)) for count in (50, 3))
    bank[30:40] = bank[:10]
    shuffled = torch.stack([torch.randperm(50, generator=generator("order", one)) for one in range(3)])
    candidates = torch.cat([shuffled, torch.full((3, 5), -1)], 1)
    for one, other in zip(
        neighbours.ranked(bank, queries, candidates, 12, exclude),
        indexing._exact(bank, queries, 12, exclude),
        strict=True,
    ):
        assert torch.equal(one, other)
    similarities, rows = neighbours.ranked(bank, queries, candidates[:, 44:], 8)
    assert (rows[:, :6] >= 0).all()
    assert (rows[:, 6:] == -1).all()
    assert (similarities[:, 6:] == -torch.inf).all()


@pytest.mark.parametrize("what", ["index", "embeddings", "path"])
def test_an_image_finds_itself_first(what: str, photos: Path, embedded: Path, tmp_path: Path) -> None:
    index = {
        "index": lambda: reptk.index(embedded, out=tmp_path / "e.index"),
        "embeddings": lambda: Embeddings.load(embedded),
        "path": lambda: embedded,
    }[what]()
    queries = sorted(photos.rglob("*.png"))[:4]
    for query, answer in zip(queries, reptk.search(index, queries, k=3), strict=True):
        first, second = answer.neighbours[:2]
        assert (first.path, first.note) == (query, "the same file")
        assert first.similarity == pytest.approx(1, abs=1e-3)
        assert second.note == ""
        assert second.similarity < first.similarity


def test_search_is_brute_force(embedded: Path) -> None:
    made = Embeddings.load(embedded)
    expected = (made.vectors @ made.vectors.T).fill_diagonal_(-2).sort(dim=1, descending=True)
    for number, answer in enumerate(reptk.search(made, ids=list(made.ids), k=11)):
        assert answer.number == number
        assert [one.number for one in answer.neighbours] == expected.indices[number, :11].tolist()
        assert [one.label for one in answer.neighbours] == [made.class_of(one) for one in expected.indices[number, :11]]
    by_vector = reptk.search(made, 3 * made.vectors[:2], k=1)
    assert [answer.neighbours[0].number for answer in by_vector] == [0, 1], "vectors of any length are queries"
    assert by_vector[0].neighbours[0].similarity == pytest.approx(1, abs=1e-6)


def test_the_command_prints_and_draws(
    photos: Path, embedded: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    said(["index", embedded, "--out", tmp_path / "e.index"], capsys)
    query = tmp_path / "copy <i>.png"
    shutil.copy(photos / "cats" / "00.png", query)
    html = tmp_path / "found.html"
    printed = said(["search", tmp_path / "e.index", query, "--id", "ünï/02.png", "--k", "3", "--html", html], capsys)
    assert re.search(r"1  1\.000  cats .*00\.png  \(the same bytes\)", printed)
    page = html.read_text()
    assert page.count("<img") == 2 * (1 + 3)
    assert page.count("data:image/") == 8
    assert "copy &lt;i&gt;.png" in page
    assert "<b>." not in page.replace("<b>1.", "").replace("<b>2.", "").replace("<b>3.", "")
    assert "dogs <b>" not in page
    assert "http" not in page
    other = said(["search", query, "--index", tmp_path / "e.index", "--k", "3", "--html", html], capsys)
    assert other.splitlines()[2:6] == printed.splitlines()[2:6], "the index may be named as an option"
    html.write_text("<p>mine</p>")
    assert "not written by reptk" in said(["search", tmp_path / "e.index", query, "--html", html], capsys, code=2)
    assert html.read_text() == "<p>mine</p>"


def test_a_data_set_is_drawn_from_itself(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    html = tmp_path / "found.html"
    printed = said(["search", run, "--id", "query/3", "--k", "2", "--html", html], capsys)
    assert "embedding what" in printed
    assert html.read_text().count("data:image/png") == 3


def test_images_that_are_gone_are_said_to_be(
    photos: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    reptk.embed(tmp_path / "photos", encoder=run, out=tmp_path / "e.safetensors")
    shutil.rmtree(tmp_path / "photos")
    html = tmp_path / "found.html"
    said(["search", tmp_path / "e.safetensors", photos / "cats" / "00.png", "--k", "3", "--html", html], capsys)
    assert html.read_text().count("no image") == 3


def test_the_encoder_is_looked_for_and_verified(photos: Path, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    made, query = reptk.embed(photos, encoder=tmp_path / "run"), photos / "cats" / "00.png"
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"no longer at .*run\. Name its place: --encoder"):
        reptk.search(made, query)
    [answer] = reptk.search(made, query, encoder=str(tmp_path / "elsewhere"))
    assert answer.neighbours[0].note == "the same file"
    Encoder("test_vit", size=32).save(tmp_path / "elsewhere" / "model")
    with pytest.raises(DataError, match="is not the encoder that made these embeddings"):
        reptk.search(made, query, encoder=str(tmp_path / "elsewhere"))
    with pytest.raises(DataError, match="do not say which encoder"):
        reptk.search(Embeddings(torch.eye(3), list("abc")), query)


def test_a_timm_backbone_is_found_again_with_its_weights(photos: Path, tmp_path: Path) -> None:
    torch.save(Encoder("test_resnet", size=32).backbone.state_dict(), tmp_path / "weights.pth")
    options = {"encoder": "test_resnet", "size": 32}
    made = reptk.embed(photos, weights=str(tmp_path / "weights.pth"), **options)
    query = photos / "cats" / "00.png"
    assert reptk.search(made, query)[0].neighbours[0].similarity == pytest.approx(1, abs=1e-5)
    (tmp_path / "weights.pth").rename(tmp_path / "moved.pth")
    with pytest.raises(DataError, match="no longer at"):
        reptk.search(made, query)
    assert reptk.search(made, query, encoder=str(tmp_path / "moved.pth"))[0].neighbours[0].note == "the same file"
    untrained = reptk.embed(photos, **options)
    assert reptk.search(untrained, query)[0].neighbours[0].similarity == pytest.approx(1, abs=1e-5), "drawn alike again"


def test_a_backbone_without_weights_is_warned_of(photos: Path) -> None:
    with pytest.warns(UserWarning, match="random weights"):
        reptk.embed(photos, **TINY)


def test_more_neighbours_than_there_are(embedded: Path) -> None:
    with pytest.warns(UserWarning, match="k = 99 is more than there is; 12"):
        [answer] = reptk.search(embedded, torch.ones(1, 64), k=99)
    assert len(answer.neighbours) == 12
    with pytest.warns(UserWarning, match="11 is used"):
        assert len(reptk.search(embedded, ids=["3"], k=12)[0].neighbours) == 11


# duplicates


def brute_force(vectors: Tensor, threshold: float) -> list[list[int]]:
    """Groups by walking from image to image."""
    near = (vectors @ vectors.T >= threshold - 1e-6).tolist()
    left, groups = set(range(len(vectors))), []
    while left:
        group, ahead = set(), [min(left)]
        while ahead:
            one = ahead.pop()
            group.add(one)
            ahead += [other for other in left - group if near[one][other]]
        left -= group
        groups.append(sorted(group))
    return sorted((group for group in groups if len(group) > 1), key=lambda group: (-len(group), group))


@pytest.mark.parametrize("block", [3, 7, 600])
@pytest.mark.parametrize("threshold", [0.7, 0.9, 0.95])
def test_groups_are_those_of_brute_force(
    block: int, threshold: float, many: Embeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = Embeddings(many.vectors[:150], many.ids[:150])
    monkeypatch.setattr(duplicates, "BLOCK", block)
    found = near_duplicates(some, threshold=threshold)
    assert [[one.number for one in group] for group in found.groups] == brute_force(some.vectors, threshold)
    assert found.groups
    similarities = (some.vectors @ some.vectors.T).fill_diagonal_(-1)
    for group in found.groups:
        for one in group:
            assert one.nearest == similarities[one.number].argmax()
            assert one.similarity == pytest.approx(float(similarities[one.number].max()), abs=1e-5)


@pytest.mark.parametrize("block", [7, 600])
def test_leaks_are_those_of_brute_force(block: int, many: Embeddings, monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = (Embeddings(many.vectors[part], many.ids[part]) for part in (slice(0, 200), slice(200, 320)))
    monkeypatch.setattr(duplicates, "BLOCK", block)
    found = near_duplicates(train, test, threshold=0.92)
    best = (test.vectors @ train.vectors.T).max(1)
    assert 0 < len(found.leaks) < 120
    assert {one.number for one in found.leaks} == set((best.values >= 0.92 - 1e-6).nonzero().flatten().tolist())
    assert [one.nearest for one in found.leaks] == [int(best.indices[one.number]) for one in found.leaks]
    values = [one.similarity for one in found.leaks]
    assert values == sorted(values, reverse=True)


def test_a_thousand_times_the_same_is_one_group() -> None:
    found = near_duplicates(Embeddings(torch.ones(5000, 4) / 2, [str(one) for one in range(5000)]), threshold=1)
    assert [len(group) for group in found.groups] == [5000]
    assert {one.nearest for one in found.groups[0]} == {0, 1}


def test_duplicates_by_the_command(photos: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    shutil.copy(photos / "cats" / "00.png", tmp_path / "photos" / "ünï" / "copy.png")
    out, table, html = tmp_path / "e.safetensors", tmp_path / "d.csv", tmp_path / "d.html"
    reptk.embed(tmp_path / "photos", encoder=run, out=out)
    arguments = ["search", out, "--duplicates", "--threshold", "0.99999", "--out", table, "--html", html]
    printed = said(arguments, capsys)
    assert "1 group of near duplicates" in printed
    assert "1 of 13 images could go; 2 hold the same bytes as another; 1 in whose images the labels differ" in printed
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["id"], row["nearest"], row["identical"]) for row in rows] == [
        ("cats/00.png", "ünï/copy.png", "yes"),
        ("ünï/copy.png", "cats/00.png", "yes"),
    ]
    assert html.read_text().count("<img") == 2
    assert "--force" in said(arguments, capsys, code=2)
    reptk.embed(photos, encoder=run, out=tmp_path / "test.safetensors")
    leaks = ["search", out, "--duplicates", tmp_path / "test.safetensors", "--threshold", "0.99999", "--html", html]
    printed = said(leaks, capsys)
    assert "12 of 12 images" in printed
    assert "12 hold the same bytes" in printed
    printed = said(["search", out, "--duplicates", "--threshold", "1", "--no-html"], capsys)
    assert "1 group" in printed


# mistakes


@pytest.mark.parametrize(
    ("arguments", "code", "wrong"),
    [
        (["embed", "RUN", "--data", "PHOTOS"], 2, "--out"),
        (["embed", "RUN", "--data", "PHOTOS", "--out", "e.npz"], 2, ".safetensors or .parquet"),
        (["embed", "RUN", "--data", "PHOTOS", "--out", "no/e.safetensors"], 4, "there is no folder"),
        (["embed", "RUN", "--data", "PHOTOS", "--out", "e.safetensors", "--pretrained"], 2, "a run has its own"),
        (["embed", "RUN", "--data", "PHOTOS", "--out", "e.safetensors", "--batch-size", "0"], 2, "batch_size"),
        (
            ["embed", "RUN", "--data", "PHOTOS", "--out", "e.safetensors", "--split", "query"],
            3,
            "no query split, only train",
        ),
        (["embed", "RUN", "--data", "digits", "--out", "e.safetensors", "--split", "test"], 2, "--split must be"),
        (["embed", "RUN", "--data", "digit", "--out", "e.safetensors"], 3, "Nearest: digits"),
        (["embed", "RUN", "--data", "EMPTY", "--out", "e.safetensors"], 3, "it is empty"),
        (["embed", "RUN", "--out", "e.safetensors", "train.epochs=3"], 2, "what can be set here"),
        (["embed", "test_resnet", "--out", "e.safetensors"], 2, "which images?"),
        (["embed", "test_resnt", "--data", "digits", "--out", "e.safetensors"], 2, "Nearest: test_resnet"),
        (["embed", "no/run", "--data", "digits", "--out", "e.safetensors"], 3, "no run or model in no/run"),
        (["embed", "EMPTY", "--data", "digits", "--out", "e.safetensors"], 3, "no model in"),
        (["index", "gone.safetensors", "--out", "e.index"], 3, "no file of embeddings gone.safetensors"),
        (["index", "PHOTOS/cats/00.png", "--out", "e.index"], 2, "not as '00.png'"),
        (["index", "EMBEDDED", "--out", "EMPTY"], 2, "--force"),
        (["index", "EMBEDDED", "--out", "RUN", "--force"], 2, "is no index"),
        (["search"], 2, "which index?"),
        (["search", "EMBEDDED"], 2, "for what?"),
        (["search", "EMBEDDED", "gone.jpg"], 3, "no image gone.jpg"),
        (["search", "EMBEDDED", "PHOTOS"], 3, "it is a folder"),
        (["search", "EMBEDDED", "RUN/recipe.toml"], 3, "as an image"),
        (["search", "EMBEDDED", "--id", "nobody"], 2, "no image with the id 'nobody'"),
        (["search", "EMBEDDED", "--id", "3", "--k", "0"], 2, "k must be 1 to 11"),
        (["search", "PHOTOS/cats/00.png", "EMBEDDED"], 2, "the index comes first"),
        (["search", "gone.index", "--id", "3"], 3, "no index gone.index"),
        (["search", "EMPTY", "--id", "3"], 3, "has no manifest.json"),
        (["search", "EMBEDDED", "--id", "3", "--threshold", "0.5"], 2, "go with --duplicates"),
        (["search", "EMBEDDED", "--duplicates", "--threshold", "2"], 2, "--threshold must lie"),
        (["search", "EMBEDDED", "--duplicates", "EMBEDDED", "--id", "3"], 2, "takes no queries"),
        (["search", "EMBEDDED", "--duplicates", "NARROW"], 3, "of 3"),
        (["search", "EMBEDDED", "--duplicates", "OTHER"], 3, "different encoders"),
    ],
)
def test_mistakes(
    arguments: list[str],
    code: int,
    wrong: str,
    photos: Path,
    run: Path,
    embedded: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    (tmp_path / "empty").mkdir()
    Embeddings(torch.eye(3), list("abc")).save(tmp_path / "narrow.safetensors")
    made = Embeddings.load(embedded)
    about = {"encoder": {"sha256": "0" * 64}}
    Embeddings(made.vectors, made.ids, about=about).save(tmp_path / "other.safetensors")
    places = {"PHOTOS": photos, "RUN": run, "EMBEDDED": embedded, "EMPTY": tmp_path / "empty"}
    places |= {name.upper(): tmp_path / f"{name}.safetensors" for name in ("narrow", "other")}
    words = [re.sub("^[A-Z]+", lambda found: str(places.get(found[0], found[0])), word) for word in arguments]
    assert wrong in said(words, capsys, code=code)
    assert not list(here.iterdir()), "nothing is left of what failed"


def test_queries_must_fit_the_index(embedded: Path) -> None:
    for queries, wrong in (
        (torch.ones(1, 3), "64 values"),
        (torch.full((1, 64), torch.nan), "NaN"),
        (torch.zeros(1, 64), "zero"),
    ):
        with pytest.raises(DataError, match=wrong):
            reptk.search(embedded, queries)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(photos: Path, run: Path, tmp_path: Path) -> None:
    (tmp_path / "shut").mkdir(mode=0o500)
    with pytest.raises(EnvironmentProblem, match="no right to write"):
        reptk.embed(photos, encoder=run, out=tmp_path / "shut" / "e.safetensors")
