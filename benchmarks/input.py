"""Images from JPEG files to uint8 batches: reptk's loader against torch's DataLoader, in turn in one process.

python benchmarks/input.py [--images 384] [--size 256] [--batch 64] [--rounds 7]          a few minutes on two cores

The files are crops of the photographs that come with scikit-image and scikit-learn, 500 x 375, quality 90, in a temporary
folder; they stay in the page cache, so no disk is measured. Workers are started before anything is timed. The DataLoader
decodes as people write it: Pillow, convert, resize and crop to the same square, a tensor, the default collate. Before
anything is timed, its pixels are compared with reptk's. Compare minima, and on a busy machine the CPU time,
which others disturb least.
"""

import argparse
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from reptk.core import rng
from reptk.core.environment import git_commit, package_versions
from reptk.data import Loader, Split, folder
from reptk.data.image_files import ImageFiles
from reptk.data.sources.photos import load_photographs

WIDTH, HEIGHT = 500, 375


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=384)
    parser.add_argument("--size", type=int, default=256, help="side of the squares in pixels")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        photos = Path(home) / "photos"
        photos.mkdir()
        write_photos(photos, chosen.images)
        parts = participants(photos, Path(home) / "cache", chosen.size, chosen.batch)
        images = chosen.images // chosen.batch * chosen.batch
        seconds, cpu = measure(parts, chosen.images // chosen.batch, chosen.rounds)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"{images} JPEG files of {WIDTH} x {HEIGHT} to {chosen.size} px, batches of {chosen.batch}")
    print(
        f"{platform.machine()}, {cores} cores, load {os.getloadavg()[0]:.1f}, commit {git_commit()}, {package_versions()}"
    )
    base = seconds["DataLoader, 2 workers"]
    print(f"  {'':<32}{'images/s, best':>16}{'median':>10}{'CPU ms/image':>15}{'best / DataLoader, 2 workers':>31}")
    for name, values in seconds.items():
        best, middle = images / min(values), images / statistics.median(values)
        work = 1e3 * min(cpu[name]) / images
        print(f"  {name:<32}{best:16,.0f}{middle:10,.0f}{work:15.2f}{min(base) / min(values):31.2f}")


def write_photos(photos: Path, count: int) -> None:
    """Crops of any place and half to all of the size, a little lighter or darker."""
    pictures = list(load_photographs().values())
    draws = torch.rand(count, 4, generator=rng.generator("benchmark", count)).tolist()
    for number, (size, across, down, light) in enumerate(draws):
        picture = pictures[number % len(pictures)]
        width = min(picture.width, picture.height * WIDTH / HEIGHT) * (1 + size) / 2
        height = width * HEIGHT / WIDTH
        left, top = across * (picture.width - width), down * (picture.height - height)
        box = (left, top, left + width, top + height)
        crop = picture.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC, box)
        crop.point(lambda value, light=light: value * (0.8 + 0.4 * light)).save(photos / f"{number:05}.jpg", quality=90)


class Plain(Dataset):
    """What a data set of JPEG files usually looks like."""

    def __init__(self, paths: list[Path], size: int) -> None:
        self.paths, self.size = paths, size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        with Image.open(self.paths[number]) as image:
            square = ImageOps.fit(image.convert("RGB"), (self.size, self.size), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(square)).permute(2, 0, 1), number


Epoch = Callable[[], Iterator[Tensor]]


def participants(photos: Path, cache: Path, size: int, batch: int) -> dict[str, Epoch]:
    """Who gives an epoch of batches, by name; all of Pillow give the same pixels."""
    paths = sorted(photos.iterdir())
    plain = Plain(paths, size)
    made: dict[str, Epoch] = {}

    def reptk(name: str, split: Split, workers: int) -> None:
        loader = Loader(split, batch_size=batch, seed=0, workers=workers)
        made[name] = lambda: (images for images, _, _ in loader.batches(0, loader.steps_per_epoch))

    def torchs(workers: int) -> None:
        loader = DataLoader(
            plain, batch, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0
        )
        made[f"DataLoader, {workers} workers"] = lambda: (images for images, _ in loader)

    for jpeg in ("pillow", "simplejpeg") if find_spec("simplejpeg") else ("pillow",):
        for workers in (0, 1, 2):
            split = Split(ImageFiles(paths, size, jpeg), torch.zeros(len(paths)))
            reptk(f"reptk, {jpeg}, {workers} workers", split, workers)
    cached = folder(str(photos), size, cache=str(cache), jpeg="pillow").train
    reptk("reptk, data.cache, 0 workers", cached, 0)
    reptk("reptk, data.cache, 2 workers", cached, 2)
    for workers in (0, 2):
        torchs(workers)
    expected = torch.stack([plain[number][0] for number in range(len(paths))])
    numbers = torch.arange(len(paths))
    assert torch.equal(ImageFiles(paths, size, "pillow").fetch(numbers), expected), "other pixels"
    assert torch.equal(cached.images.fetch(numbers), expected), "other pixels from the cache"
    return made


Times = dict[str, list[float]]


def measure(parts: dict[str, Epoch], steps: int, rounds: int) -> tuple[Times, Times]:
    """Seconds, and CPU seconds of all threads and workers, of an epoch in every round, in turn; the first is not counted."""
    seconds: Times = {name: [] for name in parts}
    cpu: Times = {name: [] for name in parts}
    for number in range(rounds + 1):
        for name, epoch in parts.items():
            since, worked = time.perf_counter(), cpu_seconds()
            taken = sum(1 for _ in islice(epoch(), steps))
            spent = time.perf_counter() - since
            assert taken == steps, f"{name}: {taken} batches"
            if number:
                seconds[name].append(spent)
                cpu[name].append(cpu_seconds() - worked)
    return seconds, cpu


def cpu_seconds() -> float:
    """Of this process and its children, where Linux tells; of this process alone elsewhere."""
    return time.process_time() + sum(_cpu_of(child.pid) for child in multiprocessing.active_children())


def _cpu_of(process: int) -> float:
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
