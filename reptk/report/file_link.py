"""Links from a page to the files of its images."""

import os
from pathlib import Path
from urllib.parse import quote


def file_link(path: Path, folder: Path) -> str:
    """Return the address of a file relative to the page's folder; empty if there is no such file, or no relative path.

    It begins with `./` or `../`, so that no name of a file can become another scheme or server.
    """
    try:
        if not path.is_file():
            return ""
        relative = os.path.relpath(path.absolute(), folder.absolute())
    except (OSError, ValueError):  # a null character in the name, or another drive
        return ""
    address = quote(Path(relative).as_posix().encode("utf-8", "surrogateescape"))
    if address.startswith("../"):
        return address
    return f"./{address}"
