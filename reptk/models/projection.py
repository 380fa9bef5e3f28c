"""The projection head: a multilayer perceptron between the features and the embeddings that a loss compares."""

from torch import nn


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
    hidden_width = width or in_features
    head = nn.Sequential()
    in_width = in_features
    for _ in range(layers - 1):
        head.append(nn.Linear(in_width, hidden_width, bias=not norm))
        if norm:
            head.append(nn.BatchNorm1d(hidden_width))
        head.append(nn.ReLU())
        in_width = hidden_width
    if layers:
        head.append(nn.Linear(in_width, out_features))
    return head
