"""Names of parts: one owner each, sources, suggestions; and how a part is built."""

import functools
import importlib
import linecache
import sys
from types import FunctionType

import pytest

from recipe_files import LOSS_PLUGIN, notebook_class, write
from reptk.config import build
from reptk.config.plugins import load_plugin
from reptk.config.registry import DATASETS, EVALUATORS, LOSSES, METHODS, VIEWS, Registry, nearest
from reptk.core.errors import UsageError

# Names


def test_registered_part_is_listed_and_returned(toys):
    @toys.register("spinning_top")
    def top() -> None: ...

    @toys.register("ball")
    def ball() -> None: ...

    assert toys.names() == ["ball", "spinning_top"]
    assert toys.get("ball") is ball
    assert toys.loaded() == {"ball": ball, "spinning_top": top}
    assert toys.source("ball") == "test_registry.py (test_registered_part_is_listed_and_returned.<locals>.ball)"


@pytest.mark.parametrize(
    ("registry", "name", "source"),
    [
        (LOSSES, "tcl", "reptk.losses.tcl.TCL"),
        (VIEWS, "simclr", "reptk.views.sets.simclr"),
        (DATASETS, "photos", "reptk.data.sources.photos.photos"),
        (EVALUATORS, "knn", "reptk.evaluate.metrics.knn.Knn"),
        (METHODS, "contrastive", "reptk.methods.contrastive.Contrastive"),
    ],
)
def test_built_in_parts_have_their_module_as_source(registry, name, source):
    assert name in registry.names()
    assert registry.source(name) == source


@pytest.mark.parametrize("name", ["TCL", "Tcl", "my-loss", "my loss", "my.loss", "1st", ""])
def test_names_are_lower_case_identifiers(toys, name):
    with pytest.raises(UsageError) as error:
        toys.register(name)
    assert str(error.value) == f"toy name {name!r}: use lower-case letters, digits and underscores"
    assert toys.names() == []


def test_only_classes_and_functions_can_be_registered(toys):
    with pytest.raises(UsageError, match=r"toy 'ball': register a class or a function, not functools\.partial"):
        toys.register("ball")(functools.partial(dict, size=3))
    assert toys.names() == []


def test_second_owner_of_a_name_is_refused_and_both_are_named(toys):
    def first() -> None: ...
    def second() -> None: ...

    toys.register("ball")(first)
    with pytest.raises(UsageError) as error:
        toys.register("ball")(second)
    scope = "test_registry.py (test_second_owner_of_a_name_is_refused_and_both_are_named.<locals>"
    assert str(error.value) == f"toy 'ball' is registered twice: by {scope}.first) and by {scope}.second)"
    assert toys.get("ball") is first


def test_plugin_cannot_use_a_built_in_name():
    plugin = write("greedy.py", LOSS_PLUGIN.replace("my_loss", "tcl"))
    with pytest.raises(UsageError) as error:
        load_plugin(plugin)
    assert str(error.value) == (
        "loss 'tcl' is registered twice: by reptk.losses.tcl.TCL and by greedy.py (MyLoss). reptk has one of this name; "
        "register the other one under another name, e.g. my_tcl"
    )
    assert LOSSES.source("tcl") == "reptk.losses.tcl.TCL"


def test_reloaded_module_replaces_its_parts(tmp_path, monkeypatch):
    write("changing.py", LOSS_PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    before = importlib.import_module("changing").MyLoss
    after = importlib.reload(sys.modules["changing"]).MyLoss
    assert before is not after
    assert LOSSES.get("my_loss") is after


def test_notebook_cell_run_again_replaces_its_part(toys):
    toys.register("ball")(notebook_class("Ball"))
    second = toys.register("ball")(notebook_class("Ball"))
    assert toys.get("ball") is second
    with pytest.raises(UsageError, match=r"'ball' is registered twice: by .*Ball\)? and by .*Cube\)?$"):
        toys.register("ball")(notebook_class("Cube"))


def test_every_run_of_a_notebook_cell_may_be_another_file(toys, monkeypatch):
    def ball() -> None: ...

    for number in range(2):
        file = f"<ipython-input-{number}>"
        monkeypatch.setitem(linecache.cache, file, (0, None, [], file))
        latest = FunctionType(ball.__code__.replace(co_filename=file), {}, "ball")
        latest.__module__ = "__main__"
        toys.register("ball")(latest)
    assert toys.get("ball") is latest


def test_unknown_name_suggests_near_ones_and_lists_all(toys):
    for name in ("ball", "balloon", "kite"):
        toys.register(name)(notebook_class(name))
    with pytest.raises(UsageError) as error:
        toys.get("bal")
    assert str(error.value) == "no toy 'bal'. Nearest: ball, balloon. There are: ball, balloon, kite"
    with pytest.raises(UsageError, match=r"^no toy 'xyz'\. There are: ball, balloon, kite$"):
        toys.source("xyz")


def test_suggestions_ignore_letter_case():
    assert nearest("TCL", ["tcl", "supcon"]) == ["tcl"]
    assert nearest("resnet50", ["ResNet50"]) == ["ResNet50"]
    assert nearest("zzz", ["tcl", "supcon"]) == []


# Parameters, hints, and building


class Ball:
    """A toy that takes one of the arguments that are supplied."""

    material = "rubber"

    def __init__(self, size: int, color: str = "red") -> None:
        self.size = size
        self.color = color


class Kite:
    """A toy that takes neither."""


@pytest.fixture
def supplied_toys() -> Registry:
    """A registry that supplies `color` and `owner` to those toys that take them."""
    registry = Registry("toy", home="reptk.core.errors", group="reptk.test_toys", supplied=("color", "owner"))
    registry.register("ball")(Ball)
    registry.register("kite")(Kite)
    return registry


def test_takes_says_whether_a_factory_has_a_parameter(supplied_toys):
    assert supplied_toys.takes("ball", "color")
    assert not supplied_toys.takes("ball", "owner")
    assert not supplied_toys.takes("kite", "color")
    assert METHODS.takes("contrastive", "loss")


def test_hint_is_an_attribute_of_the_factory_or_none(supplied_toys):
    assert supplied_toys.hint("ball", "material") == "rubber"
    assert supplied_toys.hint("kite", "material") is None
    assert DATASETS.hint("cifar100", "classes") == 100


def test_hints_and_parameters_of_an_unknown_name_are_errors(supplied_toys):
    with pytest.raises(UsageError, match="no toy 'bal'"):
        supplied_toys.takes("bal", "color")
    with pytest.raises(UsageError, match="no toy 'bal'"):
        supplied_toys.hint("bal", "material")


def test_build_supplies_what_the_factory_takes_and_nothing_else(supplied_toys):
    ball = supplied_toys.build("ball", {"size": 3}, {"color": "blue", "owner": "Ann"})
    assert (ball.size, ball.color) == (3, "blue")
    assert supplied_toys.build("ball", {"size": 3}, {}).color == "red"
    assert isinstance(supplied_toys.build("kite", {}, {"color": "blue"}), Kite)


def test_arguments_that_a_factory_refuses_are_an_error_with_the_name_of_the_part(toys):
    @toys.register("ball")
    def ball(size: int) -> None:
        raise ValueError(f"too large: {size}")

    with pytest.raises(UsageError, match=r"^toy 'ball': too large: 9$"):
        build(toys, {"name": "ball", "size": 9})
    with pytest.raises(UsageError, match=r"^toy 'ball': .*unexpected keyword argument 'weight'"):
        build(toys, {"name": "ball", "size": 9, "weight": 1})


def test_built_part_has_the_defaults_of_its_protocol():
    @LOSSES.register("bare")
    class Bare:
        def __call__(self, z, ids):
            return z.sum()

    loss = build(LOSSES, {"name": "bare"})
    assert loss.computes_local_rows is False
    assert loss.temperature is None
