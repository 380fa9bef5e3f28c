"""Whole runs: reproducibility, resumption, errors, and the files of a run."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from reptk import LOSSES, load
from reptk.config import Recipe, validate
from reptk.config.plugins import load_plugin
from reptk.core.console import Logger
from reptk.core.errors import NumericalError, UsageError
from reptk.data import InMemory
from reptk.evaluate import effective_rank
from reptk.evaluate.results import headline
from reptk.losses import implementation
from reptk.methods import Batch
from reptk.training import run_folder
from reptk.training.build import build, load_data
from reptk.training.health import input_bound_advice, input_bound_message
from reptk.training.loop import train, train_step
from reptk.training.state import RunState, save

TINY = {
    "name": "tiny",
    "data": {"name": "generated", "train": 48, "bank": 40, "query": 20, "classes": 4, "size": 16},
    "views": {"name": "simclr_small", "size": 16},
    "encoder": {"backbone": "test_resnet"},
    "method": {"name": "contrastive", "positives": "instance"},
    "loss": {"name": "tcl", "k1": 10.0},
    "optim": {"name": "adamw", "lr": 1e-3},
    "train": {"epochs": 2, "batch_size": 16, "log_every_steps": 1},
    "eval": {"knn": {"k": [1, 5], "every_epochs": 1}},
}


def tiny(*overrides: str, **tables: dict) -> Recipe:
    from reptk.config import override

    return validate(override(TINY | tables, overrides))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "encoder.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def quiet() -> Logger:
    return Logger(prints=False, writes=True)


def run(recipe: Recipe, folder: Path, **options: bool) -> dict[str, float]:
    return train(recipe, folder, logger=quiet(), **options)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "reference"
    train(tiny(), folder, logger=Logger(prints=True))
    return folder


def test_the_same_recipe_gives_the_same_weights(reference: Path, tmp_path: Path) -> None:
    run(tiny(), tmp_path / "again")
    assert same(weights(reference), weights(tmp_path / "again"))


def test_another_seed_gives_other_weights(reference: Path, tmp_path: Path) -> None:
    run(tiny("seed=1"), tmp_path / "other")
    assert not same(weights(reference), weights(tmp_path / "other"))


def test_workers_do_not_change_the_weights(reference: Path, tmp_path: Path) -> None:
    run(tiny("train.workers=2"), tmp_path / "workers")
    assert same(weights(reference), weights(tmp_path / "workers"))


def test_the_global_random_state_does_not_change_the_weights(reference: Path, tmp_path: Path) -> None:
    torch.manual_seed(987)
    torch.rand(100)
    run(tiny(), tmp_path / "drawn")
    assert same(weights(reference), weights(tmp_path / "drawn"))


def test_evaluation_and_logging_do_not_change_the_weights(reference: Path, tmp_path: Path) -> None:
    run(tiny("eval.knn.every_epochs=0", "train.log_every_steps=3", "train.baselines=false"), tmp_path / "silent")
    assert same(weights(reference), weights(tmp_path / "silent"))


@pytest.mark.parametrize("overrides", [(), ("encoder.drop_path=0.3", "encoder.backbone=test_vit", "optim.name=sgd")])
def test_an_interrupted_run_ends_in_the_same_weights(
    overrides: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, whole, interrupted = tiny(*overrides), tmp_path / "whole", tmp_path / "interrupted"
    run(recipe, whole)
    from reptk.training import loop

    real, calls = loop.train_step, []

    def interrupt(*arguments, **options):
        calls.append(1)
        if len(calls) == 5:  # in the middle of the second epoch
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(loop, "train_step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, interrupted)
    assert run_folder.read_status(interrupted)["status"] == "interrupted"
    monkeypatch.setattr(loop, "train_step", real)
    run(load(interrupted), interrupted, resume=True)
    assert same(weights(whole), weights(interrupted))
    assert run_folder.read_status(interrupted)["status"] == "finished"


def test_ctrl_c_finishes_the_step_and_saves_it(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reptk.training import loop

    real, calls = loop.train_step, []

    def press_ctrl_c(*arguments, **options):
        calls.append(1)
        if len(calls) == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments, **options)

    monkeypatch.setattr(loop, "train_step", press_ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        run(tiny(), tmp_path / "interrupted")
    assert len(calls) == 5
    assert (tmp_path / "interrupted" / "checkpoints" / "last").read_text() == "step_00000005\n"
    monkeypatch.setattr(loop, "train_step", real)
    run(load(tmp_path / "interrupted"), tmp_path / "interrupted", resume=True)
    assert same(weights(reference), weights(tmp_path / "interrupted"))


def test_any_step_can_be_resumed(reference: Path, tmp_path: Path) -> None:
    """A checkpoint in the middle of an epoch leads to the same weights: no random state has to be saved."""
    recipe = tiny()
    parts = build(recipe, load_data(recipe), torch.device("cpu"))
    parts.method.train()
    for number, batch in enumerate(parts.loader.batches(0, 4)):
        parts.scheduler.step_update(number)
        train_step(parts, parts.method, Batch(*batch), parts.step(number))
    folder = run_folder.create(recipe, tmp_path / "middle")
    save(parts, RunState(step=4), folder)
    run(recipe, folder, resume=True)
    assert same(weights(reference), weights(folder))


def test_the_run_folder_describes_the_run(reference: Path) -> None:
    results = json.loads((reference / "results.json").read_text())
    assert set(results["metrics"]) == {"raw pixels", "untrained", "trained"}
    metrics = {"knn@1", "knn@5", "knn_majority@1", "knn_majority@5", "recall@1", "recall@5", "recall@10", "map@r"}
    assert metrics | {"r_precision", "mrr", "precision@5", "precision@10"} == set(results["metrics"]["trained"])
    assert results["metrics"]["trained"]["knn@1"] == results["metrics"]["trained"]["recall@1"]
    protocol = results["protocol"]
    assert protocol["images"] == {"train": 48, "bank": 40, "query": 20}
    assert protocol["seed"] == 0
    assert {"torch", "timm", "kornia", "reptk"} <= set(protocol["versions"])
    assert protocol["evaluators"]["knn"]["temperature"] == 0.07
    rows = [json.loads(line) for line in (reference / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert [row["epoch"] for row in rows if "knn@1" in row] == [1]
    assert load(reference) == tiny()
    assert run_folder.read_status(reference) == {"status": "finished"}
    assert [path.name for path in sorted((reference / "checkpoints").glob("step_*"))] == [
        "step_00000003",
        "step_00000006",
    ]


def test_a_folder_with_a_run_is_not_overwritten(reference: Path) -> None:
    before = {path: path.read_bytes() for path in reference.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match="holds another run"):
        run(tiny("loss.k1=3"), reference)
    assert before == {path: path.read_bytes() for path in reference.rglob("*") if path.is_file()}


def test_training_helps(tmp_path: Path) -> None:
    """On colour patterns with noise, SupCon must improve on the untrained encoder."""
    recipe = tiny(
        "method.positives=class", "loss.name=supcon", "train.epochs=12", "data.train=96", "eval.knn.every_epochs=0"
    )
    trained = run(recipe, tmp_path / "run")
    rows = json.loads((tmp_path / "run" / "results.json").read_text())["metrics"]
    assert trained["map@r"] > rows["untrained"]["map@r"] + 0.05


def test_an_image_without_a_label_has_only_its_own_views_as_positives(tmp_path: Path) -> None:
    from reptk.methods.contrastive import class_ids

    labels, index = torch.tensor([3, -1, 3, -1]), torch.tensor([10, 11, 12, 13])
    ids = class_ids(labels, index)
    assert ids[0] == ids[2] == 3
    assert len(set(ids.tolist())) == 3
    assert not set(ids[[1, 3]].tolist()) & {0, 1, 2, 3}


@pytest.mark.parametrize("broken", ["loss", "embedding"])
def test_a_loss_that_is_not_finite_stops_the_run(broken: str, tmp_path: Path) -> None:
    class Broken(torch.nn.Module):
        """Gives NaN from the third call on."""

        calls = 0

        def forward(self, z: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
            Broken.calls += 1
            return z.square().mean() * (float("nan") if Broken.calls >= 3 else 1.0)

    name = f"broken_{broken}"
    if name not in LOSSES.loaded():
        LOSSES.register(name)(Broken)
    overrides = [f"loss.name={name}"]
    expected = "arose in the loss"
    if broken == "embedding":
        overrides, expected = ["optim.name=sgd", "optim.lr=1e30", "loss.name=supcon"], "rows of z hold NaN"
    with pytest.raises(NumericalError, match=expected) as caught:
        run(tiny(*overrides), tmp_path / "run")
    assert "at step" in str(caught.value)
    assert run_folder.read_status(tmp_path / "run")["status"] == "failed"
    assert not (tmp_path / "run" / "results.json").exists()


def test_an_unlabelled_data_set_ends_in_view_retrieval(tmp_path: Path) -> None:
    from PIL import Image

    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(20):
        noise = torch.randint(0, 255, (24, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(number))
        Image.fromarray(noise.numpy()).save(photos / f"{number}.png")
    data = {"name": "folder", "root": str(photos), "size": 16}
    numbers = run(tiny("train.batch_size=8", data=data), tmp_path / "run")
    assert set(numbers) == {"view_recall@1", "view_recall@5"}
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert set(results["metrics"]) == {"raw pixels", "untrained", "trained"}


def curve(folder: Path) -> list[float]:
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if "loss" in row]


def test_bf16_follows_fp32(tmp_path: Path) -> None:
    # A transformer: on the CPU, bf16 convolutions of 1 x 1 maps have been seen to give a gradient that is not finite.
    for precision in ("fp32", "bf16"):
        run(tiny("encoder.backbone=test_vit", f"train.precision={precision}"), tmp_path / precision)
    assert curve(tmp_path / "bf16") == pytest.approx(curve(tmp_path / "fp32"), rel=0.02)
    assert curve(tmp_path / "bf16") != curve(tmp_path / "fp32")


def test_clipping_lars_and_three_views_run(tmp_path: Path) -> None:
    run(tiny("train.clip_norm=1", "optim.name=lars", "views.count=3"), tmp_path / "clipped")
    run(tiny("optim.name=lars", "views.count=3"), tmp_path / "not")
    assert not same(weights(tmp_path / "clipped"), weights(tmp_path / "not"))


@pytest.mark.slow
def test_compiling_does_not_change_the_loss_curve(reference: Path, tmp_path: Path) -> None:
    run(tiny("train.compile=true"), tmp_path / "compiled")
    assert curve(tmp_path / "compiled") == pytest.approx(curve(reference), rel=1e-3)
    assert weights(tmp_path / "compiled").keys() == weights(reference).keys()


@pytest.mark.slow
def test_tcl_with_labels_learns_digits(tmp_path: Path) -> None:
    """Six of the recipe's twenty epochs reach 96.5 % on the last 797 digits, which raw pixels do not."""
    trained = run(load("tcl_sup_digits", ["train.epochs=6", "train.report=false"]), tmp_path / "run")
    rows = json.loads((tmp_path / "run" / "results.json").read_text())["metrics"]
    assert trained["knn@20"] >= 0.965 > rows["raw pixels"]["knn@20"] > rows["untrained"]["knn@20"]


def test_effective_rank() -> None:
    assert effective_rank(torch.ones(50, 8)) == pytest.approx(1, abs=1e-3)
    assert effective_rank(torch.eye(8).repeat(5, 1)) == pytest.approx(8, rel=1e-4)


def test_headline() -> None:
    assert headline({"knn@1": 0.1, "knn@20": 0.2}) == "knn@20"
    assert headline({"view_recall@1": 0.1}) == "view_recall@1"


def losses(folder: Path) -> list[float]:
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if "loss" in row]


@pytest.mark.parametrize(
    "loss", [{"name": "tcl", "k1": 10.0}, {"name": "supcon", "form": "in"}], ids=lambda part: part["name"]
)
def test_every_implementation_gives_the_same_loss_curve(loss: dict, tmp_path: Path) -> None:
    """Dense, tiled, and with the batch encoded in micro-batches."""
    recipe = tiny("encoder.backbone=test_vit", "method.positives=class", loss=loss)
    with implementation("dense"):
        run(recipe, tmp_path / "dense")
    with implementation("tiled"):
        run(recipe, tmp_path / "tiled")
    run(
        tiny("encoder.backbone=test_vit", "method.positives=class", "train.micro_batch_size=5", loss=loss),
        tmp_path / "parts",
    )
    expected = losses(tmp_path / "dense")
    assert len(expected) == 6
    assert losses(tmp_path / "tiled") == pytest.approx(expected, rel=1e-4)
    assert losses(tmp_path / "parts") == pytest.approx(expected, rel=1e-4)


def test_steps_without_positives_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tiny(views={"name": "simclr_small", "size": 16, "count": 1})
    train(recipe, tmp_path / "run", logger=Logger(prints=True, writes=True))
    output = " ".join(capsys.readouterr().out.split())
    assert "6 of 6 steps had no two rows of one id" in output
    rows = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert [row["steps_without_positives"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert losses(tmp_path / "run") == [0.0] * 6


def test_steps_with_positives_are_not_counted(reference: Path) -> None:
    assert "steps_without_positives" not in (reference / "metrics.jsonl").read_text()


# Waiting for images


SLOW_DATA = """
import time
import torch
from reptk import DATASETS
from reptk.data import Data, Images, Split


class Slow(Images):
    def __len__(self):
        return 64

    def fetch(self, numbers):
        time.sleep(0.02 * len(numbers))
        return numbers.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 16, 16).contiguous()


@DATASETS.register("slow")
def slow() -> Data:
    return Data(Split(Slow(), torch.arange(64) % 4), None, None, (), "slow images")
"""


@pytest.mark.usefixtures("restored_registries", "one_thread")
def test_waiting_for_images_is_reported_once_and_logged(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "slow.py").write_text(SLOW_DATA)
    load_plugin(str(tmp_path / "slow.py"))
    recipe = tiny("train.baselines=false", data={"name": "slow"}, eval={"view_retrieval": {"every_epochs": 0}})
    train(recipe, tmp_path / "run", logger=Logger(prints=True))
    assert capsys.readouterr().out.count("input-bound: ") == 1
    rows = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    shares = [row["waiting"] for row in rows if "waiting" in row]
    assert len(shares) == 2
    assert all(0.15 < share <= 1 for share in shares)


def test_a_warning_is_printed_once_and_diagnostics_are_logged(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    recipe = tiny("train.baselines=false", "train.report=false", "loss.temperature=50.0", "train.epochs=3")
    train(recipe, tmp_path / "run", logger=Logger(prints=True))
    assert capsys.readouterr().out.count("dead temperature: at 50") == 1
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    states = [row for row in rows if "rank" in row]
    assert len(states) == 3
    assert all({"alignment", "uniformity", "std"} <= row.keys() for row in states)
    assert not (tmp_path / "run" / "report.html").exists()


def test_a_run_writes_a_report(reference: Path) -> None:
    page = (reference / "report.html").read_text()
    assert "<script src" not in page
    assert ">running<" not in page
    assert "tiny" in page


def test_a_failing_report_does_not_fail_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disk_is_full(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("reptk.report.write", disk_is_full)
    train(tiny("train.baselines=false"), tmp_path / "run", logger=Logger(prints=True))
    assert f"no report: no space left. Try again: reptk report {tmp_path / 'run'}" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "status.json").read_text())["status"] == "finished"


def test_images_in_memory_are_not_waited_for(reference: Path) -> None:
    rows = map(json.loads, (reference / "metrics.jsonl").read_text().splitlines())
    assert all(row["waiting"] < 0.5 for row in rows if "waiting" in row)


def message(*overrides: str, images: object = None, device: str = "cuda", **data: object) -> str:
    recipe = tiny(*overrides, data=data or TINY["data"])
    advice = input_bound_advice(images, recipe.data, recipe.train.workers, torch.device(device))
    return input_bound_message(0.434, advice)


def test_advice_about_waiting_is_what_applies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("reptk.training.health.num_cpus", lambda: 16)
    monkeypatch.setattr("reptk.training.health.find_spec", lambda name: None)
    start = "input-bound: 43 % of the time went into waiting for images"
    photos = {"name": "folder", "root": str(tmp_path)}
    workers = "raise train.workers (now 2 of 16 cores)"
    cache = "set data.cache=true"
    jpeg = 'pip install "reptk[jpeg]" if they are JPEG'
    assert message("train.workers=2", **photos) == f"{start}; {workers}, {cache} or {jpeg}"
    assert message("train.workers=16", **photos) == f"{start}; {cache} or {jpeg}"
    assert message("train.workers=2", **photos, jpeg="pillow") == f"{start}; {workers} or {cache}"
    assert message("train.workers=2", **photos, cache=True) == f"{start}; {workers}"
    in_memory = InMemory(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))
    assert message("train.workers=2", images=in_memory) == start
    on_the_cpu = message("train.workers=16", **photos, device="cpu")
    assert on_the_cpu == f"{start}, which are decoded on the cores that train; {cache} or {jpeg}"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert message("train.workers=1", **photos, cache=True) == f"{start}; raise train.workers (now 1 of 2 cores)"
    monkeypatch.setattr("reptk.training.health.find_spec", lambda name: "installed")
    assert message("train.workers=2", **photos) == f"{start}; {cache}"


# What a method adds to the log


def test_scalars_of_the_method_are_logged(reference: Path) -> None:
    rows = [json.loads(line) for line in (reference / "metrics.jsonl").read_text().splitlines()]
    assert [row["temperature"] for row in rows if "loss" in row] == [pytest.approx(0.1)] * 6
