"""Files of data sets that torchvision reads, and downloads if they are missing."""

from collections.abc import Callable
from typing import TypeVar

from reptk.core.errors import DataError

DatasetT = TypeVar("DatasetT")


def open_or_download(
    name: str, root: str, *, download: bool, open_dataset: Callable[[bool], DatasetT], content: str
) -> DatasetT:
    """Open a data set of torchvision, and download its files only if they are missing.

    Args:
        name: of the data set.
        root: the folder of its files.
        download: whether missing files may be downloaded.
        open_dataset: calls torchvision with this value of `download`; raises RuntimeError if files are missing.
        content: what `root` has to hold, for the message.

    Raises:
        DataError: the files are missing, and were not downloaded.
    """
    try:
        return open_dataset(False)
    except RuntimeError:  # torchvision's error for missing files
        if not download:
            raise DataError(_missing(name, root, "and data.download is false", content)) from None
    try:
        return open_dataset(True)
    except Exception as cause:
        raise DataError(_missing(name, root, f"the download failed: {cause}", content)) from cause


def _missing(name: str, root: str, why: str, content: str) -> str:
    return (
        f"{name}: no images in {root} (data.root); {why}\n"
        f"  data.root=/path/to/folder   a folder that holds {content}\n"
        f"  without any data: add --smoke"
    )
