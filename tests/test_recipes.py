"""Every shipped recipe: its name fits its content, its family agrees, and it runs."""

import itertools
import tomllib
from pathlib import Path

import pytest
import torch
from PIL import Image

import reptk
from reptk import recipe as command
from reptk.config import Recipe, available, load, validate
from reptk.training.optim import create_optimizer

ROOT = Path(__file__).parent.parent
METHODS = {
    "tcl_selfsup": ("tcl", "instance"),
    "tcl_sup": ("tcl", "class"),
    "supcon": ("supcon", "class"),
    "simclr": ("simclr", "instance"),
}
DATA = ("photos", "digits", "fashion_mnist", "cifar10", "cifar100", "imagenet100", "folder")
NAMES = [f"{method}_{data}" for method, data in itertools.product(METHODS, DATA)]
SHIPPED = sorted(path.stem for path in (ROOT / "recipes").rglob("*.toml"))


def raw(name: str) -> dict:
    return tomllib.loads((ROOT / "recipes" / f"{name}.toml").read_text())


def test_the_recipes_are_these_28() -> None:
    assert sorted(NAMES) == SHIPPED
    assert len(SHIPPED) == 28
    assert set(SHIPPED) <= set(available())


@pytest.mark.parametrize("name", SHIPPED)
def test_a_name_says_what_is_in_it(name: str) -> None:
    method = next(method for method in METHODS if name.startswith(f"{method}_"))
    recipe = load(name)
    assert (recipe.loss["name"], recipe.method["positives"]) == METHODS[method]
    assert recipe.data["name"] == name.removeprefix(f"{method}_")
    assert recipe.name == name
    assert recipe.views["count"] == (3 if method == "tcl_selfsup" else 2)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_head_comment_says_command_and_source(name: str) -> None:
    head = (ROOT / "recipes" / f"{name}.toml").read_text().split("seed = ")[0]
    assert f"-m reptk.recipe {name}" in head
    assert "arXiv" in head
    assert sum(head.count(word) for word in ("Source:", "No verified source", "Chosen for", "Starting values")) == 1


@pytest.mark.parametrize("data", DATA)
def test_a_family_shares_data_and_evaluation(data: str) -> None:
    family = [raw(f"{method}_{data}") for method in METHODS]
    for section in ("data", "eval"):
        assert all(_same(recipe[section], family[0][section]) for recipe in family), section


def _same(one: dict, other: dict) -> bool:
    def without_course(table: dict) -> dict:
        return {key: value for key, value in table.items() if key != "every_epochs"}

    return {k: without_course(v) if isinstance(v, dict) else v for k, v in one.items()} == {
        k: without_course(v) if isinstance(v, dict) else v for k, v in other.items()
    }


@pytest.mark.parametrize("name", SHIPPED)
def test_writing_a_recipe_out_keeps_it(name: str) -> None:
    recipe = load(name)
    assert validate(tomllib.loads(recipe.dump())) == recipe


def _optimizer_of(recipe: Recipe) -> dict:
    return recipe.optim.model_dump(include={"name", "lr", "weight_decay", "momentum", "decay_all"})


def test_the_official_tcl_command() -> None:
    """--run_type tcl --dataset cifar100 --model resnet50 --batch_size 64 --k1 5000 --k2 1 --lr_contrastive 0.1"""
    recipe = load("tcl_sup_cifar100")
    assert (recipe.data["name"], recipe.encoder.backbone, recipe.encoder.stem) == ("cifar100", "resnet50", "small")
    assert recipe.loss == {"name": "tcl", "temperature": 0.1, "k1": 5000.0, "k2": 1.0, "learn_temperature": False}
    assert (recipe.train.batch_size, recipe.train.epochs) == (64, 100)
    assert (recipe.optim.name, recipe.optim.lr, recipe.optim.momentum) == ("sgd", 0.1, 0.9)
    assert (recipe.optim.weight_decay, recipe.optim.decay_all, recipe.optim.warmup_epochs) == (1e-4, True, 0)
    assert (recipe.optim.schedule, recipe.optim.final_lr_ratio) == ("cosine", 1e-3)
    assert (recipe.encoder.head_layers, recipe.encoder.head_out, recipe.encoder.head_norm) == (2, 128, False)
    assert recipe.views["name"] == "autoaugment"
    groups = [{"params": list(torch.nn.Linear(2, 2).parameters())}]
    assert create_optimizer(groups, **_optimizer_of(recipe)).param_groups[0]["nesterov"] is False


def test_supcon_steps_are_those_of_its_source() -> None:
    """SupContrast: lr 0.5, weight decay 1e-4 on a loss that is 0.1 / 0.07 times ours."""
    scale = 0.1 / 0.07
    for name in ("supcon_cifar10", "supcon_cifar100"):
        optim = load(name).optim
        assert optim.lr == pytest.approx(0.5 * scale, rel=1e-5)
        assert optim.warmup_lr == pytest.approx(0.01 * scale, rel=1e-4)
        assert optim.lr * optim.weight_decay == pytest.approx(0.5 * 1e-4, rel=1e-5)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data of the two file-based sets, as little as the recipes accept."""
    root = tmp_path_factory.mktemp("data")
    synsets = (Path(reptk.__file__).parent / "data" / "imagenet100.txt").read_text().split()
    for part, count in (("train", 11), ("val", 1)):
        for name in synsets:
            _pictures(root / "imagenet" / part / name, count)
    for name in ("cats", "dogs"):
        _pictures(root / "photos" / name, 90)
    return root


def _pictures(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.bmp")


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_check(name: str, here: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)
    roots = {"imagenet100": here / "imagenet", "folder": here / "photos"}
    data = raw(name)["data"]["name"]
    arguments = [f"data.root={roots[data]}"] if data in roots else []
    offline = data.startswith("cifar") or (data == "fashion_mnist" and not Path("/usr/share/datasets").is_dir())
    code = command.main([name, "--check", *arguments, *(["--smoke"] if offline else [])])
    said = capsys.readouterr()
    assert code == 0, said.err
    assert "valid, everything could be built" in said.out
    assert not (here / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_smoke(name: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert command.main([name, "--smoke"]) == 0
    said = capsys.readouterr()
    assert "trained" in said.out
    assert not said.err
    assert not list(tmp_path.iterdir()), "a smoke run keeps nothing"


def test_check_without_data_checks_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command.main(["tcl_selfsup_imagenet100", "--check", "train.batch_size=8"]) == 3
    said = capsys.readouterr()
    assert "its data is not here" in said.out
    assert "resnet50" in said.out
    for way in ("data.root=/path/to/imagenet ", "data.root=/path/to/imagenet100 ", "--smoke"):
        assert way in said.err


def test_list_names_them_all(capsys: pytest.CaptureFixture) -> None:
    assert command.main(["--list"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in SHIPPED)


def test_copy_then_run(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert command.main(["simclr_digits", "--copy"]) == 0
    assert (tmp_path / "simclr_digits.toml").read_text() == (ROOT / "recipes" / "simclr_digits.toml").read_text()
    assert command.main(["simclr_digits", "--copy"]) == 2
    assert command.main(["simclr_digits.toml", "--check"]) == 0
    assert "simclr_digits: valid" in capsys.readouterr().out
