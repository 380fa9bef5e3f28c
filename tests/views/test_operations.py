"""What images draw: the distribution that kornia and torchvision draw from, the same with and without numba."""

import itertools
import math
from collections import Counter

import kornia.augmentation as ka
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from reptk.core import rng
from reptk.views import crops, operations
from reptk.views.crops import RandomCrop, RandomResizedCrop
from reptk.views.operations import (
    ColorGains,
    ColorJitter,
    RandomFlip,
    RandomGaussianBlur,
    RandomGrayscale,
    color_matrices,
    luma,
)
from reptk.views.tables import native_operation
from view_references import JITTER, NEAR, float64_patches, patches, sample, step_of


@pytest.mark.parametrize("shape", [(32, 32), (224, 300), (1, 1), (3, 400), (400, 3)])
@pytest.mark.parametrize(
    ("scale", "ratio"), [((0.08, 1.0), (3 / 4, 4 / 3)), ((0.5, 1.0), (0.1, 10.0)), ((1, 1), (1, 1))]
)
def test_crops_compiled_with_numba_are_the_same_to_the_bit(shape, scale, ratio, monkeypatch):
    step, numbers = step_of([RandomResizedCrop((8, 8), scale, ratio), RandomFlip()]), torch.arange(20000)
    compiled = step.sample(5, numbers, shape)
    monkeypatch.setattr(crops, "compile_exact", lambda function: None)
    for from_numba, from_torch in zip(compiled, step.sample(5, numbers, shape), strict=True):
        assert torch.equal(from_numba, from_torch)


# The distribution of kornia's and torchvision's parameters


def same_distribution(a: Tensor, b: Tensor) -> bool:
    """Two-sample Kolmogorov-Smirnov at about 1 in 10,000."""
    values = torch.cat([a, b]).unique()
    cumulative = [torch.searchsorted(part.sort().values, values, right=True) / len(part) for part in (a, b)]
    limit = 2.2 * math.sqrt((len(a) + len(b)) / (len(a) * len(b)))
    return bool((cumulative[0] - cumulative[1]).abs().max() < limit)


def test_the_comparison_of_distributions_can_fail():
    u = torch.rand(4000, generator=torch.Generator().manual_seed(0))
    assert same_distribution(u, torch.rand(4000, generator=torch.Generator().manual_seed(1)))
    assert not same_distribution(u, u * 0.93)


@pytest.mark.parametrize("shape", [(32, 32), (256, 256), (90, 200), (300, 40)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.2, 1.0), (1.0, 1.0)])
def test_crops_are_distributed_as_kornias_and_torchvisions(shape, scale):
    count = 3000
    boxes = sample(RandomResizedCrop((32, 32), scale), 5, count, shape)
    with rng.seeded("kornia"):
        corners = ka.RandomResizedCrop((32, 32), scale).forward_parameters((count, 3, *shape))["src"]
    kornia_boxes = torch.cat([corners[:, 0].flip(1), (corners[:, 2] - corners[:, 0]).flip(1) + 1], dim=1)
    with rng.seeded("torchvision"):
        crop, image = v2.RandomResizedCrop(32, scale), torch.zeros(3, *shape)
        params = [crop.make_params([image]) for _ in range(count)]
    torchvision_boxes = torch.tensor([[each[name] for name in ("top", "left", "height", "width")] for each in params])
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= torch.tensor(shape)).all()
    for column in range(4):
        assert same_distribution(boxes[:, column], torchvision_boxes[:, column].float()), column
        if column >= 2:  # kornia puts the fallback crop anywhere, torchvision and reptk in the middle
            assert same_distribution(boxes[:, column], kornia_boxes[:, column]), column


@pytest.mark.parametrize("padding", [0, 4])
def test_padded_crops_reach_every_place_equally_often(padding):
    boxes = sample(RandomCrop((28, 28), padding), 5, 8000, (32, 30))
    tops, lefts = Counter(boxes[:, 0].int().tolist()), Counter(boxes[:, 1].int().tolist())
    assert sorted(tops) == list(range(-padding, 4 + padding + 1))
    assert sorted(lefts) == list(range(-padding, 2 + padding + 1))
    assert max(tops.values()) < 1.25 * min(tops.values())


def test_jitter_is_distributed_as_kornias_and_torchvisions():
    count = 6000
    arguments = {"brightness": 0.8, "contrast": 0.4, "saturation": [0.1, 3.0], "hue": 0.2}
    factors = sample(native_operation({"name": "ColorJitter", **arguments}), 5, count)
    with rng.seeded("kornia"):
        kornia_params = ka.ColorJitter(**{**arguments, "saturation": (0.1, 3.0)}).forward_parameters((count, 3, 8, 8))
    with rng.seeded("torchvision"):
        ranges = {"brightness": (0.2, 1.8), "contrast": (0.6, 1.4), "saturation": (0.1, 3.0), "hue": (-0.2, 0.2)}
        jitter = v2.ColorJitter(**ranges)
        torchvision_params = [jitter.make_params([]) for _ in range(count)]
    for column, name in enumerate(("brightness_factor", "contrast_factor", "saturation_factor", "hue_factor")):
        assert same_distribution(factors[:, column], kornia_params[name]), name
        torchvision_factors = torch.tensor([params[name] for params in torchvision_params])
        assert same_distribution(factors[:, column], torchvision_factors), name


def test_every_order_of_the_color_operations_is_equally_likely():
    orders = Counter(map(tuple, sample(JITTER, 5, 24000)[:, 4:].int().tolist()))
    assert set(orders) == set(itertools.permutations(range(4)))
    assert all(abs(count - 1000) < 4.5 * math.sqrt(1000) for count in orders.values())


@pytest.mark.parametrize(
    "operation",
    [
        RandomFlip(0.3),
        RandomGrayscale(0.3),
        RandomGaussianBlur((3, 3), (0.1, 2.0), 0.3),
        ColorJitter((0.2, 1.8), (1, 1), (1, 1), (0, 0), 0.3),
    ],
    ids=["flip", "grayscale", "blur", "jitter"],
)
def test_an_operation_is_applied_to_its_share_of_the_images(operation):
    params = sample(operation, 7, 20000)
    is_applied = params[:, 0] != 1 if isinstance(operation, ColorJitter) else params[:, 0] > 0
    assert torch.equal(operation.is_applied(params), is_applied)
    assert is_applied.float().mean() == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / 20000))


def test_sigma_is_uniform_where_an_image_is_blurred():
    sigma = sample(RandomGaussianBlur((3, 3), (0.1, 2.0), 0.5), 7, 20000)[:, 0]
    sigma = sigma[sigma > 0]
    assert same_distribution(sigma, torch.linspace(0.1, 2.0, 8000))


# Color as one matrix


def hue_matrices(turns: Tensor) -> Tensor:
    """(n,) turns -> (n, 3, 3), of an operation that shifts the hue and does nothing else."""
    one = torch.ones_like(turns)
    matrix, mean_weights = color_matrices([ColorGains(one, one, one, turns)])
    assert not mean_weights.any()
    return matrix


def test_linear_hue_keeps_luma_and_grays_and_is_a_rotation():
    images = float64_patches(6) * 0.2 + 0.4
    turns = torch.linspace(-0.4, 0.5, 6, dtype=torch.float64)
    turned = (hue_matrices(turns) @ images.flatten(2)).view_as(images)
    torch.testing.assert_close(luma(turned), luma(images), **NEAR)
    grays = images[:, :1].expand(-1, 3, -1, -1)
    torch.testing.assert_close((hue_matrices(turns) @ grays.flatten(2)).view_as(grays), grays, **NEAR)
    torch.testing.assert_close(
        hue_matrices(turns) @ hue_matrices(-turns), torch.eye(3).double().expand(6, 3, 3), **NEAR
    )
    torch.testing.assert_close(hue_matrices(turns[:1] * 0 + 1)[0], torch.eye(3).double(), **NEAR)


def test_color_matrices_are_the_product_of_the_steps_in_any_order():
    jitter, gray = sample(JITTER, 3, 40).double(), sample(RandomGrayscale(0.3), 4, 40).double()
    gains = [JITTER.gains(jitter), RandomGrayscale().gains(gray), JITTER.gains(jitter.flip(0))]
    steps = [JITTER.color_steps(jitter), RandomGrayscale().color_steps(gray), JITTER.color_steps(jitter.flip(0))]
    gray = operations.gray_matrix(torch.float64, jitter.device)
    for order in ([0, 1, 2], [2, 0, 1]):
        matrix = torch.eye(3, dtype=torch.float64).expand(40, 3, 3)
        mean_matrix = torch.zeros_like(matrix)
        for step in torch.cat([steps[number] for number in order], dim=1).unbind(1):
            color, luma_share, mean_share, turns = step.unbind(1)
            step_matrix = hue_matrices(turns) @ operations.mix_with_gray(color, luma_share)
            # The mean of the image so far is (M + K) mean(x).
            mean_matrix = step_matrix @ mean_matrix + mean_share[:, None, None] * (gray @ (matrix + mean_matrix))
            matrix = step_matrix @ matrix
        expected, mean_weights = color_matrices([gains[number] for number in order])
        torch.testing.assert_close(matrix, expected, atol=1e-13, rtol=0)
        torch.testing.assert_close(mean_matrix, mean_weights[:, None].expand(-1, 3, -1), atol=1e-13, rtol=0)


def test_neutral_operations_are_exactly_the_identity():
    neutral = ColorJitter((0.2, 1.8), (0.2, 1.8), (0.2, 1.8), (-0.2, 0.2), 0.0)
    params = sample(neutral, 3, 20).double()
    matrix, mean_weights = color_matrices([neutral.gains(params)])
    assert torch.equal(matrix, torch.eye(3, dtype=torch.float64).expand(20, 3, 3))
    assert not mean_weights.any()
    assert torch.equal(neutral.color_steps(params), torch.tensor([1.0, 0.0, 0.0, 0.0]).double().expand(20, 4, 4))


def test_how_far_linear_color_is_from_exact_on_photographs():
    """In gray levels of 255, on colorful patches: SimCLR's jitter at full and at half strength."""
    images = torch.cat([patches(120, 64).double(), float64_patches(40, 64, 64) * 255]) / 255
    mean_distance = {}
    for strength, jitter in ((1.0, JITTER), (0.5, ColorJitter((0.6, 1.4), (0.6, 1.4), (0.6, 1.4), (-0.1, 0.1), 0.8))):
        params = step_of([jitter]).sample(2, torch.arange(len(images)), (64, 64))
        linear, exact = (
            step.choose_backend(images).run(images, params) for step in (step_of([jitter]), step_of([jitter], True))
        )
        mean_distance[strength] = 255 * (linear - exact).abs().mean().item()
    assert mean_distance[1.0] < 12
    assert mean_distance[0.5] < 8
    assert mean_distance[0.5] < mean_distance[1.0]
