"""Plugins: Python files and modules that register further parts, and which of them a recipe may bring."""

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from reptk.config.registry import REGISTRIES
from reptk.config.schema import RecipeError
from reptk.core.errors import UsageError


def load_recipe_plugins(recipe: Path, recorded: Sequence[str], requested: Sequence[str]) -> list[str]:
    """Import the plugins that a recipe names and those of the command line.

    A recipe may bring plugin files of its own folder, which are executed with a warning that names them, and reptk's
    contributed ones; any other code must be requested by the user.

    Args:
        recipe: the recipe's file.
        recorded: its `plugins`.
        requested: those of `--plugin`.

    Returns:
        All of them, as absolute paths or module names.

    Raises:
        UsageError: the recipe names a plugin that it may not bring, or one cannot be imported.
    """
    if not isinstance(recorded, list) or not all(isinstance(spec, str) for spec in recorded):
        raise RecipeError(recipe.stem, [("plugins", f"must be a list of files and modules, got {recorded!r}")])
    requested_names = {Path(spec).name for spec in requested}
    specs = [str(Path(spec).resolve()) if spec.endswith(".py") else spec for spec in requested]
    for spec in recorded:
        is_requested = Path(spec).name in requested_names
        is_contributed = spec.startswith("reptk.plugins.")
        is_in_folder = spec.endswith(".py") and (recipe.parent / spec).resolve().is_relative_to(recipe.parent.resolve())
        if not (is_requested or is_contributed or is_in_folder):
            raise UsageError(f"{recipe} asks for the plugin {spec}. If you trust it, name it: --plugin {spec}")
        if is_requested:
            continue  # the user's own file of that name is used
        absolute = str((recipe.parent / spec).resolve()) if spec.endswith(".py") else spec
        if not is_contributed:
            warnings.warn(f"{recipe} brings a plugin, which is run: {absolute}", stacklevel=3)
        specs.append(absolute)
    specs = list(dict.fromkeys(specs))
    for spec in specs:
        load_plugin(spec)
    return specs


def load_plugin(spec: str) -> ModuleType:
    """Import a plugin: a `.py` file, or a module by its dotted name.

    The folder of a file is appended to `sys.path`, so that worker processes can import it as well.
    A file with the same content as one that is already imported is that plugin, not a second one.

    Raises:
        UsageError: there is no such file or module, it fails to import, its name is that of another module, or it
            registers nothing.
    """
    before = _registered_names()
    is_file = spec.endswith(".py")
    module = _import_file(Path(spec)) if is_file else _import_module(spec)
    if hasattr(module, _SOURCE):
        return module
    if _registered_names() == before and not _has_registered(module):
        raise UsageError(
            f"plugin {spec} registers nothing. A part is registered with a decorator, e.g. @LOSSES.register('my_loss')"
        )
    setattr(module, _SOURCE, Path(spec).read_bytes() if is_file else b"")
    return module


_SOURCE = "__reptk_plugin__"
"""Attribute of an imported plugin: the bytes of its file when it was imported."""


def _registered_names() -> set[tuple[str, str]]:
    return {(registry.kind, name) for registry in REGISTRIES for name in registry._registrations}


def _has_registered(module: ModuleType) -> bool:
    """Whether any registered factory was defined in this module."""
    for registry in REGISTRIES:
        for registration in registry._registrations.values():
            if getattr(registration.factory, "__module__", None) == module.__name__:
                return True
    return False


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"plugin {path}: no such file")
    path = path.resolve()
    name = path.stem
    if not name.isidentifier():
        raise UsageError(f"plugin {path.name}: the file's name must be a Python identifier, e.g. my_loss.py")
    loaded = sys.modules.get(name)
    if loaded is not None:
        return _check_same_plugin(loaded, path)
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
        importlib.invalidate_caches()
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None or Path(spec.origin).resolve() != path:
        origin = spec.origin if spec else None
        raise UsageError(f"plugin {path.name}: an installed module is called {name!r} ({origin}); rename the file")
    return _import_module(name)


def _check_same_plugin(loaded: ModuleType, path: Path) -> ModuleType:
    """Return the module that is loaded under a plugin's name if it has the plugin's content."""
    content = path.read_bytes()
    file = getattr(loaded, "__file__", None)
    is_this_file = bool(file) and Path(file).resolve() == path
    # A module imported otherwise (`import my_loss` in a script) carries no source; the same file is trusted to be it.
    source_when_loaded = getattr(loaded, _SOURCE, content if is_this_file else None)
    if source_when_loaded == content:
        return loaded
    reason = "it was changed since it was imported; start Python anew" if is_this_file else "rename the file"
    raise UsageError(f"plugin {path.name}: another module is already called {loaded.__name__!r} ({file}); {reason}")


def _import_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except UsageError:
        raise
    except Exception as cause:
        raise UsageError(f"plugin {name} cannot be imported: {type(cause).__name__}: {cause}") from cause
