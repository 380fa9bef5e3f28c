"""reptk check-data: what is read of a folder, a table or a data set, and what is wrong with it."""

import os
import shutil
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from embedding_inputs import draw_image, run_command
from reptk.cli import main

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:no class of .* is held out")]


def write_drawings(root: Path, **counts: int) -> Path:
    """Write so many different images, 00.png onwards, into folders with these names; `__` stands for a slash."""
    number = 0
    for name, count in counts.items():
        folder = root / name.replace("__", "/")
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(count):
            number += 1
            draw_image(number).save(folder / f"{index:02}.png")
    return root


def test_a_good_folder_is_usable(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = write_drawings(tmp_path, cat=6, dog=5)
    draw_image(99, side_px=80).convert("L").save(root / "dog" / "gray.jpg")
    assert run_command(["check-data", root], capsys).splitlines() == [
        f"{root}: 12 images, 2 classes of 6 images each",
        "  width: 50 to 90 px, median 50",
        "  height: 40 to 80 px, median 40",
        "  modes: RGB 11, L 1",
        "  classes: cat 6, dog 6",
        "  exact duplicates: none",
        f"  training: 10 images, 2 queries ({root}: bank the training images, queries every 5th image of each class, "
        "in path order)",
        "  usable",
    ]


def test_what_is_wrong_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = write_drawings(tmp_path, train__cat=3, train__dog=3, train__eel=1, val__cat=1)
    shutil.copy(root / "train" / "cat" / "00.png", root / "val" / "cat" / "copy.png")
    shutil.copy(root / "train" / "cat" / "01.png", root / "train" / "dog" / "copy.png")
    (root / "train" / "dog" / "bad.jpg").write_bytes(b"no image")
    cut = (root / "train" / "dog" / "00.png").read_bytes()
    (root / "train" / "dog" / "cut.png").write_bytes(cut[: len(cut) // 2])
    (root / "train" / "dog" / "page.psd").write_bytes(b"x")
    (root / "train" / "dog" / "empty.jpg").touch()
    printed = run_command(["check-data", root], capsys)
    assert "  splits: train 10, val 2" in printed
    assert "  skipped: 1 .psd file" in printed
    assert "  skipped: 1 empty file" in printed
    assert (
        "  exact duplicates: 2 copies of 2 images; in several classes: 1 image; in several splits: 1 image" in printed
    )
    assert f"    {root / 'train/cat/00.png'} = {root / 'val/cat/copy.png'}" in printed
    assert "  unreadable: 2 files" in printed
    assert "bad.jpg" in printed
    assert "cut.png" in printed
    assert "no positives: 1 (eel)" in printed


def test_a_folder_without_readable_images_is_not_usable(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    assert "none of 1 file can be read" in run_command(["check-data", tmp_path], capsys, exit_code=3)


def test_too_many_unreadable_images_are_not_usable(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_drawings(tmp_path, cat=8)
    for number in range(3):
        (tmp_path / "cat" / f"bad{number}.jpg").write_bytes(b"no image")
    assert "3 of 11 files cannot be read" in run_command(["check-data", tmp_path], capsys, exit_code=3)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"empty": 0}, "no images in"),
        ({"val__a": 2, "test__a": 2}, "no images to train on"),
        ({"train__a": 2, "train__b": 2, "val__c": 2}, "has classes that"),
    ],
)
def test_what_training_refuses_is_not_usable(
    counts: dict[str, int], message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert message in run_command(["check-data", write_drawings(tmp_path, **counts)], capsys, exit_code=3)


@pytest.mark.parametrize("pair", ["data.background=9223372036854775808", "data.range=[5,5]"])
def test_pixels_that_cannot_be_decoded_so(pair: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    message = run_command(["check-data", write_drawings(tmp_path, cat=2), pair], capsys, exit_code=2)
    assert f"{pair.partition('=')[0]} must be" in message


def test_a_folder_as_key_and_value(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_drawings(tmp_path / "2024", cat=2, dog=2)
    printed = run_command(["check-data", "data.root=2024", "data.labels=none"], capsys)
    assert "2024: 4 images, no labels" in printed
    assert "usable" in run_command(["check-data", "data.name=folder", "data.root=2024"], capsys)


def test_a_table(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_drawings(tmp_path, a=5)
    lines = [f"a/{number:02}.png;cat;3\n" for number in range(5)]
    (tmp_path / "t.csv").write_text("".join(["file;class;width\n", *lines, "a/gone.png;dog;1\n"]))
    printed = run_command(["check-data", tmp_path / "t.csv"], capsys)
    assert "6 images, 2 classes of 1 (dog) to 5 (cat) images" in printed
    assert "columns not read: width" in printed
    assert "missing: 1 file, the first" in printed
    assert "unreadable: 1 file\n" in printed


def test_a_table_with_splits(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_drawings(tmp_path, a=6)
    shutil.copy(tmp_path / "a" / "00.png", tmp_path / "a" / "05.png")
    splits = ["train", "train", "train", "train", "test", "test"]
    lines = [f"a/{number:02}.png,{'xy'[number % 2]},{split}\n" for number, split in enumerate(splits)]
    table = tmp_path / "t.csv"
    table.write_text("path,label,split\n" + "".join(lines))
    printed = run_command(["check-data", table], capsys)
    assert "  splits: train 4, test 2" in printed
    assert "in several classes: 1 image; in several splits: 1 image" in printed
    assert f"  training: 4 images, 2 queries (bank split train of {table}, queries split test of {table})" in printed
    assert "no labels" in run_command(["check-data", table, "data.labels=none"], capsys)
    table.write_text("path,split\na/00.png,train\na/01.png,7\n")
    assert "line 3: '7' is no split" in run_command(["check-data", table], capsys, exit_code=3)


def test_parquet_files_that_hold_images(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    write_drawings(tmp_path / "files", a=6)
    images = [{"bytes": path.read_bytes()} for path in sorted((tmp_path / "files").rglob("*.png"))]
    images[2] = images[0]
    images[5] = {"bytes": b"no image"}
    path = tmp_path / "train-00000-of-00001.parquet"
    parquet.write_table(pyarrow.table({"image": images, "label": ["x", "y"] * 3}), path)
    printed = run_command(["check-data", path], capsys)
    assert "6 images, 2 classes of 3 images each" in printed
    assert "  width: 50 to 50 px, median 50" in printed
    assert f"    {path}, row 0 = {path}, row 2" in printed
    assert "  unreadable: 1 file" in printed
    assert f"cannot read {path}, row 5 as an image" in printed
    assert "  usable" in printed


def test_tar_shards(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    write_drawings(tmp_path / "drawings", cat=3, dog=3)
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "0.tar", "w") as archive:
        for name in ("cat", "dog"):
            archive.add(tmp_path / "drawings" / name, arcname=name)
    printed = run_command(["check-data", f"{tmp_path}/shards/*.tar"], capsys)
    assert "6 images, 2 classes of 3 images each" in printed
    assert "  classes: cat 3, dog 3" in printed
    assert "  labels from folders" in printed
    (tmp_path / "shards" / "1.tar").write_bytes(b"\x1f\x8b")
    assert main(["check-data", f"{tmp_path}/shards/*.tar"]) == 3
    assert "1.tar is compressed with gzip (gunzip): unpack it" in capsys.readouterr().err


def test_a_data_set_in_memory(capsys: pytest.CaptureFixture) -> None:
    assert "usable" in run_command(["check-data", "digits"], capsys)


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["check-data", "gone"], 3, "there is no folder or file gone"),
        (["check-data", "photos", "data=3"], 2, "data is a table"),
        (["check-data", "y" * 300], 4, "File name too long"),
        (["check-data", "train.epochs=3"], 2, "what can be set here is data.*"),
        (["check-data", "data.labels=none"], 2, "which images?"),
        (["check-data"], 2, "source"),
    ],
)
def test_mistakes(arguments: list[str], exit_code: int, message: str, capsys: pytest.CaptureFixture) -> None:
    assert message in run_command(arguments, capsys, exit_code=exit_code)


def test_names_that_are_not_utf8(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    try:
        Image.new("RGB", (9, 9)).save(tmp_path / os.fsdecode(b"caf\xe9.png"))
    except OSError as cause:
        pytest.skip(f"this file system refuses the name: {cause}")
    shutil.copy(tmp_path / os.fsdecode(b"caf\xe9.png"), tmp_path / "a.png")
    assert "caf\\xe9.png" in run_command(["check-data", tmp_path], capsys)


def test_names_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name in ("a\nb", "c"):
        (tmp_path / name).mkdir()
    for number in range(12):
        Image.effect_noise((9, 9), number).save(tmp_path / "c" / f"{number}.png")
    shutil.copy(tmp_path / "c" / "3.png", tmp_path / "a\nb" / "3\x1b[2J.png")
    (tmp_path / "a\nb" / "bad\n.png").write_text("no image")
    printed = run_command(["check-data", tmp_path], capsys)
    assert "a\\nb/3\\x1b[2J.png = " in printed
    assert "a\\nb/bad\\n.png as an image" in printed
    assert "\x1b" not in printed
    assert "(a\\nb) to 12 (c)" in printed


def test_one_unreadable_image_is_too_many_for_a_run_that_stops(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for number in range(20):
        Image.new("RGB", (9, 9)).save(tmp_path / f"{number}.png")
    (tmp_path / "3.png").write_text("no image")
    assert "usable" in run_command(["check-data", tmp_path], capsys)
    printed = run_command(["check-data", tmp_path, "data.on_error=stop"], capsys, exit_code=3)
    assert "1 of 20 files cannot be read" in printed


def test_the_limit_of_pixels_is_the_data_sets(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for number in range(20):
        Image.new("RGB", (9, 9)).save(tmp_path / f"{number}.png")
    Image.new("RGB", (90, 90)).save(tmp_path / "large.png")
    assert "unreadable" not in run_command(["check-data", tmp_path], capsys)
    printed = run_command(["check-data", tmp_path, "data.max_pixels=1000"], capsys)
    assert "large.png" in printed
    assert "90 x 90 pixels are more than 1,000" in printed


def test_blank_images_are_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = write_drawings(tmp_path, cat=6, dog=6)
    image = Image.new("RGB", (90, 30), "white")
    image.save(root / "cat" / "white.jpg")
    # The center square alone is blank.
    image.paste("black", (0, 0, 9, 9))
    image.save(root / "cat" / "corner.png")
    printed = run_command(["check-data", root], capsys)
    assert "  blank: 1 image, of one color up to 8 of 255 levels, and not counted as duplicates\n" in printed
    assert f"    {root / 'cat' / 'white.jpg'}\n" in printed
    assert "corner.png" not in printed
    for number in range(11):
        shutil.copy(root / "cat" / "white.jpg", root / "dog" / f"white{number:02}.jpg")
    printed = run_command(["check-data", root], capsys)
    assert "  blank: 12 images, of" in printed
    assert "white08.jpg" in printed
    assert "white09.jpg" not in printed
    assert "    and 2 more\n" in printed
    assert "  exact duplicates: none\n" in printed
