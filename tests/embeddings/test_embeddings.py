"""Embeddings in files: what is written is read, in both formats; what is damaged is refused."""

from pathlib import Path

import pytest
import torch

from embedding_inputs import (
    NAMES,
    NON_UTF8,
    assert_same_embeddings,
    both_formats,
    make_embeddings,
    unit_vectors,
)
from reptk.core.errors import EnvironmentProblem, UsageError
from reptk.embeddings import Embeddings
from reptk.embeddings.files import row_blocks
from reptk.embeddings.files.embeddings_file import embeddings_file


@both_formats
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("kind", ["files", "files with ids", "no files"])
@pytest.mark.parametrize("names", [NAMES, [*NAMES, NON_UTF8], ["one"]], ids=["names", "not utf8", "one"])
def test_round_trip(suffix: str, half: bool, kind: str, names: list[str], tmp_path: Path) -> None:
    before = make_embeddings(names, half=half, kind=kind)
    after = Embeddings.load(before.save(tmp_path / f"e{suffix}"))
    assert_same_embeddings(after, before)
    assert (after.ids is after.paths) == (kind == "files"), "one column serves as both, in memory as well"


def test_the_comparison_can_fail() -> None:
    for changes in ({"kind": "no files"}, {"half": True}, {"names": [*NAMES[:-1], "other"]}):
        with pytest.raises(AssertionError):
            assert_same_embeddings(make_embeddings(), make_embeddings(**changes))


@both_formats
def test_many_blocks_are_written_as_one_is(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_block = make_embeddings().save(tmp_path / f"one{suffix}")
    monkeypatch.setattr(row_blocks, "BLOCK_BYTES", 1)
    many_blocks = make_embeddings().save(tmp_path / f"many{suffix}")
    assert_same_embeddings(Embeddings.load(many_blocks), Embeddings.load(one_block))
    if suffix == ".safetensors":
        assert many_blocks.read_bytes() == one_block.read_bytes()


@both_formats
def test_a_failure_changes_nothing(suffix: str, tmp_path: Path) -> None:
    embeddings = make_embeddings()
    path = embeddings.save(tmp_path / f"e{suffix}")
    content = path.read_bytes()

    def interrupted() -> None:
        with embeddings_file(path).writer(embeddings.header()) as writer:
            writer.add(next(embeddings.blocks()))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == content


def test_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_embeddings().save(tmp_path / "e.safetensors")
    with pytest.raises(UsageError, match="exists"):
        make_embeddings().save(path)
    make_embeddings(half=True).save(path, force=True)
    assert Embeddings.load(path).vectors.dtype == torch.float16
    with pytest.raises(EnvironmentProblem, match="there is no folder"):
        make_embeddings().save(tmp_path / "no" / "e.safetensors")
    with pytest.raises(UsageError, match=r"\.safetensors or \.parquet"):
        make_embeddings().save(tmp_path / "e.npz")
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(EnvironmentProblem, match="--half"):
        make_embeddings().save(tmp_path / "full.safetensors")


def test_columns_must_match() -> None:
    three = unit_vectors(3)
    for arguments in ((three, ["a"]), (three, list("abc"), ["a"]), (three.double(), list("abc"))):
        with pytest.raises(ValueError, match="vectors"):
            Embeddings(*arguments)


def test_rows_are_named_by_id_or_number() -> None:
    embeddings = Embeddings(unit_vectors(3), ["b", "1", "a"])
    assert [embeddings.row_of(name) for name in ("a", "1", "2")] == [2, 1, 2]
    with pytest.raises(UsageError, match="no image with the id '3'; there are 3, and the first is 'b'"):
        embeddings.row_of("3")
