"""What views draw: uniform numbers by key, and the distribution that kornia and torchvision draw from."""

import itertools
import math
from collections import Counter

import kornia.augmentation as ka
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from fused_runs import JITTER, drawn, rows, run_of
from reptk.core import rng
from reptk.views import fused
from reptk.views.recognised import Blur, Crop, Flip, Gray, Jitter, ResizedCrop, recognise

# Draws: a function of (key, salt, row, column), uniform and independent


SALTS = torch.tensor([3, 1, 4, 15, 92, 65])


def test_uniform_is_uniform_and_its_columns_are_independent():
    u = rng.uniform(3, SALTS, rows(20000))
    assert u.shape == (20000, 6)
    assert u.dtype == torch.float32
    assert 0 <= u.min() < 1e-3 < 1 - 1e-3 < u.max() < 1
    shares = torch.stack([column.histc(20, 0, 1) for column in u.T]) / 20000
    assert (shares - 0.05).abs().max() < 5 * math.sqrt(0.05 / 20000)
    off_diagonal = torch.corrcoef(u.T) - torch.eye(6)
    assert off_diagonal.abs().max() < 4 / math.sqrt(20000)
    for other in (torch.stack([u[:-1, 0], u[1:, 0]]), torch.stack([u[:, 0], rng.uniform(4, SALTS, rows(20000))[:, 0]])):
        assert abs(torch.corrcoef(other)[0, 1]) < 4 / math.sqrt(20000)


def test_uniform_depends_on_each_of_its_arguments_and_on_nothing_else():
    u = rng.uniform(3, SALTS, rows(100))
    assert torch.equal(u[[7, 3]][:, [2, 0]], rng.uniform(3, SALTS[[2, 0]], torch.tensor([7, 3])))
    for other in (
        rng.uniform(4, SALTS, rows(100)),
        rng.uniform(3, SALTS + 1, rows(100)),
        rng.uniform(3, SALTS, rows(100) + 100),
    ):
        assert (u == other).float().mean() < 0.01
    assert len(u.unique()) > 0.99 * u.numel()
    for extreme in (0, 2**63 - 1):
        assert rng.uniform(extreme, torch.tensor([extreme]), rows(10)).isfinite().all()


def test_uniform_is_pinned():
    expected = [0.5861849, 0.9964465, 0.1259108]
    torch.testing.assert_close(
        rng.uniform(1, SALTS[:3], torch.tensor([5]))[0], torch.tensor(expected), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("key", [0, 3, 2**63 - 1])
def test_machine_code_draws_the_same_numbers_to_the_bit(key):
    many = torch.tensor([0, 1, 2**40, 2**62, *range(7, 3000)])
    assert torch.equal(fused.machine_code().uniform(key, SALTS, many), rng.uniform(key, SALTS, many))


@pytest.mark.parametrize("shape", [(32, 32), (224, 300), (1, 1), (3, 400), (400, 3)])
@pytest.mark.parametrize(
    ("scale", "ratio"), [((0.08, 1.0), (3 / 4, 4 / 3)), ((0.5, 1.0), (0.1, 10.0)), ((1, 1), (1, 1))]
)
def test_machine_code_draws_the_same_crops_to_the_bit(shape, scale, ratio, monkeypatch):
    run, count = run_of([ResizedCrop((8, 8), scale, ratio), Flip()]), 20000
    made = run.draw(5, rows(count), shape)
    monkeypatch.setattr(fused, "machine_code", lambda: None)
    for ours, torchs in zip(made, run.draw(5, rows(count), shape), strict=True):
        assert torch.equal(ours, torchs)


# Draws: the distribution of kornia's and torchvision's


def same_distribution(ours: Tensor, theirs: Tensor) -> bool:
    """Two-sample Kolmogorov-Smirnov at about 1 in 10,000."""
    places = torch.cat([ours, theirs]).unique()
    cumulative = [torch.searchsorted(part.sort().values, places, right=True) / len(part) for part in (ours, theirs)]
    limit = 2.2 * math.sqrt((len(ours) + len(theirs)) / (len(ours) * len(theirs)))
    return bool((cumulative[0] - cumulative[1]).abs().max() < limit)


def test_the_comparison_of_distributions_can_tell():
    u = torch.rand(4000, generator=torch.Generator().manual_seed(0))
    assert same_distribution(u, torch.rand(4000, generator=torch.Generator().manual_seed(1)))
    assert not same_distribution(u, u * 0.93)


@pytest.mark.parametrize("shape", [(32, 32), (256, 256), (90, 200), (300, 40)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.2, 1.0), (1.0, 1.0)])
def test_crops_are_drawn_as_kornia_and_torchvision_draw_them(shape, scale):
    count = 3000
    ours = drawn(ResizedCrop((32, 32), scale), 5, count, shape)
    with rng.seeded("kornia"):
        corners = ka.RandomResizedCrop((32, 32), scale).forward_parameters((count, 3, *shape))["src"]
    kornias = torch.cat([corners[:, 0].flip(1), (corners[:, 2] - corners[:, 0]).flip(1) + 1], dim=1)
    with rng.seeded("torchvision"):
        crop, image = v2.RandomResizedCrop(32, scale), torch.zeros(3, *shape)
        values = [crop.make_params([image]) for _ in range(count)]
    torchvisions = torch.tensor([[params[name] for name in ("top", "left", "height", "width")] for params in values])
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, :2] + ours[:, 2:] <= torch.tensor(shape)).all()
    for column in range(4):
        assert same_distribution(ours[:, column], torchvisions[:, column].float()), column
        if column >= 2:  # kornia puts the fallback crop anywhere, torchvision and reptk in the middle
            assert same_distribution(ours[:, column], kornias[:, column]), column


@pytest.mark.parametrize("padding", [0, 4])
def test_padded_crops_reach_every_place_equally_often(padding):
    boxes = drawn(Crop((28, 28), padding), 5, 8000, (32, 30))
    tops, lefts = Counter(boxes[:, 0].int().tolist()), Counter(boxes[:, 1].int().tolist())
    assert sorted(tops) == list(range(-padding, 4 + padding + 1))
    assert sorted(lefts) == list(range(-padding, 2 + padding + 1))
    assert max(tops.values()) < 1.25 * min(tops.values())


def test_jitter_is_drawn_as_kornia_and_torchvision_draw_it():
    count = 6000
    arguments = {"brightness": 0.8, "contrast": 0.4, "saturation": [0.1, 3.0], "hue": 0.2}
    factors = drawn(recognise({"name": "ColorJitter", **arguments}), 5, count)
    with rng.seeded("kornia"):
        kornias = ka.ColorJitter(**{**arguments, "saturation": (0.1, 3.0)}).forward_parameters((count, 3, 8, 8))
    with rng.seeded("torchvision"):
        ends = {"brightness": (0.2, 1.8), "contrast": (0.6, 1.4), "saturation": (0.1, 3.0), "hue": (-0.2, 0.2)}
        torchvisions = [v2.ColorJitter(**ends).make_params([]) for _ in range(count)]
    for column, name in enumerate(("brightness", "contrast", "saturation", "hue")):
        assert same_distribution(factors[:, column], kornias[f"{name}_factor"]), name
        theirs = torch.tensor([params[f"{name}_factor"] for params in torchvisions])
        assert same_distribution(factors[:, column], theirs), name


def test_every_order_of_the_colour_operations_is_equally_likely():
    orders = Counter(map(tuple, drawn(JITTER, 5, 24000)[:, 4:].int().tolist()))
    assert set(orders) == set(itertools.permutations(range(4)))
    assert all(abs(count - 1000) < 4.5 * math.sqrt(1000) for count in orders.values())


@pytest.mark.parametrize(
    ("operation", "hits"),
    [
        (Flip(0.3), lambda table: table[:, 0] > 0),
        (Gray(0.3), lambda table: table[:, 0] > 0),
        (Blur((3, 3), (0.1, 2.0), 0.3), lambda table: table[:, 0] > 0),
        (Jitter((0.2, 1.8), (1, 1), (1, 1), (0, 0), 0.3), lambda table: table[:, 0] != 1),
    ],
)
def test_an_operation_is_drawn_by_its_share_of_the_images(operation, hits):
    share = hits(drawn(operation, 7, 20000)).float().mean()
    assert share == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / 20000))


def test_sigma_is_uniform_where_it_is_drawn():
    sigma = drawn(Blur((3, 3), (0.1, 2.0), 0.5), 7, 20000)[:, 0]
    sigma = sigma[sigma > 0]
    assert same_distribution(sigma, torch.linspace(0.1, 2.0, 8000))
