"""Factors on the learning rate by layer: those of timm for the backbone with a classifier."""

import pytest
import timm
from timm.optim import param_groups_layer_decay
from torch import nn

from encoders import build_encoder
from reptk.core.errors import UsageError
from reptk.models.layer_groups import layer_groups, layer_scales

DECAY = 0.7


@pytest.mark.parametrize(
    "backbone",
    ["test_vit", "test_vit3", "test_resnet", "test_convnext", "test_efficientnet", "test_byobnet", "cait_xxs24_224"],
)
def test_factors_are_those_of_timm_with_a_classifier(backbone: str) -> None:
    with_classifier = timm.create_model(backbone, num_classes=10)
    name_of = {id(parameter): name for name, parameter in with_classifier.named_parameters()}
    expected = {}
    for group in param_groups_layer_decay(with_classifier, layer_decay=DECAY):
        for parameter in group["params"]:
            expected[name_of[id(parameter)]] = group["lr_scale"]
    scales = layer_scales(timm.create_model(backbone, num_classes=0), DECAY, "optim.layer_decay")
    assert scales.items() <= expected.items()
    classifier_scales = {scale for name, scale in expected.items() if name not in scales}
    assert classifier_scales == {1.0}
    assert len(set(scales.values())) > 4


def test_factors_of_an_encoder_are_those_of_its_backbone() -> None:
    encoder = build_encoder("test_vit")
    scales = dict(encoder.layer_scales(DECAY))
    assert scales[encoder.backbone.pos_embed] == pytest.approx(DECAY**7)
    assert scales[encoder.backbone.blocks[5].mlp.fc2.weight] == DECAY
    assert scales.keys() == set(encoder.backbone.parameters())


@pytest.mark.parametrize("function", [layer_groups, lambda backbone, key: layer_scales(backbone, DECAY, key)])
def test_a_backbone_without_groups_is_named(function) -> None:
    backbone = nn.Linear(2, 2)
    backbone.pretrained_cfg = {"architecture": "pit_ti_224"}
    with pytest.raises(UsageError, match=r"some.key needs the layers of pit_ti_224, and timm does not say"):
        function(backbone, "some.key")
