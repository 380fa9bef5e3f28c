"""Frozen layers stay as they are, weights and running statistics, and compute in training what they compute in evaluation."""

import copy

import pytest
import timm
import torch
from timm.layers import convert_sync_batchnorm
from timm.models import group_parameters
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from encoders import build_encoder, random_images, without_zeros
from reptk.core.errors import UsageError
from reptk.models.encoder import Encoder, eval_mode, unfrozen_batch_norms
from reptk.models.freeze import Freeze

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGES = random_images(8)


def timm_groups(backbone: str) -> list[list[str]]:
    """Names of the parameters of the stem and of each stage or block."""
    model = timm.create_model(backbone, num_classes=0)
    return list(group_parameters(model, model.group_matcher(coarse=True)).values())


def train_one_step(encoder: Encoder) -> None:
    """A step that changes every weight with a gradient, and the statistics of every BatchNorm that sees the batch."""
    encoder.train()
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
    z = encoder(IMAGES)
    (z * torch.arange(1.0, z.numel() + 1).view_as(z).sin()).sum().backward()
    optimizer.step()


def changed_names(encoder: Encoder, before: dict[str, Tensor]) -> set[str]:
    return {name for name, value in encoder.state_dict().items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("backbone", ["test_resnet", "test_efficientnet"])
@pytest.mark.parametrize(("freeze", "batch_norm"), [(2, False), ("none", True), ("all", False)])
def test_layers_stay_frozen_as_synchronized_batch_norms(backbone: str, freeze: Freeze, batch_norm: bool) -> None:
    """train.sync_batchnorm replaces the layers after they are frozen; in one process they compute what BatchNorm computes."""
    encoder = without_zeros(build_encoder(backbone))
    encoder.freeze(freeze, batch_norm=batch_norm)
    synchronized = convert_sync_batchnorm(copy.deepcopy(encoder))
    assert any(isinstance(module, nn.SyncBatchNorm) for module in synchronized.modules())
    # What train.ema_decay averages.
    average = ModelEmaV3(synchronized, decay=0.5)
    before = copy.deepcopy(encoder.state_dict())
    for trained in (encoder, synchronized):
        train_one_step(trained)
    average.update(synchronized)
    expected = encoder.state_dict()
    for name, value in synchronized.state_dict().items():
        torch.testing.assert_close(value, expected[name], msg=name)
    assert len(unfrozen_batch_norms(synchronized)) == len(unfrozen_batch_norms(encoder))
    # Weights and statistics that are frozen are the same to the bit.
    trained_names = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    fixed_names = before.keys() - trained_names - changed_names(encoder, before)
    assert fixed_names
    for trained in (synchronized, average.module):
        assert not fixed_names & changed_names(trained, before)


@pytest.mark.parametrize(
    ("backbone", "freeze", "num_groups"),
    [
        ("test_resnet", "stem", 1),
        ("test_resnet", 2, 3),
        ("test_efficientnet", 1, 2),
        ("test_vit", "stem", 1),
        ("test_vit", 3, 4),
        ("test_vit", 6, 7),
    ],
)
def test_leading_groups_of_timm_stay_as_they_are(backbone: str, freeze: Freeze, num_groups: int) -> None:
    encoder = without_zeros(build_encoder(backbone))
    encoder.freeze(freeze)
    before = copy.deepcopy(encoder.state_dict())
    train_one_step(encoder)
    changed = changed_names(encoder, before)
    frozen_names: set[str] = set()
    for group in timm_groups(backbone)[:num_groups]:
        frozen_names.update(f"backbone.{name}" for name in group)
    trained_names = {name for name, _ in encoder.named_parameters()} - frozen_names
    assert frozen_names
    assert trained_names <= changed
    assert not changed & frozen_names
    frozen_modules = {name.rpartition(".")[0] for name in frozen_names}
    assert not {name.rpartition(".")[0] for name in changed} & frozen_modules - {"backbone"}


def test_the_whole_backbone_computes_in_training_what_it_computes_in_evaluation() -> None:
    encoder = build_encoder("test_resnet", drop_path=0.5)
    expected = encoder.eval().features(IMAGES)
    encoder.freeze("all")
    assert torch.equal(encoder.train().features(IMAGES), expected)
    encoder.freeze("none")
    assert not torch.equal(encoder.train().features(IMAGES), expected)


def test_frozen_blocks_have_no_stochastic_depth_and_the_others_have() -> None:
    encoder = build_encoder("test_vit", drop_path=0.5)
    encoder.freeze(3)
    encoder.train()
    modes = [block.drop_path1.training for block in encoder.backbone.blocks]
    assert modes == [False] * 3 + [True] * 3
    assert not encoder.backbone.pos_drop.training


def test_the_mode_returns_after_an_evaluation() -> None:
    encoder = build_encoder("test_resnet")
    encoder.freeze(1)
    encoder.train()
    modes = [module.training for module in encoder.modules()]
    with eval_mode(encoder):
        assert not any(module.training for module in encoder.modules())
    assert [module.training for module in encoder.modules()] == modes
    encoder.eval().train()
    assert [module.training for module in encoder.modules()] == modes


def test_a_copy_is_frozen_as_well() -> None:
    """As momentum encoders are."""
    encoder = build_encoder("test_resnet")
    encoder.freeze("all")
    copied = copy.deepcopy(encoder).train()
    assert not copied.backbone.training
    assert not copied.backbone.bn1.training


# BatchNorm


def test_frozen_batch_norm_keeps_statistics_and_weights_while_the_others_train() -> None:
    encoder = without_zeros(build_encoder("test_resnet", head_norm=True))
    encoder.freeze("none", batch_norm=True)
    before = copy.deepcopy(encoder.state_dict())
    train_one_step(encoder)
    changed = changed_names(encoder, before)
    norms = set()
    for name, module in encoder.backbone.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            norms.update(f"backbone.{name}.{entry}" for entry in module.state_dict())
    assert norms
    assert changed == set(before) - norms  # the BatchNorm of the head included


def test_frozen_batch_norm_permits_micro_batches_with_the_gradient_of_the_batch() -> None:
    encoder = build_encoder("test_resnet").double().train()
    images = IMAGES.double() / 255
    with pytest.raises(UsageError, match=r"train.micro_batch_size: test_resnet has \d+ BatchNorm layers"):
        encoder.encode_in_chunks(3)
    encoder.freeze("none", batch_norm=True)
    assert not unfrozen_batch_norms(encoder)
    gradients = []
    for chunks in (1, 3):
        encoder.encode_in_chunks(chunks)
        encoder.zero_grad()
        encoder(images).sin().sum().backward()
        gradients.append([weight.grad.clone() for weight in encoder.parameters() if weight.grad is not None])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-9)


# Mistakes


@pytest.mark.parametrize(
    ("backbone", "options", "message"),
    [
        ("test_resnet", {"layers": 5}, r"encoder.freeze is 5, but test_resnet has 4 stages .* from 1 to 4"),
        ("test_vit", {"layers": 7}, r"encoder.freeze is 7, but test_vit has 6 stages"),
        ("test_vit", {"layers": "none", "batch_norm": True}, r"encoder.freeze_batchnorm: test_vit has no BatchNorm"),
    ],
)
def test_what_cannot_be_frozen_is_explained(backbone: str, options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_encoder(backbone).freeze(**options)
