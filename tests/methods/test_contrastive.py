"""Ids of the contrastive method: which rows are positives of each other."""

import torch

from reptk.methods import class_ids, has_positives


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
