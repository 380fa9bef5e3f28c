"""The fingerprint of a data set: the same for the same images, wherever they are, and another after any change."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from reptk.data.fingerprint import Fingerprint, differences, fingerprint, read_fingerprint, write_fingerprint
from reptk.data.protocol import Data, InMemory, Split
from reptk.data.sources.folder import folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number in range(12):
        path = tmp_path / "photos" / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (number, 0, 0)).save(path)
    return tmp_path / "photos"


def of(root: Path, check: str = "stat") -> Fingerprint:
    return fingerprint(folder(root=str(root), size=16, cache=False), check)


def test_a_fingerprint_is_read_as_it_was_written(root: Path, tmp_path: Path) -> None:
    written = of(root)
    assert len(written.files) == 12
    write_fingerprint(written, tmp_path)
    assert read_fingerprint(tmp_path) == written
    assert differences(written, of(root)) == []
    assert read_fingerprint(root) is None


def test_names_that_are_no_text_are_written(tmp_path: Path) -> None:
    names = ["a\nb.png", "back\\slash\\n.png", os.fsdecode(b"caf\xe9.png"), "two words.png", "a\u2028b\x85c\x0b.png"]
    written = Fingerprint({}, dict.fromkeys(names, "1,2"), "stat")
    write_fingerprint(written, tmp_path)
    assert read_fingerprint(tmp_path) == written


def test_a_data_set_may_be_moved_as_a_whole(root: Path, tmp_path: Path) -> None:
    before = of(root)
    shutil.copytree(root, tmp_path / "elsewhere" / "photos")
    assert differences(before, of(tmp_path / "elsewhere" / "photos")) == []


def add(root: Path) -> None:
    shutil.copy(root / "class0" / "0.png", root / "class0" / "new.png")


def replace(root: Path) -> None:
    stat = (root / "class0" / "2.png").stat()
    content = bytearray((root / "class0" / "2.png").read_bytes())
    content[-20] ^= 1
    (root / "class0" / "2.png").write_bytes(content)
    os.utime(root / "class0" / "2.png", ns=(stat.st_atime_ns, stat.st_mtime_ns))


def touch(root: Path) -> None:
    os.utime(root / "class0" / "2.png", (1, 1))


CHANGES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "added": (add, "1 file added: class0/new.png", "1 file added: class0/new.png"),
    "removed": (lambda root: (root / "class1" / "1.png").unlink(), "1 file removed: class1/1.png", "1 file removed"),
    "replaced, time and size forged": (replace, "", "1 file changed: class0/2.png"),
    "touched": (touch, "1 file changed: class0/2.png", ""),
}
"""What is done, and what is said of it if sizes and times are compared, and if hashes are."""


@pytest.mark.parametrize("change", CHANGES)
def test_changes_of_files_are_said(change: str, root: Path) -> None:
    act, by_stat, by_content = CHANGES[change]
    before = {check: of(root, check) for check in ("stat", "content", "off")}
    act(root)
    for check, expected in (("stat", by_stat), ("content", by_content)):
        lines = differences(before[check], of(root, check))
        assert bool(lines) == bool(expected)
        if expected:
            assert lines[0].startswith(expected)
    assert before["off"].files == {}


def in_memory(labels: list[int], value: int = 0, classes: tuple[str, ...] = ("a", "b")) -> Fingerprint:
    pixels = torch.full((len(labels), 3, 8, 8), value, dtype=torch.uint8)
    split = Split(InMemory(pixels), torch.tensor(labels))
    return fingerprint(Data(split, split, split, classes, "all"))


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        (in_memory([0, 1, 0]), "split train: other labels"),
        (in_memory([0, 1, 1], value=1), "split train: other pixels"),
        (in_memory([0, 1]), "split train: 3 images before, 2 images now"),
        (in_memory([0, 1, 1], classes=("b", "a")), "other classes, or in another order"),
    ],
)
def test_changes_of_images_in_memory_are_said(changed: Fingerprint, line: str) -> None:
    assert line in differences(in_memory([0, 1, 1]), changed)
    assert differences(in_memory([0, 1, 1]), in_memory([0, 1, 1])) == []
