"""The stem for small images: full resolution at the first stage, in every family of backbones that has a strided one."""

from pathlib import Path

import pytest
import torch
from torch import nn

from encoders import build_encoder, random_images, trained_encoder
from reptk.models.encoder import Encoder

pytestmark = pytest.mark.usefixtures("one_thread")

FIRST_STAGES = [
    ("test_resnet", "layer1"),
    ("resnet10t", "layer1"),  # deep: three convolutions, then a pooling
    ("resnet18", "layer1"),
    ("test_efficientnet", "blocks"),
    ("mobilenetv3_small_050", "blocks"),
    ("test_byobnet", "stages"),
    ("resnetv2_18", "stages"),
]


def resolution_after_stem(encoder: Encoder, first_stage: str, size: int) -> int:
    """Side of the feature map that enters the first stage, for images of this size."""
    sides: list[int] = []
    stage = encoder.backbone.get_submodule(first_stage)
    stage.register_forward_pre_hook(lambda module, inputs: sides.append(inputs[0].shape[-1]))
    with torch.no_grad():
        encoder.features(random_images(2, size))
    return sides[0]


def changed_weights(encoder: Encoder, other: Encoder) -> list[str]:
    """Names of the backbone's weights that differ."""
    state = other.backbone.state_dict()
    return [name for name, value in encoder.backbone.state_dict().items() if not torch.equal(value, state[name])]


@pytest.mark.parametrize(("backbone", "first_stage"), FIRST_STAGES)
def test_small_stem_keeps_the_resolution(backbone: str, first_stage: str) -> None:
    encoder = build_encoder(backbone, stem="small")
    first = encoder.backbone.get_submodule(encoder.backbone.pretrained_cfg["first_conv"])
    assert (first.kernel_size, first.stride, first.padding) == ((3, 3), (1, 1), (1, 1))
    assert [resolution_after_stem(encoder, first_stage, size) for size in (32, 28, 33)] == [32, 28, 33]
    assert not any(isinstance(module, nn.MaxPool2d) for module in encoder.backbone.modules())


def test_timms_stem_reduces_the_resolution() -> None:
    assert resolution_after_stem(build_encoder("test_resnet"), "layer1", 32) == 8
    assert resolution_after_stem(build_encoder("test_efficientnet"), "blocks", 32) == 16


def test_small_stem_uses_weights_with_the_same_shape(tmp_path: Path) -> None:
    weights = tmp_path / "weights.pt"
    torch.save(trained_encoder(seed=1).backbone.state_dict(), weights)
    timm_stem = build_encoder(stem="timm", weights=str(weights))
    small_stem = build_encoder(stem="small", weights=str(weights))
    assert changed_weights(timm_stem, small_stem) == []


def test_weights_of_another_stem_leave_the_first_convolution_untrained(tmp_path: Path) -> None:
    weights = tmp_path / "weights.pt"
    torch.save(Encoder("resnet18", size=32).backbone.state_dict(), weights)
    timm_stem = Encoder("resnet18", size=32, weights=str(weights))
    with pytest.warns(UserWarning, match=r"another stem; conv1.weight keeps its initial values"):
        small_stem = Encoder("resnet18", size=32, stem="small", weights=str(weights))
    assert changed_weights(timm_stem, small_stem) == ["conv1.weight"]


def test_weights_trained_with_the_small_stem_are_loaded_into_it(tmp_path: Path) -> None:
    encoder = Encoder("resnet18", size=32, stem="small")
    torch.save(encoder.backbone.state_dict(), tmp_path / "weights.pt")
    again = Encoder("resnet18", size=32, stem="small", weights=str(tmp_path / "weights.pt"))
    assert changed_weights(encoder, again) == []
