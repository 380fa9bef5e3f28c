"""BYOL: its formula, its target, and what it refuses."""

import math

import pytest
import torch
from small_methods import SIZE_PX, batch, encoder, separate, step
from torch.nn import functional

from reptk import load
from reptk.config.schema import RecipeError
from reptk.methods import BYOL, cosine_momentum
from reptk.testing import check_method
from reptk.views.sets import crop_flip, multi_crop


@pytest.mark.parametrize("backbone", ["test_vit", "test_resnet"])
def test_it_keeps_the_contract_of_methods(backbone: str) -> None:
    check_method(BYOL, backbone=backbone, predictor_width=32)


def test_it_is_its_formula() -> None:
    """Both orders of the views, against the target, averaged over the images."""
    method = BYOL(encoder(), crop_flip(count=2, size=SIZE_PX), predictor_width=16, predictor_norm=False)
    separate(method.target)
    first, second = method.views(batch().images, step().key)
    expected = 0.0
    for online, target in ((first, second), (second, first)):
        q = functional.normalize(method.predictor(method.encoder(online)), dim=1)
        t = functional.normalize(method.target(target), dim=1)
        expected += (q - t).square().sum(1).mean() / 2
    assert method(batch(), step())["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_target_is_the_moving_average_and_gets_no_gradient() -> None:
    method = BYOL(encoder(), crop_flip(count=2, size=SIZE_PX), momentum=0.9, predictor_width=16)
    before = [parameter.clone() for parameter in method.target.parameters()]
    with torch.no_grad():
        for parameter in method.encoder.parameters():
            parameter.add_(1.0)
    method(batch(), step())["loss"].backward()
    assert all(parameter.grad is None for parameter in method.target.parameters())
    method.after_step(step(number=5, total=11))
    momentum = 1 - (1 - 0.9) * (math.cos(math.pi / 2) + 1) / 2
    online = method.encoder.parameters()
    for old, source, new in zip(before, online, method.target.parameters(), strict=True):
        torch.testing.assert_close(new, momentum * old + (1 - momentum) * source)


def test_the_momentum_rises_to_one() -> None:
    values = [cosine_momentum(step(number, 100), 0.99) for number in range(100)]
    assert values[0] == pytest.approx(0.99)
    assert values[-1] == 1.0
    assert values == sorted(values)
    assert cosine_momentum(step(0, 1), 0.99) == pytest.approx(0.99)


def test_it_takes_two_views_and_no_loss() -> None:
    with pytest.raises(ValueError, match=r"two views .* not 3: set views\.count=2"):
        BYOL(encoder(), crop_flip(count=3, size=SIZE_PX))
    with pytest.raises(ValueError, match=r"two views of one size, not of 32 and 16 px: use other views"):
        BYOL(encoder(), multi_crop(count=1, size=32, small_count=1, small_size=16))
    recipe = load("byol_photos")
    assert recipe.loss is None
    assert "[loss]" not in recipe.dump()
    with pytest.raises(RecipeError, match="method 'byol' takes no loss; remove the \\[loss\\] table"):
        load("byol_photos", ["loss.name=simclr"])


def test_changing_the_method_drops_the_loss_it_does_not_take() -> None:
    assert load("simclr_photos", ["method.name=byol"]).loss is None
