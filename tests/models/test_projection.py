"""The projection head: its linear layers, with ReLU and perhaps BatchNorm between them."""

from typing import Any

import pytest
import torch
from torch import nn

from encoders import build_encoder, random_images, trained_encoder

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("options", "expected_linear", "num_norms"),
    [
        ({"head_layers": 0}, [], 0),
        ({"head_layers": 1}, [(96, 16)], 0),
        ({"head_layers": 2}, [(96, 96), (96, 16)], 0),
        ({"head_layers": 2, "head_width": 24}, [(96, 24), (24, 16)], 0),
        ({"head_layers": 3, "head_width": 24, "head_out": 8}, [(96, 24), (24, 24), (24, 8)], 0),
        ({"head_layers": 1, "head_norm": True}, [(96, 16)], 0),
        ({"head_layers": 3, "head_norm": True}, [(96, 96), (96, 96), (96, 16)], 2),
    ],
)
@torch.no_grad()
def test_head_equals_its_linear_layers_written_out(
    options: dict[str, Any], expected_linear: list[tuple[int, int]], num_norms: int
) -> None:
    encoder = trained_encoder(**options)
    linear = [layer for layer in encoder.head if isinstance(layer, nn.Linear)]
    norms = [layer for layer in encoder.head if isinstance(layer, nn.BatchNorm1d)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == expected_linear
    assert len(norms) == num_norms
    z = encoder.features(random_images())
    for number, layer in enumerate(linear):
        z = layer(z)
        if number < len(linear) - 1:
            if norms:
                norm = norms[number]
                z = (z - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
            z = z.clamp_min(0)
    assert torch.allclose(encoder(random_images()), z, atol=1e-5)


def test_layers_before_a_batch_norm_have_no_bias() -> None:
    head = build_encoder(head_layers=3, head_norm=True).head
    assert [layer.bias is not None for layer in head if isinstance(layer, nn.Linear)] == [False, False, True]
    assert [layer.bias is not None for layer in head[::3]] == [False, False, True]
