"""The perceptrons of predictors and projectors: their layers, and which of them have a bias."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from reptk.methods import mlp
from reptk.models.projection import projection_head


def kinds(module: nn.Sequential) -> list[str]:
    return [type(layer).__name__ for layer in module]


def test_it_is_the_predictor_of_byol() -> None:
    predictor = mlp((8, 32, 8))
    assert kinds(predictor) == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert predictor[0].bias is None
    assert predictor[3].bias is not None
    x = torch.randn(5, 8)
    hidden = functional.batch_norm(x @ predictor[0].weight.T, None, None, training=True).relu()
    torch.testing.assert_close(predictor(x), hidden @ predictor[3].weight.T + predictor[3].bias)


def test_it_is_the_projector_of_simsiam() -> None:
    projector = mlp((8, 16, 16, 4), final_norm=True)
    assert kinds(projector) == ["Linear", "BatchNorm1d", "ReLU"] * 2 + ["Linear", "BatchNorm1d"]
    assert [layer.bias for layer in projector if isinstance(layer, nn.Linear)] == [None, None, None]
    assert not projector[-1].affine
    out = projector(torch.randn(64, 8))
    torch.testing.assert_close(out.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.var(0, correction=0), torch.ones(4), atol=1e-3, rtol=0)


def test_without_norm_the_weights_have_the_same_names_and_every_layer_a_bias() -> None:
    plain = mlp((8, 16, 16, 4), norm=False)
    with_norm = mlp((8, 16, 16, 4))
    assert {"0.weight", "3.weight", "6.weight"} <= set(plain.state_dict()) & set(with_norm.state_dict())
    assert all(layer.bias is not None for layer in plain if isinstance(layer, nn.Linear))
    assert mlp((8, 4), bias=False)[0].bias is None
    assert kinds(mlp((8, 4))) == ["Linear"]


@pytest.mark.parametrize("norm", [False, True])
def test_a_projection_head_has_the_names_of_its_layers_alone(norm: bool) -> None:
    """Those of heads in checkpoints and models: without a norm, the second linear layer is the third module."""
    head = projection_head(8, layers=3, width=16, out_features=4, norm=norm)
    names = [name for name in head.state_dict() if name.endswith(".weight")]
    expected = ["0", "2", "4"]
    if norm:
        expected = ["0", "1", "3", "4", "6"]
    assert names == [f"{number}.weight" for number in expected]
    assert len(projection_head(8, layers=0, width=None, out_features=4, norm=norm)) == 0


@pytest.mark.parametrize("widths", [(), (8,), (8, 0, 8)])
def test_impossible_widths_are_an_error(widths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="widths must be those of input and output at least"):
        mlp(widths)
