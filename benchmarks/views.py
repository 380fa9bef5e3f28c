"""SimCLR's augmentations by reptk and by other libraries, alternately in one process.

python benchmarks/views.py [--rounds 7] [--images 64] [--sizes 224 32] [--device cuda]      peers: pip install lightly

At 224 px from 256 px images, blur included; at 32 px without blur, at half the color strength, batches of 512. Every library
starts from decoded images in the form that it expects: reptk and kornia a uint8 batch, torchvision a uint8 tensor for each
image or a batch (all of whose images then get the same parameters), lightly a PIL image; lightly's transform runs in a torch
DataLoader with two workers, which are started once for all rounds. Each computes one view of every image. On a GPU, only
those that process batches there are measured.
"""

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import NamedTuple

import kornia.augmentation as ka
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from measuring import Seconds, median_ratio, synchronize
from reptk.config.registry import VIEWS
from reptk.core.environment import git_commit, package_versions
from reptk.data import photos

WORKERS = 2
LEAST_SECONDS = 0.3
"""Each contestant computes batches for about so long in a round, so that short ones are not measured cold."""
ENDLESS = 1 << 40

Contestant = Callable[[int], Tensor]
"""Computes one view of every image; it gets a key."""


class Setting(NamedTuple):
    """A set of views and its arguments, the same for all libraries."""

    name: str
    source_px: int
    size_px: int
    strength: float
    min_scale: float

    @property
    def blurs(self) -> bool:
        return self.size_px > 64


SETTINGS = {
    224: Setting("simclr", source_px=256, size_px=224, strength=1.0, min_scale=0.08),
    32: Setting("simclr_small", source_px=32, size_px=32, strength=0.5, min_scale=0.2),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--images", type=int, help="in a batch; default: 64 at 224 px, 512 at 32 px, on a GPU 512 and 4,096"
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 32], choices=list(SETTINGS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    is_gpu = args.device != "cpu"
    hardware = torch.cuda.get_device_name() if is_gpu else f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    print(f"{platform.machine()}, {hardware}, commit {git_commit()}")
    versions = package_versions() | _peers()
    print(", ".join(f"{name} {number}" for name, number in versions.items()), flush=True)
    for size_px in args.sizes:
        setting = SETTINGS[size_px]
        num_images = args.images or _default_batch_size(setting, is_gpu)
        images = _images(setting.source_px, num_images).to(args.device)
        contestants = _contestants(setting, images)
        for name, compute in contestants.items():
            assert compute(0).shape == (len(images), 3, size_px, size_px), name
        seconds = _measure(contestants, args.rounds)
        print(f"\n{setting.name}, {setting.source_px} -> {size_px} px, batches of {len(images)}, views/s")
        _print_table(seconds, len(images))


def _default_batch_size(setting: Setting, is_gpu: bool) -> int:
    num_images = 64 if setting.size_px > 64 else 512
    return 8 * num_images if is_gpu else num_images


def _print_table(seconds: Seconds, num_images: int) -> None:
    base = seconds["reptk"]
    for name, values in seconds.items():
        best, median = min(values), statistics.median(values)
        print(
            f"  {name:<36} best {num_images / best:9,.0f}   median {num_images / median:9,.0f}   "
            f"reptk / this {best / min(base):6.2f} (best), {median_ratio(values, base):6.2f} (median of the rounds)"
        )


# Contestants


def _contestants(setting: Setting, images: Tensor) -> dict[str, Contestant]:
    make_views = VIEWS.get(setting.name)
    options = {
        "size": setting.size_px,
        "count": 1,
        "strength": setting.strength,
        "scale": setting.min_scale,
    }
    fused = make_views(**options)
    exact_hue = make_views(**options, exact_hue=True)
    through_kornia = make_views(**options, backend="kornia")
    kornia_chain = _kornia(setting)
    transform = _torchvision(setting)
    contestants: dict[str, Contestant] = {"reptk": lambda key: fused(images, key)[0]}
    if images.is_cuda:
        compiled = torch.compile(fused.__call__)
        contestants["reptk, compiled"] = lambda key: compiled(images, key)[0]
    contestants |= {
        "reptk, exact_hue": lambda key: exact_hue(images, key)[0],
        "reptk, backend kornia": lambda key: through_kornia(images, key)[0],
        "kornia": lambda _: kornia_chain(images.float() / 255),
        "torchvision v2, one draw for all": lambda _: transform(images),
    }
    if images.is_cuda:
        return contestants
    contestants["torchvision v2, an image at a time"] = lambda _: torch.stack([transform(image) for image in images])
    if _peers():
        batches = _lightly(setting, images)
        contestants[f"lightly, {WORKERS} workers"] = lambda _: next(batches)
    return contestants


def _kornia(setting: Setting) -> torch.nn.Module:
    """As in kornia's documentation; at 32 px with the way of cropping that is faster there."""
    cropping_mode = "slice" if setting.size_px > 64 else "resample"
    strength = setting.strength
    operations = [
        ka.RandomResizedCrop(
            (setting.size_px, setting.size_px), scale=(setting.min_scale, 1.0), cropping_mode=cropping_mode
        ),
        ka.RandomHorizontalFlip(),
        ka.ColorJitter(0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength, p=0.8),
        ka.RandomGrayscale(p=0.2),
    ]
    if setting.blurs:
        operations.append(ka.RandomGaussianBlur((23, 23), (0.1, 2.0), p=0.5))
    return ka.AugmentationSequential(*operations, data_keys=["input"])


def _torchvision(setting: Setting) -> Callable[[Tensor], Tensor]:
    strength = setting.strength
    jitter = v2.ColorJitter(0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength)
    operations = [
        v2.RandomResizedCrop(setting.size_px, scale=(setting.min_scale, 1.0), antialias=True),
        v2.RandomHorizontalFlip(),
        v2.RandomApply([jitter], p=0.8),
        v2.RandomGrayscale(p=0.2),
    ]
    if setting.blurs:
        operations.append(v2.RandomApply([v2.GaussianBlur(23, (0.1, 2.0))], p=0.5))
    return v2.Compose([*operations, v2.ToDtype(torch.float32, scale=True)])


class _RepeatedPilImages(Dataset):
    """PIL images, repeated endlessly."""

    def __init__(self, images: Tensor, transform: Callable[[Image.Image], Tensor]) -> None:
        self.images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
        self.transform = transform

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, number: int) -> Tensor:
        return self.transform(self.images[number % len(self.images)])


def _lightly(setting: Setting, images: Tensor) -> Iterator[Tensor]:
    from lightly.transforms.simclr_transform import SimCLRViewTransform

    transform = SimCLRViewTransform(
        input_size=setting.size_px,
        cj_strength=setting.strength,
        min_scale=setting.min_scale,
        normalize=None,
        gaussian_blur=0.5 if setting.blurs else 0.0,
        sigmas=(0.1, 2.0),
    )
    loader = DataLoader(
        _RepeatedPilImages(images, transform),
        batch_size=len(images),
        sampler=iter(range(ENDLESS)),
        num_workers=WORKERS,
        prefetch_factor=1,
    )
    return iter(loader)


def _peers() -> dict[str, str]:
    """Return the versions of lightly and of the library it computes with; nothing if it is not installed."""
    try:
        import lightly.transforms  # noqa: F401
    except ImportError:
        print("lightly is not installed and left out: pip install lightly", file=sys.stderr)
        return {}
    return {"lightly": version("lightly"), "pillow": version("pillow")}


def _images(size_px: int, num_images: int) -> Tensor:
    """Return patches of photographs, (num_images, 3, size_px, size_px) uint8 in the memory layout of decoded images."""
    split = photos().train
    spacing = len(split) // num_images
    images = split.images.fetch(torch.arange(num_images) * spacing % len(split))
    images = torch.nn.functional.interpolate(images.float(), (size_px, size_px), mode="bicubic")
    images = images.clamp(0, 255).to(torch.uint8)
    return images.contiguous(memory_format=torch.channels_last if size_px > 64 else torch.contiguous_format)


# Measuring


def _measure(contestants: dict[str, Contestant], rounds: int) -> Seconds:
    """Return the seconds of a batch of every contestant in every round; a first round is not counted.

    The order rotates from round to round. A loader with workers computes batches ahead while others are timed: these
    batches are removed first, then several batches are timed in a row, then its workers get time to compute ahead again.
    """
    seconds: Seconds = {name: [] for name in contestants}
    num_batches = dict.fromkeys(contestants, 2 * WORKERS)
    names = list(contestants)
    for number in range(rounds + 1):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            compute = contestants[name]
            has_workers = name.startswith("lightly")
            if has_workers:
                for _ in range(WORKERS):
                    compute(0)
            start = time.perf_counter()
            for batch in range(num_batches[name]):
                compute(number * 1000 + batch)
            synchronize()
            seconds_per_batch = (time.perf_counter() - start) / num_batches[name]
            if number > 0:
                seconds[name].append(seconds_per_batch)
            elif not has_workers:
                num_batches[name] = max(1, round(LEAST_SECONDS / seconds_per_batch))
            if has_workers:
                time.sleep(2.5 * seconds_per_batch)
    return seconds


if __name__ == "__main__":
    main()
