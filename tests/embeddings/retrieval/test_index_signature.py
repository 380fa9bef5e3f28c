"""FAISS reads an index only if this user built it on this machine, or trusts it."""

import json
import os
import shutil
import warnings
from pathlib import Path

import pytest
import torch

import reptk
from embedding_inputs import change_manifest, needs_faiss, run_command
from reptk.core.errors import DataError
from reptk.core.file_records import file_record
from reptk.embeddings import Embeddings, Index
from reptk.embeddings.retrieval.index_signature import is_signed, sign
from reptk.neighbors import ApproximateIndex

pytestmark = [pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def built(clustered: Embeddings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "e.index"
    reptk.index(clustered, out=folder, kind="IVF4,Flat")
    return folder


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    return shutil.copytree(built, tmp_path / "e.index")


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user, or another machine."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "other home"))


def test_a_signature_is_of_one_hash_and_one_key(
    elsewhere: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not is_signed("aa", "x"), "there is no key yet"
    signature = sign("aa")
    assert sign("aa") == signature
    assert is_signed("aa", signature)
    for sha256, other in (("ab", signature), ("aa", signature[:-1]), ("aa", "\u00e9"), (None, signature), ("aa", 3)):
        assert not is_signed(sha256, other)
    key = tmp_path / "other home" / "reptk" / "index.key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert os.listdir(key.parent) == ["index.key"]  # noqa: PTH208
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "third home"))
    assert not is_signed("aa", signature)
    assert sign("aa") != signature


def test_without_a_writable_home_there_is_no_signature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file"))
    assert sign("aa") is None
    assert not is_signed("aa", "")


@needs_faiss
def test_an_own_index_is_read_wherever_it_is(folder: Path) -> None:
    index = Index.open(folder)
    assert index.kind == "IVF4,Flat"
    assert index.approximate is not None


@needs_faiss
def test_an_index_from_elsewhere_is_searched_exactly(
    folder: Path, clustered: Embeddings, elsewhere: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    trusted = Index.open(folder, trust=True)
    assert trusted.kind == "IVF4,Flat"
    monkeypatch.setattr(ApproximateIndex, "from_bytes", lambda data: pytest.fail("FAISS reads the file"))
    with pytest.warns(UserWarning, match=r"was not built by you on this machine.*--trust"):
        index = Index.open(folder)
    assert (index.kind, index.recall, index.approximate) == ("Flat", 1.0, None)
    _, rows = index.search(clustered.vectors[:5], 3)
    assert torch.equal(rows[:, 0], torch.arange(5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert "exact" in run_command(["search", folder, "--id", "3", "--no-html"], capsys)


@needs_faiss
def test_a_file_with_another_signature_or_none_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ApproximateIndex, "from_bytes", lambda data: pytest.fail("FAISS reads the file"))
    record = json.loads((folder / "manifest.json").read_text())["files"]["index.faiss"]
    files = json.loads((folder / "manifest.json").read_text())["files"]
    (folder / "index.faiss").write_bytes(b"hostile")
    hostile = {**file_record(folder / "index.faiss"), "signature": record["signature"]}
    for changed in (hostile, {**record, "signature": "0" * 64}, {**record, "signature": None}, {"bytes": 7}):
        change_manifest(folder, files={**files, "index.faiss": changed})
        with pytest.warns(UserWarning, match="was not built by you"):
            assert Index.open(folder).kind == "Flat"


@needs_faiss
def test_rows_that_do_not_exist_are_refused(
    folder: Path, clustered: Embeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = Index.open(folder)
    monkeypatch.setattr(index.approximate, "search", lambda queries, k: (None, torch.full((len(queries), k), 640)))
    with pytest.raises(DataError, match="rows that do not exist"):
        index.search(clustered.vectors[:2], 3)


def test_vectors_of_an_index_that_cannot_be_compared_are_refused() -> None:
    for value in (torch.nan, 3e38):
        vectors = torch.eye(4)
        vectors[2, 2] = value
        with pytest.raises(DataError, match="the index is damaged"):
            Index(Embeddings(vectors, list("abcd"))).search(torch.eye(4)[:1], 2)
