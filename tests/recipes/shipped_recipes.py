"""The shipped recipes: their names, and what a name means."""

import tomllib
from pathlib import Path
from typing import Any, NamedTuple

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "recipes"

STAGES = ("finetune", "linear", "linear_tcl")
"""Recipes that a run completes; see tests/training/test_stages.py."""

SHIPPED = sorted(path.stem for path in FOLDER.rglob("*.toml") if path.stem not in STAGES)

DATA_SETS = ("photos", "digits", "fashion_mnist", "cifar10", "cifar100", "imagenet100", "folder")


class Family(NamedTuple):
    """What the recipes whose names begin alike have in common.

    method, loss, positives: names of the parts and how positives are formed; None if the method has no such thing.
    views: of each image.
    """

    method: str
    loss: str | None
    positives: str | None
    views: int


FAMILIES = {
    "tcl_sup_adapt": Family("contrastive", "tcl", "class", 2),
    "supcon_adapt": Family("contrastive", "supcon", "class", 2),
    "simclr_adapt": Family("contrastive", "simclr", "instance", 2),
    "tcl_selfsup": Family("contrastive", "tcl", "instance", 3),
    "tcl_semi": Family("contrastive", "tcl", "class", 2),
    "tcl_sup": Family("contrastive", "tcl", "class", 2),
    "supcon_moco": Family("moco", "supcon", "class", 2),
    "supcon": Family("contrastive", "supcon", "class", 2),
    "simclr": Family("contrastive", "simclr", "instance", 2),
    "ce": Family("classify", None, None, 2),
    "distill": Family("distill", None, None, 2),
    "proxy_anchor": Family("contrastive", "proxy_anchor", "class", 2),
    "subcenter_arcface": Family("contrastive", "subcenter_arcface", "class", 2),
    "siglip": Family("contrastive", "siglip", "class", 2),
    "smooth_ap": Family("contrastive", "smooth_ap", "class", 2),
    "xbm": Family("xbm", "supcon", "class", 2),
    "byol": Family("byol", None, None, 2),
    "simsiam": Family("simsiam", None, None, 2),
    "moco_v3": Family("moco_v3", None, None, 2),
    "moco": Family("moco", "simclr", "instance", 2),
    "vicreg": Family("vicreg", None, None, 2),
    "barlow_twins": Family("barlow_twins", None, None, 2),
    "lejepa": Family("lejepa", None, None, 2),
    "dino": Family("dino", None, None, 2),
    "swav": Family("swav", None, None, 2),
}

ON_EVERY_DATA_SET = ("tcl_selfsup", "tcl_sup", "supcon", "simclr", "ce")
"""Families with a recipe for each data set."""

ON_TWO_DATA_SETS = (
    "moco",
    "supcon_moco",
    "moco_v3",
    "byol",
    "simsiam",
    "vicreg",
    "barlow_twins",
    "lejepa",
    "dino",
    "swav",
    "distill",
    "proxy_anchor",
)
"""Further families with a recipe for the photographs and one for Fashion-MNIST."""

ON_PHOTOS = ("subcenter_arcface", "siglip", "smooth_ap", "xbm")
"""Further families with a recipe for the photographs alone."""

ON_FOLDERS = ("lejepa", "dino", "distill", "proxy_anchor", "smooth_ap")
"""Those of both with a recipe for folders, too."""


def split_name(recipe: str) -> tuple[str, str]:
    """`tcl_sup_cifar10` -> `("tcl_sup", "cifar10")`."""
    family = next(family for family in FAMILIES if recipe.startswith(f"{family}_"))
    return family, recipe.removeprefix(f"{family}_")


def recipe_text(name: str) -> str:
    return (FOLDER / f"{name}.toml").read_text()


def recipe_table(name: str) -> dict[str, Any]:
    """A recipe as it is written, without defaults."""
    return tomllib.loads(recipe_text(name))
