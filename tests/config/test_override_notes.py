"""What overrides change besides what they say, and what a run with overrides is called."""

import pytest
import torch

from recipe_files import TINY, write
from reptk.config import load, override_notes
from reptk.core.errors import UsageError
from reptk.losses import simclr, supcon


def notes(name: str, *overrides: str) -> list[str]:
    return override_notes(name, overrides, load(name, overrides))


def test_a_new_loss_says_which_defaults_it_takes_and_which_recipe_has_better_ones():
    assert notes("supcon_digits", "loss.name=tcl") == [
        'loss.name=tcl: takes the defaults of tcl: k1 5000, k2 1; method.positives stays "class"',
        "there is a recipe with settings chosen for it: python -m reptk.recipe tcl_sup_digits",
    ]


def test_arguments_that_are_dropped_are_named():
    first = notes("simclr_digits", "loss.name=supcon")[0]
    assert first == (
        "loss.name=supcon: drops temperature 0.2 of simclr; takes the defaults of supcon: temperature 0.1, form out; "
        'method.positives stays "instance"'
    )


def test_what_the_same_command_sets_is_not_a_default():
    first = notes("supcon_digits", "loss.name=tcl", "loss.k1=100", "loss.k2=2", "method.positives=instance")
    # Everything that changed was said by the command.
    assert first == ["there is a recipe with settings chosen for it: python -m reptk.recipe tcl_selfsup_digits"]


def test_a_recipe_with_other_positives_is_named_with_them():
    assert notes("supcon_digits", "loss.name=simclr")[1] == (
        "there is a recipe with settings chosen for it: python -m reptk.recipe simclr_digits (positives by instance)"
    )


def test_a_new_method_names_the_loss_that_it_drops():
    recipe = load("simclr_photos", ["method.name=byol"])
    first, second = override_notes("simclr_photos", ["method.name=byol"], recipe)
    assert first.startswith("method.name=byol: drops positives instance of contrastive; takes the defaults of byol: ")
    assert first.endswith("drops the loss simclr")
    assert second.endswith("python -m reptk.recipe byol_photos")


def test_new_views_and_a_new_backbone_say_what_stays():
    assert (
        "drops size 32 of simclr_small; takes the defaults of simclr: size 224"
        in notes("supcon_photos", "views.name=simclr")[0]
    )
    assert notes("supcon_cifar10", "encoder.backbone=resnet18") == [
        "encoder.backbone=resnet18: stem small and optim.sgd with lr 0.714286 stay as chosen for resnet50"
    ]


@pytest.mark.parametrize("overrides", [[], ["loss.name=supcon"], ["loss.temperature=0.2"], ["train.epochs=40"]])
def test_without_a_new_part_there_is_nothing_to_say(overrides):
    assert notes("supcon_digits", *overrides) == []


def test_a_shorter_warmup_is_said():
    assert notes("supcon_digits", "train.epochs=1") == [
        "train.epochs=1 instead of 20: the warm-up is shortened in proportion, from 1 to 0.05 epochs"
    ]


@pytest.mark.parametrize(
    ("name", "override", "expected"),
    [
        # 0.714286 * 512 / 1024
        (
            "supcon_cifar10",
            "train.batch_size=512",
            "512 instead of 1024: optim.lr stays 0.714286; by the linear rule, usual for sgd",
        ),
        # 0.001 * sqrt(32 / 128)
        (
            "tcl_sup_folder",
            "train.batch_size=32",
            "32 instead of 128: optim.lr stays 0.001; by the square-root rule, usual for adamw",
        ),
    ],
)
def test_another_batch_size_says_what_the_learning_rate_would_be(name: str, override: str, expected: str) -> None:
    scaled = {"supcon_cifar10": "0.357", "tcl_sup_folder": "0.0005"}[name]
    assert notes(name, override) == [f"train.batch_size={expected}, it would be optim.lr={scaled}"]
    lr = load(name).optim.lr
    assert load(name, [override]).optim.lr == lr
    assert notes(name, override, f"optim.lr={lr}") == []
    assert notes(name, override, "optim.name=lars") == []


def test_the_same_batch_size_and_other_optimizers_have_no_rule() -> None:
    assert notes("tcl_sup_folder", "train.batch_size=128") == []
    path = write("tiny.toml", TINY)
    assert len(notes(path, "train.batch_size=4")) == 1
    path = write("adafactor.toml", TINY.replace("lr = 0.05", 'lr = 0.05\nname = "adafactor"'))
    assert notes(path, "train.batch_size=4") == []


@pytest.mark.parametrize(
    ("name", "override", "text"),
    [
        ("supcon_digits", "loss.name=simclr", "is SupCon, the same as loss.name=supcon loss.temperature=0.5"),
        ("supcon_digits", "method.positives=instance", "is SimCLR, the same as loss.name=simclr loss.temperature=0.1"),
    ],
)
def test_a_loss_that_is_another_by_its_positives_is_called_so(name, override, text):
    assert text in notes(name, override)[-1]


def test_simclr_and_supcon_are_the_same_function_of_rows_and_ids():
    z = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    for ids in (torch.arange(12) % 3, torch.arange(12) % 6):  # classes, and two views of each image
        assert torch.equal(simclr(z, ids, temperature=0.3), supcon(z, ids, temperature=0.3))


def test_the_title_says_what_was_replaced():
    assert load("supcon_digits").title == "supcon_digits"
    assert load("supcon_digits", ["train.workers=2", "train.report=false"]).title == "supcon_digits"
    recipe = load("supcon_digits", ["optim.lr=0.1", "loss.name=tcl"])
    assert recipe.title == "supcon_digits loss.name=tcl optim.lr=0.1"
    # The folder of its runs stays that of the recipe.
    assert recipe.name == "supcon_digits"


def test_a_long_title_is_cut_off():
    overrides = ["loss.name=tcl", "loss.k1=5", "loss.k2=2", "optim.lr=0.1", "seed=1", "train.epochs=3"]
    assert load("supcon_digits", overrides).title == (
        "supcon_digits loss.name=tcl loss.k1=5 loss.k2=2 optim.lr=0.1 and 2 more"
    )


def test_the_overrides_of_a_run_are_part_of_its_recipe():
    recipe = load("supcon_digits", ["loss.name=tcl", "loss.k1=5", "optim.lr=0.1"])
    write("run/recipe.toml", recipe.dump())
    assert load("run") == recipe
    assert load("run", ["optim.lr=0.2"]).overrides == ("loss.name=tcl", "loss.k1=5", "optim.lr=0.2")
    # Another loss does not take the arguments of the one before.
    assert load("run", ["loss.name=simclr"]).overrides == ("optim.lr=0.1", "loss.name=simclr")
    assert load(write("tiny.toml", TINY)).overrides == ()
    with pytest.raises(UsageError, match="overrides lists"):
        load("run", ["overrides=[]"])
