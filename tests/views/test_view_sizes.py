"""Views of several sizes in training: encoded size by size, compared with each other, or refused before it starts."""

import pytest
import torch
from torch.nn import functional

from reptk.config import Recipe, override, validate
from reptk.core.console import Logger
from reptk.core.errors import UsageError
from reptk.methods import Batch, Step
from reptk.training.build import build
from reptk.training.load_data import load_data
from reptk.training.loop import train

RECIPE = {
    "name": "multi_crop",
    "data": {"name": "generated", "train": 48, "bank": 40, "query": 20, "classes": 4, "size": 16},
    "views": {"name": "multi_crop", "size": 32, "small_count": 2, "small_size": 16},
    "encoder": {"backbone": "test_resnet"},
    "method": {"name": "contrastive", "positives": "instance"},
    "loss": {"name": "simclr"},
    "optim": {"name": "adamw", "lr": 1e-3},
    "train": {"epochs": 1, "batch_size": 16, "log_every_steps": 1},
    "eval": {"knn": {"k": [1, 5], "every_epochs": 1}},
}


def multi_crop_recipe(*overrides: str) -> Recipe:
    return validate(override(RECIPE, overrides))


def test_every_size_is_encoded_and_all_views_are_compared():
    recipe = multi_crop_recipe()
    method = build(recipe, load_data(recipe), torch.device("cpu")).method.eval()
    images = torch.randint(256, (6, 3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels, index = torch.zeros(6, dtype=torch.long), torch.arange(6) + 10
    outputs = method(Batch(images, labels, index), Step(number=0, total=1, key=5))
    large, small = method.views(images, 5)
    z = torch.cat([method.encoder(view) for view in (*large, *small)])
    torch.testing.assert_close(outputs["z"], z, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(outputs["loss"], method.loss(z, index.repeat(4)))
    assert not torch.allclose(functional.normalize(z[:6]), functional.normalize(z[12:18]))


@pytest.mark.slow
def test_a_run_with_views_of_several_sizes(tmp_path):
    results = train(multi_crop_recipe(), tmp_path / "run", logger=Logger(prints=False))
    assert 0 <= results["knn@5"] <= 1


def test_a_vision_transformer_takes_views_of_several_sizes():
    recipe = multi_crop_recipe("encoder.backbone=vit_tiny_patch16_224")
    method = build(recipe, load_data(recipe), torch.device("cpu")).method
    images = torch.randint(256, (6, 3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    outputs = method(Batch(images, torch.zeros(6, dtype=torch.long), torch.arange(6)), Step(number=0, total=1, key=5))
    outputs["loss"].backward()
    assert outputs["z"].shape == (4 * 6, 128)
    assert method.encoder.backbone.pos_embed.grad.abs().min() > 0


def test_a_backbone_of_one_size_is_refused_before_training():
    recipe = multi_crop_recipe("encoder.backbone=gmlp_ti16_224")
    with pytest.raises(UsageError, match="views of 16 px: gmlp_ti16_224 is built for 32 px and takes no others"):
        build(recipe, load_data(recipe), torch.device("cpu"))


def test_small_views_of_another_size_than_whole_patches_are_refused():
    recipe = multi_crop_recipe("encoder.backbone=vit_tiny_patch16_224", "views.small_size=24")
    message = r"\(views.small_size\): vit_tiny_patch16_224 has patches of 16 px, and 24 is no multiple; use 16 or 32"
    with pytest.raises(UsageError, match=message):
        build(recipe, load_data(recipe), torch.device("cpu"))
