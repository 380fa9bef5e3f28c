"""Plugins: Python files and modules that register further parts, and which of them a recipe may execute."""

import importlib
import importlib.util
import shlex
import sys
import warnings
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Any

from reptk.config.registry import REGISTRIES, Registry
from reptk.config.schema import RecipeError
from reptk.core.error_locations import location_of, shown_path
from reptk.core.errors import UsageError
from reptk.core.files import real_path
from reptk.core.foreign_files import read_bytes

MAX_PLUGIN_BYTES = 1 << 24

MAX_LINE_LENGTH = 80
"""Characters of a line of code in a message."""

CONTRIBUTED = "reptk.plugins"
"""The package of the plugins that come with reptk."""

BUILT_IN = {f"{CONTRIBUTED}.byol": "method byol", f"{CONTRIBUTED}.moco": "method moco"}
"""Modules that were contributed plugins, and the part of reptk that each has become, which needs no plugin."""


class PluginImportError(UsageError):
    """The code of a plugin raises while it is imported.

    Args:
        spec: the file or module.
        reason: where, what, and what to do.
    """

    def __init__(self, spec: str, reason: str) -> None:
        super().__init__(f"plugin {spec} cannot be imported: {reason}")
        self.reason = reason


def load_recipe_plugins(
    recipe: Path, recorded: Sequence[str], requested: Sequence[str], *, trust: bool = False
) -> list[str]:
    """Import the plugins that a recipe names and those of the command line.

    A recipe may name the plugins that come with reptk. Files in its own folder are code of whoever wrote the folder, and
    are executed only if the caller trusts them. Any other code is executed only if the command line names it as well.

    Args:
        recipe: the recipe's file.
        recorded: the recipe's `plugins`.
        requested: the plugins of `--plugin`.
        trust: whether files in the recipe's folder may be executed.

    Returns:
        All of them, as absolute paths or module names.

    Raises:
        UsageError: the recipe names other code, or a plugin cannot be imported.
    """
    if not isinstance(recorded, list) or not all(isinstance(spec, str) for spec in recorded):
        raise RecipeError(recipe.stem, [("plugins", f"must be a list of files and modules, got {recorded!r}")])
    requested = _without_built_in(requested)
    requested_names = {Path(spec).name for spec in requested}
    specs = [_absolute(spec, Path()) for spec in requested]
    for spec in recorded:
        if spec in BUILT_IN:
            continue
        if Path(spec).name in requested_names:
            continue  # the file or module that the user names takes its place
        specs.append(_check_recorded(recipe, spec, trust=trust))
    specs = list(dict.fromkeys(specs))  # each once, in their order
    for spec in specs:
        load_plugin(spec)
    return specs


def load_contributed_plugins(recorded: Any) -> list[str]:
    """Import those of a recipe's plugins that come with reptk, and return the others, which are not imported."""
    if not isinstance(recorded, list):
        return []
    others = []
    for spec in map(str, recorded):
        if spec in BUILT_IN:
            continue
        if is_contributed(spec):
            load_plugin(spec)
        else:
            others.append(spec)
    return others


def contributed_plugins() -> list[str]:
    """Return the modules of the plugins that come with reptk, sorted."""
    paths = [path.name for path in files(CONTRIBUTED).iterdir() if path.is_file()]
    stems = [name.removesuffix(".py") for name in paths if name.endswith(".py")]
    return [f"{CONTRIBUTED}.{stem}" for stem in sorted(stems) if stem != "__init__"]


def is_contributed(spec: str) -> bool:
    """Whether a plugin is a module that comes with reptk: exactly `reptk.plugins.NAME`, with a file of that name."""
    package, _, name = spec.rpartition(".")
    if package != CONTRIBUTED or not name.isidentifier():
        return False
    return (files(CONTRIBUTED) / f"{name}.py").is_file()


def _without_built_in(requested: Sequence[str]) -> list[str]:
    """Return the plugins of a command without those that have become a part of reptk, which are warned of."""
    specs = []
    for spec in requested:
        if spec in BUILT_IN:
            warnings.warn(built_in_message(spec, BUILT_IN[spec]), stacklevel=3)
        else:
            specs.append(spec)
    return specs


def built_in_message(spec: str, part: str) -> str:
    """Return what to tell a user who names a plugin that has become a part of reptk."""
    return f"plugin {spec}: the {part} comes with reptk and needs no plugin; leave it out"


def _check_recorded(recipe: Path, spec: str, *, trust: bool) -> str:
    """Return the absolute path or the module name of a plugin that a recipe names.

    Raises:
        UsageError: it is neither contributed nor a trusted file in the recipe's folder.
    """
    if is_contributed(spec):
        return spec
    absolute = _absolute(spec, recipe.parent)
    # Links and ".." are resolved before the comparison, so that none leads out of the folder.
    is_in_folder = spec.endswith(".py") and Path(absolute).is_relative_to(real_path(recipe.parent))
    if not is_in_folder:
        raise UsageError(f"{recipe} asks for the plugin {spec}. If you trust it, name it: --plugin {spec}")
    if not trust:
        raise UsageError(
            f"{recipe} brings the plugin {spec}, which is code. If you trust it, run it with --trust (in Python: "
            f"trust=True), or name it: --plugin {recipe.parent / spec}"
        )
    return absolute


def _absolute(spec: str, folder: Path) -> str:
    """Return the absolute path of a plugin file that is named relative to a folder; a module's name as it is."""
    if spec.endswith(".py"):
        return str(real_path(folder / spec))
    return spec


def load_plugin(spec: str) -> ModuleType:
    """Import a plugin: a `.py` file, or a module by its dotted name.

    The folder of a file is appended to `sys.path`, so that worker processes can import it as well. If a file of the same
    name and content is imported already, e.g. its copy in a run folder, that module is returned.

    Raises:
        UsageError: there is no such file or module, it fails to import, its name is that of another module, or it
            registers nothing.
    """
    # The built-in parts are among these: otherwise they would be taken for the plugin's if it is the first to import them.
    before = _loaded_factories()
    source = b""
    if spec in BUILT_IN:
        raise UsageError(built_in_message(spec, BUILT_IN[spec]))
    if spec.endswith(".py"):
        module = _import_file(Path(spec))
        source = read_bytes(spec, MAX_PLUGIN_BYTES)
    else:
        module = _import_module(spec)
    if _SOURCE in vars(module):
        return module
    after = _loaded_factories()
    # A module that was imported earlier, e.g. by a script, registered its parts then.
    is_registered = any(factory.__module__ == module.__name__ for factory in after)
    if after == before and not is_registered:
        raise UsageError(
            f"plugin {spec} registers nothing. A part is registered with a decorator, e.g. @LOSSES.register('my_loss')"
        )
    vars(module)[_SOURCE] = source
    return module


def load_parts(spec: str) -> list[tuple[Registry, str]]:
    """Import a plugin, or a module that an installed distribution lists, and return its parts: registry and name.

    Raises:
        UsageError: as for `load_plugin`.
    """
    before = _registered()
    installed = []
    for registry in REGISTRIES:
        for name in registry.installed_from(spec):
            registry.get(name)
            installed.append((registry, name))
    if installed:
        return installed
    module = load_plugin(spec)
    after = _registered()
    defined = []
    for registry, name in after:
        defined_in = registry.get(name).__module__
        if f"{defined_in}.".startswith(f"{module.__name__}."):
            defined.append((registry, name))
    # A plugin may register classes that another module defines; it may also import another plugin, whose parts are others.
    return defined or [part for part in after if part not in before]


def _registered() -> list[tuple[Registry, str]]:
    parts = []
    for registry in REGISTRIES:
        parts += [(registry, name) for name in registry.loaded()]
    return parts


_SOURCE = "__reptk_plugin__"
"""Attribute of an imported plugin: the bytes of its file when it was imported."""


def _loaded_factories() -> list[Any]:
    factories = []
    for registry in REGISTRIES:
        factories += registry.loaded().values()
    return factories


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        part = BUILT_IN.get(f"{CONTRIBUTED}.{path.stem}")
        if part is not None and path.parent.name == "plugins":
            raise UsageError(built_in_message(str(path), part))
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
    origin = None if spec is None else spec.origin
    # In the folder in which a plugin was written, the copy of a run is the one that counts.
    is_draft = origin is not None and Path(origin).resolve().parent == Path.cwd()
    if origin is None or (Path(origin).resolve() != path and not is_draft):
        raise UsageError(f"plugin {path.name}: an installed module is called {name!r} ({origin}); rename the file")
    return _import_from(name, path)


def _import_from(name: str, path: Path) -> ModuleType:
    """Import a file under a name, whatever `sys.path` has under that name."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    # Before it is executed, as `import` does it: its classes are looked up there.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as cause:
        del sys.modules[name]
        if isinstance(cause, UsageError) or not isinstance(cause, Exception | SystemExit):
            raise
        raise _import_failed(str(path), cause) from cause
    return module


def _check_same_plugin(loaded: ModuleType, path: Path) -> ModuleType:
    """Return the module that is loaded under a plugin's name if it has the plugin's content.

    Raises:
        UsageError: it has another content.
    """
    content = read_bytes(path, MAX_PLUGIN_BYTES)
    file = vars(loaded).get("__file__")  # built-in modules have none
    is_this_file = file is not None and Path(file).resolve() == path
    # A module that a script imported has no record of its source. If it is from this file, it is assumed to be unchanged.
    is_unrecorded = _SOURCE not in vars(loaded)
    if (is_unrecorded and is_this_file) or vars(loaded).get(_SOURCE) == content:
        return loaded
    reason = "rename the file"
    if is_this_file:
        reason = "it was changed since it was imported; start Python again"
    raise UsageError(f"plugin {path.name}: another module is already called {loaded.__name__!r} ({file}); {reason}")


def _import_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except UsageError:
        raise
    except (Exception, SystemExit) as cause:  # the plugin's code may raise anything
        raise _import_failed(name, cause) from cause


def _import_failed(spec: str, cause: BaseException) -> PluginImportError:
    """Return the error for code of a user that raises while it is imported: where, what, and what to do."""
    problem = f"{type(cause).__name__}: {cause}"
    if isinstance(cause, SyntaxError):
        # Its text as a whole names the file and the line once more.
        problem = f"{type(cause).__name__}: {cause.msg}"
        if cause.text and cause.text.strip():
            problem += f": {cause.text.strip()[:MAX_LINE_LENGTH]}"
    place = location_of(cause)
    if place is not None:
        problem = f"{shown_path(place.path)}:{place.line}: {problem}"
    if isinstance(cause, ModuleNotFoundError) and cause.name is not None:
        package = cause.name.partition(".")[0]
        advice = f"Correct the name, or install the package that has {package} for {sys.executable}"
    elif isinstance(cause, SyntaxError):
        advice = "Correct that line"
    else:
        advice = f"Correct the code; for the whole traceback: {_command_of(spec)}"
    return PluginImportError(_shown(spec), f"{problem}. {advice}")


def _shown(spec: str) -> str:
    if spec.endswith(".py"):
        return shown_path(Path(spec))
    return spec


def _command_of(spec: str) -> str:
    """Return the command that executes a plugin alone."""
    if spec.endswith(".py"):
        return f"python {shlex.quote(_shown(spec))}"
    return f"python -m {spec}"
