"""Multilayer perceptrons: the projection head of the encoder, predictors and projectors of methods."""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def mlp(
    widths: Sequence[int],
    *,
    norm: bool = True,
    final_norm: bool = False,
    bias: bool = True,
    identity_for_norm: bool = True,
) -> nn.Sequential:
    """Build linear layers with ReLU between them.

    Args:
        widths: of the input, of the hidden layers and of the output: (256, 4096, 256) is the predictor of BYOL, in the authors'
            code with `bias=False`.
        norm: BatchNorm after the hidden layers. Layers before a BatchNorm have no bias, which it would cancel.
        final_norm: BatchNorm without weights and biases (`affine=False`) after the last layer, as in SimSiam and MoCo v3.
        bias: whether the last layer has a bias. With `final_norm` it has none.
        identity_for_norm: without `norm`, put an identity in its place, so that the names of weights do not depend on it: `0`,
            `3`, `6`, ... are the linear layers, and `1`, `4`, ... their norms.

    Returns:
        (B, widths[0]) -> (B, widths[-1]).

    Raises:
        ValueError: fewer than two widths, or one below 1.
    """
    if len(widths) < 2 or min(widths) < 1:
        raise ValueError(f"widths must be those of input and output at least, all above 0, got {tuple(widths)}")
    layers = nn.Sequential()
    *input_and_hidden_widths, out_width = widths
    for in_width, hidden_width in pairwise(input_and_hidden_widths):
        layers.append(nn.Linear(in_width, hidden_width, bias=not norm))
        if norm:
            layers.append(nn.BatchNorm1d(hidden_width))
        elif identity_for_norm:
            layers.append(nn.Identity())
        layers.append(nn.ReLU())
    layers.append(nn.Linear(input_and_hidden_widths[-1], out_width, bias=bias and not final_norm))
    if final_norm:
        layers.append(final_batch_norm(widths[-1]))
    return layers


def final_batch_norm(width: int) -> nn.BatchNorm1d:
    """Return the BatchNorm after the last layer of a projector: without weights and biases, as in SimSiam and MoCo v3."""
    return nn.BatchNorm1d(width, affine=False)
