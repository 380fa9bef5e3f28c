"""A batch encoded in parts has the gradient of the batch, in the memory of a part."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from reptk import LOSSES
from reptk.config import load
from reptk.core import rng
from reptk.core.errors import UsageError
from reptk.models.encoder import Encoder
from reptk.models.grad_cache import batch_norms, forward_in_chunks
from reptk.plugins.dcl import DCL
from reptk.training.build import assemble, data_of

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGES = torch.rand(14, 3, 16, 16, generator=rng.generator("images"))
IDS = torch.arange(14) % 5


def encoder(backbone="test_vit", **options):
    with rng.seeded("weights"):
        made = Encoder(backbone, size=16, **options)
    return made.double().train()


def gradients(encoder, loss, encode=None):
    """Loss, and gradients of all weights."""
    encoder.zero_grad()
    with rng.seeded("dropout"):
        value = loss((encode or encoder)(IMAGES.double()), IDS)
        value.backward()
    return value.detach(), [weight.grad.clone() for weight in encoder.parameters() if weight.grad is not None]


@pytest.mark.parametrize("parts", [2, 5, 14, 99])
@pytest.mark.parametrize("name", sorted({*LOSSES.names(), "dcl"}))
def test_the_gradient_is_that_of_the_batch(name, parts):
    loss = DCL() if name == "dcl" else LOSSES.get(name)()
    made = encoder()
    whole = gradients(made, loss)
    made.encode_in_chunks(parts)
    assert_close(gradients(made, loss), whole, rtol=1e-10, atol=1e-13)


def test_accumulation_would_be_another_gradient():
    loss = LOSSES.get("supcon")()
    made = encoder()
    _, whole = gradients(made, loss)
    made.zero_grad()
    for images, ids in zip(IMAGES.double().chunk(2), IDS.chunk(2), strict=True):
        (loss(made(images), ids) / 2).backward()
    accumulated = [weight.grad for weight in made.parameters() if weight.grad is not None]
    with pytest.raises(AssertionError):
        assert_close(accumulated, whole, rtol=1e-3, atol=1e-3)


def test_dropout_is_replayed():
    """The second encoding drops what the first dropped: as if every activation had been kept."""
    made = encoder(drop_path=0.5)
    loss = LOSSES.get("supcon")()

    def kept(images):
        return torch.cat([made(part) for part in images.chunk(3)])

    expected = gradients(made, loss, kept)
    made.encode_in_chunks(3)
    assert_close(gradients(made, loss), expected, rtol=1e-12, atol=1e-14)
    assert not torch.equal(gradients(encoder(), loss)[0], expected[0]), "nothing was dropped"


def bytes_kept(encoder):
    kept = 0

    def keep(tensor):
        nonlocal kept
        kept += tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        encoder(IMAGES.double())
    return kept


def test_activations_are_not_kept():
    made = encoder()
    whole = bytes_kept(made)
    made.encode_in_chunks(7)
    assert bytes_kept(made) < whole / 5


def test_evaluation_is_not_in_parts():
    made = encoder()
    made.encode_in_chunks(7)
    expected = encoder().eval()(IMAGES.double())
    assert_close(made.eval()(IMAGES.double()), expected, rtol=0, atol=0)


def test_batch_norm_is_refused_with_the_ways_out():
    with pytest.raises(UsageError, match=r"test_resnet has \d+ BatchNorm layers") as caught:
        encoder("test_resnet").encode_in_chunks(2)
    assert "train.micro_batch_norm=freeze" in str(caught.value)
    assert "train.micro_batch_norm=approximate" in str(caught.value)
    encoder("test_resnet").encode_in_chunks(1)


def test_batch_norm_of_the_head_is_told_from_the_backbones():
    with pytest.raises(UsageError, match=r"the head has 1 BatchNorm layers, .* or take encoder.head_norm=false$"):
        encoder(head_norm=True).encode_in_chunks(2)


def test_frozen_batch_norm_is_exact():
    made = encoder("test_resnet", head_norm=True)
    for norm in batch_norms(made):
        norm.running_mean.normal_(generator=rng.generator("mean"))
    before = {name: value.clone() for name, value in made.named_buffers()}
    made.eval()
    expected = gradients(made, LOSSES.get("supcon")())
    made.train()
    made.encode_in_chunks(3, "freeze")
    assert_close(gradients(made, LOSSES.get("supcon")()), expected, rtol=1e-10, atol=1e-13)
    assert_close(dict(made.named_buffers()), before, rtol=0, atol=0)
    assert all(norm.training for norm in batch_norms(made))


def test_approximate_batch_norm_learns_its_statistics_once():
    """As if the parts had been encoded one after the other, activations kept."""
    expected, made = encoder("test_resnet"), encoder("test_resnet")
    loss = LOSSES.get("supcon")()
    kept = gradients(expected, loss, lambda images: torch.cat([expected(part) for part in images.chunk(3)]))
    made.encode_in_chunks(3, "approximate")
    assert_close(gradients(made, loss), kept, rtol=1e-10, atol=1e-13)
    assert_close(dict(made.named_buffers()), dict(expected.named_buffers()), rtol=1e-12, atol=0)


def test_any_module_can_be_encoded_in_parts():
    rows = torch.randn(10, 4, generator=rng.generator("rows")).requires_grad_()
    layer = nn.Linear(4, 3)
    whole = layer(rows)
    parts = forward_in_chunks(layer, rows, 4, module=layer, norm="refuse")
    assert_close(parts, whole, rtol=0, atol=1e-7)
    mine, expected = (torch.autograd.grad(made.square().sum(), rows)[0] for made in (parts, whole))
    assert_close(mine, expected, rtol=1e-6, atol=1e-7)


def built(*overrides):
    recipe = load("supcon_photos", ["encoder.backbone=test_vit", "train.batch_size=20", *overrides])
    return partial(assemble, recipe, data_of(recipe), torch.device("cpu"))


def test_a_recipe_sets_the_micro_batch():
    made = built("train.micro_batch_size=6")()
    assert made.encoder.num_chunks == 4
    assert built()().encoder.num_chunks == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.micro_batch_norm=freeze"], "there are no micro-batches: set train.micro_batch_size"),
        (["train.micro_batch_size=5", "encoder.backbone=test_resnet"], "BatchNorm layers"),
        (["train.micro_batch_size=0"], "micro_batch_size  must be"),
    ],
)
def test_bad_micro_batches_are_explained(overrides, message):
    with pytest.raises(UsageError, match=message):
        built(*overrides)()
