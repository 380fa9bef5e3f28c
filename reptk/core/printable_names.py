"""Names of files and classes as one line of text, whatever characters they hold."""


def in_one_line(name: str) -> str:
    """Return a name that any terminal can print: line breaks, control sequences and bytes that are not UTF-8 are escaped."""
    if name.isprintable():
        return name
    return "".join(_printable(character) for character in name)


def _printable(character: str) -> str:
    if character.isprintable():
        return character
    if "\udc80" <= character <= "\udcff":
        # Python's stand-in for a byte that is not UTF-8.
        return f"\\x{ord(character) - 0xDC00:02x}"
    return repr(character)[1:-1]
