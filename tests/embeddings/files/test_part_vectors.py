"""PartVectors and JoinedStrings: the same as the parts in one piece."""

import operator

import pytest
import torch

from reptk import neighbors
from reptk.core import distributed, rng
from reptk.embeddings import Embeddings, Index
from reptk.embeddings.files.part_vectors import PartVectors, rows_between
from reptk.embeddings.files.string_array import JoinedStrings, StringArray, are_utf8, find_string
from reptk.embeddings.retrieval import sharded_search


def in_parts(sizes: tuple[int, ...] = (3, 1, 0, 5), width: int = 4) -> tuple[PartVectors, torch.Tensor]:
    parts = [torch.randn(size, width, generator=rng.generator("parts", number)) for number, size in enumerate(sizes)]
    return PartVectors(parts), torch.cat(parts)


ROWS = {
    "slice": lambda v: v[2:7],
    "slice of a part": lambda v: v[5:8],
    "empty slice": lambda v: v[4:4],
    "slice with a step": lambda v: v[1:9:3],
    "slice from the end": lambda v: v[-4:],
    "row": lambda v: v[3],
    "last row": lambda v: v[-1],
    "value": lambda v: v[4, 2],
    "rows in any order": lambda v: v[torch.tensor([8, 0, 3, 3, -2])],
    "list of rows": lambda v: v[[1, 7]],
    "matrix of rows": lambda v: v[torch.tensor([[8, 0], [3, 4]])],
    "mask": lambda v: v[torch.arange(9) % 2 == 0],
    "index_select": lambda v: v.index_select(0, torch.tensor([6, 2])),
    "columns": lambda v: v[:, 1:3],
    "split": lambda v: torch.cat(v.split(4)[1:]),
    "norm": lambda v: v.norm(dim=1),
    "product": lambda v: v @ v.T,
    "half": lambda v: v.half(),
    "clone": lambda v: v.clone(),
    "contiguous": lambda v: v.contiguous(),
    "detach": lambda v: v.detach()[2:6],
    "iteration": lambda v: torch.stack(list(v)),
}


@pytest.mark.parametrize("name", ROWS)
def test_equals_the_parts_in_one_tensor(name: str) -> None:
    vectors, whole = in_parts()
    actual = ROWS[name](vectors)
    assert type(actual) is torch.Tensor
    assert torch.equal(actual, ROWS[name](whole))


def test_shape_and_type_are_known_without_reading() -> None:
    vectors, whole = in_parts()
    assert (len(vectors), vectors.shape, vectors.dtype, vectors.ndim) == (9, whole.shape, whole.dtype, 2)
    assert not vectors.is_contiguous()
    with pytest.raises(IndexError):
        vectors[torch.tensor([9])]
    with pytest.raises(IndexError):
        vectors[9]


def test_a_slice_within_a_part_is_no_copy() -> None:
    vectors, _ = in_parts()
    assert vectors[5:8].data_ptr() == vectors.parts[3][1:].data_ptr()


@pytest.mark.parametrize("k", [3, 60])
def test_exact_search_finds_the_same_bits(k: int) -> None:
    vectors, whole = in_parts((300, 1, 200, 0, 99), width=8)
    queries = whole[::50] + 0.1
    exclude = torch.arange(0, 600, 50)
    [expected] = neighbors.search(whole, queries, k, exclude)
    [actual] = neighbors.search(vectors, queries, k, exclude)
    assert all(map(torch.equal, actual, expected))


def test_strings_of_parts() -> None:
    parts = [["a", "ünï", ""], [], ["b\udcff"], ["x", "a"]]
    joined = JoinedStrings([StringArray.from_strings(part) for part in parts])
    whole = [text for part in parts for text in part]
    assert list(joined) == whole
    assert len(joined) == 6
    for index in range(-6, 6):
        assert joined[index] == whole[index]
    for start in range(-7, 8):
        for stop in range(-7, 8):
            assert joined[start:stop] == whole[start:stop]
    assert joined[::-2] == whole[::-2]
    with pytest.raises(IndexError):
        operator.getitem(joined, 6)
    assert [find_string(joined, text) for text in ("a", "b\udcff", "x", "none")] == [0, 3, 4, -1]
    assert not are_utf8(joined)
    assert are_utf8(JoinedStrings(joined.parts[:1]))


def test_rows_between_are_no_copy() -> None:
    vectors, whole = in_parts()
    for first in range(10):
        for last in range(first, 10):
            assert torch.equal(rows_between(vectors, first, last).clone(), whole[first:last])
            assert torch.equal(rows_between(whole, first, last), whole[first:last])
    rows = rows_between(vectors, 1, 7)
    assert isinstance(rows, PartVectors)
    pieces = [part for part in rows.parts if len(part)]
    starts = [vectors.parts[0][1:], vectors.parts[1], vectors.parts[3]]
    assert [piece.data_ptr() for piece in pieces] == [start.data_ptr() for start in starts]


class Searched(Exception):  # noqa: N818 - raised to end a search
    """Carries the rows of a rank."""


@pytest.mark.parametrize(("rank", "bounds"), [(0, (0, 4)), (1, (4, 9))])
def test_a_rank_searches_its_share_of_the_parts_in_place(
    rank: int, bounds: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def search_sharded(part: torch.Tensor, *_: object) -> None:
        raise Searched(part)

    monkeypatch.setattr(sharded_search, "search_sharded", search_sharded)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    vectors, whole = in_parts()
    index = Index(Embeddings(vectors, list("abcdefghi")))
    with pytest.raises(Searched) as searched:
        sharded_search.search_over_ranks(index, whole[:2], 3)
    [part] = searched.value.args
    assert isinstance(part, PartVectors)
    assert torch.equal(part.clone(), whole[slice(*bounds)])
