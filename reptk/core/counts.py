"""Counts in sentences: `1 image`, `2,000 images`."""


def format_count(count: int, noun: str, plural: str = "") -> str:
    """Return `1 image` or `2 images`; `plural` for a noun whose plural is not formed by an s."""
    if count == 1:
        return f"1 {noun}"
    return f"{count:,} {plural or noun + 's'}"
