"""Activations that are computed again in the backward pass: the same gradients and running statistics."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from encoders import build_encoder, random_images, without_zeros
from reptk.core import rng
from reptk.core.errors import UsageError
from reptk.models.encoder import Encoder

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGES = random_images(6).double() / 255


def after_a_step(adapt: Callable[[Encoder], Any], backbone: str, **options: float) -> tuple[dict, dict, int]:
    """Gradients, the state dict, and how often a block was computed, of a forward and a backward pass."""
    encoder = without_zeros(build_encoder(backbone, **options)).double().train()
    adapt(encoder)
    encoder.freeze("stem")
    calls = []
    block = list(encoder.backbone.children())[-2]
    for module in encoder.backbone.modules():
        if type(module).__name__ in ("Block", "BasicBlock", "InvertedResidual"):
            block = module
    block.register_forward_pre_hook(lambda *_: calls.append(1))
    with rng.seeded("dropout"):
        encoder(IMAGES).sin().sum().backward()
    gradients = {name: weight.grad for name, weight in encoder.named_parameters() if weight.grad is not None}
    return gradients, encoder.state_dict(), len(calls)


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize("backbone", ["test_vit", "test_resnet", "test_efficientnet"])
def test_gradients_and_running_statistics_are_the_same(backbone: str) -> None:
    gradients, state, calls = after_a_step(lambda encoder: None, backbone, drop_path=0.3)
    again_gradients, again_state, again_calls = after_a_step(Encoder.checkpoint_activations, backbone, drop_path=0.3)
    assert (calls, again_calls) == (1, 2)
    assert_same(gradients, again_gradients)
    assert_same(state, again_state)


@pytest.mark.parametrize(("backbone", "norm"), [("test_vit", "refuse"), ("test_resnet", "approximate")])
def test_micro_batches_can_be_checkpointed_as_well(backbone: str, norm: str) -> None:
    def in_chunks(encoder: Encoder) -> None:
        encoder.encode_in_chunks(3, norm)

    def in_checkpointed_chunks(encoder: Encoder) -> None:
        encoder.encode_in_chunks(3, norm)
        encoder.checkpoint_activations()

    gradients, state, _ = after_a_step(in_chunks, backbone)
    again_gradients, again_state, _ = after_a_step(in_checkpointed_chunks, backbone)
    assert_same(gradients, again_gradients)
    assert_same(state, again_state)


def test_a_backbone_without_support_is_named() -> None:
    encoder = build_encoder("test_vit")
    encoder.config["backbone"] = "vgg11"
    encoder.backbone = nn.Linear(2, 2)
    encoder.backbone.pretrained_cfg = {"architecture": "vgg11"}
    with pytest.raises(
        UsageError, match=r"train.grad_checkpointing: timm supports no gradient checkpointing for vgg11"
    ):
        encoder.checkpoint_activations()
