"""Plugins: files and modules that register parts, and which of them a recipe may bring."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from recipe_files import LOSS_PLUGIN, TINY, write
from reptk.config import load
from reptk.config.plugins import load_contributed_plugins, load_plugin
from reptk.config.registry import LOSSES
from reptk.core.errors import UsageError

METHOD_PLUGIN = """
from reptk import METHODS, Method

@METHODS.register("moco")
class MoCo(Method):
    def forward(self, batch, step): ...
"""

# Loading


def test_plugin_file_is_imported_under_its_stem(tmp_path):
    module = load_plugin(write(tmp_path / "deep" / "my_loss.py", LOSS_PLUGIN))
    assert isinstance(module, ModuleType)
    assert sys.modules["my_loss"] is module
    assert sys.path[-1] == str(tmp_path / "deep")
    assert LOSSES.get("my_loss") is module.MyLoss
    assert LOSSES.source("my_loss") == "my_loss.py (MyLoss)"


def test_plugin_may_import_modules_of_its_folder():
    write("name_of_loss.py", "NAME = 'my_loss'")
    text = LOSS_PLUGIN.replace('"my_loss"', "NAME")
    load_plugin(write("my_loss.py", f"from name_of_loss import NAME\n{text}"))
    assert "my_loss" in LOSSES.names()


def test_plugin_may_be_a_module(tmp_path, monkeypatch):
    write("acme_parts/losses.py", LOSS_PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    assert load_plugin("acme_parts.losses").__name__ == "acme_parts.losses"
    assert "my_loss" in LOSSES.names()


def test_plugin_may_be_loaded_again(tmp_path):
    plugin = write("my_loss.py", LOSS_PLUGIN)
    assert load_plugin(plugin) is load_plugin(plugin)
    assert load_plugin("my_loss") is load_plugin(plugin)
    assert sys.path.count(str(tmp_path)) == 1


def test_copy_of_a_plugin_is_the_same_plugin():
    first = load_plugin(write("one/my_loss.py", LOSS_PLUGIN))
    assert load_plugin(write("two/my_loss.py", LOSS_PLUGIN)) is first
    changed = write("three/my_loss.py", LOSS_PLUGIN + "# changed")
    message = r"^plugin my_loss\.py: another module is already called 'my_loss' \(.*one.*\)"
    with pytest.raises(UsageError, match=message):
        load_plugin(changed)


def test_module_that_registered_earlier_is_a_plugin(tmp_path, monkeypatch):
    path = write("my_loss.py", LOSS_PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("my_loss")
    assert load_plugin(path) is module


def test_edited_plugin_is_not_mistaken_for_the_old_one():
    load_plugin(write("my_loss.py", LOSS_PLUGIN))
    edited = write("my_loss.py", LOSS_PLUGIN + "\n\nEDITED = True\n")
    with pytest.raises(UsageError, match=r"plugin my_loss\.py: .* it was changed since it was imported"):
        load_plugin(edited)


UNUSABLE_FILES = {
    "missing": ("gone.py", None, "no such file"),
    "folder": ("folder.py/x.txt", "", "no such file"),
    "name with a dash": ("my-loss.py", LOSS_PLUGIN, "must be a Python identifier, e.g. my_loss.py"),
    "name with a digit first": ("2nd.py", LOSS_PLUGIN, "must be a Python identifier"),
    "name of an imported module": ("json.py", LOSS_PLUGIN, "another module is already called 'json'"),
    "name of a module not yet imported": ("this.py", LOSS_PLUGIN, "an installed module is called 'this'"),
    "nothing registered": ("my_loss.py", "x = 1", "registers nothing. A part is registered with a decorator"),
    "syntax": ("my_loss.py", "\ndef (", "my_loss.py:2: SyntaxError: invalid syntax: def (. Correct that line"),
    "import": (
        "my_loss.py",
        "\n\nimport no_such_thing.parts",
        "my_loss.py:3: ModuleNotFoundError: No module named 'no_such_thing'. Correct the name, or install the package that has "
        "no_such_thing for ",
    ),
    "error of the plugin": (
        "my_loss.py",
        "raise KeyError('x')",
        "my_loss.py:1: KeyError: 'x'. Correct the code; for the whole traceback: python my_loss.py",
    ),
    "error in a library": ("my_loss.py", "import json\njson.loads('{')", "my_loss.py:2: JSONDecodeError: "),
    "a file without text": ("my_loss.py", "x = 1\0", "cannot be imported: "),
}


@pytest.mark.parametrize(("name", "text", "message"), UNUSABLE_FILES.values(), ids=UNUSABLE_FILES)
def test_unusable_plugin_file_is_explained(name, text, message):
    if text is not None:
        write(name, text)
    plugin = Path(name.split("/")[0])
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
            "plugin no_such_module cannot be imported: ModuleNotFoundError: No module named 'no_such_module'. Correct the "
            f"name, or install the package that has no_such_module for {sys.executable}",
        ),
        (
            "string",
            "plugin string registers nothing. A part is registered with a decorator, e.g. @LOSSES.register('my_loss')",
        ),
    ],
)
def test_unusable_plugin_module_is_explained(module, message):
    with pytest.raises(UsageError) as error:
        load_plugin(module)
    assert str(error.value) == message


# Plugins of a recipe


def recipe_with_plugins(*specs: str) -> str:
    """A recipe of the plugin's loss that brings these plugins, as text."""
    text = TINY.replace("tcl", "my_loss").replace("temperature = 0.2\nk1 = 100.0\n", "")
    return f"plugins = {list(specs)!r}\n{text}"


def test_plugin_in_the_recipes_folder_is_loaded_only_if_it_is_trusted():
    write("mine/parts/my_loss.py", LOSS_PLUGIN)
    path = write("mine/tiny.toml", recipe_with_plugins("parts/my_loss.py"))
    with pytest.raises(UsageError) as error:
        load(path)
    assert str(error.value) == (
        "mine/tiny.toml brings the plugin parts/my_loss.py, which is code. If you trust it, run it with --trust (in Python: "
        "trust=True), or name it: --plugin mine/parts/my_loss.py"
    )
    assert "my_loss" not in sys.modules
    recipe = load(path, trust=True)
    assert recipe.loss == {"name": "my_loss", "margin": 0.2}
    assert recipe.plugins == (str(Path("mine/parts/my_loss.py").resolve()),)


def test_plugin_in_the_recipes_folder_may_be_named():
    write("mine/my_loss.py", LOSS_PLUGIN)
    path = write("mine/tiny.toml", recipe_with_plugins("my_loss.py"))
    assert load(path, plugins=["mine/my_loss.py"]).plugins == (str(Path("mine/my_loss.py").resolve()),)


FROM_ELSEWHERE = (
    *("../my_loss.py", "{folder}/my_loss.py", "inner/../../my_loss.py", "json", "my_loss", ""),
    # Not the name of a contributed plugin, however it begins.
    *("reptk.plugins./../../my_loss.py", "reptk.plugins.x/../../my_loss.py", "reptk.plugins.dcl.my_loss"),
    *("reptk.plugins.no_such_plugin", "reptk.plugins", "reptk.plugins.", "reptk.plugins.README", "reptk.testing"),
)


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("spec", FROM_ELSEWHERE)
def test_plugin_from_elsewhere_is_refused(tmp_path, spec, trust):
    write("my_loss.py", LOSS_PLUGIN)
    write("mine/reptk.plugins.x", "")
    spec = spec.format(folder=tmp_path)
    path = write("mine/tiny.toml", recipe_with_plugins(spec))
    with pytest.raises(UsageError) as error:
        load(path, trust=trust)
    assert str(error.value) == f"mine/tiny.toml asks for the plugin {spec}. If you trust it, name it: --plugin {spec}"
    assert "my_loss" not in sys.modules


def test_link_in_the_recipes_folder_does_not_make_a_plugin_trusted():
    write("my_loss.py", LOSS_PLUGIN)
    path = write("mine/tiny.toml", recipe_with_plugins("my_loss.py"))
    Path("mine/my_loss.py").symlink_to("../my_loss.py")
    with pytest.raises(UsageError, match="If you trust it, name it"):
        load(path, trust=True)


def test_plugin_from_elsewhere_is_loaded_if_the_user_names_it():
    write("my_loss.py", LOSS_PLUGIN)
    recipe = load(write("mine/tiny.toml", recipe_with_plugins("../my_loss.py")), plugins=["my_loss.py"])
    assert recipe.plugins == (str(Path("my_loss.py").resolve()),)


def test_contributed_plugins_need_no_consent():
    recipe = load(write("tiny.toml", f'plugins = ["reptk.plugins.dcl"]\n{TINY}'), ["loss.name=dcl"])
    assert recipe.plugins == ("reptk.plugins.dcl",)
    assert recipe.loss == {"name": "dcl", "temperature": 0.1}


def test_plugin_named_twice_is_recorded_once():
    write("my_loss.py", LOSS_PLUGIN)
    assert len(load(write("tiny.toml"), plugins=["my_loss.py", "my_loss.py"]).plugins) == 1


# Plugins that have become a part of reptk


@pytest.mark.parametrize("name", ["byol", "moco"])
def test_recipe_that_names_a_plugin_which_is_built_in_by_now_is_the_same_without_it(name):
    recipe = load(write("tiny.toml", f'plugins = ["reptk.plugins.{name}"]\n{TINY}'))
    assert recipe.plugins == ()
    assert recipe == load(write("tiny.toml", TINY))
    assert load_contributed_plugins([f"reptk.plugins.{name}", "my_loss.py"]) == ["my_loss.py"]


def test_command_that_names_it_is_told_to_leave_it_out():
    with pytest.warns(
        UserWarning, match=r"plugin reptk\.plugins\.moco: the method moco comes with reptk .* leave it out"
    ):
        assert load(write("tiny.toml"), plugins=["reptk.plugins.moco"]).plugins == ()
    message = "the method byol comes with reptk and needs no plugin; leave it out"
    with pytest.raises(UsageError, match=rf"^plugin reptk\.plugins\.byol: {message}$"):
        load_plugin("reptk.plugins.byol")
    with pytest.raises(UsageError, match=rf"^plugin plugins/byol\.py: {message}$"):
        load_plugin("plugins/byol.py")


def test_copy_of_it_is_told_to_take_another_name():
    with pytest.raises(UsageError, match=r"method 'moco' is registered twice: .* under another name, e\.g\. my_moco$"):
        load_plugin(write("moco.py", METHOD_PLUGIN))
