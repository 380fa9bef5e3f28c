"""VICReg, Barlow Twins and SIGReg against their formulas in NumPy and SciPy, in float64."""

from itertools import combinations

import numpy as np
import pytest
import torch
from fixed_embeddings import STEP, loss_and_gradient, random_views
from scipy import integrate, stats
from torch import Tensor

from reptk.methods import BarlowTwins, LeJEPA, VICReg
from reptk.methods.covariance import centered, products_of_dimensions
from reptk.methods.sigreg import random_directions, sigreg

SHAPES = [(2, 12, 5), (2, 6, 9), (4, 7, 4)]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def vicreg_formula(z: np.ndarray) -> float:
    """Weights 25, 25 and 1; the mean over all pairs of views."""
    losses = []
    for first, second in combinations(z, 2):
        loss = 25 * np.mean((first - second) ** 2)
        for view in (first, second):
            covariance = np.cov(view.T)
            loss += 25 * np.mean(np.maximum(0, 1 - np.sqrt(np.diag(covariance) + 1e-4))) / 2
            loss += np.sum(covariance[~np.eye(len(covariance), dtype=bool)] ** 2) / len(covariance)
        losses.append(loss)
    return float(np.mean(losses))


def barlow_twins_formula(z: np.ndarray) -> float:
    """Lambda 0.0051; the mean over all pairs of views."""
    losses = []
    for first, second in combinations(z, 2):
        standardized = [(view - view.mean(0)) / np.sqrt(view.var(0) + 1e-5) for view in (first, second)]
        correlation = standardized[0].T @ standardized[1] / len(first)
        loss = 0.0
        for i, row in enumerate(correlation):
            for j, value in enumerate(row):
                loss += (1 - value) ** 2 if i == j else 0.0051 * value**2
        losses.append(loss)
    return float(np.mean(losses))


@every_shape
def test_vicreg_is_its_formula(shape: tuple[int, int, int]) -> None:
    # Some dimensions vary more than 1, some less.
    z = 2 * random_views(*shape)
    loss, _ = loss_and_gradient(VICReg, z)
    assert loss.item() == pytest.approx(vicreg_formula(z.numpy()), rel=1e-10)


@every_shape
def test_barlow_twins_is_its_formula(shape: tuple[int, int, int]) -> None:
    z = random_views(*shape)
    loss, _ = loss_and_gradient(BarlowTwins, z)
    assert loss.item() == pytest.approx(barlow_twins_formula(z.numpy()), rel=1e-10)


@pytest.mark.parametrize("method", [VICReg, BarlowTwins])
def test_gradient_is_that_of_finite_differences(method: type) -> None:
    for shape in ((2, 6, 3), (2, 3, 5)):
        z = random_views(*shape)
        _, gradient = loss_and_gradient(method, z)
        direction = torch.randn(z.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        ahead, _ = loss_and_gradient(method, z + 1e-6 * direction)
        behind, _ = loss_and_gradient(method, z - 1e-6 * direction)
        slope = (ahead - behind).item() / 2e-6
        assert (gradient * direction).sum().item() == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("num_images", [9, 10])
def test_products_of_rows_give_those_of_dimensions(num_images: int) -> None:
    """Of D = 10 dimensions the former are computed for 9 rows, the latter for 10."""
    x = centered(random_views(3, num_images, 10))
    y = centered(random_views(3, num_images, 10).flip(0))
    products = products_of_dimensions(x, y)
    for number in range(3):
        matrix = x[number].T @ y[number]
        torch.testing.assert_close(products.diagonal[number], matrix.diagonal())
        expected = matrix.fill_diagonal_(0).square().sum()
        torch.testing.assert_close(products.off_diagonal_squares[number], expected)


# SIGReg


def epps_pulley(x: np.ndarray, t_max: float) -> float:
    """The statistic of a sample of one dimension, by adaptive quadrature."""

    def integrand(t: float) -> float:
        difference = np.mean(np.exp(1j * t * x)) - np.exp(-(t**2) / 2)
        return abs(difference) ** 2 * np.exp(-(t**2) / 2)

    return len(x) * integrate.quad(integrand, -t_max, t_max)[0]


def test_sigreg_is_the_integral_of_epps_and_pulley() -> None:
    z = random_views(3, 8, 4)
    directions = random_directions(5, 4, 6, device=z.device, dtype=z.dtype)
    statistics = []
    for view in (z @ directions).numpy():
        statistics += [epps_pulley(column, 3.0) for column in view.T]
    assert sigreg(z, directions, knots=3001).item() == pytest.approx(np.mean(statistics), rel=1e-6)
    # The trapezoidal rule with the usual 17 points.
    assert sigreg(z, directions).item() == pytest.approx(np.mean(statistics), rel=0.01)


@pytest.mark.parametrize(("knots", "t_max"), [(17, 3.0), (2, 1.0), (9, 5.0)])
def test_sigreg_has_the_value_and_gradient_of_the_formula_in_plain_operations(knots: int, t_max: float) -> None:
    z = random_views(2, 7, 3).requires_grad_()
    directions = random_directions(5, 3, 4, device=z.device, dtype=z.dtype)
    value = sigreg(z, directions, knots=knots, t_max=t_max)
    value.backward()
    gradient, z.grad = z.grad, None
    t = torch.linspace(-t_max, t_max, 2 * knots - 1, dtype=torch.float64)
    phi = torch.exp(1j * (z @ directions)[..., None] * t).mean(1)
    gaussian = torch.exp(-t.square() / 2)
    integral = torch.trapezoid((phi - gaussian).abs().square() * gaussian, t)
    expected = 7 * integral.mean()
    expected.backward()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, z.grad)


def normal_quantiles(count: int) -> Tensor:
    """A sample (1, count, 1) that is as close to a standard normal distribution as so many numbers can be."""
    shares = (np.arange(count) + 0.5) / count
    return torch.from_numpy(stats.norm.ppf(shares))[None, :, None]


def test_sigreg_is_small_for_a_normal_distribution_and_larger_for_others() -> None:
    normal = normal_quantiles(200)
    direction = torch.ones(1, 1, dtype=torch.float64)
    smallest = sigreg(normal, direction)
    assert smallest < 1e-2
    others = {
        "shifted": normal + 0.3,
        "narrow": 0.7 * normal,
        "wide": 1.4 * normal,
        "two values": normal.sign(),
        "collapsed": torch.zeros_like(normal),
    }
    for name, sample in others.items():
        assert sigreg(sample, direction) > 20 * smallest, name


def test_directions_are_unit_vectors_of_all_directions_and_functions_of_the_key() -> None:
    device = torch.device("cpu")
    directions = random_directions(1, 6, 4000, device=device, dtype=torch.float64)
    assert directions.shape == (6, 4000)
    torch.testing.assert_close(directions.norm(dim=0), torch.ones(4000, dtype=torch.float64))
    # Uniform on the sphere: mean 0, covariance I / D.
    assert directions.mean(1).abs().max() < 4 / (6 * 4000) ** 0.5
    covariance = directions @ directions.T / 4000
    torch.testing.assert_close(covariance, torch.eye(6, dtype=torch.float64) / 6, rtol=0, atol=0.01)
    # The projections on one axis are as those of a uniform distribution on the sphere, not of a cube.
    kurtosis = stats.kurtosis(directions[0].numpy(), fisher=False)
    assert kurtosis == pytest.approx(3 * 6 / (6 + 2), rel=0.1)
    again = random_directions(1, 6, 4000, device=device, dtype=torch.float64)
    assert torch.equal(again, directions)
    assert not torch.equal(random_directions(2, 6, 4000, device=device, dtype=torch.float64), directions)


def test_lejepa_draws_other_directions_in_each_step() -> None:
    z = random_views(2, 8, 6)
    loss, _ = loss_and_gradient(LeJEPA, z, num_slices=4)
    again, _ = loss_and_gradient(LeJEPA, z, num_slices=4)
    other, _ = loss_and_gradient(LeJEPA, z, num_slices=4, step=STEP._replace(key=1))
    assert loss == again
    assert loss != other


def test_lejepa_pulls_all_views_to_the_mean_of_the_large_ones() -> None:
    z = random_views(5, 8, 6)
    loss, _ = loss_and_gradient(LeJEPA, z, counts=(2, 3), sigreg_weight=0.0)
    expected = (z - z[:2].mean(0)).square().mean()
    torch.testing.assert_close(loss, expected)
