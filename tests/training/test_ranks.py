"""Two and four gloo processes against one: the same gradients, the same loss curve, the same features."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_processes import run_on_ranks, run_recipe_on_ranks

from rank_computations import LOSS_PARTS, METHODS_WITH_CLASSES, METHODS_WITH_MEMORY, RECIPE, compute_all
from reptk.config import load, validate
from reptk.core import distributed
from reptk.core.errors import UsageError
from reptk.training.build import build
from reptk.training.load_data import load_data
from tiny_runs import logged_losses, result_metrics, run_silently

pytestmark = pytest.mark.slow

COMPUTED_IN_FULL = ("plain", "siglip", "proxy_anchor", "subcenter_arcface")
"""Losses without `computes_local_rows`."""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Folders with what 1, 2 and 4 ranks computed, by the number of ranks."""
    folders = {world_size: tmp_path_factory.mktemp(f"world{world_size}") for world_size in (1, 2, 4)}
    compute_all(0, folders[1])
    for world_size in (2, 4):
        run_on_ranks(compute_all, world_size, folders[world_size])
    return folders


def load_results(path: Path) -> Any:
    return torch.load(path, weights_only=True)


def largest_entry(gradients: dict[str, torch.Tensor]) -> float:
    return max(gradient.abs().max().item() for gradient in gradients.values())


@pytest.mark.parametrize(
    ("backbone", "batch_size", "is_refused"),
    [("test_resnet", 2, True), ("test_resnet", 4, False), ("test_vit", 2, False)],
)
def test_one_image_for_each_rank_is_too_few_for_batch_norm(
    backbone: str, batch_size: int, is_refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = {**RECIPE, "encoder": {"backbone": backbone}, "train": {**RECIPE["train"], "batch_size": batch_size}}
    recipe = validate(table)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    expectation = nullcontext()
    if is_refused:
        expectation = pytest.raises(UsageError, match="one image for each of 2 ranks, and BatchNorm needs several")
    with expectation:
        build(recipe, load_data(recipe), torch.device("cpu"))


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_the_search_and_give_the_same_neighbors(world_size: int, results: dict[int, Path]) -> None:
    """600 rows are three blocks, so that with four ranks one has no row and two have no query."""
    expected_tables = load_results(results[1] / "knn")
    tables = load_results(results[world_size] / "knn")
    for expected, table in zip(expected_tables, tables, strict=True):
        assert expected.keys() == table.keys()
        for name, value in expected.items():
            assert torch.equal(table[name].nan_to_num(-1), value.nan_to_num(-1)), name


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("number", range(len(LOSS_PARTS)))
def test_ranks_give_the_gradients_of_one_process(world_size: int, number: int, results: dict[int, Path]) -> None:
    one = load_results(results[1] / f"gradients{number}")
    many = load_results(results[world_size] / f"gradients{number}")
    torch.testing.assert_close(many["loss"], one["loss"], rtol=1e-12, atol=0)
    assert one["gradients"].keys() == many["gradients"].keys()
    largest = largest_entry(one["gradients"])
    assert largest > 0
    for name, expected in one["gradients"].items():
        torch.testing.assert_close(many["gradients"][name], expected, rtol=1e-12, atol=1e-12 * largest, msg=name)


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_give_the_gradients_of_one_process_in_float32(world_size: int, results: dict[int, Path]) -> None:
    one = load_results(results[1] / "float32")
    many = load_results(results[world_size] / "float32")
    torch.testing.assert_close(many["loss"], one["loss"], rtol=1e-6, atol=0)
    largest = largest_entry(one["gradients"])
    for name, expected in one["gradients"].items():
        torch.testing.assert_close(many["gradients"][name], expected, rtol=0, atol=1e-6 * largest, msg=name)


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("number", range(len(METHODS_WITH_MEMORY)))
def test_ranks_compare_with_the_same_memory(world_size: int, number: int, results: dict[int, Path]) -> None:
    one = load_results(results[1] / f"memory{number}")
    many = load_results(results[world_size] / f"memory{number}")
    torch.testing.assert_close(many["loss"], one["loss"], rtol=1e-12, atol=0)
    largest = largest_entry(one["gradients"])
    for name, expected in one["gradients"].items():
        torch.testing.assert_close(many["gradients"][name], expected, rtol=1e-12, atol=1e-12 * largest, msg=name)


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("number", range(len(METHODS_WITH_CLASSES)))
def test_ranks_give_the_gradients_of_cross_entropy(world_size: int, number: int, results: dict[int, Path]) -> None:
    """The images of some classes have no label, and not as many on each rank; mixup and cutmix draw the same for all ranks."""
    one = load_results(results[1] / f"classes{number}")
    many = load_results(results[world_size] / f"classes{number}")
    # Means of so many labels, and the weights of mixup, are float32.
    torch.testing.assert_close(many["loss"], one["loss"], rtol=1e-6, atol=0)
    largest = largest_entry(one["gradients"])
    assert largest > 0
    for name, expected in one["gradients"].items():
        torch.testing.assert_close(many["gradients"][name], expected, rtol=1e-6, atol=1e-6 * largest, msg=name)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_micro_batches_give_the_gradients_of_the_batch(world_size: int, results: dict[int, Path]) -> None:
    """Each rank encodes its images in three parts."""
    batch = load_results(results[1] / "gradients0")
    micro_batches = load_results(results[world_size] / "micro_batches")
    # The learned temperature of the first loss is a float32.
    torch.testing.assert_close(micro_batches["loss"], batch["loss"], rtol=1e-7, atol=0)
    largest = largest_entry(batch["gradients"])
    for name, gradient in micro_batches["gradients"].items():
        torch.testing.assert_close(batch["gradients"][name], gradient, rtol=0, atol=1e-6 * largest, msg=name)


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("number", range(len(LOSS_PARTS)))
def test_backward_of_a_loss_on_local_rows_communicates_nothing(
    world_size: int, number: int, results: dict[int, Path]
) -> None:
    if LOSS_PARTS[number]["name"] in COMPUTED_IN_FULL:
        expected = {"forward": ["gather"] * 2, "backward": ["all_reduce"]}
    else:
        learns_temperature = LOSS_PARTS[number].get("learn_temperature", False)
        expected = {"forward": ["gather"] * (3 + learns_temperature), "backward": []}
    for rank in range(world_size):
        file = results[world_size] / f"gradients{number}.{rank}.json"
        assert json.loads(file.read_text()) == expected


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_adapt_an_encoder_to_the_weights_of_one_process(world_size: int, results: dict[int, Path]) -> None:
    one, many = load_results(results[1] / "adapted"), load_results(results[world_size] / "adapted")
    assert one.keys() == many.keys()
    for name, value in one.items():
        torch.testing.assert_close(many[name], value, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_compute_the_features_of_one_process(world_size: int, results: dict[int, Path]) -> None:
    one, many = load_results(results[1] / "features"), load_results(results[world_size] / "features")
    torch.testing.assert_close(many, one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_rank_raises_the_error_of_rank_0(world_size: int, results: dict[int, Path]) -> None:
    for rank in range(world_size):
        assert (results[world_size] / f"error.{rank}").read_text() == "main refuses"


# Started by torchrun


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    file = tmp_path / "ranks.toml"
    file.write_text(validate(RECIPE).dump())
    return file


def torchrun(recipe: Path, out: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run a recipe on two ranks."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "reptk.recipe", str(recipe), "--out", str(out), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)


LOSS_PLUGIN = """
from reptk import LOSSES
from reptk.losses import TCL


@LOSSES.register("tcl_of_plugin")
class PluginTCL(TCL):
    pass
"""


def check_same_loss_curve(
    folder: Path, recipe_file: Path, overrides: list[str], plugin: Path, tolerance: float
) -> None:
    """Train on one process, and compare with what two ranks have left in `folder/2`."""
    run_silently(load(recipe_file, overrides, plugins=[str(plugin)]), folder / "1")
    one, two = logged_losses(folder / "1"), logged_losses(folder / "2")
    assert len(one) == len(two) == 12
    assert two == pytest.approx(one, rel=tolerance)
    assert result_metrics(folder / "1")["trained"].keys() == result_metrics(folder / "2")["trained"].keys()


LOSS_OVERRIDES = ["loss.name=tcl_of_plugin", "loss.k1=50.0"]


@pytest.fixture(scope="module")
def loss_plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # One file for all tests: a process that has imported it refuses another one of its name.
    plugin = tmp_path_factory.mktemp("plugins") / "tcl_of_plugin.py"
    plugin.write_text(LOSS_PLUGIN)
    return plugin


def test_torchrun_gives_the_loss_curve_of_one_process(recipe_file: Path, loss_plugin: Path, tmp_path: Path) -> None:
    """With P x K batches and a schedule of the loss."""
    overrides = [*LOSS_OVERRIDES, "train.sampler.name=pk", "loss.k2={start=1.5, end=1}"]
    process = torchrun(recipe_file, tmp_path / "2", "--plugin", str(loss_plugin), *overrides)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("epoch 3/3") == 1, "only rank 0 prints"
    check_same_loss_curve(tmp_path, recipe_file, overrides, loss_plugin, 1e-4)


def test_ranks_give_the_loss_curve_of_one_process_in_fp16(recipe_file: Path, loss_plugin: Path, tmp_path: Path) -> None:
    overrides = [*LOSS_OVERRIDES, "train.precision=fp16", "loss.temperature=1.0"]
    command = [str(recipe_file), "--out", str(tmp_path / "2"), "--plugin", str(loss_plugin), *overrides]
    run_recipe_on_ranks(command, 2, tmp_path)
    check_same_loss_curve(tmp_path, recipe_file, overrides, loss_plugin, 1e-2)


TRACKER_PLUGIN = """
import os

from reptk import TRACKERS


@TRACKERS.register("rows")
class Rows:
    def start(self, run):
        self.path = run.folder / ("rows_of_rank_" + os.environ.get("RANK", "0"))
        return {}

    def log(self, number, row):
        with self.path.open("a") as file:
            print(number, file=file)

    def finish(self, end, summary, files):
        pass
"""


def test_ranks_stop_early_after_the_same_epoch_end_in_the_same_weights_and_are_tracked_once(
    recipe_file: Path, tmp_path: Path
) -> None:
    """The images are so easy that the number soon rises no more."""
    plugin = tmp_path / "rows_tracker.py"
    plugin.write_text(TRACKER_PLUGIN)
    overrides = ["train.epochs=12", "eval.knn.every_epochs=1", "train.early_stopping_epochs=1", "train.trackers=rows"]
    overrides += ["train.report=false", "train.baselines=false"]
    command = [str(recipe_file), "--out", str(tmp_path / "2"), "--plugin", str(plugin), *overrides]
    first, second = run_recipe_on_ranks(command, 2, tmp_path)
    assert first.count("stopped early after epoch") == 1
    assert second == "", "only rank 0 prints"
    run_silently(load(recipe_file, overrides, plugins=[str(plugin)]), tmp_path / "1")
    one, two = (json.loads((tmp_path / ranks / "results.json").read_text()) for ranks in ("1", "2"))
    assert one["training"]["epochs"] < 12
    assert two["training"] == one["training"]
    assert two["model"] == one["model"]
    assert two["model"]["weights"] == "best"
    num_rows = len((tmp_path / "2" / "metrics.jsonl").read_text().splitlines())
    assert [path.name for path in (tmp_path / "2").glob("rows_*")] == ["rows_of_rank_0"]
    assert (tmp_path / "2" / "rows_of_rank_0").read_text().split() == [str(n) for n in range(1, num_rows + 1)]


def test_mistake_under_torchrun_is_reported_once(recipe_file: Path, tmp_path: Path) -> None:
    process = torchrun(recipe_file, tmp_path / "out", "loss.name=no_such_loss")
    assert process.returncode != 0
    assert process.stderr.count("error: ranks does not validate") == 1
    assert not (tmp_path / "out").exists()
