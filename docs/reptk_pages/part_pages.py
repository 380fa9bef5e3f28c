"""A page for each kind of part, with the arguments of every factory."""

import inspect
from typing import Any

from reptk.config import signature
from reptk.config.part_catalog import origin_of
from reptk.config.part_tables import common_arguments
from reptk.config.plugins import contributed_plugins, load_plugin
from reptk.config.registry import DATASETS, EVALUATORS, LOSSES, METHODS, STORES, TRACKERS, VIEWS, Registry
from reptk_pages.docstrings import argument_descriptions, description_of
from reptk_pages.markdown import code, escape, table, toctree
from reptk_pages.type_texts import default_text, type_text

KINDS = {
    "data": (DATASETS, "Data sets", "`data.name` is one of these; the arguments are keys of `[data]`."),
    "views": (VIEWS, "Views", "`views.name` is one of these; the arguments are keys of `[views]`."),
    "methods": (METHODS, "Methods", "`method.name` is one of these; the arguments are keys of `[method]`."),
    "losses": (
        LOSSES,
        "Losses",
        "`loss.name` is one of these; the arguments are keys of `[loss]`. Numbers may have a schedule.",
    ),
    "evaluators": (EVALUATORS, "Evaluators", "The arguments are keys of `[eval.NAME]`."),
    "stores": (STORES, "Stores", "Databases that `reptk export --to ADDRESS` writes to and `reptk search` searches."),
    "trackers": (TRACKERS, "Trackers", "`train.trackers` names them; the arguments are keys of `[trackers.NAME]`."),
}

COMMON = {
    "labelled": "share of the training images that have a label, or a file that lists them",
    "only_labelled": "leave out the training images without a label",
    "shuffle": "the order of training images: `global`, or `window:N` for N shards at a time",
    "every_epochs": "evaluate every so many epochs as well; 0: only at the end",
}
"""Meaning of the arguments that are not those of the factory."""

HEAD = """# Parts and their arguments

These pages are written from the signatures of the factories. `reptk plugin list` prints the same, with the parts of installed
packages and, with `--plugin`, of your own files.
"""


def part_pages() -> dict[str, str]:
    """Return the pages by their paths."""
    for plugin in contributed_plugins():
        load_plugin(plugin)
    pages = {"parts/index.md": HEAD + "\n" + toctree(KINDS)}
    for file, (registry, title, text) in KINDS.items():
        sections = [f"# {title}\n\n{text}\n"]
        for name in registry.names():
            # Those of other packages on this machine are not reptk's.
            if registry.get(name).__module__.startswith("reptk."):
                sections.append(_section(registry, name))
        pages[f"parts/{file}.md"] = "\n".join(sections)
    return pages


def _section(registry: Registry, name: str) -> str:
    factory = registry.get(name)
    parts = [f"## `{name}`", _origin(registry, name), escape_paragraphs(description_of(factory))]
    function = _function_of(factory, name)
    if function is not None:
        parts.append(escape_paragraphs(description_of(function)))
    rows = _rows(registry, name, factory)
    if rows:
        parts.append(table(["argument", "type", "default", "meaning"], rows))
    return "\n\n".join(parts)


def _origin(registry: Registry, name: str) -> str:
    origin = origin_of(registry, name).partition(", ")[2]
    text = code(origin)
    if origin.startswith("plugins/"):
        plugin = origin.removeprefix("plugins/").removesuffix(".py")
        text += f", with `--plugin reptk.plugins.{plugin}`"
    return text


def _rows(registry: Registry, name: str, factory: Any) -> list[list[str]]:
    meanings = {}
    function = _function_of(factory, name)
    if function is not None:
        meanings |= argument_descriptions(function)
    meanings |= argument_descriptions(factory)
    if inspect.isclass(factory):
        meanings |= argument_descriptions(factory.__init__)
    rows = []
    for argument, default in signature.defaults(factory, registry.supplied).items():
        annotations = signature.types_of_parameter(factory, argument)
        kind = "any"
        if annotations:
            kind = type_text(annotations[0])
        text = "required"
        if default is not signature.REQUIRED:
            text = default_text(default)
        rows.append([code(argument), escape(kind), text, escape(meanings.get(argument, ""))])
    for argument, default in common_arguments(registry, name).items():
        rows.append([code(argument), "", default_text(default), COMMON[argument]])
    return rows


def _function_of(factory: Any, name: str) -> Any:
    """Return the function that a loss wraps, which has its name and its arguments; None if there is none."""
    if not inspect.isclass(factory):
        return None
    function = vars(inspect.getmodule(factory)).get(name)
    if not inspect.isfunction(function):
        return None
    return function


def escape_paragraphs(text: str) -> str:
    """Return a docstring as Markdown: paragraphs are text with code in backticks, what is indented is code."""
    paragraphs = []
    for paragraph in text.split("\n\n"):
        if not paragraph.startswith("    "):
            paragraph = escape(paragraph)
        paragraphs.append(paragraph)
    return "\n\n".join(paragraphs)
