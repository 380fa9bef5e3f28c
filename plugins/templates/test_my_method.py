"""my_method does what every method must do, also with BatchNorm in its encoder."""

import torch
from my_method import MyMethod, distance

from reptk.testing import check_method


def test_it_does_what_a_method_must_do():
    check_method(MyMethod, predictor_width=32)


def test_it_does_so_with_batchnorm():
    check_method(MyMethod, predictor_width=32, backbone="test_resnet")


def test_distance():
    rows = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    assert distance(rows, rows).item() == 0  # of the same direction
    assert distance(rows, rows.flip(0)).item() == 2  # at right angles
