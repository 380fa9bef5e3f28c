"""Long lists of names in messages: the first ones, and that there are more."""

from collections.abc import Sequence


def first_names(names: Sequence[str], limit: int) -> str:
    """Return `a, b, c`, or `a, b, ...` of more names than the limit, for a message that says how many there are."""
    listed = list(names[:limit])
    if len(names) > limit:
        listed.append("...")
    return ", ".join(listed)


def first_names_and_count(names: Sequence[str], limit: int) -> str:
    """Return `a, b, c`, or `a, b and 7 more` of more names than the limit."""
    listed = ", ".join(names[:limit])
    if len(names) > limit:
        listed = f"{listed} and {len(names) - limit:,} more"
    return listed
