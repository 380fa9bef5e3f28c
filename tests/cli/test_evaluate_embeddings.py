"""reptk evaluate FILE: embeddings from files have the metrics of the functions."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from reptk.cli import main
from reptk.core.errors import DataError
from reptk.embeddings import Embeddings
from reptk.embeddings.evaluating import as_data
from reptk.evaluate import knn, retrieval

CLASSES = ("ant", "bee", "cat")


def vectors(count: int, seed: int = 0, width: int = 8) -> tuple[Tensor, Tensor]:
    stream = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    centers = torch.randn(3, width, generator=torch.Generator().manual_seed(7))
    return centers[labels] + torch.randn(count, width, generator=stream), labels


def saved(path: Path, count: int = 60, seed: int = 0, **changes: object) -> Path:
    rows, labels = vectors(count, seed)
    columns = {
        "vectors": rows,
        "ids": [f"{seed}-{number}" for number in range(count)],
        "labels": labels,
        "classes": CLASSES,
    }
    Embeddings(**(columns | changes)).save(path)
    return path


def metrics_of(*arguments: str, out: Path) -> dict:
    assert main(["evaluate", *arguments, "--only=knn", "eval.knn.k=[1,5]", "--out", str(out)]) == 0
    return json.loads(out.read_text())["metrics"]["encoder"]


def unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows, dim=1)


@pytest.mark.parametrize("ending", ["safetensors", "parquet"])
def test_bank_and_queries_have_the_metrics_of_the_functions(ending: str, tmp_path: Path) -> None:
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    bank, queries = saved(tmp_path / f"bank.{ending}"), saved(tmp_path / f"queries.{ending}", 30, seed=1)
    metrics = metrics_of(str(bank), "--queries", str(queries), out=tmp_path / "found.json")
    tensors = unit(vectors(60)[0]), vectors(60)[1], unit(vectors(30, 1)[0]), vectors(30, 1)[1]
    expected = knn(*tensors, k=[1, 5]) | retrieval(*tensors, k=[1, 5, 10], precision=[5, 10])
    assert metrics == pytest.approx(expected)


def test_one_file_alone_means_leave_one_out(tmp_path: Path) -> None:
    bank, labels = vectors(60)
    metrics = metrics_of(str(saved(tmp_path / "bank.safetensors")), out=tmp_path / "found.json")
    expected = knn(unit(bank), labels, unit(bank), labels, k=[5], exclude=torch.arange(60))
    assert metrics["knn@5"] == pytest.approx(expected["knn@5"])


def test_a_folder_gets_the_results_and_a_report(tmp_path: Path) -> None:
    bank = saved(tmp_path / "bank.safetensors")
    assert main(["evaluate", str(bank), "--only=knn", "eval.knn.k=[1,5]", "--out", str(tmp_path / "numbers")]) == 0
    assert {"results.json", "report.html"} <= {path.name for path in (tmp_path / "numbers").iterdir()}
    assert "knn@5" in (tmp_path / "numbers" / "results.json").read_text()


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    bank = saved(tmp_path / "bank.safetensors")
    labels = vectors(30, 1)[1]
    swapped = torch.tensor([2, 1, 0])[labels]
    other = saved(tmp_path / "other.safetensors", 30, 1, labels=swapped, classes=("cat", "bee", "ant"))
    plain = saved(tmp_path / "plain.safetensors", 30, 1)
    metrics = [
        metrics_of(str(bank), "--queries", str(file), out=tmp_path / f"{file.stem}.json") for file in (other, plain)
    ]
    assert metrics[0] == metrics[1]


def test_unit_vectors_may_be_in_half_precision(tmp_path: Path) -> None:
    rows, _ = vectors(60)
    single, half = unit(rows).float(), unit(rows).half()
    metrics = [
        metrics_of(str(saved(tmp_path / f"{number}.safetensors", vectors=rows)), out=tmp_path / f"{number}.json")
        for number, rows in enumerate((single, half))
    ]
    assert metrics[0] == pytest.approx(metrics[1], abs=0.05)


def test_queries_that_are_in_the_bank_cause_a_warning(tmp_path: Path) -> None:
    bank = Embeddings.load(saved(tmp_path / "bank.safetensors"))
    with pytest.warns(UserWarning, match="60 of 60 queries share an id with an image in the bank"):
        as_data(bank, bank)


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({"labels": torch.full((30,), -1)}, 3, "the queries have no labels"),
        ({"vectors": torch.randn(30, 5)}, 3, "embeddings of 8 values, the other of 5"),
        ({"vectors": vectors(30)[0] / torch.arange(30)[:, None]}, 5, "NaN or infinity"),
        ({"vectors": vectors(30)[0] * (torch.arange(30)[:, None] > 1)}, 3, "2 embeddings of zeros alone"),
        ({"classes": ("ant", "bee", "dog")}, 3, "classes that the bank lacks: dog"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    changes: dict, code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    bank, queries = saved(tmp_path / "bank.safetensors"), saved(tmp_path / "queries.safetensors", 30, 1, **changes)
    assert main(["evaluate", str(bank), "--queries", str(queries), "--only=knn", "eval.knn.k=[1]"]) == code
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("factor", [float("nan"), 1e25], ids=["nan", "too long"])
@pytest.mark.parametrize("evaluator", ["knn", "linear", "few_shot"])
def test_vectors_that_are_not_finite_are_refused_by_every_evaluator(
    evaluator: str, factor: float, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    rows = vectors(30)[0]
    rows[[3, 8]] *= factor
    bank, queries = saved(tmp_path / "bank.safetensors"), saved(tmp_path / "queries.safetensors", 30, 1, vectors=rows)
    assert main(["evaluate", str(bank), "--queries", str(queries), f"--only={evaluator}"]) == 5
    assert "2 of 30 embeddings hold NaN or infinity, or are too long; first numbers: [3, 8]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["gone.safetensors"], 3, "gone.safetensors"),
        (["bank.safetensors", "size=3"], 2, "is evaluated as it is"),
        (["bank.safetensors", "--only=linear_stage"], 2, "trains on images"),
        (["bank.safetensors", "--only=view_retrieval"], 2, "random views need images"),
        (["test_resnet", "--queries", "bank.safetensors", "data.name=digits"], 2, "--queries goes with a file"),
    ],
)
def test_mistakes(
    arguments: list[str],
    code: int,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "bank.safetensors")
    assert main(["evaluate", *arguments]) == code
    assert said in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:.*share an id")
def test_labels_may_be_any_numbers_without_names(tmp_path: Path) -> None:
    numbers = torch.tensor([7, 10**9, 2**62])
    bank = saved(tmp_path / "bank.safetensors")
    expected = metrics_of(str(bank), out=tmp_path / "expected.json")
    sparse = saved(tmp_path / "sparse.safetensors", classes=(), labels=numbers[vectors(60)[1]])
    assert metrics_of(str(sparse), out=tmp_path / "found.json") == expected
    data = as_data(Embeddings.load(sparse), Embeddings.load(sparse))
    assert data.classes == ("class 7", "class 1000000000", f"class {2**62}")
    assert torch.equal(data.query.labels, vectors(60)[1])


@pytest.mark.parametrize("label", [3, 2**62])
@pytest.mark.parametrize("place", ["bank", "queries", "queries with other classes", "queries without names"])
def test_a_label_of_no_class_is_refused(place: str, label: int, tmp_path: Path) -> None:
    labels = vectors(30, 1)[1].clone()
    labels[4] = label
    good = Embeddings.load(saved(tmp_path / "good.safetensors", 30, 2))
    classes = {"queries with other classes": ("bee", "cat", "ant"), "queries without names": ()}.get(place, CLASSES)
    bad = Embeddings.load(saved(tmp_path / "bad.safetensors", 30, 1, labels=labels, classes=classes))
    bank, queries = (bad, good) if place == "bank" else (good, bad)
    with pytest.raises(DataError, match=f"a label {label}, which is none of 3 classes"):
        as_data(bank, queries)


def test_any_negative_label_is_none(tmp_path: Path) -> None:
    labels = vectors(30, 1)[1].clone()
    labels[4], labels[5] = -5, -(2**63)
    data = as_data(Embeddings.load(saved(tmp_path / "e.safetensors", 30, 1, labels=labels)), None)
    assert data.query.labels[3:7].tolist() == [0, -1, -1, 0]
