"""Training on pictures that are not square: whole ones, if the method and the views can use them."""

import json
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from reptk import METHODS, VIEWS
from reptk.cli import main
from reptk.config import Recipe
from reptk.data.decoding.resize import Preprocessing
from reptk.methods import Batch, Method, Step
from reptk.models.preprocessing import preprocessing_of
from reptk.training.build import build
from reptk.training.load_data import load_data
from tiny_runs import result_metrics, run_silently, tiny


class CenterMethod(Method):
    """A method that does not use aspect ratios."""

    def __init__(self, encoder, views) -> None:
        super().__init__()
        self.encoder = encoder
        self.views = views

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        return {"loss": self.encoder(self.views(batch.images, step.key)[0]).square().mean()}


def two_crops(size: int = 16):
    """Views of a plugin, which have no parameter for aspect ratios."""

    def views(images: Tensor, key: int) -> Tensor:
        return torch.stack([images[..., :size, :size], images[..., -size:, -size:]]).float() / 255

    return views


@pytest.fixture
def wide_pictures(tmp_path: Path) -> Path:
    """Gray in the middle, and the color of the class at both ends, which no center square shows."""
    for number in range(40):
        class_name, color = [("red", (250, number, 0)), ("blue", (0, number, 250))][number % 2]
        picture = Image.new("RGB", (60, 30), color)
        picture.paste((128, 128, 128), (15, 0, 45, 30))
        path = tmp_path / "pictures" / class_name / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    return tmp_path / "pictures"


def recipe_of(pictures: Path, *overrides: str, **tables: dict | None) -> Recipe:
    tables = {"data": {"name": "folder", "root": str(pictures), "size": 18}, **tables}
    return tiny("train.batch_size=16", *overrides, **tables)


def first_batch(recipe: Recipe) -> tuple[Tensor, ...]:
    parts = build(recipe, load_data(recipe), torch.device("cpu"))
    return next(parts.loader.batches(0, 1))


@pytest.mark.usefixtures("restored_registries")
def test_the_method_and_the_views_decide_what_a_batch_holds(wide_pictures: Path) -> None:
    METHODS.register("center")(CenterMethod)
    VIEWS.register("two_crops")(two_crops)
    images, _, _, aspect_ratios = first_batch(recipe_of(wide_pictures))
    assert aspect_ratios.tolist() == [2.0] * 16
    assert images[:, :, :, 0].float().std(1).amin() > 80  # no gray column at the left end
    for tables in ({"method": {"name": "center"}, "loss": None}, {"views": {"name": "two_crops"}}):
        images, *others = first_batch(recipe_of(wide_pictures, **tables))
        assert len(others) == 2
        assert images[:, :, :, 1:-1].float().std(1).amax() == 0  # gray alone


def test_what_is_at_the_ends_of_a_picture_can_be_learned_and_evaluated(wide_pictures: Path, tmp_path: Path) -> None:
    cropped = run_silently(recipe_of(wide_pictures), tmp_path / "cropped")
    squashed = run_silently(recipe_of(wide_pictures, "data.resize=squash"), tmp_path / "squashed")
    assert squashed["knn@1"] == 1.0
    assert cropped["knn@1"] < 1.0
    assert result_metrics(tmp_path / "squashed")["raw pixels"]["knn@1"] == 1.0


@pytest.mark.parametrize("cache", ["false", "true"])
def test_a_resumed_run_sees_the_same_pictures(
    cache: str, wide_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    recipe = recipe_of(wide_pictures, f"data.cache={cache}")
    parts = build(recipe, load_data(recipe), torch.device("cpu"))
    again = build(recipe, load_data(recipe), torch.device("cpu"))
    for first, second in zip(parts.loader.batches(1, 3), list(again.loader.batches(0, 3))[1:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_report_leaves_the_cache_of_a_pretrained_run(wide_pictures: Path, tmp_path: Path) -> None:
    """The preprocessing is that of the backbone's weights, which decides what the cache holds."""
    save_file(timm.create_model("test_efficientnet").state_dict(), tmp_path / "weights.safetensors")
    encoder = {"backbone": "test_efficientnet", "weights": str(tmp_path / "weights.safetensors")}
    data = {"name": "folder", "root": str(wide_pictures), "size": 18, "cache": str(tmp_path / "cache")}
    recipe = recipe_of(wide_pictures, "train.epochs=1", encoder=encoder, data=data)
    run_silently(recipe, tmp_path / "run")
    [manifest] = (tmp_path / "cache").rglob("manifest.json")
    before = manifest.read_bytes(), manifest.stat().st_mtime_ns
    recorded = json.loads((tmp_path / "run" / "results.json").read_text())["protocol"]["data"]
    recorded_preprocessing = Preprocessing(**{name: recorded[name] for name in Preprocessing._fields})
    assert recorded_preprocessing == preprocessing_of("test_efficientnet")._replace(reduce_jpeg=True)
    assert main(["report", str(tmp_path / "run")]) == 0
    assert (manifest.read_bytes(), manifest.stat().st_mtime_ns) == before
