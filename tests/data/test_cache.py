"""Decoded images kept on disk: the same batches, built once, resumed, renewed where files changed, and checked."""

import json
import os
import re
import shutil
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from image_files import BLUE, GREEN, fetched, photograph, put
from reptk.core.errors import DataError, EnvironmentProblem
from reptk.data import Data, Loader, cache, cache_build, folder, imagenet100

pytestmark = [pytest.mark.filterwarnings("ignore:no class of .* is held out")]

COUNT = 30
folder_module = sys.modules["reptk.data.image_files"]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_build, "BLOCK_IMAGES", 4)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Crops of a photograph as JPEG and PNG, in two classes; every fifth of each is a query."""
    picture = photograph()
    for number in range(COUNT):
        kind = "png" if number % 3 == 0 else "jpg"
        place = tmp_path / "photos" / "ab"[number % 2] / f"{number:02}.{kind}"
        place.parent.mkdir(parents=True, exist_ok=True)
        picture.crop((10 * number, 5 * number, 10 * number + 60, 5 * number + 40 + number)).save(place)
    return tmp_path / "photos"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are decoded from now on."""
    seen: list[Path] = []
    real = folder_module.decode_into

    def counted(path: Path, square: np.ndarray, jpeg: str) -> None:
        seen.append(path)
        real(path, square, jpeg)

    monkeypatch.setattr(folder_module, "decode_into", counted)
    return seen


def of(photos: Path, **options: object) -> Data:
    return folder(str(photos), **{"size": 24, "cache": str(photos.parent / "kept"), **options})


def kept(photos: Path) -> Path:
    [place] = (photos.parent / "kept").iterdir()
    return place


def same(one: Data, other: Data) -> bool:
    pairs = [(getattr(one, name), getattr(other, name)) for name in ("train", "bank", "query")]
    return all(torch.equal(a.labels, b.labels) and torch.equal(fetched(a), fetched(b)) for a, b in pairs)


@pytest.mark.parametrize("workers", [0, 3])
def test_batches_are_the_same_with_and_without(photos: Path, workers: int) -> None:
    plain, cached = (
        Loader(data.train, batch_size=6, seed=1, workers=workers) for data in (folder(str(photos), size=24), of(photos))
    )
    steps = [list(loader.batches(2, 11)) for loader in (plain, cached)]
    for left, right in zip(*steps, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))
        assert left[0].stride() == right[0].stride()


def test_splits_are_the_same_with_and_without(photos: Path) -> None:
    (photos / "unlabeled").mkdir()
    shutil.copy(photos / "a" / "00.png", photos / "unlabeled")
    plain, cached = folder(str(photos), size=24), of(photos)
    assert len(cached.bank) == len(cached.train) - 1
    assert same(plain, cached)
    assert same(of(photos, holdout=2), folder(str(photos), size=24, holdout=2))


def test_it_is_built_once(photos: Path, decoded: list[Path]) -> None:
    first = of(photos)
    assert len(decoded) == COUNT
    assert same(of(photos), first)
    assert same(of(photos, labels="folders"), first)
    of(photos, holdout=2)
    assert len(decoded) == COUNT
    of(photos, size=16)
    assert len(decoded) == 2 * COUNT
    assert len(list((photos.parent / "kept").iterdir())) == 2


def test_changed_new_and_lost_files_are_noticed_and_the_others_kept(photos: Path, decoded: list[Path]) -> None:
    of(photos)
    decoded.clear()
    put(photos / "a" / "00.png", BLUE, size=(60, 40))
    put(photos / "b" / "new.png", GREEN)
    (photos / "b" / "01.jpg").unlink()
    renewed = of(photos)
    assert sorted(path.name for path in decoded) == ["00.png", "new.png"]
    assert same(renewed, folder(str(photos), size=24))
    assert len(list(kept(photos).glob("pixels-*"))) == 1


def test_a_touched_file_is_read_again(photos: Path, decoded: list[Path]) -> None:
    of(photos)
    decoded.clear()
    path = photos / "a" / "00.png"
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    of(photos)
    assert decoded == [path]


def test_another_decoder_decodes_all_anew(photos: Path, decoded: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    of(photos)
    monkeypatch.setattr(folder_module, "versions_of", lambda jpeg: "pillow 99")
    assert of(photos).train.images.decoded_by == "pillow 99"
    monkeypatch.setattr(folder_module, "DECODE_VERSION", 99)
    of(photos)
    assert len(decoded) == 3 * COUNT


def test_an_interrupted_build_goes_on(photos: Path, decoded: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = cache_build._flush_to_disk, []

    def killed(file: object) -> None:
        calls.append(file)
        if len(calls) == 8:
            raise KeyboardInterrupt
        real(file)

    monkeypatch.setattr(cache_build, "_flush_to_disk", killed)
    with pytest.raises(KeyboardInterrupt):
        of(photos)
    assert not (kept(photos) / "manifest.json").exists()
    monkeypatch.setattr(cache_build, "_flush_to_disk", real)
    [records] = kept(photos).glob("rows-*.part")
    whole = 4 * (len(calls) // 2 - 1)
    records.write_bytes(records.read_bytes()[: whole * cache_build.RECORD.itemsize + 5])  # and one record torn
    decoded.clear()
    resumed = of(photos)
    assert len(decoded) == COUNT - whole < COUNT
    assert same(resumed, folder(str(photos), size=24))
    assert not list(kept(photos).glob("*.part"))


def test_what_an_interrupted_build_left_damaged_is_decoded_again(photos: Path, decoded: list[Path]) -> None:
    expected = fetched(of(photos).train)
    place = kept(photos)
    (place / "manifest.json").unlink()
    for path in place.glob("*-*"):
        path.rename(path.with_name(path.name + ".part"))
    [pixels] = place.glob("pixels-*")
    content = bytearray(pixels.read_bytes())
    content[10 * 24 * 24 * 3] ^= 1
    pixels.write_bytes(content)
    decoded.clear()
    assert torch.equal(fetched(of(photos).train), expected)
    assert len(decoded) == COUNT - 10


def test_an_unreadable_image_is_named_and_nothing_is_lost(photos: Path, decoded: list[Path]) -> None:
    bad = photos / "b" / "15.png"
    good = bad.read_bytes()
    bad.write_bytes(good[:50])
    with pytest.raises(DataError, match=f"^cannot read {re.escape(str(bad))} as an image"):
        of(photos)
    bad.write_bytes(good)
    decoded.clear()
    mended = of(photos)
    assert len(decoded) == COUNT - 20  # five blocks lie before the one that it is in
    assert same(mended, folder(str(photos), size=24))


def test_no_room_is_said_before_anything_is_written(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_build.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(EnvironmentProblem, match=r"data\.cache=/path"):
        of(photos)
    assert not (photos.parent / "kept").exists()


def test_a_place_that_cannot_be_written_is_said(photos: Path) -> None:
    (photos.parent / "kept").write_text("a file")
    with pytest.raises(EnvironmentProblem, match="Name another folder"):
        of(photos)


def test_a_flipped_bit_is_noticed_when_its_image_is_fetched(photos: Path) -> None:
    of(photos)
    [pixels] = kept(photos).glob("pixels-*")
    content = bytearray(pixels.read_bytes())
    content[-1] ^= 1
    pixels.write_bytes(content)
    data = of(photos)
    fetched(data.train)
    with pytest.raises(DataError, match=r"damaged.*Delete"):
        fetched(data.query)


@pytest.mark.parametrize("damage", ["cut pixels", "cut rows", "another version", "no json"])
def test_what_is_damaged_as_a_whole_is_built_again(photos: Path, damage: str) -> None:
    expected = fetched(of(photos).train)
    place = kept(photos)
    manifest = place / "manifest.json"
    if damage.startswith("cut"):
        [path] = place.glob(f"{damage[4:]}-*")
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "another version":
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"version": 0}))
    else:
        manifest.write_text("")
    assert torch.equal(fetched(of(photos).train), expected)
    assert json.loads(manifest.read_text())["images"] == COUNT


def test_several_that_ask_at_once_build_it_once(photos: Path, decoded: list[Path]) -> None:
    """Each takes the lock of a file that it opened itself, as processes do."""
    made: list[Data] = []
    threads = [threading.Thread(target=lambda: made.append(of(photos))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(decoded) == COUNT
    assert same(made[0], made[1])
    assert same(made[0], made[2])


def test_true_is_a_place_beside_the_users_caches(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(photos.parent / "xdg"))
    of(photos, cache=True)
    [place] = (photos.parent / "xdg" / "reptk").iterdir()
    assert place.name.startswith("folder-photos-24px-")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.default_folder() == Path("~/.cache/reptk").expanduser()


def test_imagenet100_is_kept_as_well(tmp_path: Path) -> None:
    from test_folder import SYNSETS, fill_imagenet

    root = str(fill_imagenet(tmp_path / "imagenet", SYNSETS))
    assert same(imagenet100(root, size=8), imagenet100(root, size=8, cache=str(tmp_path / "kept")))


def test_a_recipe_names_it(tmp_path: Path) -> None:
    from reptk import load

    assert load("simclr_folder").data["cache"] is False
    assert load("simclr_folder", ["data.cache=true"]).data["cache"] is True
    assert load("simclr_folder", ["data.cache=/somewhere"]).data["cache"] == "/somewhere"
