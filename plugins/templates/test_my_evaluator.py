"""my_evaluator does what every evaluator must do, and counts as by hand."""

import torch
from my_evaluator import MyEvaluator, hits

from reptk.testing import check_evaluator


def test_it_does_what_an_evaluator_must_do():
    check_evaluator(MyEvaluator())


def test_hits():
    neighbor_labels = torch.tensor([[0, 1], [2, 2], [1, 2]])
    labels = torch.tensor([1, 2, 0])
    assert hits(neighbor_labels, labels).tolist() == [1, 1, 0]
