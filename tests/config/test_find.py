"""Where recipes are searched for, and how a file that is no recipe is reported."""

from pathlib import Path

import pytest

from recipe_files import TINY, write
from reptk.config import available, find, load, read
from reptk.core.errors import UsageError


def test_run_folder_is_a_recipe():
    recipe = load(write("tiny.toml"), ["seed=9"])
    write("runs/tiny/1/recipe.toml", recipe.dump())
    assert load("runs/tiny/1") == recipe
    again = load(Path("runs/tiny/1"), ["seed=3"])
    assert again.overrides == ("seed=3",)
    assert again.model_copy(update={"overrides": ()}) == load("tiny.toml")


def test_recipe_in_the_current_folder_has_a_name():
    write("recipes/mine.toml")
    assert find("mine") == Path("recipes/mine.toml")
    assert load("mine").name == "mine"
    assert "mine" in available()


def test_current_folder_hides_shipped_recipe_with_a_warning():
    assert available()["tcl_selfsup_photos"] != Path("recipes/tcl_selfsup_photos.toml")
    write("recipes/tcl_selfsup_photos.toml")
    with pytest.warns(UserWarning, match=r"recipes/tcl_selfsup_photos\.toml hides the recipe of that name in /"):
        assert load("tcl_selfsup_photos").seed == 3


def test_file_is_preferred_to_a_name():
    write("recipes/mine.toml")
    write("mine", TINY.replace("seed = 3", "seed = 4"))
    assert load("mine").seed == 4


@pytest.fixture
def installed_package(monkeypatch):
    """The package of an installed distribution that offers the recipe `acme_tiny`."""
    write("site/acme-1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: acme\nVersion: 1.2\n")
    write("site/acme-1.2.dist-info/entry_points.txt", "[reptk.recipes]\nacme = acme.recipes\n")
    package = Path(write("site/acme/__init__.py", ""))
    write("site/acme/recipes/__init__.py", "")
    write("site/acme/recipes/acme_tiny.toml")
    monkeypatch.syspath_prepend("site")
    return package


def test_recipes_of_installed_distributions_are_available(installed_package):
    assert load("acme_tiny").name == "acme_tiny"
    assert {"acme_tiny", "tcl_selfsup_photos"} <= set(available())


def test_broken_distribution_does_not_hide_other_recipes(installed_package):
    installed_package.write_text("import no_such_dependency")
    with pytest.warns(UserWarning, match="acme.recipes cannot be found"):
        assert "tcl_selfsup_photos" in available()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tcl_selfsup_photo", "no recipe 'tcl_selfsup_photo'. Nearest: tcl_selfsup_photos"),
        ("qqqq", "no recipe 'qqqq'. All of them: python -m reptk.recipe --list"),
        ("gone.toml", "no recipe at gone.toml (looked in {folder})"),
        ("some/where", "no recipe at some/where (looked in {folder}/some)"),
    ],
)
def test_missing_recipe_is_explained(tmp_path, name, message):
    with pytest.raises(UsageError) as error:
        find(name)
    assert str(error.value).startswith(message.format(folder=tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[data\n", "tiny.toml is not valid TOML: "),
        (b"seed = 1\nseed = 2\n", "tiny.toml is not valid TOML: Cannot overwrite a value (at line 2, column 9)"),
        (b"lr = .5\n", "tiny.toml is not valid TOML: Invalid value (at line 1, column 6)"),
        (b"\xff\xfe", "cannot read tiny.toml: 'utf-8' codec can't decode"),
    ],
)
def test_file_that_is_not_toml_is_reported_with_its_place(content, message):
    Path("tiny.toml").write_bytes(content)
    with pytest.raises(UsageError) as error:
        read(Path("tiny.toml"))
    assert str(error.value).startswith(message)
