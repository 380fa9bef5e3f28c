"""Every shipped recipe: its name fits its content, and it agrees with the others of its data set and its source."""

import tomllib

import pytest
import torch

from reptk.config import Recipe, available, load, validate
from reptk.config.part_tables import COMMON_ARGUMENTS
from reptk.config.registry import DATASETS
from reptk.training.optim import create_optimizer
from shipped_recipes import (
    DATA_SETS,
    FAMILIES,
    ON_EVERY_DATA_SET,
    ON_FOLDERS,
    ON_PHOTOS,
    ON_TWO_DATA_SETS,
    SHIPPED,
    STAGES,
    recipe_table,
    recipe_text,
    split_name,
)


def test_these_76_recipes_are_shipped() -> None:
    names = [f"{family}_{data}" for family in ON_EVERY_DATA_SET for data in DATA_SETS]
    names += [f"{family}_{data}" for family in ON_TWO_DATA_SETS for data in ("photos", "fashion_mnist")]
    names += [f"{family}_photos" for family in ON_PHOTOS]
    names += [f"{family}_folder" for family in ON_FOLDERS]
    adapted = ["tcl_sup_adapt_folder", "supcon_adapt_folder", "simclr_adapt_folder", "tcl_sup_adapt_photos"]
    assert sorted([*names, *adapted, "tcl_semi_fashion_mnist"]) == SHIPPED
    assert len(SHIPPED) == 73
    assert len(STAGES) == 3
    assert {*SHIPPED, *STAGES} <= set(available())


@pytest.mark.parametrize("name", SHIPPED)
def test_name_states_method_and_data(name: str) -> None:
    family, data = split_name(name)
    expected = FAMILIES[family]
    recipe = load(name)
    assert recipe.name == name
    assert recipe.data["name"] == data
    assert recipe.method["name"] == expected.method
    assert recipe.method.get("positives") == expected.positives
    loss = recipe.loss["name"] if recipe.loss else None
    assert loss == expected.loss
    assert recipe.views["count"] == expected.views


@pytest.mark.parametrize("name", [*SHIPPED, *STAGES])
def test_head_comment_states_command_and_source(name: str) -> None:
    head = recipe_text(name).split("seed = ")[0]
    assert f"-m reptk.recipe {name}" in head
    assert "arXiv" in head
    sources = ("Source:", "No verified source", "Chosen for", "Starting values")
    assert sum(head.count(words) for words in sources) == 1


@pytest.mark.parametrize("data", DATA_SETS)
def test_recipes_of_a_data_set_share_data_and_evaluation(data: str) -> None:
    tables = [recipe_table(name) for name in SHIPPED if split_name(name)[1] == data]
    assert len(tables) >= len(ON_EVERY_DATA_SET)
    for table in tables:
        # Images are decoded a little larger than the views.
        ignored = {"size"} if table["views"].get("size") != tables[0]["views"].get("size") else set()
        assert without_labels(table["data"], ignored) == without_labels(tables[0]["data"], ignored)
        assert without_schedule(table["eval"]) == without_schedule(tables[0]["eval"])


@pytest.mark.parametrize("data", DATA_SETS)
def test_cross_entropy_and_supcon_differ_in_the_method_alone(data: str) -> None:
    """On CIFAR in the optimizer as well, whose settings SupContrast publishes for each."""
    tables = {name: recipe_table(f"{name}_{data}") for name in ("ce", "supcon")}
    differing = {
        key for table in tables.values() for key in table if tables["ce"].get(key) != tables["supcon"].get(key)
    }
    expected = {"method", "loss"}
    if data.startswith("cifar"):
        expected |= {"optim"}
    assert differing - {"expect"} == expected
    assert tables["ce"]["method"] == {"name": "classify"}


@pytest.mark.parametrize("data", ["photos", "digits", "fashion_mnist", "folder"])
def test_cross_entropy_supcon_and_tcl_see_the_same_images(data: str) -> None:
    tables = [recipe_table(f"{name}_{data}") for name in ("ce", "supcon", "tcl_sup")]
    for key in ("seed", "data", "views", "encoder", "optim", "train", "eval"):
        assert all(table[key] == tables[0][key] for table in tables), key


def without_labels(data: dict, ignored: set[str]) -> dict:
    """The `[data]` table without what says which labels training uses (evaluation uses all), and without `ignored` keys."""
    return {key: value for key, value in data.items() if key not in {*COMMON_ARGUMENTS[DATASETS], *ignored}}


def without_schedule(evaluators: dict[str, dict]) -> dict[str, dict]:
    """The `[eval]` tables without `every_epochs`, which depends on how long a recipe trains."""
    return {
        key: {name: value for name, value in part.items() if name != "every_epochs"} for key, part in evaluators.items()
    }


@pytest.mark.parametrize("name", SHIPPED)
def test_dumped_recipe_validates_as_the_same_recipe(name: str) -> None:
    recipe = load(name)
    assert validate(tomllib.loads(recipe.dump())) == recipe


# Sources


def optimizer_options(recipe: Recipe) -> dict:
    return recipe.optim.model_dump(include={"name", "lr", "weight_decay", "momentum", "decay_all"})


def test_tcl_sup_cifar100_is_the_official_command() -> None:
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
    assert create_optimizer(groups, **optimizer_options(recipe)).param_groups[0]["nesterov"] is False


def test_supcon_steps_are_those_of_its_source() -> None:
    """SupContrast: lr 0.5, weight decay 1e-4 on a loss that is 0.1 / 0.07 times ours."""
    scale = 0.1 / 0.07
    for name in ("supcon_cifar10", "supcon_cifar100"):
        optim = load(name).optim
        assert optim.lr == pytest.approx(0.5 * scale, rel=1e-5)
        assert optim.warmup_lr == pytest.approx(0.01 * scale, rel=1e-4)
        assert optim.lr * optim.weight_decay == pytest.approx(0.5 * 1e-4, rel=1e-5)


def test_cross_entropy_on_cifar_is_that_of_supcontrast() -> None:
    """main_ce.py --batch_size 1024 --learning_rate 0.8 --cosine"""
    for name in ("ce_cifar10", "ce_cifar100"):
        recipe = load(name)
        assert optimizer_options(recipe) == {
            "name": "sgd",
            "lr": 0.8,
            "weight_decay": 1e-4,
            "momentum": 0.9,
            "decay_all": True,
        }
        assert (recipe.optim.warmup_epochs, recipe.optim.warmup_lr, recipe.optim.final_lr_ratio) == (10, 0.01, 1e-3)
        assert (recipe.encoder.backbone, recipe.encoder.stem, recipe.train.batch_size) == ("resnet50", "small", 1024)


def test_linear_stages_are_those_of_their_sources() -> None:
    """main_linear.py --batch_size 512 --learning_rate 5, and the linear stage of TCL's train.py."""
    supcon, tcl = recipe_table("linear"), recipe_table("linear_tcl")
    assert supcon["optim"] == {
        "name": "sgd",
        "lr": 5.0,
        "momentum": 0.9,
        "weight_decay": 0.0,
        "schedule": "multistep",
        "milestones": [0.6, 0.75, 0.9],
        "gamma": 0.2,
    }
    assert supcon["train"] == {"epochs": 100, "batch_size": 512}
    assert supcon["views"] == {"name": "resized_crop_flip", "count": 1, "scale": 0.2}
    assert tcl["optim"] == {"name": "sgd", "lr": 0.5, "momentum": 0.9, "weight_decay": 0.0001, "decay_all": True}
    assert tcl["train"] == {"epochs": 50, "batch_size": 64}
    for table in (supcon, tcl):
        assert table["method"] == {"name": "classify", "freeze_encoder": True}
