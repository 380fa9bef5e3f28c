"""Ids of the contrastive method: which rows are positives of each other."""

import torch

from reptk.losses import ProxyAnchor
from reptk.methods import Contrastive, class_ids, has_positives
from reptk.testing import check_method


def test_image_without_a_label_has_only_its_own_views_as_positives() -> None:
    labels, index = torch.tensor([3, -1, 3, -1]), torch.tensor([10, 11, 12, 13])
    ids = class_ids(labels, index)
    assert ids[0] == ids[2] == 3
    assert len(set(ids.tolist())) == 3
    # An id of an unlabeled image is no label of another image.
    assert not set(ids[[1, 3]].tolist()) & {0, 1, 2, 3}


def test_rows_that_share_an_id_are_positives() -> None:
    assert has_positives(torch.tensor([5, -3, 7, -3]))
    assert not has_positives(torch.tensor([5, -3, 7, 3]))
    assert not has_positives(torch.tensor([5]))


def test_a_loss_with_proxies_meets_the_requirements_of_methods() -> None:
    """Its proxies are trained, part of the state, and left alone by a batch without labels."""
    check_method(Contrastive, loss=ProxyAnchor(num_classes=3, embedding_dim=16), positives="class")
