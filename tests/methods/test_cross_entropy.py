"""Cross-entropy of the labeled images, and mixup and cutmix, against torch and timm."""

import numpy as np
import pytest
import torch
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch.nn import functional

from reptk.core import rng
from reptk.core.errors import UsageError
from reptk.methods import Batch, Classify, Method, Step
from reptk.methods.cross_entropy import cross_entropy_outputs, soft_cross_entropy_outputs
from reptk.methods.mixing import Mixing
from reptk.models.encoder import Encoder, unfrozen_batch_norms
from reptk.views.sets import crop_flip

SCORES = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 3, 1, 1, 2, 0])
PARTLY_LABELED = torch.tensor([0, -1, 1, -1, 2, 0])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_of_labels_is_timms(smoothing: float) -> None:
    outputs = cross_entropy_outputs(SCORES, LABELS, smoothing)
    torch.testing.assert_close(outputs["loss"], LabelSmoothingCrossEntropy(smoothing)(SCORES, LABELS))
    assert outputs["train_accuracy"] == (SCORES.argmax(1) == LABELS).float().mean()


def test_loss_of_soft_targets_is_timms() -> None:
    targets = torch.rand(6, 4).softmax(1)
    outputs = soft_cross_entropy_outputs(SCORES, targets, torch.ones(6, dtype=torch.bool))
    torch.testing.assert_close(outputs["loss"], SoftTargetCrossEntropy()(SCORES, targets))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_images_without_a_label_do_not_count(smoothing: float) -> None:
    is_labeled = PARTLY_LABELED >= 0
    scores, others = SCORES.clone().requires_grad_(), SCORES[is_labeled].clone().requires_grad_()
    expected = functional.cross_entropy(others, PARTLY_LABELED[is_labeled], label_smoothing=smoothing)
    outputs = cross_entropy_outputs(scores, PARTLY_LABELED, smoothing)
    torch.testing.assert_close(outputs["loss"], expected)
    outputs["loss"].backward()
    expected.backward()
    torch.testing.assert_close(scores.grad[is_labeled], others.grad)
    assert not scores.grad[~is_labeled].any()
    assert outputs["train_accuracy"] == (SCORES.argmax(1) == PARTLY_LABELED)[is_labeled].float().mean()


def test_a_batch_without_labels_has_loss_0_and_a_gradient_of_zeros() -> None:
    for outputs_of in (
        lambda scores: cross_entropy_outputs(scores, torch.full((6,), -1)),
        lambda scores: soft_cross_entropy_outputs(scores, SCORES.softmax(1), torch.zeros(6, dtype=torch.bool)),
    ):
        scores = SCORES.clone().requires_grad_()
        loss = outputs_of(scores)["loss"]
        assert loss == 0
        loss.backward()
        assert torch.equal(scores.grad, torch.zeros_like(SCORES))


def test_half_precision_is_computed_in_float32() -> None:
    assert cross_entropy_outputs(SCORES.bfloat16(), LABELS)["loss"].dtype == torch.float32
    assert cross_entropy_outputs(SCORES.double(), LABELS)["loss"].dtype == torch.float64


# mixup and cutmix

IMAGES = torch.rand(8, 3, 6, 6, generator=torch.Generator().manual_seed(1))
IMAGE_LABELS = torch.tensor([0, 1, 2, 3, 3, 2, 1, 0])


@pytest.mark.parametrize("alphas", [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
@pytest.mark.parametrize("key", range(3))
def test_mixing_is_timms_with_neighbors_as_partners(alphas: tuple[float, float], key: int) -> None:
    mixup, cutmix = alphas
    mixed, targets, is_labeled = Mixing(4, mixup=mixup, cutmix=cutmix)(IMAGES, IMAGE_LABELS, key, 0.1)
    order = [0, 2, 4, 6, 7, 5, 3, 1]  # timm's partner of row i is row 7 - i
    with rng.seeded_numpy(key, "mixing"):
        timms = Mixup(mixup_alpha=mixup, cutmix_alpha=cutmix, label_smoothing=0.1, num_classes=4)
        expected, expected_targets = timms(IMAGES[order].clone(), IMAGE_LABELS[order])
    assert torch.equal(mixed, expected)
    assert torch.equal(targets, expected_targets)
    assert is_labeled.all()
    assert not torch.equal(mixed, IMAGES[order])


def test_mixing_draws_from_its_key_alone() -> None:
    mixing = Mixing(4, mixup=1.0, cutmix=1.0)
    np.random.seed(5)
    state = np.random.get_state()
    first = mixing(IMAGES, IMAGE_LABELS, 3)
    assert all(np.array_equal(*pair) for pair in zip(np.random.get_state()[:2], state[:2], strict=True))
    np.random.seed(6)
    assert torch.equal(mixing(IMAGES, IMAGE_LABELS, 3)[0], first[0])
    assert not torch.equal(mixing(IMAGES, IMAGE_LABELS, 4)[0], first[0])


@pytest.mark.parametrize("alphas", [(0.4, 0.0), (0.0, 1.0)])
def test_an_image_is_not_mixed_with_one_that_has_no_label(alphas: tuple[float, float]) -> None:
    mixup, cutmix = alphas
    labels = torch.where(torch.arange(8) == 3, -1, IMAGE_LABELS)
    mixing = Mixing(4, mixup=mixup, cutmix=cutmix)
    mixed, targets, is_labeled = mixing(IMAGES, labels, 1)
    # Row 1 is image 2, whose neighbor is image 3, in row 6.
    assert torch.equal(mixed[[1, 6]], IMAGES[[2, 3]])
    assert torch.equal(targets[1], functional.one_hot(labels[2], 4).float())
    assert is_labeled.tolist() == [True] * 6 + [False, True]
    complete, complete_targets, _ = mixing(IMAGES, IMAGE_LABELS, 1)
    others = [0, 2, 3, 4, 5, 7]
    assert torch.equal(mixed[others], complete[others])
    assert torch.equal(targets[others], complete_targets[others])


def tiny_classify(**arguments: float) -> Method:
    with rng.seeded("classify"):
        encoder = Encoder("test_resnet", size=16)
        return Classify(encoder, crop_flip(count=2, size=16), num_classes=4, **arguments).train()


def batch_of(count: int) -> Batch:
    images = torch.randint(256, (count, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    return Batch(images, torch.arange(count) % 4, torch.arange(count))


def test_an_odd_batch_cannot_be_mixed() -> None:
    with pytest.raises(UsageError, match=r"pair the images of a batch, and this rank has 5: train\.batch_size"):
        tiny_classify(mixup=0.2)(batch_of(5), Step(0, 1, 7))


# The encoder


def test_the_head_is_removed_and_the_backbone_has_the_weights_of_its_seed() -> None:
    method = tiny_classify()
    with rng.seeded("classify"):
        encoder = Encoder("test_resnet", size=16)
    assert all(map(torch.equal, method.encoder.backbone.state_dict().values(), encoder.backbone.state_dict().values()))
    assert method.encoder.embedding_dim == method.encoder.num_features
    assert method.encoder.config["head_layers"] == 0
    assert not any(name.startswith("encoder.head") for name in method.state_dict())


def test_a_frozen_encoder_does_not_change_and_is_in_evaluation_mode() -> None:
    method = tiny_classify(freeze_encoder=True)
    assert method.classifier.training
    assert not any(module.training for module in method.encoder.backbone.modules())
    assert not unfrozen_batch_norms(method)
    before = {name: value.clone() for name, value in method.encoder.state_dict().items()}
    optimizer = torch.optim.SGD(method.parameter_groups(), lr=1.0)
    first = method(batch_of(4), Step(0, 2, 7))["loss"]
    first.backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in method.encoder.state_dict().items())
    assert method(batch_of(4), Step(0, 2, 7))["loss"] < first


def test_label_smoothing_of_mixed_images_is_that_of_the_step() -> None:
    method = tiny_classify(mixup=0.2)
    method.label_smoothing = 0.3  # as a schedule sets it
    smoothed = method(batch_of(4), Step(0, 1, 7))["loss"]
    assert smoothed == tiny_classify(mixup=0.2, label_smoothing=0.3)(batch_of(4), Step(0, 1, 7))["loss"]
    assert smoothed != tiny_classify(mixup=0.2)(batch_of(4), Step(0, 1, 7))["loss"]


def test_the_encoder_may_have_a_lower_learning_rate() -> None:
    classifier, encoder = tiny_classify(encoder_lr_scale=0.1).parameter_groups()
    assert len(classifier["params"]) == 2
    assert "lr_scale" not in classifier
    assert encoder["lr_scale"] == 0.1
