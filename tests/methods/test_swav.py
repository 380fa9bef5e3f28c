"""SwAV: its contract, formula, published values, queue, prototypes of unit length, and two ranks."""

import pytest
import torch
from torch.nn import functional

from multi_crop_methods import NUM_LARGE, NUM_SMALL, FixedScores, batch, build, sines, step, train, train_on_ranks
from reptk.methods import SwAV, sinkhorn
from reptk.testing import check_method

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("backbone", ["test_vit", "test_resnet"])
@pytest.mark.parametrize("queue_size", [0, 20])
def test_it_keeps_the_contract_of_methods(backbone: str, queue_size: int) -> None:
    check_method(SwAV, backbone=backbone, num_prototypes=12, queue_size=queue_size, queue_start_epochs=1.0)


@pytest.mark.parametrize("queue_size", [0, 10])
def test_it_is_its_formula(queue_size: int) -> None:
    """In float64, pair by pair: the assignment of a large view, the probabilities of another view."""
    options = {"queue_size": queue_size, "queue_start_epochs": 0.0, "frozen_epochs": 0.0}
    method = build(SwAV, num_prototypes=6, **options).double()
    train(method, range(2))
    large, small = method.views(batch(2).images, step(2).key)
    prototypes = functional.normalize(method.prototypes.weight, dim=1)
    scores = []
    for view in [*large, *small]:
        scores.append(functional.normalize(method.encoder(view.double()), dim=1) @ prototypes.T)
    queued = torch.zeros(0, 6, dtype=torch.float64)
    if queue_size:
        assert method.queue.is_used.all()
        queued = method.queue.rows @ prototypes.T
    expected = 0.0
    for i in range(NUM_LARGE):
        assignments = sinkhorn(torch.cat([scores[i], queued]), temperature=0.05)[:4]
        for j in range(NUM_LARGE + NUM_SMALL):
            if i != j:
                expected -= (assignments * (scores[j] / 0.1).softmax(1).log()).sum(1).mean()
    outputs = method(batch(2), step(2))
    num_terms = NUM_LARGE * (NUM_LARGE + NUM_SMALL - 1)
    # Views are drawn in float32.
    assert outputs["loss"].item() == pytest.approx(expected.item() / num_terms, rel=1e-5)
    assert "temperature" not in outputs
    assert "ids" not in outputs


def test_it_gives_the_values_of_the_published_code() -> None:
    """Of the loss in main_swav.py of facebookresearch/swav, in float64 on one process."""
    method = build(SwAV, num_prototypes=3).double()
    method.prototypes = FixedScores(sines(8, 3, 0.3))
    loss = method(batch(count=2), step())["loss"]
    assert loss.item() == pytest.approx(4.920170579662704, rel=1e-7)


def test_the_queue_is_used_from_its_epoch_on_once_it_is_full() -> None:
    method = build(SwAV, num_prototypes=6, queue_size=20, queue_start_epochs=1.0)
    without_queue = build(SwAV, num_prototypes=6)
    uses_queue = []
    for number in range(7):
        loss = method(batch(number), step(number))["loss"]
        uses_queue.append(not torch.equal(loss, without_queue(batch(number), step(number))["loss"]))
        method.after_step(step(number))
    # Of 8 embeddings in each step, 20 are there after three, and the epoch has five.
    assert uses_queue == [False] * 5 + [True] * 2


def test_the_queue_holds_the_embeddings_of_large_views() -> None:
    method = build(SwAV, num_prototypes=6, queue_size=8)
    with torch.no_grad():
        large = method.views(batch().images, step().key)[0]
        expected = functional.normalize(torch.cat([method.encoder(view) for view in large]), dim=1)
        method(batch(), step())
        method.after_step(step())
    torch.testing.assert_close(method.queue.rows, expected)
    assert method.queue.ids.tolist() == [0, 1, 2, 3] * 2


def test_prototypes_are_frozen_for_their_epochs_and_then_of_unit_length() -> None:
    method = build(SwAV, num_prototypes=6, frozen_epochs=1.0)
    before = method.prototypes.weight.clone()
    train(method, range(5))
    torch.testing.assert_close(method.prototypes.weight, before, atol=1e-6, rtol=0)
    train(method, range(5, 6))
    assert (method.prototypes.weight - before).abs().max() > 1e-4
    torch.testing.assert_close(method.prototypes.weight.norm(dim=1), torch.ones(6))


@pytest.mark.parametrize("queue_size", [0, 10])
def test_two_ranks_train_what_one_does(queue_size: int) -> None:
    """Weights and queue, with the global batch divided between the ranks."""
    states = []
    for world_size in (1, 2):
        method = build(SwAV, num_prototypes=6, queue_size=queue_size, queue_start_epochs=0.0, frozen_epochs=0.4)
        states.append(train_on_ranks(method, 4, world_size))
    one, two = states
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=1e-5, rtol=1e-4)
