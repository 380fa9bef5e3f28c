"""Parts of installed distributions: listed from their metadata, imported when they are used."""

import sys

import pytest

from recipe_files import LOSS_PLUGIN, notebook_class
from reptk.config.registry import LOSSES
from reptk.core.errors import UsageError

KITE_MODULE = {"acme_toys.py": "class Kite: ..."}
KITE_POINT = {"kite": "acme_toys:Kite"}


def test_listing_an_installed_part_does_not_import_it(toys, install):
    install("acme", KITE_POINT, KITE_MODULE)
    assert toys.names() == ["kite"]
    assert "acme_toys" not in sys.modules
    assert toys.loaded() == {}
    assert toys.get("kite") is sys.modules["acme_toys"].Kite
    assert toys.source("kite") == "acme 1.2"
    assert toys.get("kite") is sys.modules["acme_toys"].Kite


def test_a_part_that_is_installed_later_is_listed(toys, install):
    assert toys.names() == []
    install("acme", KITE_POINT, KITE_MODULE)
    assert toys.names() == ["kite"]


def test_installed_part_is_suggested_without_being_imported(toys, install):
    install("acme", KITE_POINT, KITE_MODULE)
    with pytest.raises(UsageError, match=r"^no toy 'kit'\. Nearest: kite\."):
        toys.get("kit")
    assert "acme_toys" not in sys.modules


def test_two_distributions_with_one_name_are_both_named(toys, install):
    install("acme", KITE_POINT, KITE_MODULE)
    install("zeus", {"kite": "zeus_toys:Kite"}, {"zeus_toys.py": "class Kite: ..."})
    assert toys.names() == ["kite"]
    with pytest.raises(UsageError) as error:
        toys.get("kite")
    assert str(error.value).startswith("toy 'kite' is registered twice: by ")
    assert "acme 1.2" in str(error.value)
    assert "zeus 1.2" in str(error.value)
    assert not {"acme_toys", "zeus_toys"} & set(sys.modules)


def test_installed_part_cannot_use_a_registered_name(toys, install):
    toys.register("kite")(notebook_class("Kite"))
    install("acme", KITE_POINT, KITE_MODULE)
    with pytest.raises(UsageError, match=r"'kite' is registered twice: by .*Kite\)? and by acme 1\.2$"):
        toys.get("kite")


@pytest.mark.parametrize(
    ("module", "value", "cause"),
    [
        ("import no_such_dependency", "acme_toys:Kite", "ModuleNotFoundError: No module named 'no_such_dependency'"),
        ("1 / 0", "acme_toys:Kite", "ZeroDivisionError: division by zero"),
        ("", "acme_toys:Kite", "AttributeError: module 'acme_toys' has no attribute 'Kite'"),
        ("", "acme_gone:Kite", "ModuleNotFoundError: No module named 'acme_gone'"),
    ],
)
def test_broken_distribution_is_named_with_the_cause(toys, install, module, value, cause):
    install("acme", {"kite": value}, {"acme_toys.py": module})
    toys.register("ball")(notebook_class("Ball"))
    assert toys.names() == ["ball", "kite"]
    assert toys.get("ball")
    with pytest.raises(UsageError) as error:
        toys.get("kite")
    assert str(error.value) == f"toy 'kite' of acme 1.2 cannot be imported ({value}): {cause}"


def test_installed_module_may_also_register_itself(install):
    install("acme", {"my_loss": "acme_losses:MyLoss"}, {"acme_losses.py": LOSS_PLUGIN}, group="reptk.losses")
    for _ in range(2):
        assert LOSSES.get("my_loss").__module__ == "acme_losses"


@pytest.mark.parametrize("definition", ["class Kite: ...", "def Kite(): ..."])
def test_installed_part_may_be_re_exported(toys, install, definition):
    modules = {"acme_toys/__init__.py": "from acme_toys.inner import Kite", "acme_toys/inner.py": definition}
    install("acme", KITE_POINT, modules)
    for _ in range(2):
        assert toys.get("kite").__module__ == "acme_toys.inner"
