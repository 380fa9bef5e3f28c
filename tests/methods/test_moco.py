"""MoCo with a queue: its losses against references in float64, its queue, its momentum encoder, and two ranks."""

import math

import pytest
import torch
from small_methods import SIZE_PX, batch, encoder, gradients, published_rows, separate, step, unit_rows
from torch import nn
from torch.nn import functional

from reptk.core import rng
from reptk.losses import TCL, SimCLR, SupCon, simclr
from reptk.methods import Batch, MoCo
from reptk.models.encoder import eval_mode
from reptk.testing import check_method
from reptk.testing.simulated_ranks import run_on_ranks
from reptk.views.sets import crop_flip


def method_of(loss: nn.Module, backbone: str = "test_vit", **options: object) -> MoCo:
    with rng.seeded("queue"):
        method = MoCo(encoder(backbone), crop_flip(count=2, size=SIZE_PX), loss, **options)
    separate(method.momentum_encoder)
    return method


def queries_and_keys(method: MoCo, images: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit rows in float64."""
    query_view, key_view = method.views(images.images, step().key)
    return unit_rows(method.encoder(query_view)), unit_rows(method.momentum_encoder(key_view))


@pytest.mark.parametrize(
    ("loss", "positives"), [(SimCLR(0.2), "instance"), (SupCon(), "class"), (TCL(k1=10.0), "class")]
)
def test_it_keeps_the_contract_of_methods(loss: nn.Module, positives: str) -> None:
    check_method(MoCo, loss=loss, queue_size=20, positives=positives)


# The loss


def test_the_value_for_one_image_is_that_of_the_published_code() -> None:
    """facebookresearch/moco at a419ef2: moco/builder.py, cross-entropy of the logits of one image, a queue of 6, T = 0.2."""
    queries, keys = published_rows(5, 4, 0), unit_rows(published_rows(5, 4, 300))
    queue = unit_rows(published_rows(6, 4, 400))
    published = [0.1829989956027302, 1.1670928543043553, 2.344766008851876, 2.842321252176441, 3.1605856483380386]
    for image, value in enumerate(published):
        one = slice(image, image + 1)
        loss = simclr(
            queries[one],
            torch.tensor([image]),
            temperature=0.2,
            keys=torch.cat([keys[one], queue]),
            key_ids=torch.tensor([image, *range(-6, 0)]),
        )
        assert loss.item() == pytest.approx(value, rel=1e-12)


def test_the_loss_of_one_image_is_that_of_the_paper() -> None:
    """Its key against the queue, and nothing else; at the first step, where the rows of the queue are random."""
    method = method_of(SimCLR(0.2), queue_size=6)
    images = batch(count=1)
    queries, keys = queries_and_keys(method, images)
    positive = math.exp(queries[0] @ keys[0] / 0.2)
    negatives = (method.queue.rows.double() @ queries[0] / 0.2).exp().sum().item()
    expected = -math.log(positive / (positive + negatives))
    assert method(images, step())["loss"].item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def reference(z: torch.Tensor, rows: torch.Tensor, ids: list[int], row_ids: list[int], k1: float, k2: float) -> float:
    """The mean of L_i of `tcl` over the anchors z against all rows, of which the first are z; for k1=0, k2=1 of the others."""
    temperature = 0.2
    terms = []
    for i in range(len(z)):
        others = [j for j in range(len(rows)) if j != i]
        positives = [j for j in others if row_ids[j] == ids[i]]
        negatives = [j for j in others if row_ids[j] != ids[i]]
        similarity = (rows @ z[i]).tolist()
        denominator = sum(math.exp(similarity[j] / temperature) for j in positives)
        denominator += k1 * sum(math.exp(-similarity[j]) for j in positives)
        denominator += k2 * sum(math.exp(similarity[j] / temperature) for j in negatives)
        losses = [math.log(denominator) - similarity[j] / temperature for j in positives]
        terms.append(sum(losses) / len(losses))
    return sum(terms) / len(terms)


LOSSES = {
    "simclr": (SimCLR(0.2), 0.0, 1.0),
    "supcon": (SupCon(0.2), 0.0, 1.0),
    "tcl": (TCL(temperature=0.2, k1=50.0, k2=2.0), 50.0, 2.0),
}


@pytest.mark.parametrize("positives", ["instance", "class"])
@pytest.mark.parametrize("loss", LOSSES)
def test_it_is_the_loss_with_keys_and_queue(loss: str, positives: str) -> None:
    """Against a loop in float64, with a queue that holds an earlier batch: other images, and one of the same images."""
    module, k1, k2 = LOSSES[loss]
    method = method_of(module, queue_size=6, positives=positives)
    method(batch(first=3), step(0))
    method.after_step(step(0))
    images = batch(first=0)  # image 3 is in both
    queries, keys = queries_and_keys(method, images)
    ids = images.index.tolist()
    if positives == "class":
        ids = images.labels.tolist()
    expected = reference(
        queries,
        torch.cat([queries, keys, method.queue.rows.double()]),
        ids,
        [*ids, *ids, *method.queue.ids.tolist()],
        k1,
        k2,
    )
    assert method(images, step())["loss"].item() == pytest.approx(expected, rel=1e-5)


def test_a_key_of_an_image_seen_again_is_no_negative() -> None:
    """The queue holds the image's key of the epoch before, close to its query: a negative there would be the hardest."""
    method = method_of(SimCLR(0.2), queue_size=4)
    images = batch()
    queries, _ = queries_and_keys(method, images)
    method.queue.push(step(0), queries.float(), images.index)
    as_seen_again = method(images, step())["loss"].item()
    method.queue.push(step(1), queries.float(), images.index + 100)
    as_other_images = method(images, step())["loss"].item()
    assert as_seen_again < as_other_images


def test_images_without_a_label_are_positives_of_themselves_alone() -> None:
    method = method_of(SupCon(0.2), queue_size=4, positives="class")
    images = batch()._replace(labels=torch.tensor([0, -1, 0, -1]))
    method(images, step(0))
    method.after_step(step(0))
    assert method.queue.ids.tolist() == [0, -2, 0, -4]


def test_it_refuses_a_loss_without_keys_and_other_numbers_of_views() -> None:
    class WithoutKeys(nn.Module):
        def forward(self, z: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
            return z.sum()

    listed = "its loss must take keys and key_ids, as siglip, simclr, smooth_ap, supcon, tcl do"
    with pytest.raises(ValueError, match=listed):
        MoCo(encoder(), crop_flip(count=2, size=SIZE_PX), WithoutKeys())
    with pytest.raises(ValueError, match=r"two views .* not 1: set views\.count=2"):
        MoCo(encoder(), crop_flip(count=1, size=SIZE_PX), SimCLR())


def test_the_temperature_is_logged_if_the_loss_has_one() -> None:
    def without_temperature(
        z: torch.Tensor, ids: torch.Tensor, keys: torch.Tensor, key_ids: torch.Tensor
    ) -> torch.Tensor:
        return simclr(z, ids, temperature=0.2, keys=keys, key_ids=key_ids)

    assert "temperature" not in method_of(without_temperature, queue_size=6)(batch(), step())
    assert method_of(SimCLR(0.2), queue_size=6)(batch(), step())["temperature"].item() == pytest.approx(0.2)


def test_a_loss_may_pass_keys_on_as_further_arguments() -> None:
    class PassesOn(nn.Module):
        def forward(self, z: torch.Tensor, ids: torch.Tensor, **keys: torch.Tensor) -> torch.Tensor:
            return simclr(z, ids, temperature=0.2, **keys)

    expected = method_of(SimCLR(0.2), queue_size=6)(batch(), step())["loss"]
    assert torch.equal(method_of(PassesOn(), queue_size=6)(batch(), step())["loss"], expected)


def test_keys_of_a_double_encoder_are_not_rounded_to_float32() -> None:
    method = method_of(SimCLR(0.2), queue_size=6).double()
    images = batch()._replace(images=batch().images.double() / 255)
    _, key_view = method.views(images.images, step().key)
    keys = method(images, step())["z"][4:]
    assert keys.dtype == torch.float64
    torch.testing.assert_close(keys, unit_rows(method.momentum_encoder(key_view.double())), rtol=1e-12, atol=1e-12)


# The queue


def test_keys_of_a_step_are_in_the_queue_of_the_next() -> None:
    method = method_of(SimCLR(0.2), queue_size=6)
    expected = method.queue.ids.tolist()
    for number in range(4):
        first = 100 * (number + 1)
        keys = method(batch(first), step(number))["z"][4:].clone()
        method.after_step(step(number))
        for offset in range(4):
            place = (4 * number + offset) % 6
            expected[place] = first + offset
            assert torch.equal(method.queue.rows[place], keys[offset])
        assert method.queue.ids.tolist() == expected


def test_a_batch_larger_than_the_queue_fills_it() -> None:
    method = method_of(SimCLR(0.2), queue_size=3)
    method(batch(0), step())
    method.after_step(step())
    assert sorted(method.queue.ids.tolist()) == [1, 2, 3]


def test_checkpoints_from_before_the_queue_was_a_module_are_read() -> None:
    method, other = method_of(SimCLR(0.2), queue_size=6), method_of(SimCLR(0.2), queue_size=6)
    state = method.state_dict()
    state["queue"] = state.pop("queue.rows")
    state["queue_ids"] = state.pop("queue.ids")
    other.load_state_dict(state)
    assert torch.equal(other.queue.rows, method.queue.rows)
    assert torch.equal(other.queue.ids, method.queue.ids)


# The momentum encoder


def test_batch_norm_of_the_momentum_encoder_normalizes_over_the_batch_in_training() -> None:
    """As in the paper's code: its keys are those of a copy in training mode, and evaluation leaves it as it is."""
    method = method_of(SimCLR(0.2), "test_resnet", queue_size=6).train()
    _, key_view = method.views(batch().images, step().key)
    statistics = [name for name in method.momentum_encoder.state_dict() if name.endswith("running_mean")]
    assert statistics
    z = method(batch(), step())["z"]
    keys = functional.normalize(method.momentum_encoder(key_view), dim=1)
    torch.testing.assert_close(z[4:], keys)
    before = {name: value.clone() for name, value in method.momentum_encoder.state_dict().items()}
    with eval_mode(method.encoder):
        method.encoder.features(key_view)
    assert all(module.training for module in method.momentum_encoder.modules())
    # The moving average is of weights alone: running statistics are of the images that passed the copy.
    method.after_step(step())
    for name, value in method.momentum_encoder.state_dict().items():
        if name in statistics:
            assert torch.equal(value, before[name])


def test_batch_norm_that_the_encoder_freezes_is_frozen_in_the_copy() -> None:
    online = encoder("test_resnet")
    online.freeze("none", batch_norm=True)
    method = MoCo(online, crop_flip(count=2, size=SIZE_PX), SimCLR(0.2), queue_size=6).train()
    before = {name: value.clone() for name, value in method.momentum_encoder.state_dict().items()}
    method(batch(), step())
    for name, value in method.momentum_encoder.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_momentum_encoder_is_the_moving_average_and_gets_no_gradient() -> None:
    method = method_of(SimCLR(0.2), queue_size=6, momentum=0.9)
    before = [parameter.clone() for parameter in method.momentum_encoder.parameters()]
    method(batch(), step())["loss"].backward()
    assert all(parameter.grad is None for parameter in method.momentum_encoder.parameters())
    method.after_step(step(5))
    for old, source, new in zip(before, method.encoder.parameters(), method.momentum_encoder.parameters(), strict=True):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * source)


# Ranks


@pytest.mark.parametrize("positives", ["instance", "class"])
def test_two_ranks_have_the_gradient_and_the_queue_of_one(positives: str) -> None:
    """With a queue that the batch of all ranks overwrites in part."""
    method = method_of(TCL(temperature=0.2, k1=50.0), queue_size=8, positives=positives)
    method(batch(first=20, count=6), step(0))
    method.after_step(step(0))
    whole = batch(count=6)
    loss = method(whole, step(1))["loss"]
    loss.backward()
    expected = gradients(method)

    def on_rank(part: MoCo, rank: int) -> tuple[float, dict[str, torch.Tensor], torch.Tensor]:
        part.zero_grad()
        part.views.shard(rank, 2)
        share = slice(3 * rank, 3 * rank + 3)
        local = Batch(whole.images[share], whole.labels[share], whole.index[share])
        local_loss = part(local, step(1))["loss"]
        local_loss.backward()
        part.after_step(step(1))
        return local_loss.item(), gradients(part), part.queue

    # Before `after_step`, so that the ranks begin with the same state.
    first, second = run_on_ranks(method, on_rank)
    method.after_step(step(1))
    assert first[0] == pytest.approx(loss.item(), rel=1e-5)
    for name, gradient in expected.items():
        # DDP averages the gradients of the ranks.
        torch.testing.assert_close((first[1][name] + second[1][name]) / 2, gradient, atol=1e-5, rtol=1e-3)
    for _, _, queue in (first, second):
        assert torch.equal(queue.ids, method.queue.ids)
        torch.testing.assert_close(queue.rows, method.queue.rows)
