"""Images from JPEG files to uint8 batches: reptk's loader against torch's DataLoader, alternately in one process.

python benchmarks/input.py [--images 384] [--size 256] [--batch 64] [--rounds 7]          a few minutes on two cores

The files are crops of the photographs that come with scikit-image and scikit-learn, 500 x 375, quality 90, in a temporary
folder; they stay in the page cache, so no disk is measured. Workers are started before anything is timed. The DataLoader
decodes as people write it: Pillow, convert, resize and crop to the same square, a tensor, the default collate. Before
anything is timed, its pixels are compared with reptk's. Compare minima, and on a busy machine the CPU time,
which other processes disturb least.
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
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import CenterCrop, Resize

from reptk.core import rng
from reptk.core.environment import git_commit, package_versions
from reptk.data import Loader, Split, folder, num_cpus
from reptk.data.images.image_files import ImageFiles
from reptk.data.sources.photos import load_photographs

WIDTH_PX, HEIGHT_PX = 500, 375
BASELINE = "DataLoader, 2 workers"

Epoch = Callable[[], Iterator[Tensor]]
"""Starts an epoch and yields its batches of images."""

Times = dict[str, list[float]]
"""Seconds of each round, by contestant."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=384)
    parser.add_argument("--size", type=int, default=256, help="side of the squares in pixels")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    steps = args.images // args.batch
    with tempfile.TemporaryDirectory() as temporary:
        photos = Path(temporary) / "photos"
        photos.mkdir()
        write_photos(photos, args.images)
        epochs = contestants(photos, Path(temporary) / "cache", args.size, args.batch)
        seconds, cpu = measure(epochs, steps, args.rounds)
    print(f"{steps * args.batch} JPEG files of {WIDTH_PX} x {HEIGHT_PX} to {args.size} px, batches of {args.batch}")
    print(
        f"{platform.machine()}, {num_cpus()} cores, load {os.getloadavg()[0]:.1f}, commit {git_commit()}, "
        f"{package_versions()}"
    )
    print_table(seconds, cpu, steps * args.batch)


def write_photos(photos: Path, count: int) -> None:
    """Write crops at random places, of half to all of a photograph's size, a little lighter or darker."""
    photographs = list(load_photographs().values())
    draws = torch.rand(count, 4, generator=rng.generator("benchmark", count)).tolist()
    for number, (size, across, down, light) in enumerate(draws):
        photograph = photographs[number % len(photographs)]
        width = min(photograph.width, photograph.height * WIDTH_PX / HEIGHT_PX) * (1 + size) / 2
        height = width * HEIGHT_PX / WIDTH_PX
        left = across * (photograph.width - width)
        top = down * (photograph.height - height)
        box = (left, top, left + width, top + height)
        crop = photograph.resize((WIDTH_PX, HEIGHT_PX), Image.Resampling.BICUBIC, box)
        crop.point(lambda value, light=light: value * (0.8 + 0.4 * light)).save(photos / f"{number:05}.jpg", quality=90)


class JpegDataset(Dataset):
    """A data set of JPEG files as people usually write it."""

    def __init__(self, paths: list[Path], size: int) -> None:
        self.paths = paths
        self.size = size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        with Image.open(self.paths[number]) as image:
            square = CenterCrop(self.size)(Resize(self.size)(image.convert("RGB")))
        return torch.from_numpy(np.array(square)).permute(2, 0, 1), number


def contestants(photos: Path, cache: Path, size: int, batch: int) -> dict[str, Epoch]:
    """Return the epochs of each loader, by name. All that use Pillow give the same pixels, which is checked."""
    paths = sorted(photos.iterdir())
    dataset = JpegDataset(paths, size)
    cached = folder(str(photos), size, cache=str(cache), jpeg="pillow").train
    check_pixels(dataset, paths, size, cached)
    decoders = ["pillow"]
    if find_spec("simplejpeg"):
        decoders.append("simplejpeg")
    epochs: dict[str, Epoch] = {}
    for jpeg in decoders:
        for workers in (0, 1, 2):
            split = Split(ImageFiles(paths, size, jpeg), torch.zeros(len(paths)))
            epochs[f"reptk, {jpeg}, {workers} workers"] = reptk_epoch(split, batch, workers)
    for workers in (0, 2):
        epochs[f"reptk, data.cache, {workers} workers"] = reptk_epoch(cached, batch, workers)
    for workers in (0, 2):
        epochs[f"DataLoader, {workers} workers"] = torch_epoch(dataset, batch, workers)
    return epochs


def check_pixels(dataset: JpegDataset, paths: list[Path], size: int, cached: Split) -> None:
    expected = torch.stack([dataset[number][0] for number in range(len(paths))])
    numbers = torch.arange(len(paths))
    assert torch.equal(ImageFiles(paths, size, "pillow").fetch(numbers), expected), "other pixels"
    assert torch.equal(cached.images.fetch(numbers), expected), "other pixels from the cache"


def reptk_epoch(split: Split, batch: int, workers: int) -> Epoch:
    loader = Loader(split, batch_size=batch, seed=0, workers=workers)
    return lambda: (images for images, _, _ in loader.batches(0, loader.steps_per_epoch))


def torch_epoch(dataset: JpegDataset, batch: int, workers: int) -> Epoch:
    persistent = workers > 0
    loader = DataLoader(
        dataset, batch, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=persistent
    )
    return lambda: (images for images, _ in loader)


def measure(epochs: dict[str, Epoch], steps: int, rounds: int) -> tuple[Times, Times]:
    """Return the seconds of an epoch in every round, and the CPU seconds of all its threads and workers.

    All contestants run in each round; the first round starts the workers and does not count.
    """
    seconds: Times = {name: [] for name in epochs}
    cpu: Times = {name: [] for name in epochs}
    for round_number in range(rounds + 1):
        for name, epoch in epochs.items():
            start = time.perf_counter()
            cpu_start = cpu_seconds()
            num_batches = sum(1 for _ in islice(epoch(), steps))
            elapsed = time.perf_counter() - start
            assert num_batches == steps, f"{name}: {num_batches} batches"
            if round_number > 0:
                seconds[name].append(elapsed)
                cpu[name].append(cpu_seconds() - cpu_start)
    return seconds, cpu


def print_table(seconds: Times, cpu: Times, images: int) -> None:
    print(f"  {'':<32}{'images/s, best':>16}{'median':>10}{'CPU ms/image':>15}{'best / ' + BASELINE:>31}")
    for name, values in seconds.items():
        best = images / min(values)
        median = images / statistics.median(values)
        cpu_milliseconds = 1e3 * min(cpu[name]) / images
        ratio = min(seconds[BASELINE]) / min(values)
        print(f"  {name:<32}{best:16,.0f}{median:10,.0f}{cpu_milliseconds:15.2f}{ratio:31.2f}")


def cpu_seconds() -> float:
    """Return the CPU time of this process and, on Linux, of its worker processes."""
    workers = multiprocessing.active_children()
    return time.process_time() + sum(worker_cpu_seconds(worker.pid) for worker in workers)


def worker_cpu_seconds(process_id: int) -> float:
    try:
        status = Path(f"/proc/{process_id}/stat").read_text()
    except OSError:  # not on Linux, or the process has ended
        return 0.0
    fields = status.rpartition(")")[2].split()  # the name before it may contain spaces
    user_ticks, system_ticks = int(fields[11]), int(fields[12])
    return (user_ticks + system_ticks) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
