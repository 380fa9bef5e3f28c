"""Pages of the public names, whose text is that of the docstrings."""

import importlib
import inspect
from types import ModuleType
from typing import Any

from reptk.config.registry import Registry
from reptk_pages.docstrings import description_of
from reptk_pages.markdown import code, escape, table, toctree
from reptk_pages.part_pages import escape_paragraphs

MODULES = (
    "reptk",
    "reptk.losses",
    "reptk.methods",
    "reptk.views",
    "reptk.data",
    "reptk.evaluate",
    "reptk.embeddings",
    "reptk.report",
    "reptk.stores",
    "reptk.trackers",
    "reptk.testing",
    "reptk.core.rng",
    "reptk.core.distributed",
    "reptk.sklearn",
)
"""`reptk.rng` and `reptk.distributed` are names of the modules in `reptk.core`."""

TEXTS = {
    "reptk.core.rng": "Available as `reptk.rng`.",
    "reptk.core.distributed": "Available as `reptk.distributed`. On one process the functions return what they get.",
}

HEAD = """# Python

`import reptk` is quick: torch and the parts are imported when a name is first used. All pages are written from the docstrings.
"""


def api_pages() -> dict[str, str]:
    """Return the pages by their paths."""
    pages = {"api/index.md": HEAD + "\n" + toctree(MODULES)}
    for name in MODULES:
        pages[f"api/{name}.md"] = _page(name)
    return pages


def public_names(module: ModuleType) -> list[str]:
    """Return the names in `__all__`; of a module without it, the functions and classes that it defines."""
    if "__all__" in vars(module):
        return list(module.__all__)
    names = []
    for name, value in vars(module).items():
        is_definition = inspect.isfunction(value) or inspect.isclass(value)
        if is_definition and not name.startswith("_") and value.__module__ == module.__name__:
            names.append(name)
    return names


def _page(module_name: str) -> str:
    module = importlib.import_module(module_name)
    directives = []
    values = []
    registries = []
    elsewhere = []
    for name in public_names(module):
        value = getattr(module, name)
        if isinstance(value, Registry):
            registries.append([code(f"{module_name}.{name}"), f"the {value.kind} that a recipe may name"])
        elif inspect.ismodule(value):
            elsewhere.append(f"- `{module_name}.{name}`: [{value.__name__}]({value.__name__}.md)")
        elif not getattr(value, "__module__", "").startswith("reptk."):  # values, and other names of types
            values.append([code(f"{module_name}.{name}"), _value_text(value)])
        elif inspect.isclass(value) and _home(value, name) != module_name:
            elsewhere.append(f"- `{module_name}.{name}`: [{_home(value, name)}]({_home(value, name)}.md)")
        elif inspect.isclass(value):
            directives.append(f".. autoclass:: {module_name}.{name}\n   :members:\n   :undoc-members:\n")
        else:
            directives.append(f".. autofunction:: {module_name}.{name}\n")
    parts = [f"# {module_name}\n", TEXTS.get(module_name, ""), escape_paragraphs(description_of(module)), ""]
    if elsewhere:
        parts += ["## On other pages\n", *elsewhere, ""]
    if registries:
        parts += ["## Registries\n", table(["", ""], registries)]
        parts += ["```{eval-rst}\n.. autoclass:: reptk.config.registry.Registry\n   :members:\n```\n"]
    if directives:
        parts += ["## Functions and classes\n", "```{eval-rst}", *directives, "```\n"]
    if values:
        parts += ["## Values\n", table(["", ""], values)]
    return "\n".join(parts)


def _home(value: Any, name: str) -> str:
    """Return the last of `MODULES` that has this class as a public name, where it is documented."""
    homes = []
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        if name in public_names(module) and getattr(module, name) is value:
            homes.append(module_name)
    return homes[-1]


def _value_text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(code(str(key)) for key in value)
    if isinstance(value, tuple | list):
        return "<br>".join(escape(str(item)) for item in value)
    return code(repr(value))
