"""SimSiam: its formula, the stopped gradient, and the value of the published code."""

import pytest
import torch
from small_methods import SIZE_PX, batch, encoder, published_rows, step, unit_rows

from reptk import load
from reptk.methods import SimSiam
from reptk.methods.simsiam import negative_cosine
from reptk.testing import check_method
from reptk.training.optim import Schedule, create_optimizer
from reptk.views.sets import crop_flip


@pytest.mark.parametrize("backbone", ["test_vit", "test_resnet"])
def test_it_keeps_the_contract_of_methods(backbone: str) -> None:
    check_method(SimSiam, backbone=backbone, predictor_width=32)


def test_the_value_is_that_of_the_published_code() -> None:
    """facebookresearch/simsiam at a7bc177: main_simsiam.py, the loss of p1, p2, z1, z2."""
    p_first, p_second, z_first, z_second = (published_rows(5, 4, start) for start in (0, 100, 200, 300))
    loss = (negative_cosine(p_first, z_second) + negative_cosine(p_second, z_first)) / 2
    assert loss.item() == pytest.approx(-0.7155068162006082, rel=1e-12)


def test_it_is_its_formula() -> None:
    method = SimSiam(encoder(), crop_flip(count=2, size=SIZE_PX), predictor_width=16, predictor_norm=False)
    views = method.views(batch().images, step().key)
    z = [method.encoder(view).double() for view in views]
    # BatchNorm without weights, over the images of one view.
    z = [(rows - rows.mean(0)) / (rows.var(0, correction=0) + 1e-5).sqrt() for rows in z]
    p = [method.predictor(rows.float()) for rows in z]
    expected = 0.0
    for prediction, target in ((p[0], z[1]), (p[1], z[0])):
        expected -= (unit_rows(prediction) * unit_rows(target)).sum(1).mean() / 2
    loss = method(batch(), step())["loss"]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert -1 <= loss.item() <= 1


def test_the_predicted_embedding_gets_no_gradient() -> None:
    z = torch.randn(3, 4, requires_grad=True)
    prediction = torch.randn(3, 4, requires_grad=True)
    negative_cosine(prediction, z).backward()
    assert z.grad is None
    assert prediction.grad.abs().sum() > 0


def test_embeddings_of_the_health_are_those_behind_the_norm() -> None:
    method = SimSiam(encoder(), crop_flip(count=2, size=SIZE_PX), predictor_width=16)
    outputs = method(batch(), step())
    torch.testing.assert_close(outputs["z"][:4].mean(0), torch.zeros(8), atol=1e-5, rtol=0)
    assert torch.equal(outputs["ids"], batch().index.repeat(2))
    assert "temperature" not in outputs  # no advice about one


@pytest.mark.parametrize(("is_constant", "expected"), [(False, 0.0), (True, 0.1)])
def test_the_predictor_may_keep_its_learning_rate(is_constant: bool, expected: float) -> None:
    views = crop_flip(count=2, size=SIZE_PX)
    method = SimSiam(encoder(), views, predictor_width=16, constant_predictor_lr=is_constant)
    optimizer = create_optimizer(method.parameter_groups(), name="sgd", lr=0.1, weight_decay=0.1)
    schedule = Schedule(optimizer, kind="cosine", steps=10, warmup_steps=2, warmup_lr=0.0, final_lr=0.0)
    schedule.set_step(9)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == len(list(method.parameters()))
    for name, parameter in method.named_parameters():
        if name.startswith("predictor."):
            assert rates[id(parameter)] == expected
        else:
            assert rates[id(parameter)] == 0.0


def test_it_takes_two_views_and_no_loss() -> None:
    with pytest.raises(ValueError, match=r"two views .* not 3: set views\.count=2"):
        SimSiam(encoder(), crop_flip(count=3, size=SIZE_PX))
    assert load("simsiam_photos").loss is None
