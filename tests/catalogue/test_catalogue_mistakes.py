"""What embed, index and search say when they are asked for what cannot be."""

import os
import re
from pathlib import Path

import pytest
import torch

import reptk
from catalogue_parts import said
from reptk.core.errors import DataError, EnvironmentProblem
from reptk.embeddings import Embeddings

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:.*has random weights")]


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
