"""The memory of views is reused once nobody refers to it, and not before."""

import pytest
import torch

from reptk.config.registry import VIEWS
from view_references import SIZE, patches


def test_memory_is_reused_once_nobody_refers_to_it_and_not_before():
    views, images = VIEWS.get("simclr")(size=SIZE), patches(4)
    first = views(images, 1)
    copy, address = first.clone(), first.data_ptr()
    part = first[1, 2:, :, 3:5]  # a view of a view refers to the whole
    expected = part.clone()
    del first
    for key in (2, 3, 4):
        assert views(images, key).data_ptr() != address
    assert torch.equal(part, expected)
    del part
    addresses = {views(images, key).data_ptr() for key in range(5, 9)}
    assert len(addresses) == 1
    assert torch.equal(views(images, 1), copy)


def test_memory_that_autograd_refers_to_is_not_reused():
    views, images = VIEWS.get("simclr_small")(size=SIZE), patches(4)
    weight = torch.ones(1, requires_grad=True)
    result = views(images, 1)
    total, expected = (result * weight).sum(), result.sum()
    del result
    views(images, 2)
    total.backward()
    assert weight.grad.item() == pytest.approx(expected.item(), rel=1e-5)
