"""Cross-batch memory: what the loss is compared with, and when."""

import pytest
import torch

from reptk.core import rng
from reptk.losses import ProxyAnchor, SigLIP, SupCon, supcon
from reptk.methods import XBM, Batch, Contrastive, Method, Step
from reptk.models.encoder import Encoder
from reptk.testing import check_method
from reptk.views.sets import crop_flip


def build(method: type[Method], loss: torch.nn.Module | None = None, **options: object) -> Method:
    with rng.seeded("xbm"):
        encoder = Encoder("test_vit", size=16, head_out=8)
        return method(encoder, crop_flip(count=2, size=16), loss or SupCon(), **options)


def batch_of(number: int) -> Batch:
    images = torch.randint(256, (6, 3, 16, 16), dtype=torch.uint8, generator=rng.generator("images", number))
    return Batch(images, torch.tensor([0, 1, 2, 0, -1, -1]), 6 * number + torch.arange(6))


def step_of(number: int) -> Step:
    return Step(number, 10, rng.key("step", number))


def forward(method: Method, number: int) -> dict[str, torch.Tensor]:
    outputs = method(batch_of(number), step_of(number))
    method.after_step(step_of(number))
    return outputs


@pytest.mark.parametrize("loss", [SupCon(), SigLIP()])
def test_it_meets_the_requirements_of_methods(loss: torch.nn.Module) -> None:
    check_method(XBM, loss=loss, memory_size=20)


def test_the_batch_is_compared_with_the_batches_before() -> None:
    method = build(XBM, memory_size=30)
    earlier = [forward(method, number) for number in range(3)]
    outputs = forward(method, 3)
    # Of 36 embeddings, the memory holds the last 30.
    keys = torch.cat([step["z"] for step in earlier])[-30:]
    key_ids = torch.cat([step["ids"] for step in earlier])[-30:]
    expected = supcon(outputs["z"], outputs["ids"], temperature=0.1, keys=keys, key_ids=key_ids)
    torch.testing.assert_close(outputs["loss"], expected, rtol=1e-5, atol=1e-6)
    assert outputs["loss"] != supcon(outputs["z"], outputs["ids"], temperature=0.1)


def test_initial_rows_of_the_memory_are_not_compared() -> None:
    method, plain = build(XBM, memory_size=1000), build(Contrastive, positives="class")
    assert torch.equal(method(batch_of(0), step_of(0))["loss"], plain(batch_of(0), step_of(0))["loss"])


def test_the_memory_is_only_filled_until_the_start() -> None:
    method, plain = build(XBM, memory_size=24, start=0.2), build(Contrastive, positives="class")
    for number in range(2):
        assert torch.equal(forward(method, number)["loss"], forward(plain, number)["loss"])
    assert method.memory.is_used.all()
    assert forward(method, 2)["loss"] != forward(plain, 2)["loss"]


def test_a_loss_without_keys_is_refused() -> None:
    with pytest.raises(ValueError, match="must take keys and key_ids"):
        build(XBM, ProxyAnchor(num_classes=3, embedding_dim=8))
