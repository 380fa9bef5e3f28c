"""Named parts: data sets, views, methods, losses and evaluators, built in or from a plugin.

A name belongs to one owner for good. Nothing is imported before it is asked for: the built-in parts of a kind live in
one module (`home`), those of installed distributions are found through entry points and only read from metadata.
"""

import difflib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from reptk.core.errors import UsageError


class Owner(NamedTuple):
    """A registered factory and where it came from."""

    factory: Callable[..., Any]
    source: str


class Registry:
    """The parts of one kind, by name.

    Args:
        kind: what a part is called in messages, e.g. `"loss"`.
        home: module whose import registers the built-in parts, e.g. `"reptk.losses"`.
        group: entry-point group in which installed distributions offer theirs.
        given: arguments that every factory of this kind is called with, beside those a recipe may set.
    """

    def __init__(self, kind: str, home: str, group: str, given: tuple[str, ...] = ()) -> None:
        self.given = given
        self.kind = kind
        self.home = home
        self.group = group
        self._owners: dict[str, Owner] = {}

    def register(self, name: str) -> Callable[[Any], Any]:
        """Decorator that gives `name` to a class or function.

        Defining the same object again (a notebook cell run twice) replaces it; any other second owner is an error.

        Raises:
            UsageError: `name` is taken, or is not a lower-case identifier.
        """
        if not (name.isidentifier() and name == name.lower()):
            raise UsageError(f"{self.kind} name {name!r}: use lower-case letters, digits and underscores")

        def add(factory: Any) -> Any:
            new = Owner(factory, _describe(factory))
            old = self._owners.get(name)
            if old is not None and not _same_definition(old.factory, factory):
                raise UsageError(f"{self.kind} {name!r} is registered twice: by {old.source} and by {new.source}")
            self._owners[name] = new
            return factory

        return add

    def names(self) -> list[str]:
        """Every known name, sorted. Parts of installed distributions are listed without being imported."""
        self._load_built_ins()
        return sorted({*self._owners, *(point.name for point in self._entry_points())})

    def get(self, name: str) -> Callable[..., Any]:
        """The factory of `name`.

        Raises:
            UsageError: no such part (with the nearest names), or two distributions claim it.
        """
        return self._find(name).factory

    def source(self, name: str) -> str:
        """Where `name` comes from: a module and qualified name, a plugin file, or a distribution and its version."""
        return self._find(name).source

    def loaded(self) -> dict[str, Callable[..., Any]]:
        """Parts whose code is already imported, by name."""
        self._load_built_ins()
        return {name: owner.factory for name, owner in sorted(self._owners.items())}

    def _find(self, name: str) -> Owner:
        self._load_built_ins()
        points = [point for point in self._entry_points() if point.name == name]
        claims = [self._owners[name].source] if name in self._owners else []
        claims += [_distribution(point) for point in points]
        owner = self._owners.get(name)
        if owner and all(_points_at(point, owner.factory) or _distribution(point) == owner.source for point in points):
            return owner
        if len(claims) > 1:
            raise UsageError(f"{self.kind} {name!r} is registered twice: by {' and by '.join(claims)}")
        if not points:
            raise UsageError(unknown(self.kind, name, self.names()))
        return self._load_entry_point(points[0])

    def _load_entry_point(self, point: EntryPoint) -> Owner:
        try:
            factory = point.load()
        except Exception as cause:
            raise UsageError(
                f"{self.kind} {point.name!r} of {_distribution(point)} cannot be imported "
                f"({point.value}): {type(cause).__name__}: {cause}"
            ) from cause
        if point.name not in self._owners:
            self._owners[point.name] = Owner(factory, _distribution(point))
        return self._owners[point.name]

    def _entry_points(self) -> Iterable[EntryPoint]:
        return entry_points(group=self.group)

    def _load_built_ins(self) -> None:
        importlib.import_module(self.home)


DATASETS = Registry("data set", "reptk.data", "reptk.datasets")
VIEWS = Registry("views", "reptk.views", "reptk.views")
METHODS = Registry("method", "reptk.methods", "reptk.methods", ("encoder", "views", "loss"))
LOSSES = Registry("loss", "reptk.losses", "reptk.losses")
EVALUATORS = Registry("evaluator", "reptk.evaluate", "reptk.evaluators")

REGISTRIES = (DATASETS, VIEWS, METHODS, LOSSES, EVALUATORS)


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Up to three known names that `name` may have meant, best first; letter case does not count."""
    by_folded = {candidate.casefold(): candidate for candidate in known}
    return [by_folded[match] for match in difflib.get_close_matches(name.casefold(), by_folded, n=3, cutoff=0.5)]


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """The message for a name nobody knows: what was asked for, what may have been meant, what there is."""
    known = list(known)
    close = nearest(name, known)
    hint = f" Nearest: {', '.join(close)}." if close else ""
    return f"no {kind} {name!r}.{hint} There are: {', '.join(known)}"


def load_plugin(spec: str) -> ModuleType:
    """Import a plugin: a `.py` file, or a module by its dotted name.

    The folder of a file is appended to `sys.path`, so that processes that start from scratch find it as well.
    A file that is a copy of one already imported is that plugin, not a second one.

    Raises:
        UsageError: there is no such file or module, it fails to import, its name hides another module, or it
            registers nothing.
    """
    before = _registered()
    module = _import_file(Path(spec)) if spec.endswith(".py") else _import_module(spec)
    if hasattr(module, _MARK) or _registered() != before or _registered_by(module):
        if not hasattr(module, _MARK):
            setattr(module, _MARK, Path(spec).read_bytes() if spec.endswith(".py") else b"")
        return module
    raise UsageError(
        f"plugin {spec} registers nothing. A part is registered with a decorator, e.g. @LOSSES.register('my_loss')"
    )


_MARK = "__reptk_plugin__"
"""Attribute of an imported plugin: the text it was imported with."""


def _registered() -> set[tuple[str, str]]:
    return {(registry.kind, name) for registry in REGISTRIES for name in registry._owners}


def _registered_by(module: ModuleType) -> bool:
    factories = (owner.factory for registry in REGISTRIES for owner in registry._owners.values())
    return any(getattr(factory, "__module__", None) == module.__name__ for factory in factories)


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"plugin {path}: no such file")
    path, name = path.resolve(), path.stem
    if not name.isidentifier():
        raise UsageError(f"plugin {path.name}: the file's name must be a Python identifier, e.g. my_loss.py")
    loaded = sys.modules.get(name)
    if loaded is not None:
        file = getattr(loaded, "__file__", None)
        is_this_file = bool(file) and Path(file).resolve() == path
        if getattr(loaded, _MARK, path.read_bytes() if is_this_file else None) == path.read_bytes():
            return loaded
        why = "it was changed since it was imported; start Python anew" if is_this_file else "rename the file"
        raise UsageError(f"plugin {path.name}: another module is already called {name!r} ({file}); {why}")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
        importlib.invalidate_caches()
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None or Path(spec.origin).resolve() != path:
        origin = spec.origin if spec else None
        raise UsageError(f"plugin {path.name}: an installed module is called {name!r} ({origin}); rename the file")
    return _import_module(name)


def _import_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except UsageError:
        raise
    except Exception as cause:
        raise UsageError(f"plugin {name} cannot be imported: {type(cause).__name__}: {cause}") from cause


def _describe(factory: Any) -> str:
    module = sys.modules.get(factory.__module__)
    file = getattr(module, "__file__", None)
    if factory.__module__.startswith("reptk.") or file is None:
        return f"{factory.__module__}.{factory.__qualname__}"
    return f"{Path(file).name} ({factory.__qualname__})"


def _same_definition(old: Any, new: Any) -> bool:
    return (old.__module__, old.__qualname__, _file(old)) == (new.__module__, new.__qualname__, _file(new))


def _file(factory: Any) -> str | None:
    try:
        return None if factory.__module__ == "__main__" else inspect.getsourcefile(factory)
    except (TypeError, OSError):
        return None


def _points_at(point: EntryPoint, factory: Any) -> bool:
    return point.value.replace(":", ".") == f"{factory.__module__}.{factory.__qualname__}"


def _distribution(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.value
