"""verify_recall: the number is the share of exact neighbors that is found, for indexes and stores, good and bad ones."""

from contextlib import closing

import pytest
import torch
from torch import Tensor

import reptk
from embedding_inputs import needs_faiss
from reptk.core.errors import UsageError
from reptk.embeddings import Index, verify_recall
from reptk.embeddings.retrieval.build_index import measure_recall
from reptk.neighbors import ApproximateIndex

pytestmark = [pytest.mark.usefixtures("one_thread")]


class PartialIndex(Index):
    """Finds the first of the exact neighbors, and other rows, again and again, in place of those behind."""

    num_found = 4

    def search(self, queries: Tensor, k: int, exclude: Tensor | None = None) -> tuple[Tensor, Tensor]:
        similarities, rows = super().search(queries, k, exclude)
        rows[:, self.num_found :] = rows[:, :1]
        return similarities, rows


def test_the_share_is_counted(clustered: reptk.Embeddings) -> None:
    recall = verify_recall(PartialIndex(clustered), k=10, num_queries=50)
    assert recall == (10, pytest.approx(0.4), pytest.approx(0.4), pytest.approx(0.4), 50)
    assert verify_recall(Index(clustered), k=10, num_queries=50)[:2] == (10, 1.0)


def test_exact_copies_are_interchangeable() -> None:
    vectors = torch.nn.functional.normalize(torch.eye(4).repeat(10, 1), dim=1)

    class LastCopies(Index):
        def search(self, queries: Tensor, k: int, exclude: Tensor | None = None) -> tuple[Tensor, Tensor]:
            copies = (queries @ vectors.T).topk(10, dim=1).indices
            others = copies[copies != exclude[:, None]].view(len(queries), 9)
            return torch.ones(len(queries), k), others.sort(descending=True).values[:, :k]

    embeddings = reptk.Embeddings(vectors, list(map(str, range(40))))
    assert verify_recall(LastCopies(embeddings), k=3).value == 1


@needs_faiss
def test_it_agrees_with_the_recall_that_an_index_states(clustered: reptk.Embeddings) -> None:
    approximate = ApproximateIndex.build(clustered.vectors, "IVF4,Flat", effort=1)
    with closing(Index(clustered, "IVF4,Flat", approximate=approximate)) as index:
        recall = verify_recall(index, k=10, num_queries=640)
    assert 0.5 < recall.value < 1
    assert recall.low < recall.value < recall.high
    assert recall.num_queries == 640


@pytest.mark.parametrize("arguments", [{"k": 0}, {"num_queries": 0}])
def test_arguments_are_checked(arguments: dict[str, int], clustered: reptk.Embeddings) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        verify_recall(Index(clustered), **arguments)


def test_an_index_states_the_recall_that_is_verified() -> None:
    vectors = torch.eye(2).repeat(20, 1)

    class LastCopies(Index):
        """Exact search finds the first of the 19 copies of each image, and this one the last."""

        def search(self, queries: Tensor, k: int, exclude: Tensor | None = None) -> tuple[Tensor, Tensor]:
            copies = (queries @ vectors.T).topk(20, dim=1).indices
            others = copies[copies != exclude[:, None]].view(len(queries), 19)
            return torch.ones(len(queries), k), others.sort(descending=True).values[:, :k]

    index = LastCopies(reptk.Embeddings(vectors, list(map(str, range(40)))), "IVF4,Flat")
    assert measure_recall(index)["value"] == verify_recall(index).value == 1
