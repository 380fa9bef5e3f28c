"""Views of several sizes, all the way: encoded size by size, compared all together, evaluated, or refused in time."""

import pytest
import torch
from test_training import go, tiny
from torch.nn import functional

from reptk.core.errors import UsageError
from reptk.training.build import build, load_data

MULTI = ("views.name=multi_crop", "views.size=32", "views.small_count=2", "views.small_size=16")


def test_every_size_is_encoded_and_all_views_are_compared():
    recipe = tiny(*MULTI, "method.positives=instance", "loss.name=simclr")
    method = build(recipe, load_data(recipe), torch.device("cpu")).method.eval()
    images = torch.randint(256, (6, 3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels, index = torch.zeros(6, dtype=torch.long), torch.arange(6) + 10
    made = method(images, labels, index, 5)
    large, small = method.views(images, 5)
    z = torch.cat([method.encoder(view) for view in (*large, *small)])
    torch.testing.assert_close(made["z"], z, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(made["loss"], method.loss(z, index.repeat(4)))
    assert not torch.allclose(functional.normalize(z[:6]), functional.normalize(z[12:18]))


@pytest.mark.slow
def test_a_run_with_views_of_several_sizes(tmp_path):
    numbers = go(tiny(*MULTI, "train.epochs=1"), tmp_path / "run")
    assert 0 <= numbers["knn@5"] <= 1


def test_a_backbone_of_one_size_says_so_before_training():
    recipe = tiny(*MULTI, "encoder.backbone=vit_tiny_patch16_224")
    with pytest.raises(UsageError, match="views of 16 px: vit_tiny_patch16_224 is built for 32 px and takes no others"):
        build(recipe, load_data(recipe), torch.device("cpu"))
