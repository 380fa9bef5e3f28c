"""Clustered rows for probes, and a tiny encoder with a data set."""

import torch
from torch import Tensor

from reptk.data import Data
from reptk.data.sources.generated import generated
from reptk.models.encoder import Encoder


def clusters(count: int, width: int, num_classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Loosely clustered rows, some dimensions far larger than others, in float64."""
    stream = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % num_classes
    centers = torch.randn(num_classes, width, generator=torch.Generator().manual_seed(99))
    rows = 0.5 * centers[labels] + torch.randn(count, width, generator=stream)
    return rows.double() * torch.logspace(-1, 1, width).double(), labels


def tiny_encoder() -> tuple[Encoder, Data]:
    torch.manual_seed(0)
    data = generated(train=48, bank=150, query=30, classes=3, size=16)
    return Encoder("test_resnet", size=16, head_layers=0), data
