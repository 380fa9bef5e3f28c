"""A loaded recipe: complete, frozen, and the same after it was written out and read again."""

import tomllib

import pytest

from recipe_files import TINY, write
from reptk.config import build, load, signature
from reptk.config.registry import DATASETS, LOSSES


def test_recipe_is_complete_and_frozen():
    recipe = load(write("tiny.toml"))
    assert recipe.name == "tiny"
    assert recipe.seed == 3
    assert recipe.loss == {"name": "tcl", "temperature": 0.2, "k1": 100.0, "k2": 1.0, "learn_temperature": False}
    assert recipe.views["strength"] == 0.5
    assert recipe.eval["knn"]["temperature"] == 0.07
    assert recipe.optim.name == "sgd"
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 1


@pytest.mark.parametrize(
    "pairs",
    [
        [],
        ["loss.name=supcon", "loss.form=in"],
        ["views.name=none", "views.size=28", "train.device=cuda:1", "encoder.head_width=7"],
        ["views.name=simclr_small", "views.count=3", 'views.third=[{name="RandomGrayscale", p=0.2}]'],
        ["data.name=folder", 'data.root=a "quoted" \\ path\twith ünicode', "name=mine-2.0+x"],
        ["eval.near.name=knn", "eval.near.k=[2, 3]", "eval.near.every_epochs=2", "eval.view_retrieval.limit=10"],
    ],
)
def test_dumped_recipe_loads_as_the_same_recipe(pairs):
    recipe = load(write("tiny.toml"), pairs)
    reloaded = load(write("elsewhere/recipe.toml", recipe.dump()))
    assert reloaded == recipe
    assert reloaded.dump() == recipe.dump()


def test_dump_holds_every_default():
    table = tomllib.loads(load(write("tiny.toml")).dump())
    assert {"precision", "workers", "clip_norm"} <= set(table["train"])
    for key, registry in (("data", DATASETS), ("loss", LOSSES)):
        factory = registry.get(table[key]["name"])
        assert set(table[key]) == {"name", *signature.names(factory)}


UNUSUAL_DEFAULTS = """
from math import inf
from reptk import LOSSES

@LOSSES.register("my_loss")
class MyLoss:
    def __init__(self, {parameter}, margin: float = 0.2) -> None:
        self.odd = odd
"""


def plain(value: object) -> object:
    """The value as TOML holds it: a tuple comes back as a list."""
    if isinstance(value, tuple):
        return list(value)
    return value


@pytest.mark.parametrize(
    "parameter",
    [
        "odd=None",
        "odd: int | None = None",
        "odd: tuple[int, ...] = (1, 2)",
        "odd: float = inf",
        "odd=print",
        "odd=(print, 1)",
        r"odd=b'\xff'",
    ],
)
def test_part_is_built_with_its_default_before_and_after_a_dump(parameter):
    write("my_loss.py", UNUSUAL_DEFAULTS.format(parameter=parameter))
    text = 'plugins = ["my_loss.py"]\n' + TINY.replace("tcl", "my_loss")
    recipe = load(
        write("tiny.toml", text.replace("temperature = 0.2\nk1 = 100.0\n", "")), ["loss.margin=0.3"], trust=True
    )
    reloaded = load(write("reloaded.toml", recipe.model_copy(update={"plugins": ("my_loss.py",)}).dump()), trust=True)
    default = plain(LOSSES.get("my_loss")().odd)
    assert plain(build(LOSSES, recipe.loss).odd) == default
    assert plain(build(LOSSES, reloaded.loss).odd) == default
