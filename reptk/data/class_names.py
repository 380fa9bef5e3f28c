"""The order of the names of classes, which is that of their labels."""

from collections.abc import Iterable

MAX_DIGITS = 18
"""Names of classes that are longer numbers are sorted as text."""


def sorted_class_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return the distinct names of classes that are not empty: numbers by value, then the others by name."""
    return tuple(sorted({name for name in names if name}, key=_numbers_first))


def _numbers_first(class_name: str) -> tuple[int, int, str]:
    if class_name.isascii() and class_name.isdigit() and len(class_name) <= MAX_DIGITS:
        return (0, int(class_name), class_name)
    return (1, 0, class_name)
