"""A name has one owner for good, nothing is imported before it is asked for, and plugins are found or explained."""

import importlib
import json
import linecache
import subprocess
import sys
from pathlib import Path
from types import FunctionType, ModuleType

import pytest

from reptk.config.plugins import load_plugin
from reptk.config.registry import DATASETS, EVALUATORS, LOSSES, METHODS, VIEWS, Registry, nearest
from reptk.core.errors import UsageError

A_LOSS = """
from reptk import LOSSES

@LOSSES.register("my_loss")
class MyLoss: ...
"""


@pytest.fixture(autouse=True)
def _as_before(tmp_path, monkeypatch, restored_registries):
    """Whatever a test registers or imports from its own folder is restored_registries after it."""


@pytest.fixture
def toys() -> Registry:
    """A registry of its own, without built-in parts."""
    return Registry("toy", home="reptk.core.errors", group="reptk.test_toys")


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put a distribution on sys.path: its metadata, its entry points, and modules that tell when they are imported."""
    site = tmp_path / "site"
    site.mkdir()

    def add(name: str, points: dict[str, str], modules: dict[str, str], group: str = "reptk.test_toys") -> None:
        info = site / f"{name}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        lines = [f"{point} = {value}\n" for point, value in points.items()]
        (info / "entry_points.txt").write_text(f"[{group}]\n{''.join(lines)}")
        for module, text in modules.items():
            path = site / module
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        monkeypatch.syspath_prepend(site)

    return add


def _write(path: Path, text: str = A_LOSS) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


# Names


def test_a_registered_part_is_listed_and_found(toys):
    @toys.register("spinning_top")
    def top() -> None: ...

    @toys.register("ball")
    def ball() -> None: ...

    assert toys.names() == ["ball", "spinning_top"]
    assert toys.get("ball") is ball
    assert toys.loaded() == {"ball": ball, "spinning_top": top}
    assert toys.source("ball") == "test_registry.py (test_a_registered_part_is_listed_and_found.<locals>.ball)"


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
def test_built_in_parts_say_where_they_are(registry, name, source):
    assert name in registry.names()
    assert registry.source(name) == source


@pytest.mark.parametrize("name", ["TCL", "Tcl", "my-loss", "my loss", "my.loss", "1st", ""])
def test_names_are_lower_case_identifiers(toys, name):
    with pytest.raises(UsageError) as error:
        toys.register(name)
    assert str(error.value) == f"toy name {name!r}: use lower-case letters, digits and underscores"
    assert toys.names() == []


def test_a_second_owner_is_refused_and_both_are_named(toys):
    def first() -> None: ...
    def second() -> None: ...

    toys.register("ball")(first)
    with pytest.raises(UsageError) as error:
        toys.register("ball")(second)
    here = "test_registry.py (test_a_second_owner_is_refused_and_both_are_named.<locals>"
    assert str(error.value) == f"toy 'ball' is registered twice: by {here}.first) and by {here}.second)"
    assert toys.get("ball") is first


def test_a_plugin_cannot_take_a_built_in_name(tmp_path):
    plugin = _write(tmp_path / "greedy.py", A_LOSS.replace("my_loss", "tcl"))
    with pytest.raises(UsageError) as error:
        load_plugin(plugin)
    assert str(error.value) == "loss 'tcl' is registered twice: by reptk.losses.tcl.TCL and by greedy.py (MyLoss)"
    assert LOSSES.source("tcl") == "reptk.losses.tcl.TCL"


def test_a_reloaded_module_replaces_its_parts(tmp_path, monkeypatch):
    _write(tmp_path / "changing.py")
    monkeypatch.syspath_prepend(tmp_path)
    before = importlib.import_module("changing").MyLoss
    after = importlib.reload(sys.modules["changing"]).MyLoss
    assert before is not after
    assert LOSSES.get("my_loss") is after


def _cell(name: str) -> type:
    """A class as a notebook cell defines it."""
    made = type(name, (), {})
    made.__module__ = "__main__"
    return made


def test_a_notebook_cell_run_again_replaces_its_part(toys):
    toys.register("ball")(_cell("Ball"))
    again = toys.register("ball")(_cell("Ball"))
    assert toys.get("ball") is again
    with pytest.raises(UsageError, match=r"'ball' is registered twice: by .*Ball\)? and by .*Cube\)?$"):
        toys.register("ball")(_cell("Cube"))


def test_every_run_of_a_notebook_cell_is_a_file_of_its_own(toys, monkeypatch):
    def ball() -> None: ...

    for number in range(2):
        file = f"<ipython-input-{number}>"
        monkeypatch.setitem(linecache.cache, file, (0, None, [], file))
        again = FunctionType(ball.__code__.replace(co_filename=file), {}, "ball")
        again.__module__ = "__main__"
        toys.register("ball")(again)
    assert toys.get("ball") is again


def test_an_unknown_name_suggests_near_ones_and_lists_all(toys):
    for name in ("ball", "balloon", "kite"):
        toys.register(name)(_cell(name))
    with pytest.raises(UsageError) as error:
        toys.get("bal")
    assert str(error.value) == "no toy 'bal'. Nearest: ball, balloon. There are: ball, balloon, kite"
    with pytest.raises(UsageError, match=r"^no toy 'xyz'\. There are: ball, balloon, kite$"):
        toys.source("xyz")


def test_letter_case_does_not_count_for_suggestions():
    assert nearest("TCL", ["tcl", "supcon"]) == ["tcl"]
    assert nearest("resnet50", ["ResNet50"]) == ["ResNet50"]
    assert nearest("zzz", ["tcl", "supcon"]) == []


# Entry points


def test_listing_an_installed_part_does_not_import_it(toys, install):
    install("acme", {"kite": "acme_toys:Kite"}, {"acme_toys.py": "class Kite: ..."})
    assert toys.names() == ["kite"]
    assert "acme_toys" not in sys.modules
    assert toys.loaded() == {}
    assert toys.get("kite") is sys.modules["acme_toys"].Kite
    assert toys.source("kite") == "acme 1.2"
    assert toys.get("kite") is sys.modules["acme_toys"].Kite


def test_an_installed_part_is_suggested_without_being_imported(toys, install):
    install("acme", {"kite": "acme_toys:Kite"}, {"acme_toys.py": "class Kite: ..."})
    with pytest.raises(UsageError, match=r"^no toy 'kit'\. Nearest: kite\."):
        toys.get("kit")
    assert "acme_toys" not in sys.modules


def test_two_distributions_with_one_name_are_both_named(toys, install):
    install("acme", {"kite": "acme_toys:Kite"}, {"acme_toys.py": "class Kite: ..."})
    install("zeus", {"kite": "zeus_toys:Kite"}, {"zeus_toys.py": "class Kite: ..."})
    assert toys.names() == ["kite"]
    with pytest.raises(UsageError) as error:
        toys.get("kite")
    assert str(error.value).startswith("toy 'kite' is registered twice: by ")
    assert "acme 1.2" in str(error.value)
    assert "zeus 1.2" in str(error.value)
    assert not {"acme_toys", "zeus_toys"} & set(sys.modules)


def test_an_installed_part_cannot_take_a_registered_name(toys, install):
    toys.register("kite")(_cell("Kite"))
    install("acme", {"kite": "acme_toys:Kite"}, {"acme_toys.py": "class Kite: ..."})
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
def test_a_broken_distribution_is_named_with_the_cause(toys, install, module, value, cause):
    install("acme", {"kite": value}, {"acme_toys.py": module})
    toys.register("ball")(_cell("Ball"))
    assert toys.names() == ["ball", "kite"]
    assert toys.get("ball")
    with pytest.raises(UsageError) as error:
        toys.get("kite")
    assert str(error.value) == f"toy 'kite' of acme 1.2 cannot be imported ({value}): {cause}"


def test_an_installed_module_may_also_register_itself(install):
    install("acme", {"my_loss": "acme_losses:MyLoss"}, {"acme_losses.py": A_LOSS}, group="reptk.losses")
    for _ in range(2):
        assert LOSSES.get("my_loss").__module__ == "acme_losses"


@pytest.mark.parametrize("inner", ["class Kite: ...", "def Kite(): ..."])
def test_an_installed_part_may_be_re_exported(toys, install, inner):
    modules = {"acme_toys/__init__.py": "from acme_toys.inner import Kite", "acme_toys/inner.py": inner}
    install("acme", {"kite": "acme_toys:Kite"}, modules)
    for _ in range(2):
        assert toys.get("kite").__module__ == "acme_toys.inner"


# Plugins


def test_a_plugin_file_is_imported_under_its_stem(tmp_path):
    module = load_plugin(_write(tmp_path / "deep" / "my_loss.py"))
    assert isinstance(module, ModuleType)
    assert sys.modules["my_loss"] is module
    assert sys.path[-1] == str(tmp_path / "deep")
    assert LOSSES.get("my_loss") is module.MyLoss
    assert LOSSES.source("my_loss") == "my_loss.py (MyLoss)"


def test_a_plugin_may_import_its_neighbours(tmp_path):
    _write(tmp_path / "neighbour.py", "NAME = 'my_loss'")
    load_plugin(_write(tmp_path / "my_loss.py", "from neighbour import NAME\n" + A_LOSS.replace('"my_loss"', "NAME")))
    assert "my_loss" in LOSSES.names()


def test_a_plugin_may_be_a_module(tmp_path, monkeypatch):
    _write(tmp_path / "acme_parts" / "losses.py")
    monkeypatch.syspath_prepend(tmp_path)
    assert load_plugin("acme_parts.losses").__name__ == "acme_parts.losses"
    assert "my_loss" in LOSSES.names()


def test_a_plugin_may_be_loaded_again(tmp_path):
    plugin = _write(tmp_path / "my_loss.py")
    assert load_plugin(plugin) is load_plugin(plugin)
    assert load_plugin("my_loss") is load_plugin(plugin)
    assert sys.path.count(str(tmp_path)) == 1


def test_a_copy_of_a_plugin_is_that_plugin(tmp_path):
    first = load_plugin(_write(tmp_path / "one" / "my_loss.py"))
    assert load_plugin(_write(tmp_path / "two" / "my_loss.py")) is first
    changed = _write(tmp_path / "three" / "my_loss.py", A_LOSS + "# changed")
    with pytest.raises(
        UsageError, match=r"^plugin my_loss\.py: another module is already called 'my_loss' \(.*one.*\)"
    ):
        load_plugin(changed)


def test_a_module_that_registered_earlier_is_a_plugin(tmp_path, monkeypatch):
    path = _write(tmp_path / "my_loss.py")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("my_loss")
    assert load_plugin(path) is module


REFUSED_FILES = {
    "missing": ("gone.py", None, "no such file"),
    "folder": ("folder.py/x.txt", "", "no such file"),
    "name with a dash": ("my-loss.py", A_LOSS, "must be a Python identifier, e.g. my_loss.py"),
    "name with a digit first": ("2nd.py", A_LOSS, "must be a Python identifier"),
    "name of an imported module": ("json.py", A_LOSS, "another module is already called 'json'"),
    "name of a module not yet imported": ("this.py", A_LOSS, "an installed module is called 'this'"),
    "nothing registered": ("my_loss.py", "x = 1", "registers nothing. A part is registered with a decorator"),
    "syntax": ("my_loss.py", "def (", "cannot be imported: SyntaxError: invalid syntax (my_loss.py, line 1)"),
    "import": ("my_loss.py", "import no_such_thing", "cannot be imported: ModuleNotFoundError: No module named"),
    "its own error": ("my_loss.py", "raise KeyError('x')", "cannot be imported: KeyError: 'x'"),
}


@pytest.mark.parametrize(("name", "text", "message"), REFUSED_FILES.values(), ids=REFUSED_FILES)
def test_a_plugin_file_that_cannot_be_used_is_explained(tmp_path, name, text, message):
    if text is not None:
        _write(tmp_path / name, text)
    plugin = tmp_path / name.split("/")[0]
    modules = set(sys.modules)
    with pytest.raises(UsageError) as error:
        load_plugin(str(plugin))
    assert str(error.value).startswith("plugin ")
    assert plugin.stem in str(error.value)
    assert message in str(error.value)
    assert sys.modules["json"] is json
    if "registers nothing" not in message:
        assert set(sys.modules) == modules


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (
            "no_such_module",
            "plugin no_such_module cannot be imported: ModuleNotFoundError: No module named 'no_such_module'",
        ),
        (
            "string",
            "plugin string registers nothing. A part is registered with a decorator, e.g. @LOSSES.register('my_loss')",
        ),
    ],
)
def test_a_plugin_module_that_cannot_be_used_is_explained(module, message):
    with pytest.raises(UsageError) as error:
        load_plugin(module)
    assert str(error.value) == message


def test_an_edited_plugin_is_not_taken_for_the_old_one(tmp_path):
    load_plugin(_write(tmp_path / "my_loss.py"))
    edited = _write(tmp_path / "my_loss.py", A_LOSS + "\n\nEDITED = True\n")
    try:
        module = load_plugin(edited)
    except UsageError as error:
        assert "my_loss.py" in str(error)  # noqa: PT017
    else:
        assert module.EDITED


# Import


@pytest.mark.parametrize(("module", "found"), [("reptk", []), ("reptk.config", ["pydantic"])])
def test_importing_reptk_imports_nothing_heavy(tmp_path, module, found):
    heavy = ["torch", "torchvision", "timm", "kornia", "faiss", "pydantic", "sklearn", "PIL"]
    program = f"import sys, {module}; print(sorted(set({heavy}) & set(sys.modules)))"
    made = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert made.stderr == ""
    assert made.stdout.strip() == str(found)


def test_public_names_are_found_when_first_used():
    import reptk

    for name in reptk.__all__:
        assert getattr(reptk, name) is not None
    assert set(reptk.__all__) <= set(dir(reptk))
    with pytest.raises(AttributeError, match="module 'reptk' has no attribute 'nosuch'"):
        reptk.nosuch  # noqa: B018
