"""Runs on folders of which a few images cannot be read."""

import csv
import os
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from reptk.config.registry import EVALUATORS
from reptk.core.console import Logger
from reptk.core.errors import DataError
from reptk.data import Data, folder
from reptk.data.bad_samples import BadSamples
from reptk.evaluate import EvalResult, FeatureStore, QueryMean, evaluate_pixels
from reptk.training.loop import train
from reptk.views.sets import crop_flip
from tiny_runs import are_equal, exported_weights, result_metrics, run_silently, tiny


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Noise in four classes of 16 images; every fourth is a query. One training image and one query are cut in half."""
    root = tmp_path / "photos"
    generator = torch.Generator().manual_seed(0)
    for number in range(64):
        path = root / "abcd"[number % 4] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(0, 256, (16, 16, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(path)
    for name in ("a/00.png", "b/13.png"):
        content = (root / name).read_bytes()
        (root / name).write_bytes(content[: len(content) // 2])
    return root


def recipe(photos: Path, *overrides: str, **data: object):
    table = {"name": "folder", "root": str(photos), "size": 16, "holdout": 4, **data}
    return tiny(*overrides, data=table)


@pytest.mark.parametrize("cache", [False, True])
def test_a_run_skips_and_lists_them(
    photos: Path, tmp_path: Path, cache: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    options = {"cache": str(tmp_path / "cache")} if cache else {}
    train(recipe(photos, **options), run, logger=Logger())
    with (run / "bad_samples.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [str(photos / "a" / "00.png"), str(photos / "b" / "13.png")]
    assert all("cannot read" in row["reason"] for row in rows)
    printed = capsys.readouterr().out
    assert printed.count("skipped 2 images that cannot be read, listed in") == 1
    assert str(photos / "a" / "00.png") in printed


def test_evaluation_is_that_of_a_folder_without_them(photos: Path, tmp_path: Path) -> None:
    run_silently(recipe(photos), tmp_path / "with")
    labels = [str(path) for path in (photos / "a" / "00.png", photos / "b" / "13.png")]
    assert all(Path(label).exists() for label in labels)
    metrics = result_metrics(tmp_path / "with")["raw pixels"]
    # Removed, the other files would become queries; a split in folders keeps them apart.
    clean = tmp_path / "clean"
    for part in ("train", "val"):
        for name in "abcd":
            (clean / part / name).mkdir(parents=True)
    for name in "abcd":
        for position, path in enumerate(sorted((photos / name).iterdir()), start=1):
            if str(path) not in labels:
                part = "val" if position % 4 == 0 else "train"
                shutil.copy(path, clean / part / name / path.name)
    run_silently(recipe(clean), tmp_path / "without")
    assert metrics == result_metrics(tmp_path / "without")["raw pixels"]


def test_a_run_without_labels_skips_them_too(photos: Path, tmp_path: Path) -> None:
    metrics = run_silently(recipe(photos, labels="none"), tmp_path / "run")
    assert 0 <= metrics["view_recall@1"] <= 1
    assert len(metrics["view_recall@1"].values) == 62
    assert (tmp_path / "run" / "bad_samples.csv").read_text().count("cannot read") == 2


@pytest.mark.parametrize("evaluator", ["linear", "linear_stage", "few_shot", "knn"])
def test_every_evaluator_leaves_them_out(photos: Path, evaluator: str) -> None:
    data = folder(str(photos), size=16, holdout=4)
    arguments = {"linear_stage": {"epochs": 1, "lr": (0.1,)}, "knn": {"k": (1,)}}
    part = EVALUATORS.build(evaluator, arguments.get(evaluator, {}), {})
    metrics = evaluate_pixels(data, [part], views=crop_flip(size=16)).metrics
    assert data.query.labels.tolist().count(-1) == 1
    assert all(len(value.values) == 15 for value in metrics.values() if isinstance(value, QueryMean))


def test_an_evaluator_that_reads_the_labels_first_sees_them_left_out(photos: Path) -> None:
    data = folder(str(photos), size=16, holdout=4)

    def count_queries(features: FeatureStore, data: Data) -> EvalResult:
        return EvalResult({"queries": float((data.query.labels >= 0).sum())})

    assert evaluate_pixels(data, [count_queries]).metrics == {"queries": 15.0}


def test_a_resumed_run_keeps_its_list(photos: Path, tmp_path: Path) -> None:
    run_silently(recipe(photos, "train.epochs=1"), tmp_path / "run")
    listed = (tmp_path / "run" / "bad_samples.csv").read_text()
    samples = BadSamples(folder(str(photos), size=16), Logger(prints=False), tmp_path / "run")
    samples.update()
    assert len(samples.reasons) == 2
    assert (tmp_path / "run" / "bad_samples.csv").read_text() == listed


def test_workers_and_a_cache_do_not_change_the_weights(photos: Path, tmp_path: Path) -> None:
    run_silently(recipe(photos, "train.workers=0"), tmp_path / "alone")
    run_silently(recipe(photos, "train.workers=2"), tmp_path / "threads")
    run_silently(recipe(photos, cache=str(tmp_path / "cache")), tmp_path / "cached")
    weights = exported_weights(tmp_path / "alone")
    assert are_equal(weights, exported_weights(tmp_path / "threads"))
    assert are_equal(weights, exported_weights(tmp_path / "cached"))


def test_a_run_that_is_told_to_stop_names_the_first(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*00\.png"):
        run_silently(recipe(photos, on_error="stop"), tmp_path / "run")


def test_a_run_on_a_table_equals_one_on_its_folder(photos: Path, tmp_path: Path) -> None:
    table = photos / "images.csv"
    paths = sorted(photos.rglob("*.png"), reverse=True)
    lines = [f"{path.relative_to(photos)},{path.parent.name}\n" for path in paths]
    table.write_text("file,species\n" + "".join(lines))
    by_table = run_silently(recipe(photos, root=str(table)), tmp_path / "table")
    by_folder = run_silently(recipe(photos), tmp_path / "folder")
    assert by_table == by_folder
    listed = [(tmp_path / name / "bad_samples.csv").read_text() for name in ("table", "folder")]
    assert listed[0] == listed[1]
    assert are_equal(exported_weights(tmp_path / "table"), exported_weights(tmp_path / "folder"))


def test_a_run_on_parquet_files_equals_one_on_a_folder(photos: Path, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    paths = sorted(photos.rglob("*.png"))
    columns = {
        "image": [{"bytes": path.read_bytes(), "path": path.name} for path in paths],
        "label": [path.parent.name for path in paths],
    }
    root = tmp_path / "hub"
    root.mkdir()
    table = pyarrow.table(columns)
    parquet.write_table(table.slice(0, 30), root / "train-00000-of-00002.parquet", row_group_size=7)
    parquet.write_table(table.slice(30), root / "train-00001-of-00002.parquet", row_group_size=7)
    by_shards = run_silently(recipe(photos, root=str(root)), tmp_path / "shards")
    assert by_shards == run_silently(recipe(photos), tmp_path / "folder")
    assert are_equal(exported_weights(tmp_path / "shards"), exported_weights(tmp_path / "folder"))
    with (tmp_path / "shards" / "bad_samples.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == ["query/4", "train/0"]
    assert f"cannot read {root / 'train-00000-of-00002.parquet'}, row 0 as an image" in rows[1]["reason"]


def test_the_list_is_text_whatever_files_are_called(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    for number in range(20):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(root / f"{number:02}.png")
    try:
        for name in (b"caf\xe9.png", b"two\nlines.png"):
            (root / os.fsdecode(name)).write_text("no image")
    except OSError as cause:
        pytest.skip(f"this file system refuses the name: {cause}")
    data = folder(str(root), size=8)
    data.train.images.fetch(torch.arange(22))
    BadSamples(data, Logger(prints=False), tmp_path).update()
    with (tmp_path / "bad_samples.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [f"{root}/caf\\xe9.png", f"{root}/two\nlines.png"]
    assert rows[0]["reason"].startswith(f"cannot read {root}/caf\\xe9.png as an image")
    assert rows[1]["reason"].startswith(f"cannot read {root}/two\\nlines.png as an image")
