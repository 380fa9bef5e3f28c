"""Runs on images of a table and on those in shards: the weights of a folder, also if the run is killed and goes on.

All kinds of sources have the same images and labels: tests/data/test_same_images.py.
"""

import sys
from pathlib import Path

import pytest
from torch import Tensor

sys.path.append(str(Path(__file__).parent.parent / "data"))

from reptk.config import Recipe
from reptk.core.errors import DataError
from reptk.training import loop
from same_images import SOURCES, write_folder
from tiny_runs import are_equal, exported_weights, run_silently, tiny


@pytest.fixture(autouse=True)
def _caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))


def recipe_of(root: Path, *overrides: str) -> Recipe:
    data = {"name": "folder", "root": str(root), "size": 16}
    return tiny("train.batch_size=8", *overrides, data=data, eval={"knn": {"k": [1]}})


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """The weights of a run on a folder that nothing disturbed."""
    folder = tmp_path_factory.mktemp("reference")
    run_silently(recipe_of(write_folder(folder)), folder / "run")
    return exported_weights(folder / "run")


def kill_in_step(number: int, monkeypatch: pytest.MonkeyPatch, recipe: Recipe, folder: Path) -> None:
    """Run until a step of the second epoch raises, with the last checkpoint after the first epoch."""
    train_step = loop.train_step
    steps = []

    def interrupted(*arguments: object) -> object:
        steps.append(1)
        if len(steps) == number:
            raise KeyboardInterrupt
        return train_step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_silently(recipe, folder)


@pytest.mark.parametrize("source", ["csv", "parquet"])
def test_a_killed_run_ends_in_the_weights_of_a_folder(
    source: str, reference: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(SOURCES[source](tmp_path))
    kill_in_step(8, monkeypatch, recipe, tmp_path / "run")
    run_silently(recipe, tmp_path / "run")
    assert are_equal(exported_weights(tmp_path / "run"), reference)


def test_a_killed_run_in_windows_ends_in_the_same_weights(
    reference: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(SOURCES["shards"](tmp_path), "data.shuffle=window:2")
    run_silently(recipe, tmp_path / "whole")
    kill_in_step(8, monkeypatch, recipe, tmp_path / "run")
    run_silently(recipe, tmp_path / "run")
    assert are_equal(exported_weights(tmp_path / "run"), exported_weights(tmp_path / "whole"))
    assert not are_equal(exported_weights(tmp_path / "run"), reference)


def test_a_run_on_shards_that_changed_does_not_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = SOURCES["shards"](tmp_path)
    recipe = recipe_of(root)
    kill_in_step(8, monkeypatch, recipe, tmp_path / "run")
    shard = root / "0004.tar"
    shard.write_bytes((root / "0003.tar").read_bytes())
    with pytest.raises(DataError, match=r"1 shard changed since it was indexed:\n  .*0004\.tar has .* bytes, and had"):
        run_silently(recipe, tmp_path / "run")
    for file in (tmp_path / "caches").rglob("manifest.json"):
        file.unlink()
    with pytest.raises(DataError, match=r"1 file changed: 0004\.tar"):
        run_silently(recipe, tmp_path / "run")
