"""BYOL and MoCo: what any method promises, their formulas, resumption, and two ranks."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from method_runs import (
    WITHOUT_BATCHNORM,
    equal,
    exported_weights,
    largest_difference,
    last_checkpoint,
    run,
    run_on_two_ranks,
    small,
)
from reptk import Encoder, load
from reptk.config.schema import RecipeError
from reptk.core import rng
from reptk.losses import TCL, SimCLR, SupCon, simclr
from reptk.methods import Batch, Step, cosine_momentum
from reptk.plugins.byol import BYOL
from reptk.plugins.moco import MoCo
from reptk.testing import check_method
from reptk.training import loop
from reptk.views.sets import crop_flip

SIZE_PX = 16


def encoder(**options: object) -> Encoder:
    with rng.seeded("encoder"):
        return Encoder("test_vit", size=SIZE_PX, head_width=32, head_out=8, **options)


def batch(first: int = 0, count: int = 4) -> Batch:
    generator = rng.generator("images", first)
    images = torch.randint(256, (count, 3, SIZE_PX, SIZE_PX), generator=generator).to(torch.uint8)
    index = torch.arange(first, first + count)
    return Batch(images, index % 2, index)


def step(number: int = 0, total: int = 10) -> Step:
    return Step(number, total, rng.key("step", number))


# The contract


@pytest.mark.parametrize("backbone", ["test_vit", "test_resnet"])
def test_byol_keeps_the_contract_of_methods(backbone: str) -> None:
    check_method(BYOL, backbone=backbone, predictor_width=32)


@pytest.mark.parametrize(
    ("loss", "positives"), [(SimCLR(0.2), "instance"), (SupCon(), "class"), (TCL(k1=10.0), "class")]
)
def test_moco_keeps_the_contract_of_methods(loss: torch.nn.Module, positives: str) -> None:
    check_method(MoCo, loss=loss, queue_size=20, positives=positives)


# BYOL


def test_byol_is_its_formula() -> None:
    """Both orders of the views, against the target, averaged over the images."""
    method = BYOL(encoder(), crop_flip(count=2, size=SIZE_PX), predictor_width=16, predictor_norm=False)
    with torch.no_grad():
        for parameter in method.target.parameters():
            parameter.mul_(1.1)  # so that target and encoder differ
    images, key = batch().images, step().key
    first, second = method.views(images, key)
    expected = 0.0
    for online, target in ((first, second), (second, first)):
        q = functional.normalize(method.predictor(method.encoder(online)), dim=1)
        t = functional.normalize(method.target(target), dim=1)
        expected += (q - t).square().sum(1).mean() / 2
    assert method(batch(), step())["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_target_is_the_moving_average_and_gets_no_gradient() -> None:
    method = BYOL(encoder(), crop_flip(count=2, size=SIZE_PX), momentum=0.9, predictor_width=16)
    before = [parameter.clone() for parameter in method.target.parameters()]
    with torch.no_grad():
        for parameter in method.encoder.parameters():
            parameter.add_(1.0)
    method(batch(), step())["loss"].backward()
    assert all(parameter.grad is None for parameter in method.target.parameters())
    method.after_step(step(number=5, total=11))
    momentum = 1 - (1 - 0.9) * (math.cos(math.pi / 2) + 1) / 2
    online = method.encoder.parameters()
    for old, source, new in zip(before, online, method.target.parameters(), strict=True):
        torch.testing.assert_close(new, momentum * old + (1 - momentum) * source)


def test_the_momentum_rises_to_one() -> None:
    values = [cosine_momentum(step(number, 100), 0.99) for number in range(100)]
    assert values[0] == pytest.approx(0.99)
    assert values[-1] == 1.0
    assert values == sorted(values)
    assert cosine_momentum(step(0, 1), 0.99) == pytest.approx(0.99)


def test_byol_takes_two_views_and_no_loss() -> None:
    with pytest.raises(ValueError, match=r"two views .* not 3: set views\.count=2"):
        BYOL(encoder(), crop_flip(count=3, size=SIZE_PX))
    recipe = load("byol_photos")
    assert recipe.loss is None
    assert "[loss]" not in recipe.dump()
    with pytest.raises(RecipeError, match="method 'byol' takes no loss; remove the \\[loss\\] table"):
        load("byol_photos", ["loss.name=simclr"])


def test_changing_the_method_drops_the_loss_it_does_not_take() -> None:
    recipe = load("simclr_photos", ["method.name=byol"], plugins=["reptk.plugins.byol"])
    assert recipe.loss is None


# MoCo


def test_moco_compares_queries_with_keys_and_queue() -> None:
    method = MoCo(encoder(), crop_flip(count=2, size=SIZE_PX), SimCLR(0.2), queue_size=6)
    query_view, key_view = method.views(batch().images, step().key)
    z = method.encoder(query_view)
    keys = functional.normalize(method.momentum_encoder(key_view), dim=1)
    index = batch().index
    expected = simclr(
        z,
        index,
        temperature=0.2,
        keys=torch.cat([keys, method.queue]),
        key_ids=torch.cat([index, method.queue_ids]),
    )
    assert method(batch(), step())["loss"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_keys_replace_the_oldest_in_the_queue() -> None:
    method = MoCo(encoder(), crop_flip(count=2, size=SIZE_PX), SimCLR(0.2), queue_size=6)
    expected = method.queue_ids.tolist()
    for number in range(4):
        first = 100 * (number + 1)
        method(batch(first), step(number))
        keys = method.new_keys.clone()
        method.after_step(step(number))
        for offset in range(4):
            place = (4 * number + offset) % 6
            expected[place] = first + offset
            assert torch.equal(method.queue[place], keys[offset])
        assert method.queue_ids.tolist() == expected


def test_a_batch_larger_than_the_queue_fills_it() -> None:
    method = MoCo(encoder(), crop_flip(count=2, size=SIZE_PX), SimCLR(0.2), queue_size=3)
    method(batch(0), step())
    method.after_step(step())
    assert sorted(method.queue_ids.tolist()) == [1, 2, 3]


def test_a_queued_key_of_the_same_class_is_a_positive() -> None:
    method = MoCo(encoder(), crop_flip(count=2, size=SIZE_PX), SupCon(), queue_size=4, positives="class")
    method(batch(0), step(0))
    method.after_step(step(0))
    assert sorted(method.queue_ids.tolist()) == [0, 0, 1, 1]


def test_moco_refuses_a_loss_without_keys_and_other_numbers_of_views() -> None:
    class WithoutKeys(torch.nn.Module):
        def forward(self, z: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
            return z.sum()

    with pytest.raises(ValueError, match="its loss must take keys and key_ids"):
        MoCo(encoder(), crop_flip(count=2, size=SIZE_PX), WithoutKeys())
    with pytest.raises(ValueError, match=r"two views .* not 1: set views\.count=2"):
        MoCo(encoder(), crop_flip(count=1, size=SIZE_PX), SimCLR())


# Whole runs


RECIPES = {
    "byol": ("byol_photos", ["method.predictor_width=32"], "target.backbone"),
    "moco": ("moco_photos", ["method.queue_size=40"], "momentum_encoder.backbone"),
    "moco supcon": (
        "moco_photos",
        ["method.queue_size=40", "method.positives=class", "loss.name=supcon"],
        "momentum_encoder.backbone",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", RECIPES)
def test_an_interrupted_run_ends_in_the_same_state(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, momentum copy and queue, bit for bit, with BatchNorm's running statistics."""
    name, overrides, copy = RECIPES[case]
    recipe = small(name, "encoder.backbone=test_resnet", *overrides)
    run(recipe, tmp_path / "whole")
    real, calls = loop.train_step, []

    def interrupt(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(loop, "train_step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path / "interrupted")
    monkeypatch.setattr(loop, "train_step", real)
    run(load(tmp_path / "interrupted"), tmp_path / "interrupted", resume=True)
    whole, resumed = last_checkpoint(tmp_path / "whole"), last_checkpoint(tmp_path / "interrupted")
    assert any(key.startswith(copy) for key in whole)
    assert equal(whole, resumed)
    assert equal(exported_weights(tmp_path / "whole"), exported_weights(tmp_path / "interrupted"))


@pytest.mark.slow
@pytest.mark.parametrize("case", RECIPES)
def test_two_ranks_train_what_one_does(case: str, tmp_path: Path) -> None:
    name, overrides, _ = RECIPES[case]
    if name == "byol_photos":
        overrides = [*overrides, "method.predictor_norm=false"]
    # SGD, since AdamW divides by the size of the gradient and so turns rounding errors of small gradients into whole steps.
    recipe = small(name, *WITHOUT_BATCHNORM, *overrides, "optim.name=sgd", "optim.lr=0.05")
    run(recipe, tmp_path / "one")
    run_on_two_ranks(recipe, tmp_path / "two")
    one, two = last_checkpoint(tmp_path / "one"), last_checkpoint(tmp_path / "two")
    assert largest_difference(one, two) < 1e-5
    assert torch.equal(one["queue_ids"], two["queue_ids"]) if "queue_ids" in one else True


@pytest.mark.slow
@pytest.mark.parametrize("case", ["byol", "moco"])
def test_the_encoder_that_the_method_names_is_exported(case: str, tmp_path: Path) -> None:
    name, overrides, _ = RECIPES[case]
    run(small(name, "encoder.backbone=test_resnet", *overrides), tmp_path / "run")
    state = last_checkpoint(tmp_path / "run")
    trained = {key.removeprefix("encoder."): value for key, value in state.items() if key.startswith("encoder.")}
    assert equal(trained, exported_weights(tmp_path / "run"))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    logged = "momentum" if case == "byol" else "loss"
    assert all(math.isfinite(row[logged]) for row in rows if "loss" in row)
