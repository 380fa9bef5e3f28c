"""The projection head: a multilayer perceptron between the features and the embeddings that a loss compares."""

from torch import nn

from reptk.models.mlp import mlp


def projection_head(
    in_features: int, *, layers: int, width: int | None, out_features: int, norm: bool
) -> nn.Sequential:
    """Build a head of linear layers with ReLU between them.

    Args:
        in_features: F.
        layers: number of linear layers; 0 for the identity.
        width: of the hidden layers; None for F.
        out_features: D, the width of the last layer.
        norm: BatchNorm after every layer except the last. Layers before a BatchNorm have no bias, which it would cancel.
    """
    if layers == 0:
        return nn.Sequential()
    hidden_widths = [width or in_features] * (layers - 1)
    # No identity in place of a norm: names of weights are those of the heads in checkpoints and models.
    return mlp([in_features, *hidden_widths, out_features], norm=norm, identity_for_norm=False)
