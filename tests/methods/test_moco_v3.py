"""MoCo v3: its formula, the value of the published code, images that a batch holds twice, and two ranks."""

import math

import pytest
import torch
from small_methods import SIZE_PX, batch, encoder, gradients, published_rows, separate, step, unit_rows

from reptk.core import rng
from reptk.methods import Batch, MoCoV3
from reptk.methods.moco_v3 import key_cross_entropy
from reptk.testing import check_method
from reptk.testing.simulated_ranks import run_on_ranks
from reptk.views.sets import crop_flip


def method_of(backbone: str = "test_vit", **options: object) -> MoCoV3:
    options = {"predictor_width": 16} | options
    with rng.seeded("predictor"):
        method = MoCoV3(encoder(backbone), crop_flip(count=2, size=SIZE_PX), **options)
    separate(method.momentum_encoder)
    return method


@pytest.mark.parametrize(("backbone", "final_norm"), [("test_vit", True), ("test_resnet", False)])
def test_it_keeps_the_contract_of_methods(backbone: str, final_norm: bool) -> None:
    check_method(MoCoV3, backbone=backbone, predictor_width=32, predictor_final_norm=final_norm)


def test_the_value_is_that_of_the_published_code() -> None:
    """facebookresearch/moco-v3 at c349e6e: moco/builder.py, contrastive_loss(q1, k2) + contrastive_loss(q2, k1), T = 0.2."""
    q_first, q_second, k_first, k_second = (published_rows(5, 4, start) for start in (0, 100, 200, 300))
    ids = torch.arange(5)
    cross_entropy = key_cross_entropy(q_first, unit_rows(k_second), ids, 0.2)
    cross_entropy += key_cross_entropy(q_second, unit_rows(k_first), ids, 0.2)
    assert 2 * 0.2 * cross_entropy.item() == pytest.approx(1.2359061798086914, rel=1e-12)


def test_it_is_its_formula() -> None:
    method = method_of(projector_norm=False, predictor_norm=False, temperature=0.3)
    first, second = method.views(batch().images, step().key)
    expected = 0.0
    for query_view, key_view in ((first, second), (second, first)):
        q = unit_rows(method.predictor(method.encoder(query_view)))
        k = unit_rows(method.momentum_encoder(key_view))
        for i in range(4):
            exponentials = [math.exp(q[i] @ k[j] / 0.3) for j in range(4)]
            expected -= 2 * 0.3 * math.log(exponentials[i] / sum(exponentials)) / 4
    outputs = method(batch(), step())
    assert outputs["loss"].item() == pytest.approx(expected, rel=1e-5)
    # The mean over both orders of the cross-entropy, which random embeddings have at about log(4).
    assert outputs["contrastive_loss"].item() == pytest.approx(expected / (4 * 0.3), rel=1e-5)
    assert outputs["temperature"].item() == pytest.approx(0.3)


def test_another_key_of_the_same_image_is_no_negative() -> None:
    """As a sampler draws batches that balance classes."""
    queries, keys = published_rows(4, 3, 0), unit_rows(published_rows(4, 3, 50))
    ids = torch.tensor([7, 8, 7, 9])
    expected = 0.0
    for i, compared in ((0, [0, 1, 3]), (1, [0, 1, 2, 3]), (2, [1, 2, 3]), (3, [0, 1, 2, 3])):
        q = unit_rows(queries)[i]
        exponentials = {j: math.exp(q @ keys[j] / 0.2) for j in compared}
        expected -= math.log(exponentials[i] / sum(exponentials.values())) / 4
    assert key_cross_entropy(queries, keys, ids, 0.2).item() == pytest.approx(expected, rel=1e-12)


def test_the_momentum_encoder_is_the_moving_average_and_gets_no_gradient() -> None:
    method = method_of(momentum=0.9)
    before = [parameter.clone() for parameter in method.momentum_encoder.parameters()]
    method(batch(), step())["loss"].backward()
    assert all(parameter.grad is None for parameter in method.momentum_encoder.parameters())
    method.after_step(step(number=5, total=11))  # half of the cosine: 0.95
    for old, source, new in zip(before, method.encoder.parameters(), method.momentum_encoder.parameters(), strict=True):
        torch.testing.assert_close(new, 0.95 * old + 0.05 * source)


def test_two_ranks_have_the_gradient_of_one() -> None:
    """Without BatchNorm, which would normalize over the images of a rank."""
    method = method_of(projector_norm=False, predictor_norm=False)
    whole = batch(count=6)
    loss = method(whole, step())["loss"]
    loss.backward()
    expected = gradients(method)

    def on_rank(part: MoCoV3, rank: int) -> tuple[float, dict[str, torch.Tensor]]:
        part.zero_grad()
        part.views.shard(rank, 2)
        share = slice(3 * rank, 3 * rank + 3)
        local = Batch(whole.images[share], whole.labels[share], whole.index[share])
        local_loss = part(local, step())["loss"]
        local_loss.backward()
        return local_loss.item(), gradients(part)

    (first_loss, first), (second_loss, second) = run_on_ranks(method, on_rank)
    assert (first_loss + second_loss) / 2 == pytest.approx(loss.item(), rel=1e-5)
    for name, gradient in expected.items():
        # DDP averages the gradients of the ranks.
        torch.testing.assert_close((first[name] + second[name]) / 2, gradient, atol=1e-5, rtol=1e-3)
