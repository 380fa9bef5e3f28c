"""reptk knn: the numbers of a run again, of any timm backbone, on any data set."""

import json
from pathlib import Path

import pytest
from PIL import Image

from reptk.commands import main
from reptk.config import validate
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


@pytest.mark.parametrize("part", ["", "model"])
def test_a_run_gives_its_numbers_again(
    part: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "numbers.json"
    assert main(["knn", "--checkpoint", str(finished / part), "eval.k=[1,5]", "--out", str(out)]) == 0
    expected = numbers(finished / "results.json")
    assert numbers(out) == {"raw pixels": expected["raw pixels"], "encoder": expected["trained"]}
    printed = capsys.readouterr().out
    assert "raw pixels" in printed
    assert "mAP@R" in printed


def test_a_run_on_other_data(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "numbers.json"
    arguments = ["data.name=digits", "data.train=1700", "eval.k=[3]", "eval.retrieval=false", "--out", str(out)]
    assert main(["knn", "--checkpoint", str(finished), *arguments]) == 0
    assert set(numbers(out)["encoder"]) == {"knn@3", "knn_majority@3"}


def test_any_backbone(tmp_path: Path) -> None:
    out = tmp_path / "numbers.json"
    data = [f"data.{key}={value}" for key, value in DATA.items()]
    assert main(["knn", "--backbone", "test_vit", "size=32", "eval.k=[1]", *data, "--out", str(out)]) == 0
    assert 0 <= numbers(out)["encoder"]["knn@1"] <= 1
    assert json.loads(out.read_text())["protocol"]["encoder"]["size"] == 32


def test_a_folder_without_labels(finished: Path, tmp_path: Path) -> None:
    for number in range(6):
        Image.effect_noise((20, 20), 90 + number).convert("RGB").save(tmp_path / f"{number}.png")
    out = tmp_path / "numbers.json"
    data = ["data.name=folder", f"data.root={tmp_path}", "data.size=16"]
    assert main(["knn", "--checkpoint", str(finished), *data, "--out", str(out)]) == 0
    assert set(numbers(out)["encoder"]) == {"view_recall@1", "view_recall@5"}


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "one of the arguments --checkpoint --backbone is required"),
        (["--backbone", "test_resnet"], 2, "on which data set?"),
        (["--backbone", "test_resnt", "data.name=digits"], 2, "Nearest: test_resnet"),
        (["--backbone", "test_resnet", "data.name=digit"], 2, "Nearest: digits"),
        (["--backbone", "test_resnet", "data.name=digits", "data.rot=x"], 2, "has no argument 'rot'"),
        (["--backbone", "test_resnet", "data.name=digits", "eval.k=[0]"], 2, "greater than or equal to 1"),
        (["--backbone", "test_resnet", "data.name=digits", "size=two"], 2, "size must be an integer"),
        (["--backbone", "test_resnet", "data.name=digits", "train.epochs=2"], 2, "what can be set here"),
        (["--backbone", "test_resnet", "data.name=folder", "data.root=gone"], 3, "no folder gone"),
        (["--checkpoint", "gone"], 2, "on which data set?"),
        (["--checkpoint", "gone", "data.name=digits"], 3, "no model in gone"),
        (["--checkpoint", "gone", "data.name=digits", "--pretrained"], 2, "go with --backbone"),
        (
            ["--backbone", "test_resnet", "data.name=generated", "size=16", "--out", "no/such/folder.json"],
            4,
            "cannot write",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:k = 200 is more")
def test_mistakes(
    arguments: list[str],
    code: int,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["knn", *arguments]) == code
    printed = capsys.readouterr().err
    assert printed.startswith("error:")
    assert said in printed
    assert not list(tmp_path.iterdir())
