"""python -m reptk.recipe with the shipped recipes: --list, --show, --check, --smoke, --copy."""

import tomllib
from importlib.resources import files
from pathlib import Path

import pytest
from PIL import Image

from reptk.recipe import main
from shipped_recipes import SHIPPED, STAGES, recipe_table, recipe_text


def write_images(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.bmp")


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of the two file-based data sets, as few as the recipes accept."""
    folder = tmp_path_factory.mktemp("data")
    classes = (files("reptk.data.sources") / "imagenet100.txt").read_text().split()
    for split, count in (("train", 11), ("val", 1)):
        for name in classes:
            write_images(folder / "imagenet" / split / name, count)
    for name in ("cats", "dogs"):
        write_images(folder / "photos" / name, 90)
    return folder


def needs_download(data: str) -> bool:
    """Whether a data set must be downloaded on this machine."""
    has_fashion_mnist = Path("/usr/share/datasets").is_dir()
    return data.startswith("cifar") or (data == "fashion_mnist" and not has_fashion_mnist)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_check_builds_every_recipe(
    name: str, data_folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data_folder)
    data = recipe_table(name)["data"]["name"]
    arguments = [name, "--check"]
    if data == "imagenet100":
        arguments.append(f"data.root={data_folder / 'imagenet'}")
    if data == "folder":
        arguments.append(f"data.root={data_folder / 'photos'}")
    if needs_download(data):
        arguments.append("--smoke")
    exit_code = main(arguments)
    output = capsys.readouterr()
    assert exit_code == 0, output.err
    assert "valid, everything could be built" in output.out
    assert not (data_folder / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_smoke_runs_every_recipe(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([name, "--smoke"]) == 0
    output = capsys.readouterr()
    assert "trained" in output.out
    assert not output.err
    assert not list(tmp_path.iterdir()), "a smoke run leaves no files"


def test_check_without_data_checks_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["tcl_selfsup_imagenet100", "--check", "train.batch_size=8"]) == 3
    output = capsys.readouterr()
    assert "its data cannot be used" in output.out
    assert "resnet50" in output.out
    for remedy in ("data.root=/path/to/imagenet ", "data.root=/path/to/imagenet100 ", "--smoke"):
        assert remedy in output.err


def test_check_plans_the_batches(capsys: pytest.CaptureFixture) -> None:
    few_labels = ["data.labelled=0.1", "train.sampler.name=pk", "loss.temperature={start=0.2, end=0.1}"]
    assert main(["tcl_sup_digits", "--check", *few_labels]) == 0
    output = capsys.readouterr().out
    assert "labels: 100 of 1,000 training images have a label (10 % of each class, seed 0)" in output
    assert "temperature 0.2 to 0.1 (cosine)" in output
    assert "batch 200 (1 rank), pk, 5 classes x 4 images, 20 of 200 labeled" in output
    assert "plan: 100 labeled images of 1,000 in 10 classes" in output
    assert "plan: train.sampler pk, 5 classes x 4 images, 20 of 200 labeled: 3 other images of its class" in output
    assert "plan: memory: 200 images in 2 views store" in output


def test_list_names_all_recipes(capsys: pytest.CaptureFixture) -> None:
    assert main(["--list"]) == 0
    output = capsys.readouterr().out
    assert all(name in output for name in SHIPPED)
    for name in STAGES:
        (line,) = [line for line in output.splitlines() if line.split()[:1] == [name]]
        assert line.count("of --from") == 2  # data and backbone


def test_copied_recipe_can_be_run(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["simclr_digits", "--copy"]) == 0
    assert (tmp_path / "simclr_digits.toml").read_text() == recipe_text("simclr_digits")
    assert main(["simclr_digits", "--copy"]) == 2
    assert main(["simclr_digits.toml", "--check"]) == 0
    assert "simclr_digits: valid" in capsys.readouterr().out


# A recipe whose method takes no loss


def test_list_shows_the_method_of_a_recipe_without_a_loss(capsys: pytest.CaptureFixture) -> None:
    assert main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if line.startswith("byol_photos")]
    words = line.split()
    assert words[:4] == ["byol_photos", "photos", "byol", "resnet10t"]
    assert "?" not in line


def test_show_prints_no_loss_table_for_a_method_without_a_loss(capsys: pytest.CaptureFixture) -> None:
    assert main(["byol_photos", "--show"]) == 0
    table = tomllib.loads(capsys.readouterr().out)
    assert "loss" not in table
    assert table["method"]["name"] == "byol"
    assert table["method"]["predictor_norm"] is True


def test_check_names_the_method_in_place_of_a_loss(capsys: pytest.CaptureFixture) -> None:
    assert main(["byol_photos", "--check", "--smoke"]) == 0
    output = capsys.readouterr().out
    (line,) = [line for line in output.splitlines() if line.split()[:1] == ["method"]]
    assert line.split()[1] == "byol"
    assert "momentum 0.97" in line
    assert not any(line.split()[:1] == ["loss"] for line in output.splitlines())


def test_check_names_the_loss_with_the_arguments_of_its_method(capsys: pytest.CaptureFixture) -> None:
    assert main(["moco_photos", "--check", "--smoke"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["loss"]]
    assert line.endswith("positives by instance; method moco (queue_size 1000, momentum 0.98)")


def test_loss_for_a_method_without_a_loss_is_a_mistake(capsys: pytest.CaptureFixture) -> None:
    assert main(["byol_photos", "--check", "loss.name=simclr"]) == 2
    message = capsys.readouterr().err
    assert message == (
        "error: byol_photos does not validate\n  loss  method 'byol' takes no loss; remove the [loss] table\n"
    )


def test_method_with_a_loss_in_a_recipe_without_one_is_a_mistake(capsys: pytest.CaptureFixture) -> None:
    assert main(["byol_photos", "--check", "method.name=contrastive"]) == 2
    message = "error: byol_photos does not validate\n  loss  is missing: method 'contrastive' takes one, e.g. loss.name=supcon"
    assert capsys.readouterr().err.startswith(message)


def test_method_without_a_loss_replaces_one_with_a_loss(capsys: pytest.CaptureFixture) -> None:
    overrides = ["method.name=byol", "method.predictor_width=16"]
    assert main(["simclr_photos", *overrides, "--show"]) == 0
    assert "loss" not in tomllib.loads(capsys.readouterr().out)
