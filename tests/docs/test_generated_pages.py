"""The pages that are written from the code hold all of it."""

import functools
import re
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest

import reptk
from reptk.cli import VERBS
from reptk.config import signature
from reptk.config.part_tables import common_arguments
from reptk.config.schema import Recipe
from reptk_pages import all_pages, write_pages
from reptk_pages.command_parsers import parser_of
from reptk_pages.docstrings import argument_descriptions, as_restructured_text, description_of
from reptk_pages.part_pages import KINDS
from reptk_pages.repository_pages import with_site_links
from reptk_pages.schema_page import _model_of


@pytest.fixture(autouse=True)
def _restored(restored_registries: None) -> None:
    """Undo what the contributed plugins register."""


written_pages = functools.cache(all_pages)


@pytest.fixture
def generated(restored_registries: None) -> dict[str, str]:
    """The pages, written once: in a test, so that the parts that are registered for them are removed again."""
    return written_pages()


def undescribed_keys(model: type, prefix: str = "") -> list[str]:
    """Return the keys of a table, and of those in it, that have no description."""
    keys = []
    for name, field in model.model_fields.items():
        inner = _model_of(field)
        if inner is not None:
            keys += undescribed_keys(inner, f"{prefix}{name}.")
        elif not field.description:
            keys.append(f"{prefix}{name}")
    return keys


def test_every_key_of_a_recipe_is_described(generated: dict[str, str]) -> None:
    parts = {"data", "views", "method"}
    assert set(undescribed_keys(Recipe)) - parts == set()
    for name in Recipe.model_fields:
        assert f"`{name}`" in generated["schema.md"] or f"`[{name}]`" in generated["schema.md"]
    assert "| `layer_decay` | number, above 0, at most 1 | `1.0` |" in generated["schema.md"]


def test_every_argument_of_every_part_is_listed(generated: dict[str, str]) -> None:
    for file, (registry, _, _) in KINDS.items():
        text = generated[f"parts/{file}.md"]
        for name in registry.names():
            section = text.split(f"\n## `{name}`\n")[1].split("\n## ")[0]
            for argument in [
                *signature.names(registry.get(name), registry.supplied),
                *common_arguments(registry, name),
            ]:
                assert f"| `{argument}` |" in section, f"{file} {name} {argument}"


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_is_listed(verb: str, generated: dict[str, str]) -> None:
    parser = parser_of(verb)
    for action in parser._actions:
        for option in set(action.option_strings) - {"-h", "--help"}:
            assert option in generated[f"commands/{verb}.md"]


def test_every_recipe_has_a_page(generated: dict[str, str]) -> None:
    recipes = [path for path in files("reptk.recipes").iterdir() if path.name.endswith(".toml")]
    assert len(recipes) > 50
    for path in recipes:
        text = path.read_text()
        page = generated[f"recipes/{path.name.removesuffix('.toml')}.md"]
        without_head = re.sub(r"\A(#.*\n)+", "", text)
        assert without_head.strip() in page
        if "expect" in tomllib.loads(text):
            assert "## Measured" in page


def test_every_public_name_is_on_a_page(generated: dict[str, str]) -> None:
    page = generated["api/reptk.md"]
    for name in reptk.__all__:
        assert f"reptk.{name}" in page
    for name in reptk.losses.__all__:
        assert f"reptk.losses.{name}\n" in generated["api/reptk.losses.md"]


def test_pages_are_written_once_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reptk_pages.all_pages", lambda: {"a/b.md": "text"})
    write_pages(tmp_path)
    time = (tmp_path / "a" / "b.md").stat().st_mtime_ns
    (tmp_path / "old.md").write_text("of an earlier version")
    write_pages(tmp_path)
    assert (tmp_path / "a" / "b.md").stat().st_mtime_ns == time
    assert not (tmp_path / "old.md").exists()


def test_links_to_the_repository_lead_to_pages() -> None:
    def linked(target: str) -> str:
        return with_site_links(f"[text]({target})", "docs/how_to/export.md", "how_to/export.md")

    assert linked("../../plugins/README.md#a-loss") == "[text](../generated/plugins.md#a-loss)"
    assert linked("databases.md") == "[text](databases.md)"
    assert linked("../../reptk/recipe.py") == "text"
    assert linked("https://example.org") == "[text](https://example.org)"
    assert linked("nosuch.md") == "[text](nosuch.md)"
    assert with_site_links("[a](docs/slurm.md)", "CHANGELOG.md", "generated/changelog.md") == "[a](../slurm.md)"


def documented(width: int) -> None:
    """Sum `a * b` over *all*:

        s_i = sum_j |z_j|

    Args:
        width: of the rows,
            in pixels.

    Raises:
        ValueError: none.
    """


def test_docstrings_are_converted() -> None:
    assert argument_descriptions(documented) == {"width": "of the rows, in pixels."}
    assert description_of(documented) == "Sum `a * b` over *all*:\n\n    s_i = sum_j |z_j|"
    lines = as_restructured_text(["Sum `a * b` over *all*:", "", "    s_i = |z_j|", "", "Args:", "    x: a `b `."])
    assert lines == ["Sum ``a * b`` over \\*all\\*:", "", "::", "", "    s_i = |z_j|", "", "Args:", "    x: a ``b``."]
