"""search_streamed: what exact search finds in all rows together, bit for bit."""

import pytest
import torch

from reptk import neighbors
from reptk.core import rng

pytestmark = [pytest.mark.usefixtures("one_thread")]


@pytest.mark.parametrize("block_rows", [1, 7, 200])
def test_blocks_change_nothing(block_rows: int) -> None:
    bank = torch.randn(200, 6, generator=rng.generator("streamed"))
    bank[50:60] = bank[:10]  # equal rows, in the order of their numbers
    queries = torch.cat([bank[:12], torch.randn(3, 6, generator=rng.generator("more"))])
    exclude = torch.cat([torch.arange(12), torch.full((3,), -1)])
    order = torch.randperm(200, generator=rng.generator("order"))
    blocks = [(numbers, bank[numbers]) for numbers in order.split(block_rows)]
    similarities, rows = neighbors.search_streamed(blocks, queries, 9, exclude)
    [(expected_similarities, expected_rows)] = neighbors.search(bank, queries, 9, exclude)
    assert torch.equal(rows, expected_rows)
    assert torch.equal(similarities, expected_similarities)


def test_fewer_rows_than_neighbors() -> None:
    similarities, rows = neighbors.search_streamed(
        [(torch.arange(2), torch.eye(2))], torch.eye(2), 3, torch.tensor([0, -1])
    )
    assert rows.tolist() == [[1, -1, -1], [1, 0, -1]]
    assert similarities[0].tolist() == [0, -torch.inf, -torch.inf]


def test_rows_that_cannot_be_searched() -> None:
    with pytest.raises(ValueError, match="query rows 2"):
        neighbors.search_streamed([(torch.arange(2), torch.ones(2, 3))], torch.eye(2), 1)
    with pytest.raises(ValueError, match="NaN"):
        neighbors.search_streamed([(torch.arange(1), torch.full((1, 2), torch.nan))], torch.eye(2), 1)
