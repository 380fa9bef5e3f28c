"""The image files below a folder, and a count of everything that is skipped."""

import os
import stat
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from reptk.core.counts import format_count
from reptk.core.files import real_path
from reptk.core.name_lists import first_names
from reptk.data.decoding.decode import EXTENSIONS, HEIF_EXTENSIONS
from reptk.data.decoding.raw_photograph import RAW_EXTENSIONS
from reptk.data.split_names import is_split_name

JUNK_FOLDERS = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"})

OTHER_IMAGE_EXTENSIONS = frozenset(
    {".ai", ".cur", ".dcm", ".dds", ".eps", ".exr", ".fits", ".hdr", ".icns", ".ico", ".jxl", ".jxr", ".pcx", ".pdf"}
    | {".pfm", ".psb", ".psd", ".qoi", ".sgi", ".svg", ".svgz", ".xbm", ".xcf", ".xpm"}
)
MAX_LISTED_FOLDERS = 3


class SkippedFiles(UserWarning):
    """Files of a folder that the user may expect to be read, and that are not."""


@dataclass
class FolderScan:
    """What is below a folder.

    Args:
        base: the folder.
        images: the image files, those of a folder before those of its subfolders, sorted by name.
        subfolders: names of the folders directly below `base`, hidden and junk folders excepted.
        unsupported: how many files have each extension of images that are not read.
        other_files: how many files have each other extension; of a file without one, its name.
        num_empty: empty files with the extension of an image.
        num_special: devices, pipes and sockets with the extension of an image.
        num_broken_links: links with the extension of an image that lead nowhere.
        num_outside_links: links to files and folders outside of `base`, which are followed.
        unreadable_folders: folders that could not be listed.
    """

    base: Path
    images: list[Path] = field(default_factory=list)
    subfolders: list[str] = field(default_factory=list)
    unsupported: Counter[str] = field(default_factory=Counter)
    other_files: Counter[str] = field(default_factory=Counter)
    num_empty: int = 0
    num_special: int = 0
    num_broken_links: int = 0
    num_outside_links: int = 0
    unreadable_folders: list[Path] = field(default_factory=list)

    def describe_skipped(self) -> list[str]:
        """Return a phrase for each kind of skipped files, with its count and the way out."""
        phrases = []
        for extension, count in sorted(self.unsupported.items()):
            phrases.append(f"{format_count(count, f'{extension} file')}, {_way_out(extension)}")
        if self.num_empty:
            phrases.append(format_count(self.num_empty, "empty file"))
        if self.num_special:
            phrases.append(format_count(self.num_special, "device or pipe", "devices and pipes"))
        if self.num_broken_links:
            phrases.append(format_count(self.num_broken_links, "broken link"))
        if self.unreadable_folders:
            names = first_names(list(map(str, self.unreadable_folders)), MAX_LISTED_FOLDERS)
            phrases.append(f"{format_count(len(self.unreadable_folders), 'folder')} that cannot be opened: {names}")
        return phrases

    def describe_content(self) -> str:
        """Say what there is instead of images, for an error."""
        skipped = self.describe_skipped()
        if skipped:
            content = f"skipped {'; '.join(skipped)}"
        elif self.other_files:
            content = f"there are files of {', '.join(sorted(self.other_files)[:6])}"
        else:
            content = "it is empty"
        return f"{content}; images are {' '.join(sorted(EXTENSIONS))}"


def scan_folder(base: Path) -> FolderScan:
    """List the image files below `base`, through links as well.

    Hidden and junk folders and hidden files are skipped. A class folder, which is one directly below `base` or below a
    folder with the name of a split, counts even if it is a link to another one; within it every folder is read once, so
    that links which form a cycle come to an end.
    """
    scan = FolderScan(base)
    real_base = real_path(base)
    # Folders that are still to be read, the next one last; with each, the identities of the folders read before it.
    pending: list[tuple[Path, set[tuple[int, int]]]] = [(base, set())]
    while pending:
        folder, visited = pending.pop()
        try:
            status = folder.stat()
            # Device and inode identify a folder, whatever link leads to it.
            identity = (status.st_dev, status.st_ino)
            if identity in visited:
                continue
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError:
            scan.unreadable_folders.append(folder)
            continue
        visited.add(identity)
        subfolders = []
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_symlink() and not real_path(folder / entry.name).is_relative_to(real_base):
                scan.num_outside_links += 1
            if not _is_folder(entry):
                _add_file(scan, folder / entry.name, entry)
            elif entry.name not in JUNK_FOLDERS:
                subfolders.append(entry.name)
        holds_classes = folder == base or (folder.parent == base and is_split_name(folder.name))
        if folder == base:
            scan.subfolders = subfolders
        for name in reversed(subfolders):
            if holds_classes:
                pending.append((folder / name, set(visited)))
            else:
                pending.append((folder / name, visited))
    return scan


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # e.g. a link to itself
        return False


def _add_file(scan: FolderScan, path: Path, entry: "os.DirEntry[str]") -> None:
    extension = path.suffix.lower()
    if extension not in EXTENSIONS:
        if extension in HEIF_EXTENSIONS | RAW_EXTENSIONS | OTHER_IMAGE_EXTENSIONS:
            scan.unsupported[extension] += 1
        else:
            scan.other_files[extension or entry.name] += 1
        return
    try:
        status = entry.stat()
    except OSError:
        scan.num_broken_links += 1
        return
    if not stat.S_ISREG(status.st_mode):
        scan.num_special += 1
    elif status.st_size == 0:
        scan.num_empty += 1
    else:
        scan.images.append(path)


def _way_out(extension: str) -> str:
    if extension in HEIF_EXTENSIONS:
        return "which need pip install 'reptk[heif]'"
    if extension in RAW_EXTENSIONS:
        return "which are raw photographs and need pip install 'reptk[raw]'"
    return "which are not read: convert them to PNG"
