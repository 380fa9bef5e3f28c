"""Registries of data sets, views, methods, losses, evaluators, trackers and stores, built in or from a plugin.

A name belongs to one part. Nothing is imported before it is needed: the built-in parts of a kind are registered when one
package (`home`) is imported, and those of installed distributions are listed from the metadata of their entry points.
"""

import difflib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, NamedTuple

from reptk.config.installed import installed_entry_points
from reptk.core.errors import UsageError


class Registration(NamedTuple):
    """A registered factory, and where it is from: a module, a file, or a distribution and its version."""

    factory: Callable[..., Any]
    source: str


class Registry:
    """The parts of one kind, by name.

    Args:
        kind: what a part is called in messages, e.g. `"loss"`.
        home: module whose import registers the built-in parts, e.g. `"reptk.losses"`.
        group: entry-point group in which installed distributions list their parts.
        protocol: name of the class in `home` that describes a part of this kind; see `with_defaults`.
        supplied: parameters that `build` fills in for a factory that has them; a recipe cannot set these.
    """

    def __init__(
        self, kind: str, home: str, group: str, protocol: str | None = None, supplied: tuple[str, ...] = ()
    ) -> None:
        self.kind = kind
        self.home = home
        self.group = group
        self.supplied = supplied
        self._protocol = protocol
        self._registrations: dict[str, Registration] = {}

    def register(self, name: str) -> Callable[[Any], Any]:
        """Return a decorator that registers a class or function under `name`.

        Registering the same definition again (a notebook cell run twice) replaces it. Another definition under the same
        name is an error.

        Raises:
            UsageError: `name` is registered already, or is not a lower-case identifier; or what is registered is neither a
                class nor a function.
        """
        if not (name.isidentifier() and name == name.lower()):
            raise UsageError(f"{self.kind} name {name!r}: use lower-case letters, digits and underscores")

        def add(factory: Any) -> Any:
            if not hasattr(factory, "__qualname__"):  # functools.partial, an instance
                raise UsageError(f"{self.kind} {name!r}: register a class or a function, not {factory!r}")
            new = Registration(factory, _describe(factory))
            old = self._registrations.get(name)
            if old is not None and not _same_definition(old.factory, factory):
                message = f"{self.kind} {name!r} is registered twice: by {old.source} and by {new.source}"
                if old.source.startswith("reptk."):
                    message += (
                        f". reptk has one of this name; register the other one under another name, e.g. my_{name}"
                    )
                raise UsageError(message)
            self._registrations[name] = new
            return factory

        return add

    def names(self) -> list[str]:
        """Return every known name, sorted. Parts of installed distributions are listed without being imported."""
        self._load_built_ins()
        return sorted({*self._registrations, *(point.name for point in self._entry_points())})

    def get(self, name: str) -> Callable[..., Any]:
        """Return the factory that is registered under `name`.

        Raises:
            UsageError: no such part (with the nearest names), or two distributions claim it.
        """
        return self._find(name).factory

    def source(self, name: str) -> str:
        """Return where `name` is from: a module and qualified name, a plugin file, or a distribution and its version."""
        return self._find(name).source

    def distribution(self, name: str) -> str | None:
        """Return the installed distribution that lists `name` in its entry points, with its version; None if none does."""
        for point in self._entry_points():
            if point.name == name:
                return _distribution(point)
        return None

    def installed_from(self, module: str) -> list[str]:
        """Return the names that entry points of installed distributions list for this module."""
        return sorted(point.name for point in self._entry_points() if point.module == module)

    def loaded(self) -> dict[str, Callable[..., Any]]:
        """Return the factories whose code is imported, by name, with the built-in ones."""
        self._load_built_ins()
        return {name: registration.factory for name, registration in sorted(self._registrations.items())}

    def build(self, name: str, arguments: Mapping[str, Any], supplied: Mapping[str, Any]) -> Any:
        """Call a factory and complete the part with its protocol's defaults.

        Args:
            name: of the part.
            arguments: what the recipe says.
            supplied: values for the registry's `supplied` parameters; those that the factory does not take are left out.
        """
        factory = self.get(name)
        parameters = inspect.signature(factory).parameters
        accepted = {key: value for key, value in supplied.items() if key in parameters}
        part = factory(**arguments, **accepted)
        if self._protocol is None:
            return part
        protocol = getattr(importlib.import_module(self.home), self._protocol)
        return with_defaults(part, protocol)

    def takes(self, name: str, parameter: str) -> bool:
        """Return whether a factory has this parameter, e.g. that of a method a `loss`."""
        return parameter in inspect.signature(self.get(name)).parameters

    def hint(self, name: str, attribute: str) -> Any:
        """Return an attribute that describes what a factory builds, e.g. `classes` of a data set; None if it has none."""
        return getattr(self.get(name), attribute, None)

    def _find(self, name: str) -> Registration:
        self._load_built_ins()
        # An installed distribution must not replace a registered part in silence, nor be replaced by one.
        points = [point for point in self._entry_points() if point.name == name]
        registration = self._registrations.get(name)
        if registration is not None and all(_is_same_part(point, registration) for point in points):
            return registration
        claims = [_distribution(point) for point in points]
        if registration is not None:
            claims.insert(0, registration.source)
        if len(claims) > 1:
            raise UsageError(f"{self.kind} {name!r} is registered twice: by {' and by '.join(claims)}")
        if not points:
            raise UsageError(unknown(self.kind, name, self.names()))
        return self._load_entry_point(points[0])

    def _load_entry_point(self, point: EntryPoint) -> Registration:
        try:
            factory = point.load()
        except (Exception, SystemExit) as cause:  # the distribution's code may raise anything
            raise UsageError(
                f"{self.kind} {point.name!r} of {_distribution(point)} cannot be imported "
                f"({point.value}): {type(cause).__name__}: {cause}"
            ) from cause
        # The module may have registered the part itself, by the decorator.
        if point.name not in self._registrations:
            self._registrations[point.name] = Registration(factory, _distribution(point))
        return self._registrations[point.name]

    def _entry_points(self) -> Iterable[EntryPoint]:
        return installed_entry_points(self.group)

    def _load_built_ins(self) -> None:
        importlib.import_module(self.home)


SUPPLIED_TO_METHODS = ("encoder", "views", "loss", "num_classes")
SUPPLIED_TO_LOSSES = ("num_classes", "embedding_dim")

DATASETS = Registry("data set", "reptk.data", "reptk.datasets")
VIEWS = Registry("views", "reptk.views", "reptk.views", protocol="Views")
METHODS = Registry("method", "reptk.methods", "reptk.methods", protocol="Method", supplied=SUPPLIED_TO_METHODS)
LOSSES = Registry("loss", "reptk.losses", "reptk.losses", protocol="Loss", supplied=SUPPLIED_TO_LOSSES)
EVALUATORS = Registry("evaluator", "reptk.evaluate", "reptk.evaluators", protocol="Evaluator")

TRACKERS = Registry("tracker", "reptk.trackers", "reptk.trackers", protocol="Tracker")

STORES = Registry("store", "reptk.stores", "reptk.stores", protocol="Store")

REGISTRIES = (DATASETS, VIEWS, METHODS, LOSSES, EVALUATORS, TRACKERS, STORES)


def with_defaults(part: Any, protocol: type) -> Any:
    """Complete a part with the optional members of its protocol that it lacks, and return it.

    A part may be any callable or object, e.g. a plain `nn.Module` as a loss. The protocol declares its optional members
    with their defaults: a value (`Loss.computes_local_rows`), or a method, which is bound to the part. Abstract methods and
    private names have no default. With the defaults set, code that uses a part need not ask what it has.

    Raises:
        UsageError: the part cannot have attributes, as a built-in function cannot.
    """
    for name, default in vars(protocol).items():
        is_required = getattr(default, "__isabstractmethod__", False)
        if name.startswith("_") or is_required or hasattr(part, name):
            continue
        if inspect.isfunction(default):
            # A function that is set on an instance is not bound to it by itself.
            default = default.__get__(part)
        try:
            setattr(part, name, default)
        except AttributeError as cause:
            raise UsageError(
                f"{part!r} has no attribute {name!r} and cannot be given one; wrap it in a class"
            ) from cause
    return part


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Return up to three known names similar to `name`, best first, ignoring case."""
    by_folded = {candidate.casefold(): candidate for candidate in known}
    return [by_folded[match] for match in difflib.get_close_matches(name.casefold(), by_folded, n=3, cutoff=0.5)]


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Return the message for an unknown name: the name, the nearest known names, and all known names."""
    known = list(known)
    hint = nearest_hint(name, known)
    return f"no {kind} {name!r}.{hint} There are: {', '.join(known)}"


def nearest_hint(name: str, known: Iterable[str]) -> str:
    """Return ` Nearest: a, b.` with the known names similar to `name`; empty if there are none."""
    close = nearest(name, known)
    if not close:
        return ""
    return f" Nearest: {', '.join(close)}."


def _describe(factory: Any) -> str:
    module = sys.modules.get(factory.__module__)
    file = getattr(module, "__file__", None)  # a module of an interactive session has none
    if factory.__module__.startswith("reptk.") or file is None:
        return f"{factory.__module__}.{factory.__qualname__}"
    return f"{Path(file).name} ({factory.__qualname__})"


def _same_definition(old: Any, new: Any) -> bool:
    return _definition(old) == _definition(new)


def _definition(factory: Any) -> tuple[str, str, str | None]:
    return factory.__module__, factory.__qualname__, _source_file(factory)


def _source_file(factory: Any) -> str | None:
    if factory.__module__ == "__main__":  # a notebook: every cell is another file
        return None
    try:
        return inspect.getsourcefile(factory)
    except (TypeError, OSError):  # defined without a file
        return None


def _is_same_part(point: EntryPoint, registration: Registration) -> bool:
    """Whether an entry point names the factory that is registered."""
    factory = registration.factory
    target = point.value.replace(":", ".")
    return target == f"{factory.__module__}.{factory.__qualname__}" or _distribution(point) == registration.source


def _distribution(point: EntryPoint) -> str:
    if point.dist is None:
        return point.value
    return f"{point.dist.name} {point.dist.version}"
