"""The queue against a list of the last rows, its initial rows, and its place in checkpoints."""

from collections import deque

import pytest
import torch

from reptk.losses import supcon
from reptk.methods import Queue, Step


def rows_of(number: int, count: int, dim: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows whose entries are their ids, `count` for each step."""
    ids = torch.arange(number * count, (number + 1) * count)
    return ids[:, None].expand(-1, dim).float(), ids


@pytest.mark.parametrize(("size", "count"), [(12, 4), (10, 4), (7, 5), (5, 5), (3, 8), (1, 1), (1, 2)])
def test_the_queue_holds_the_last_rows(size: int, count: int) -> None:
    """Also where its size is no multiple of the batch, and where the batch is larger."""
    queue = Queue(size, 3)
    last: deque[int] = deque(queue.ids.tolist(), maxlen=size)
    for number in range(6):
        rows, ids = rows_of(number, count)
        queue.push(Step(number, 6, 0), rows, ids)
        last.extend(ids.tolist())
        assert sorted(queue.ids.tolist()) == sorted(last)
        # Rows and ids stay together.
        assert torch.equal(queue.rows[queue.is_used, 0].long(), queue.ids[queue.is_used])


def test_the_used_rows_are_those_that_were_pushed() -> None:
    """Also where a step was left out (`train.max_omitted_steps`), whose places still have initial rows."""
    queue = Queue(8, 3)
    assert len(queue.used()[0]) == 0
    for number in (0, 2):
        queue.push(Step(number, 4, 0), *rows_of(number, 2))
    rows, ids = queue.used()
    assert ids.tolist() == [0, 1, 4, 5]
    assert torch.equal(rows[:, 0].long(), ids)


def test_a_queue_that_is_loaded_from_a_state_goes_on_in_the_same_places() -> None:
    uninterrupted, interrupted = Queue(7, 3), Queue(7, 3)
    uninterrupted.load_state_dict(interrupted.state_dict())
    for number in range(5):
        uninterrupted.push(Step(number, 5, 0), *rows_of(number, 4))
        if number == 2:
            resumed = Queue(7, 3)
            resumed.load_state_dict(interrupted.state_dict())
            interrupted = resumed
        interrupted.push(Step(number, 5, 0), *rows_of(number, 4))
    assert torch.equal(uninterrupted.rows, interrupted.rows)
    assert torch.equal(uninterrupted.ids, interrupted.ids)


def test_initial_rows_are_unit_rows_and_positives_of_nobody() -> None:
    queue = Queue(6, 4)
    torch.testing.assert_close(queue.rows.norm(dim=1), torch.ones(6))
    assert not queue.is_used.any()
    # No image (0, 1, ...), no class and no image without a label (-1, -2, ...) has their ids, nor another initial row.
    assert queue.ids.max() < -(2**61)
    assert len(queue.ids.unique()) == 6
    loss = supcon(torch.randn(3, 4), torch.tensor([0, 5, -3]), temperature=0.1, keys=queue.rows, key_ids=queue.ids)
    assert loss == 0  # no row has a positive


def test_pushed_rows_are_copies_without_a_graph() -> None:
    queue = Queue(4, 3)
    rows = torch.ones(2, 3, dtype=torch.bfloat16, requires_grad=True)
    queue.push(Step(0, 1, 0), rows, torch.tensor([1, 2]))
    assert not queue.rows.requires_grad
    assert queue.rows.dtype == torch.float32
    with torch.no_grad():
        rows.fill_(7)
    assert queue.rows[:2].eq(1).all()


def test_an_empty_push_changes_nothing() -> None:
    queue = Queue(4, 3)
    before = queue.rows.clone()
    queue.push(Step(0, 1, 0), torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))
    assert torch.equal(queue.rows, before)


@pytest.mark.parametrize(("rows", "ids"), [((2, 4), (2,)), ((2, 3), (3,)), ((3,), (3,)), ((2, 3), (2, 1))])
def test_other_shapes_are_an_error(rows: tuple[int, ...], ids: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"takes rows \(N, 3\) and ids \(N,\), not"):
        Queue(4, 3).push(Step(0, 1, 0), torch.zeros(rows), torch.zeros(ids, dtype=torch.long))
    with pytest.raises(ValueError, match="at least 1 row, not 0"):
        Queue(0, 3)
