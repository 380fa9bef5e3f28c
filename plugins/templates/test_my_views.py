"""my_views do what all views must do, and leave the image as it is where they may change nothing."""

import torch
from my_views import MyViews

from reptk.testing import check_views


def test_they_do_what_views_must_do():
    check_views(MyViews(size=16), size=16)


def test_they_change_as_much_as_they_may():
    gray = torch.full((2, 3, 8, 8), 100, dtype=torch.uint8)
    unchanged = MyViews(size=8, brightness=0, noise=0)(gray, key=1)
    assert torch.allclose(unchanged, torch.full((2, 2, 3, 8, 8), 100 / 255))
    noisy = MyViews(size=8, brightness=0, noise=0.1)(gray, key=1)
    assert 0 < (noisy - unchanged).abs().max() <= 0.1 + 1e-6
