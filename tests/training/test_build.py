"""What is checked and said while the parts of a run are built."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from reptk.config.registry import DATASETS
from reptk.core import distributed
from reptk.core.errors import DataError, UsageError
from reptk.data import Data
from reptk.data.sources.generated import generated
from reptk.training.build import build
from reptk.training.describe import unused_share_note
from reptk.training.load_data import load_data
from reptk.training.meters import StepMeter
from tiny_runs import run_silently, tiny

pytestmark = pytest.mark.usefixtures("one_thread", "restored_registries")


def test_a_single_class_is_warned_of(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    for number in range(20):
        Image.effect_noise((16, 16), number + 1).save(tmp_path / "cat" / f"{number}.png")
    data = {"name": "folder", "root": str(tmp_path), "size": 16, "labels": "folders"}
    with pytest.warns(
        UserWarning, match="there is a single class: with every pair a positive, nothing is pushed apart"
    ):
        load_data(tiny("method.positives=class", data=data))


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> list[Callable]:
    """What was called in turns."""
    called: list[Callable] = []

    def record(function: Callable) -> object:
        called.append(function)
        return function()

    monkeypatch.setattr(distributed, "run_in_turns", record)
    return called


def test_what_may_be_downloaded_is_fetched_in_turns(turns: list[Callable], tmp_path: Path) -> None:
    @DATASETS.register("remote")
    def remote(download: bool = True) -> Data:
        return generated(train=48, bank=40, query=20, classes=4, size=16)

    device = torch.device("cpu")
    data = load_data(tiny(data={"name": "remote"}))
    assert len(turns) == 1
    load_data(tiny(data={"name": "remote", "download": False}))
    build(tiny(), data, device)
    assert len(turns) == 1, "nothing is downloaded"
    run_silently(tiny("train.epochs=1", "train.baselines=false", "train.report=false"), tmp_path / "run")
    build(tiny(f"encoder.weights={tmp_path / 'run'}"), data, device)
    assert len(turns) == 2


def test_views_that_refuse_the_images_are_named_before_training() -> None:
    recipe = tiny(
        "data.size=32", views={"name": "kornia", "size": 64, "operations": [{"name": "RandomHorizontalFlip"}]}
    )
    message = r"views: the operations give 32 x 32 px, but size is 64.*\(the images of generated have 32 x 32 px\)"
    with pytest.raises(UsageError, match=message):
        build(recipe, load_data(recipe), torch.device("cpu"))


@pytest.mark.parametrize(
    ("method", "norms"),
    [
        ("byol", ["predictor_norm"]),
        ("simsiam", ["predictor_norm", "projector_norm"]),
        ("moco_v3", ["predictor_norm", "projector_norm"]),
    ],
)
def test_one_image_on_each_rank_is_too_few_for_the_batch_norm_of_a_method(
    method: str, norms: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a predictor, behind an encoder without."""
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    small = ["encoder.backbone=test_vit", "train.batch_size=2"]
    table = {"name": method, "predictor_width": 16}
    recipe = tiny(*small, method=table, loss=None)
    with pytest.raises(
        UsageError, match=r"train\.batch_size is 2, one image for each of 2 ranks, and BatchNorm needs several"
    ):
        build(recipe, load_data(recipe), torch.device("cpu"))
    recipe = tiny(*small, method=table | dict.fromkeys(norms, False), loss=None)
    build(recipe, load_data(recipe), torch.device("cpu"))


def test_a_number_of_labeled_images_that_has_no_effect_is_noted() -> None:
    overrides = ["data.labelled=0.5", "train.sampler.labeled_per_batch=4"]
    for more, count in (([], 0), (["data.only_labelled=true"], 1)):
        recipe = tiny(*overrides, *more)
        parts = build(recipe, load_data(recipe), torch.device("cpu"))
        assert len(unused_share_note(recipe, parts)) == count


@pytest.mark.parametrize(("outputs", "expected"), [({}, 3.0), ({"contrastive_loss": torch.tensor(0.5)}, 0.5)])
def test_a_leak_is_looked_for_in_the_contrastive_part_of_the_loss(
    outputs: dict[str, torch.Tensor], expected: float
) -> None:
    meter = StepMeter()
    meter.add({"loss": torch.tensor(3.0), **outputs})
    meter.read()
    assert meter.contrastive_loss == expected


@pytest.mark.parametrize("decay_all", ["false", "true"])
def test_proxies_have_a_learning_rate_of_their_own_and_no_weight_decay(decay_all: str) -> None:
    loss = {"name": "proxy_anchor", "lr_scale": 20.0}
    recipe = tiny("method.positives=class", f"optim.decay_all={decay_all}", "optim.layer_decay=0.9", loss=loss)
    parts = build(recipe, load_data(recipe), torch.device("cpu"))
    proxies = parts.method.loss.proxies
    assert proxies.shape == (4, 128)
    of_proxies = [group for group in parts.optimizer.param_groups if any(p is proxies for p in group["params"])]
    assert len(of_proxies) == 1
    assert len(of_proxies[0]["params"]) == 1
    assert (of_proxies[0]["lr_scale"], of_proxies[0]["weight_decay"]) == (20.0, 0.0)
    parts.schedule.set_step(0)
    assert of_proxies[0]["lr"] == pytest.approx(20 * recipe.optim.lr)
    trained = [id(p) for group in parts.optimizer.param_groups for p in group["params"]]
    assert sorted(trained) == sorted(id(p) for p in parts.method.parameters())


def test_proxies_alone_are_no_encoder_to_train() -> None:
    recipe = tiny(
        "method.positives=class",
        loss={"name": "proxy_anchor"},
        encoder={"backbone": "test_resnet", "freeze": "all", "head_layers": 0},
    )
    with pytest.raises(UsageError, match="nothing would be trained"):
        build(recipe, load_data(recipe), torch.device("cpu"))


def test_a_loss_with_proxies_needs_two_classes(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    for number in range(20):
        Image.effect_noise((16, 16), number + 1).save(tmp_path / "cat" / f"{number}.png")
    data = {"name": "folder", "root": str(tmp_path), "size": 16, "labels": "folders"}
    with pytest.raises(DataError, match="loss 'proxy_anchor' needs at least 2 classes to tell apart, and folder has 1"):
        load_data(tiny("method.positives=class", data=data, loss={"name": "proxy_anchor"}))
