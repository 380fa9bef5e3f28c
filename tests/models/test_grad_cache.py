"""A batch that is encoded in chunks has the gradient of the whole batch, with the activations of one chunk."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from reptk import LOSSES
from reptk.config import load
from reptk.core import rng
from reptk.core.errors import UsageError
from reptk.models.encoder import Encoder
from reptk.models.grad_cache import batch_norms, forward_in_chunks
from reptk.plugins.dcl import DCL
from reptk.training.build import build
from reptk.training.load_data import load_data

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGES = torch.rand(14, 3, 16, 16, generator=rng.generator("images"))
IDS = torch.arange(14) % 5


def build_encoder(backbone: str = "test_vit", **options: Any) -> Encoder:
    """An encoder in float64 and in training mode; the same weights in every call."""
    with rng.seeded("weights"):
        encoder = Encoder(backbone, size=16, **options)
    return encoder.double().train()


def loss_and_gradients(
    encoder: Encoder, loss: nn.Module, encode: Callable[[Tensor], Tensor] | None = None
) -> tuple[Tensor, list[Tensor]]:
    """The loss, and the gradients of all weights; images are encoded by `encode`, or by the encoder."""
    if encode is None:
        encode = encoder
    encoder.zero_grad()
    with rng.seeded("dropout"):
        value = loss(encode(IMAGES.double()), IDS)
        value.backward()
    return value.detach(), [weight.grad.clone() for weight in encoder.parameters() if weight.grad is not None]


def chunk_by_chunk(encoder: Encoder, chunks: int) -> Callable[[Tensor], Tensor]:
    """Encode in chunks and store all activations."""
    return lambda images: torch.cat([encoder(chunk) for chunk in images.chunk(chunks)])


# The gradient


@pytest.mark.parametrize("chunks", [2, 5, 14, 99])
@pytest.mark.parametrize("name", sorted({*LOSSES.names(), "dcl"}))
def test_the_gradient_is_that_of_the_whole_batch(name: str, chunks: int) -> None:
    encoder = build_encoder()
    loss = DCL()
    if name != "dcl":
        loss = LOSSES.build(name, {}, {"num_classes": 5, "embedding_dim": encoder.embedding_dim}).double()
    expected = loss_and_gradients(encoder, loss)
    encoder.encode_in_chunks(chunks)
    assert_close(loss_and_gradients(encoder, loss), expected, rtol=1e-10, atol=1e-13)


def test_gradient_accumulation_gives_another_gradient() -> None:
    loss = LOSSES.get("supcon")()
    encoder = build_encoder()
    _, expected = loss_and_gradients(encoder, loss)
    encoder.zero_grad()
    for images, ids in zip(IMAGES.double().chunk(2), IDS.chunk(2), strict=True):
        (loss(encoder(images), ids) / 2).backward()
    accumulated = [weight.grad for weight in encoder.parameters() if weight.grad is not None]
    with pytest.raises(AssertionError):
        assert_close(accumulated, expected, rtol=1e-3, atol=1e-3)


def test_dropout_is_the_same_in_both_encodings() -> None:
    """The second encoding drops what the first one dropped, as if all activations had been stored."""
    encoder = build_encoder(drop_path=0.5)
    loss = LOSSES.get("supcon")()
    expected = loss_and_gradients(encoder, loss, chunk_by_chunk(encoder, 3))
    encoder.encode_in_chunks(3)
    assert_close(loss_and_gradients(encoder, loss), expected, rtol=1e-12, atol=1e-14)
    assert not torch.equal(loss_and_gradients(build_encoder(), loss)[0], expected[0]), "nothing was dropped"


def test_any_module_can_be_encoded_in_chunks() -> None:
    inputs = torch.randn(10, 4, generator=rng.generator("rows")).requires_grad_()
    layer = nn.Linear(4, 3)
    whole = layer(inputs)
    in_chunks = forward_in_chunks(layer, inputs, 4, module=layer, norm="refuse")
    assert_close(in_chunks, whole, rtol=0, atol=1e-7)
    [gradient] = torch.autograd.grad(in_chunks.square().sum(), inputs)
    [expected] = torch.autograd.grad(whole.square().sum(), inputs)
    assert_close(gradient, expected, rtol=1e-6, atol=1e-7)


# Memory


def num_stored_bytes(encoder: Encoder) -> int:
    """Bytes of the activations that the forward pass stores for the backward pass."""
    num_bytes = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal num_bytes
        num_bytes += tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        encoder(IMAGES.double())
    return num_bytes


def test_activations_of_a_chunk_are_not_stored() -> None:
    encoder = build_encoder()
    whole = num_stored_bytes(encoder)
    encoder.encode_in_chunks(7)
    assert num_stored_bytes(encoder) < whole / 5


def test_evaluation_encodes_the_whole_batch() -> None:
    encoder = build_encoder()
    encoder.encode_in_chunks(7)
    expected = build_encoder().eval()(IMAGES.double())
    assert_close(encoder.eval()(IMAGES.double()), expected, rtol=0, atol=0)


# BatchNorm


def test_batch_norm_is_refused_with_the_alternatives() -> None:
    with pytest.raises(UsageError, match=r"test_resnet has \d+ BatchNorm layers") as error:
        build_encoder("test_resnet").encode_in_chunks(2)
    assert "train.micro_batch_norm=freeze" in str(error.value)
    assert "train.micro_batch_norm=approximate" in str(error.value)
    build_encoder("test_resnet").encode_in_chunks(1)


def test_batch_norm_of_the_head_is_distinguished_from_the_backbones() -> None:
    with pytest.raises(UsageError, match=r"the head has 1 BatchNorm layers, .* or take encoder.head_norm=false$"):
        build_encoder(head_norm=True).encode_in_chunks(2)


def test_frozen_batch_norm_is_exact() -> None:
    encoder = build_encoder("test_resnet", head_norm=True)
    for norm in batch_norms(encoder):
        norm.running_mean.normal_(generator=rng.generator("mean"))
    buffers = {name: value.clone() for name, value in encoder.named_buffers()}
    encoder.eval()
    expected = loss_and_gradients(encoder, LOSSES.get("supcon")())
    encoder.train()
    encoder.encode_in_chunks(3, "freeze")
    assert_close(loss_and_gradients(encoder, LOSSES.get("supcon")()), expected, rtol=1e-10, atol=1e-13)
    assert_close(dict(encoder.named_buffers()), buffers, rtol=0, atol=0)
    assert all(norm.training for norm in batch_norms(encoder))


def test_approximate_batch_norm_updates_its_statistics_once() -> None:
    """As if the chunks had been encoded one after the other, with all activations stored."""
    loss = LOSSES.get("supcon")()
    reference, encoder = build_encoder("test_resnet"), build_encoder("test_resnet")
    expected = loss_and_gradients(reference, loss, chunk_by_chunk(reference, 3))
    encoder.encode_in_chunks(3, "approximate")
    assert_close(loss_and_gradients(encoder, loss), expected, rtol=1e-10, atol=1e-13)
    assert_close(dict(encoder.named_buffers()), dict(reference.named_buffers()), rtol=1e-12, atol=0)


# Recipes


def recipe_builder(*overrides: str) -> Callable[[], Any]:
    recipe = load("supcon_photos", ["encoder.backbone=test_vit", "train.batch_size=20", *overrides])
    return partial(build, recipe, load_data(recipe), torch.device("cpu"))


def test_a_recipe_sets_the_micro_batch() -> None:
    assert recipe_builder("train.micro_batch_size=6")().encoder.num_chunks == 4
    assert recipe_builder()().encoder.num_chunks == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.micro_batch_norm=freeze"], "there are no micro-batches: set train.micro_batch_size"),
        (["train.micro_batch_size=5", "encoder.backbone=test_resnet"], "BatchNorm layers"),
        (["train.micro_batch_size=0"], "micro_batch_size  must be"),
    ],
)
def test_wrong_micro_batches_are_explained(overrides: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        recipe_builder(*overrides)()
