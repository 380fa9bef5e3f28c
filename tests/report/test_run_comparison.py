"""Differences between runs, with intervals from pairs or from independent samples."""

from pathlib import Path

import numpy as np
import pytest
import torch

from report_runs import make_run
from reptk.data.fingerprint import Fingerprint, write_fingerprint
from reptk.evaluate.intervals import QueryMean
from reptk.report.run_comparison import data_identity, difference, have_same_data, independent_difference
from reptk.report.run_files import Run, SavedResults, read_run

pytestmark = pytest.mark.usefixtures("one_thread")


def test_errors_of_independent_samples_add_in_quadrature() -> None:
    gap = independent_difference(0.8, (0.75, 0.84), 0.7, (0.64, 0.76))
    low = 0.1 - np.hypot(0.05, 0.06)
    high = 0.1 + np.hypot(0.04, 0.06)
    assert (gap.value, gap.low, gap.high) == pytest.approx((0.1, low, high))
    assert gap.is_significant
    assert not independent_difference(0.8, (0.7, 0.9), 0.7, (0.6, 0.8)).is_significant
    assert not independent_difference(0.8, None, 0.7, (0.6, 0.8)).is_significant


def test_pairs_show_a_small_difference() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(2000, generator=generator) < 0.8
    b = a & (torch.rand(2000, generator=generator) < 0.97)
    _, low, high = QueryMean(a.float()).gain_over(QueryMean(b.float()))
    gaps = a.double() - b.double()
    mean = gaps.mean().item()
    half_width = 1.96 * gaps.std().item() / len(gaps) ** 0.5
    assert (low, high) == pytest.approx((mean - half_width, mean + half_width), abs=1e-3)
    assert low > 0
    assert QueryMean(a.float()).gain_over(QueryMean(a.float())) == (0, 0, 0)


def test_pairs_need_the_same_queries(run: Path, other: Path, tmp_path: Path) -> None:
    first = read_run(run, "a")
    second = read_run(other, "b")
    assert difference(second, first, "knn@5").method == "paired"
    assert difference(second, first, "recall@1").method == "paired"
    more_queries = read_run(make_run(tmp_path / "c", data={"query": 44}), "c")
    assert difference(more_queries, first, "knn@5").method == "intervals"


def test_another_folder_is_another_data_set() -> None:
    part = {"name": "folder", "root": "mine", "cache": False}
    assert data_identity(part) == data_identity(part | {"cache": True})
    assert data_identity(part) != data_identity(part | {"root": "yours"})


def test_a_folder_by_another_path_or_with_the_same_files_is_the_same_data(tmp_path: Path) -> None:
    def run_on(root: str, name: str, files: dict[str, str]) -> Run:
        (tmp_path / name).mkdir()
        write_fingerprint(Fingerprint({}, files, "stat"), tmp_path / name)
        return Run(tmp_path / name, name, SavedResults(protocol={"data": {"name": "folder", "root": root}}))

    (tmp_path / "photos").mkdir()
    first = run_on(str(tmp_path / "photos"), "a", {"x.png": "1,1"})
    assert have_same_data(first, run_on(f"{tmp_path}/./photos", "b", {"x.png": "2,2"})), "one folder, which has changed"
    assert have_same_data(first, run_on("moved", "c", {"x.png": "1,1"}))
    assert not have_same_data(first, run_on("moved", "d", {"x.png": "2,2"}))


def test_the_labels_of_training_change_no_evaluated_image() -> None:
    part = {"name": "generated", "size": 16}
    assert data_identity(part) == data_identity(part | {"labelled": 0.1, "only_labelled": True})
    # Of a data set that is not known here, they may be arguments of its own.
    part = {"name": "of_a_plugin"}
    assert data_identity(part) != data_identity(part | {"labelled": 0.1})


def test_encoders_with_other_preprocessing_are_compared_on_the_same_images() -> None:
    part = {"name": "folder", "root": "mine", "size": 256, "crop": 0.875, "resize": "crop", "interpolation": "bilinear"}
    other = part | {"size": 248, "crop": 0.9, "resize": "pad", "interpolation": "bicubic"}
    assert data_identity(part) == data_identity(other)
    # The size of generated images decides what they show.
    assert data_identity({"name": "generated", "size": 16}) != data_identity({"name": "generated", "size": 32})
