"""reptk evaluate: the numbers of a run again, of any timm backbone, on any data set."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from reptk.commands import main
from reptk.config import validate
from reptk.evaluate import Evidence
from reptk.log import Log
from reptk.training import train

DATA = {"name": "generated", "train": 32, "bank": 40, "query": 20, "classes": 4, "size": 16}
TINY = {
    "name": "tiny",
    "data": DATA,
    "views": {"name": "simclr_small", "size": 16},
    "encoder": {"backbone": "test_resnet"},
    "objective": {"name": "contrastive"},
    "loss": {"name": "simclr"},
    "optim": {"name": "adamw", "lr": 1e-3},
    "train": {"epochs": 1, "batch_size": 16},
    "eval": {"knn": {"k": [1, 5]}},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    train(validate(TINY), folder, log=Log(speaks=False, writes=True))
    return folder


def numbers(path: Path) -> dict:
    return json.loads(path.read_text())["metrics"]


def flat(table: dict) -> list[float]:
    return [number for _, value in sorted(table.items()) for number in (value if isinstance(value, list) else [value])]


@pytest.mark.parametrize("part", ["", "model"])
def test_a_run_gives_its_numbers_again(
    part: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "numbers"
    given = ["--only", "knn", "eval.knn.k=[1,5]", "--out", str(out)]
    assert main(["evaluate", str(finished / part), *given]) == 0
    again, before = (json.loads((folder / "results.json").read_text()) for folder in (out, finished))
    for section in ("metrics", "intervals", "health"):
        for row in ("raw pixels", "untrained", "encoder"):
            # Training keeps its weights channels last, and sums in another order.
            expected = before[section]["trained" if row == "encoder" else row]
            assert flat(again[section][row]) == pytest.approx(flat(expected), rel=1e-4)
    for section in ("classes", "confusions", "copies"):
        assert again[section] == before[section]
    assert again["verdict"]["level"] == before["verdict"]["level"]
    mine, theirs = Evidence.load(out), Evidence.load(finished)
    assert (mine.row, mine.vote, mine.classes) == ("encoder", theirs.vote, theirs.classes)
    for name in ("numbers", "labels", "predicted", "neighbours"):
        assert torch.equal(getattr(mine, name), getattr(theirs, name))
    torch.testing.assert_close(mine.similarities, theirs.similarities)
    printed = capsys.readouterr().out
    assert "raw pixels" in printed
    assert "95 % interval" in printed


def test_a_run_on_other_data(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "numbers.json"
    arguments = ["data.name=digits", "data.train=1700", "--only=knn", "eval.knn.k=[3]", "eval.knn.retrieval=false"]
    assert main(["evaluate", str(finished), *arguments, "--out", str(out)]) == 0
    assert set(numbers(out)["encoder"]) == {"knn@3", "knn_majority@3"}
    assert list(numbers(out)) == ["raw pixels", "untrained", "encoder"]


def test_any_backbone_and_all_evaluators(tmp_path: Path) -> None:
    out = tmp_path / "numbers.json"
    data = [f"data.{key}={value}" for key, value in DATA.items()]
    more = ["eval.knn.k=[1]", "eval.linear_stage.epochs=2", "eval.few_shot.shots=[2]", "--no-baselines"]
    assert main(["evaluate", "test_vit", "size=32", *more, *data, "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert list(found["metrics"]) == ["encoder"]
    assert {"knn@1", "mrr", "precision@5", "linear", "few_shot@2", "linear_stage"} < set(found["metrics"]["encoder"])
    assert all(
        low <= found["metrics"]["encoder"][name] <= high for name, (low, high) in found["intervals"]["encoder"].items()
    )
    assert {row["name"] for row in found["classes"]} == {f"class {number}" for number in range(4)}
    assert {"linear", "linear_stage"} == set(found["notes"]["encoder"])
    assert found["protocol"]["encoder"]["size"] == 32


def test_a_folder_without_labels(finished: Path, tmp_path: Path) -> None:
    for number in range(6):
        Image.effect_noise((20, 20), 90 + number).convert("RGB").save(tmp_path / f"{number}.png")
    out = tmp_path / "numbers"
    data = ["data.name=folder", f"data.root={tmp_path}", "data.size=16"]
    assert main(["evaluate", str(finished), *data, "--out", str(out)]) == 0
    assert set(numbers(out / "results.json")["encoder"]) == {"view_recall@1", "view_recall@5"}
    kept = Evidence.load(out)
    assert (kept.query_split, kept.bank_split, kept.vote) == ("train", "train", "")
    assert (kept.neighbours != kept.numbers[:, None]).all()
    assert main(["evaluate", str(finished), *data, "--only", "knn"]) == 3


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "the following arguments are required: source"),
        (["test_resnet"], 2, "on which data set?"),
        (["data.name=digits", "test_resnet"], 2, "what is to be evaluated comes first"),
        (["test_resnt", "data.name=digits"], 2, "Nearest: test_resnet"),
        (["test_resnet", "data.name=digit"], 2, "Nearest: digits"),
        (["test_resnet", "data.name=digits", "data.rot=x"], 2, "has no argument 'rot'"),
        (["test_resnet", "data.name=digits", "eval.knn.k=[0]"], 2, "greater than or equal to 1"),
        (["test_resnet", "data.name=digits", "eval.knn.temperature=[]"], 2, "eval.knn.temperature"),
        (["test_resnet", "data.name=digits", "eval.k=[1]"], 2, "evaluators are set by name"),
        (["test_resnet", "data.name=digits", "eval.kn.k=[1]"], 2, "Nearest: knn"),
        (["test_resnet", "data.name=digits", "--only", "knn", "eval.linear.decays=[1.0]"], 2, "--only leaves it out"),
        (["test_resnet", "data.name=digits", "--only", "kn"], 2, "Nearest: knn"),
        (["test_resnet", "data.name=digits", "size=two"], 2, "size must be an integer"),
        (["test_resnet", "data.name=digits", "train.epochs=2"], 2, "what can be set here"),
        (["test_resnet", "data.name=folder", "data.root=gone"], 3, "no folder gone"),
        (["runs/gone"], 2, "on which data set?"),
        (["runs/gone", "data.name=digits"], 3, "no model in runs/gone"),
        (["runs/gone", "data.name=digits", "--pretrained"], 2, "go with a timm name"),
        (["test_resnet", "data.name=generated", "size=16", "--out", "no/such/folder.json"], 4, "cannot write"),
        (["test_resnet", "data.name=generated", "size=16", "--out", "."], 2, "is there already"),
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
    if "." in arguments:
        (tmp_path / "something").touch()
    assert main(["evaluate", *arguments]) == code
    printed = capsys.readouterr().err
    assert printed.startswith("error:")
    assert said in printed
    assert [path.name for path in tmp_path.iterdir()] == ["something"] * ("." in arguments)
