"""Counts, ranges and sizes in sentences: `1 image`, `2,000 images`, `5 to 9 images`, `1.5 GB`."""


def format_count(count: int, noun: str, plural: str = "") -> str:
    """Return `1 image` or `2 images`; `plural` for a noun whose plural is not formed by an s."""
    if count == 1:
        return f"1 {noun}"
    return f"{count:,} {plural or noun + 's'}"


def verb_form(count: int, singular: str, plural: str) -> str:
    """Return the form of a verb whose subject is `count` things, e.g. `is` or `are`."""
    if count == 1:
        return singular
    return plural


def format_range(lowest: int, highest: int, noun: str, plural: str = "") -> str:
    """Return `5 to 9 images`, or `5 images each` if both are the same."""
    if lowest == highest:
        return f"{format_count(lowest, noun, plural)} each"
    return f"{lowest:,} to {format_count(highest, noun, plural)}"


def format_bytes(count: float) -> str:
    """Return a number of bytes in the largest unit that it fills when rounded, e.g. `1.5 GB`."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= 0.99995 * size:
            return f"{count / size:.1f} {unit}"
    return format_count(int(count), "byte")
