"""Decoded images on disk: the same batches, built once, resumed, renewed where files changed, and verified."""

import json
import os
import re
import shutil
import threading
from pathlib import Path

import pytest
import torch

from image_files import BLUE, GREEN, fetch_all, photograph, same_data, write_image
from killed_processes import hidden_names, kill_at_every_moment, run_with_full_disk
from reptk.core import disk_space, user_folders
from reptk.core.errors import DataError, EnvironmentProblem
from reptk.core.file_locks import exclusive_lock
from reptk.data import Data, Loader, folder
from reptk.data.decoding.decode import DecodedImage
from reptk.data.images import cache_build, file_reader, image_files

pytestmark = [pytest.mark.filterwarnings("ignore:no class of .* is held out")]

COUNT = 30
SIZE = 24
BLOCK = 4
"""Images between two writes to disk, in these tests."""


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_build, "BLOCK_IMAGES", BLOCK)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Crops of a photograph as JPEG and PNG, in two classes; every fifth of each is a query."""
    image = photograph()
    for number in range(COUNT):
        extension = "png" if number % 3 == 0 else "jpg"
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number:02}.{extension}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.crop((10 * number, 5 * number, 10 * number + 60, 5 * number + 40 + number)).save(path)
    return tmp_path / "photos"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are decoded from now on."""
    paths: list[Path] = []
    decode_picture = image_files.decode_picture

    def record(path: Path, size: int, jpeg: str, **options: object) -> DecodedImage:
        paths.append(path)
        return decode_picture(path, size, jpeg, **options)

    monkeypatch.setattr(image_files, "decode_picture", record)
    return paths


def cached_folder(photos: Path, **options: object) -> Data:
    return folder(str(photos), **{"size": SIZE, "cache": str(photos.parent / "cache"), **options})


def cache_folder(photos: Path) -> Path:
    [path] = (photos.parent / "cache").iterdir()
    return path


def flip_bit(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


# The same images


@pytest.mark.parametrize("workers", [0, 3])
def test_batches_are_the_same_with_and_without(photos: Path, workers: int) -> None:
    plain = Loader(folder(str(photos), size=SIZE).train, batch_size=6, seed=1, workers=workers)
    cached = Loader(cached_folder(photos).train, batch_size=6, seed=1, workers=workers)
    for expected, batch in zip(plain.batches(2, 11), cached.batches(2, 11), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(expected, batch, strict=True))
        assert expected[0].stride() == batch[0].stride()


def test_splits_are_the_same_with_and_without(photos: Path) -> None:
    (photos / "unlabeled").mkdir()
    shutil.copy(photos / "a" / "00.png", photos / "unlabeled")
    plain, cached = folder(str(photos), size=SIZE), cached_folder(photos)
    assert len(cached.bank) == len(cached.train) - 1
    assert same_data(plain, cached)
    assert same_data(cached_folder(photos, holdout=2), folder(str(photos), size=SIZE, holdout=2))


def test_paths_and_decoders_are_the_same_with_and_without(photos: Path) -> None:
    plain, cached = folder(str(photos), size=SIZE).query.images, cached_folder(photos).query.images
    assert [cached.path(number) for number in range(6)] == [plain.path(number) for number in range(6)]
    assert cached.decoded_by == plain.decoded_by


# When it is built


def test_it_is_built_once(photos: Path, decoded: list[Path]) -> None:
    first = cached_folder(photos)
    assert len(decoded) == COUNT
    assert same_data(cached_folder(photos), first)
    assert same_data(cached_folder(photos, labels="folders"), first)
    cached_folder(photos, holdout=2)
    assert len(decoded) == COUNT
    cached_folder(photos, size=16)
    assert len(decoded) == 2 * COUNT
    assert len(list((photos.parent / "cache").iterdir())) == 2


def test_several_processes_build_it_once(photos: Path, decoded: list[Path]) -> None:
    """As in separate processes, each thread takes the lock of a file that it opened itself."""
    results: list[Data] = []
    threads = [threading.Thread(target=lambda: results.append(cached_folder(photos))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(decoded) == COUNT
    assert same_data(results[0], results[1])
    assert same_data(results[0], results[2])


def test_changed_and_new_files_are_decoded_and_the_others_copied(photos: Path, decoded: list[Path]) -> None:
    cached_folder(photos)
    decoded.clear()
    write_image(photos / "a" / "00.png", BLUE, size=(60, 40))
    write_image(photos / "b" / "new.png", GREEN)
    (photos / "b" / "01.jpg").unlink()
    renewed = cached_folder(photos)
    assert sorted(path.name for path in decoded) == ["00.png", "new.png"]
    assert same_data(renewed, folder(str(photos), size=SIZE))
    assert len(list(cache_folder(photos).glob("pixels-*"))) == 1


def test_a_touched_file_is_decoded_again(photos: Path, decoded: list[Path]) -> None:
    cached_folder(photos)
    decoded.clear()
    path = photos / "a" / "00.png"
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    cached_folder(photos)
    assert decoded == [path]


def test_another_decoder_decodes_all_again(photos: Path, decoded: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    cached_folder(photos)
    monkeypatch.setattr(image_files, "versions_of", lambda jpeg: "pillow 99")
    assert cached_folder(photos).train.images.decoded_by == "pillow 99"
    monkeypatch.setattr(file_reader, "DECODE_VERSION", 99)
    cached_folder(photos)
    assert len(decoded) == 3 * COUNT


# Interrupted builds


@pytest.mark.parametrize("has_unreadable", [False, True])
def test_an_interrupted_build_is_resumed(
    has_unreadable: bool, photos: Path, decoded: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    if has_unreadable:
        (photos / "a" / "00.png").write_bytes(b"no image")
    flush_to_disk, calls = cache_build._flush_to_disk, []

    def interrupt(file: object) -> None:
        calls.append(file)
        if len(calls) == 8:
            raise KeyboardInterrupt
        flush_to_disk(file)

    monkeypatch.setattr(cache_build, "_flush_to_disk", interrupt)
    with pytest.raises(KeyboardInterrupt):
        cached_folder(photos)
    assert not (cache_folder(photos) / "manifest.json").exists()
    monkeypatch.setattr(cache_build, "_flush_to_disk", flush_to_disk)
    [records] = cache_folder(photos).glob("rows-*.part")
    num_complete = BLOCK * (len(calls) // 2 - 1)
    # A part of one more record, as a killed process may leave it.
    records.write_bytes(records.read_bytes()[: num_complete * cache_build.RECORD.itemsize + 5])
    decoded.clear()
    resumed = cached_folder(photos)
    assert len(decoded) == COUNT - num_complete < COUNT
    assert same_data(resumed, folder(str(photos), size=SIZE))
    assert not list(cache_folder(photos).glob("*.part"))


def test_damaged_images_of_an_interrupted_build_are_decoded_again(photos: Path, decoded: list[Path]) -> None:
    expected = fetch_all(cached_folder(photos).train)
    folder_path = cache_folder(photos)
    (folder_path / "manifest.json").unlink()
    for path in folder_path.glob("*-*"):
        path.rename(path.with_name(path.name + ".part"))
    [pixels] = folder_path.glob("pixels-*")
    [records] = folder_path.glob("rows-*")
    offsets = cache_build.offsets_of(cache_build.read_records(records))
    flip_bit(pixels, int(offsets[10]))
    decoded.clear()
    assert torch.equal(fetch_all(cached_folder(photos).train), expected)
    assert len(decoded) == COUNT - 10


def test_an_unreadable_image_is_named_and_what_was_decoded_is_used(photos: Path, decoded: list[Path]) -> None:
    bad = photos / "b" / "15.png"
    content = bad.read_bytes()
    bad.write_bytes(content[:50])
    with pytest.raises(DataError, match=f"^cannot read {re.escape(str(bad))} as an image"):
        cached_folder(photos, on_error="stop")
    bad.write_bytes(content)
    decoded.clear()
    repaired = cached_folder(photos)
    assert len(decoded) == COUNT - 5 * BLOCK  # five blocks precede the one with this image
    assert same_data(repaired, folder(str(photos), size=SIZE))


def test_a_skipped_image_is_known_when_the_cache_is_opened_again(photos: Path, decoded: list[Path]) -> None:
    bad = photos / "b" / "15.png"
    content = bad.read_bytes()
    bad.write_bytes(content[:50])
    first, second = cached_folder(photos), cached_folder(photos)
    for data in (first, second):
        [(number, reason)] = data.train.images.unreadable(torch.arange(len(data.train))).items()
        assert data.train.images.path(number) == bad
        assert str(bad) in reason
        assert data.train.images.fetch(torch.tensor([number])).max() == 0
    bad.write_bytes(content)
    decoded.clear()
    repaired = cached_folder(photos)
    assert decoded == [bad]
    assert repaired.train.images.unreadable(torch.arange(len(repaired.train))) == {}
    assert same_data(repaired, folder(str(photos), size=SIZE))


def test_an_image_that_can_be_read_again_is_not_black(photos: Path) -> None:
    bad = photos / "b" / "15.png"
    content, stat = bad.read_bytes(), bad.stat()
    bad.write_bytes(bytes(len(content)))
    os.utime(bad, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    cached_folder(photos)
    # The same size and time, as after an error of the file system that has passed.
    bad.write_bytes(content)
    os.utime(bad, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    data = cached_folder(photos)
    assert data.train.images.unreadable(torch.arange(len(data.train))) == {}
    assert same_data(data, folder(str(photos), size=SIZE))


def test_a_build_that_is_killed_at_any_moment_is_finished_by_the_next(photos: Path, tmp_path: Path) -> None:
    """The folder holds the cache of fewer images before, whose files are replaced."""
    expected = fetch_all(folder(str(photos), size=SIZE).train)
    cached_folder(photos)
    hidden = photos / "a" / "00.png"
    content, times = hidden.read_bytes(), hidden.stat()

    def build_without_one() -> None:
        hidden.unlink()
        cached_folder(photos)
        hidden.write_bytes(content)
        os.utime(hidden, ns=(times.st_atime_ns, times.st_mtime_ns))

    num_moments = 0
    for _, killed in kill_at_every_moment(build_without_one, lambda: cached_folder(photos), cache_folder(photos)):
        num_moments += killed
        assert torch.equal(fetch_all(cached_folder(photos).train), expected)
        assert hidden_names(cache_folder(photos)) == []
        assert len(list(cache_folder(photos).iterdir())) == 4, "pixels, rows, the manifest and the lock"
    assert num_moments > 20


def test_leftovers_next_to_a_complete_cache_are_removed(photos: Path) -> None:
    cached_folder(photos)
    names = sorted(path.name for path in cache_folder(photos).iterdir())
    leftovers = [cache_folder(photos) / name for name in ("pixels-00.u8", "rows-00.bin", "pixels-11.u8.part")]
    for path in leftovers:
        path.write_bytes(b"x")
    cached_folder(photos)
    assert [path.exists() for path in leftovers] == [False, False, True], "a build could be resumed for a day"
    long_ago = leftovers[2].stat().st_mtime - 2 * cache_build.ABANDONED_SECONDS
    os.utime(leftovers[2], (long_ago, long_ago))
    with exclusive_lock(cache_folder(photos)):
        cached_folder(photos)
    assert leftovers[2].exists(), "a process builds a cache there"
    cached_folder(photos)
    assert sorted(path.name for path in cache_folder(photos).iterdir()) == names


# Where it cannot be written


def test_a_full_disk_is_named(photos: Path, decoded: list[Path]) -> None:
    message = run_with_full_disk(lambda: cached_folder(photos), 3 * 6 * SIZE**2)
    assert f"error: the disk of {cache_folder(photos)} is full (File too large): 51.8 kB needed, " in message
    assert "data.cache=/path" in message
    assert same_data(cached_folder(photos), folder(str(photos), size=SIZE))


def test_missing_space_is_noticed_before_anything_is_written(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(EnvironmentProblem, match=r"data\.cache=/path"):
        cached_folder(photos)
    assert not (photos.parent / "cache").exists()


def test_a_folder_that_cannot_be_written_is_named(photos: Path) -> None:
    (photos.parent / "cache").write_text("a file")
    with pytest.raises(EnvironmentProblem, match="Name another folder"):
        cached_folder(photos)


# Damage


def test_a_flipped_bit_is_noticed_when_its_image_is_fetched(photos: Path) -> None:
    cached_folder(photos)
    [pixels] = cache_folder(photos).glob("pixels-*")
    flip_bit(pixels, -1)
    data = cached_folder(photos)
    fetch_all(data.train)
    with pytest.raises(DataError, match=r"damaged.*Delete"):
        fetch_all(data.query)


@pytest.mark.parametrize("damage", ["cut pixels", "cut rows", "another version", "no json"])
def test_a_damaged_cache_is_built_again(photos: Path, damage: str) -> None:
    expected = fetch_all(cached_folder(photos).train)
    manifest = cache_folder(photos) / "manifest.json"
    if damage.startswith("cut"):
        [path] = cache_folder(photos).glob(f"{damage[4:]}-*")
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "another version":
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"version": 0}))
    else:
        manifest.write_text("")
    assert torch.equal(fetch_all(cached_folder(photos).train), expected)
    assert json.loads(manifest.read_text())["images"] == COUNT


# How it is requested


def test_true_is_a_folder_in_the_users_cache(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(photos.parent / "xdg"))
    cached_folder(photos, cache=True)
    [path] = (photos.parent / "xdg" / "reptk").iterdir()
    assert path.name.startswith("folder-photos-24px-")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert user_folders.cache_folder() == Path("~/.cache/reptk").expanduser()


def test_a_recipe_sets_the_cache() -> None:
    from reptk import load

    assert load("simclr_folder").data["cache"] is False
    assert load("simclr_folder", ["data.cache=true"]).data["cache"] is True
    assert load("simclr_folder", ["data.cache=/somewhere"]).data["cache"] == "/somewhere"
