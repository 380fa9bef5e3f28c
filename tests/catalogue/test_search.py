"""reptk search and its function: from an image to its neighbours, and a page of them."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

import reptk
from catalogue_parts import TINY, said
from reptk import Encoder, neighbors
from reptk.core import rng
from reptk.core.errors import DataError
from reptk.embeddings import Embeddings, indexing

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:.*has random weights")]


@pytest.mark.parametrize("exclude", [None, torch.tensor([0, -1, 7])], ids=["all", "but some"])
def test_candidates_are_ranked_as_exact_search_ranks_them(exclude: Tensor | None) -> None:
    bank, queries = (torch.randn(count, 4, generator=rng.generator("ranked", count)) for count in (50, 3))
    bank[30:40] = bank[:10]
    shuffled = torch.stack([torch.randperm(50, generator=rng.generator("order", one)) for one in range(3)])
    candidates = torch.cat([shuffled, torch.full((3, 5), -1)], 1)
    for one, other in zip(
        neighbors.rerank(bank, queries, candidates, 12, exclude),
        indexing._exact(bank, queries, 12, exclude),
        strict=True,
    ):
        assert torch.equal(one, other)
    similarities, rows = neighbors.rerank(bank, queries, candidates[:, 44:], 8)
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
