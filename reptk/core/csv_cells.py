"""Cells of the CSV files that reptk writes, for people who open them in a spreadsheet."""

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
"""A spreadsheet runs text that begins with one of these, even if it is a file's name."""


def escape_formula(cell: object) -> object:
    """Return a cell with an apostrophe in front if a spreadsheet would run it as a formula; numbers stay as they are."""
    text = str(cell)
    if not text.startswith(FORMULA_STARTS):
        return cell
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return cell
