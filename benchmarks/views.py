"""SimCLR's augmentations by reptk and by its peers, measured alternately in one process.

python benchmarks/views.py [--rounds 7] [--images 64] [--sizes 224 32] [--device cuda]      peers: pip install lightly

At 224 px from 256 px images, with blur; at 32 px without blur, at half the colour strength, in batches of 512. Every contender
starts from decoded images in the form it expects: reptk and kornia a uint8 batch, torchvision a uint8 tensor for each image or
for a batch (all of whose images then get the same parameters), lightly a PIL image; lightly's transform runs in a torch
DataLoader with two workers, which exist for all rounds. Each makes one view of every image. On a GPU only those run that
process batches there.
"""

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version

import kornia.augmentation as ka
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from reptk.config.registry import VIEWS
from reptk.core.environment import git_commit, package_versions
from reptk.data import photos

SETS = {224: ("simclr", 256, 1.0, 0.08), 32: ("simclr_small", 32, 0.5, 0.2)}
WORKERS = 2
LEAST_SECONDS = 0.3
"""Every contender is timed for about this long in each round, so that short ones are not measured cold."""

Contender = Callable[[int], Tensor]
"""Makes a batch of views, for the number of a step."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--images", type=int, help="a batch; default: 64 at 224 px, 512 at 32 px, on a GPU 512 and 4,096"
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 32], choices=list(SETS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    is_on_gpu = args.device != "cpu"
    if is_on_gpu:
        processor = torch.cuda.get_device_name()
    else:
        processor = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    print(f"{platform.machine()}, {processor}, commit {git_commit()}")
    versions = package_versions() | _peers()
    print(", ".join(f"{name} {version_}" for name, version_ in versions.items()), flush=True)
    for size in args.sizes:
        name, image_size, _, _ = SETS[size]
        count = args.images
        if count is None:
            count = 64 if size > 64 else 512
            if is_on_gpu:
                count *= 8
        images = _images(image_size, count).to(args.device)
        contenders = _contenders(size, images)
        for contender in contenders.values():
            assert contender(0).shape == (len(images), 3, size, size)
        seconds = _measure(contenders, args.rounds)
        print(f"\n{name}, {image_size} -> {size} px, batches of {len(images)}, views/s")
        _print_speeds(seconds, len(images))


def _print_speeds(seconds: dict[str, list[float]], count: int) -> None:
    reptk_best = min(seconds["reptk"])
    for name, values in seconds.items():
        best, median = min(values), statistics.median(values)
        print(
            f"  {name:<36} best {count / best:9,.0f}   median {count / median:9,.0f}   "
            f"reptk / this {best / reptk_best:6.2f} (best), {_median_ratio(seconds, name):6.2f} (median of the rounds)"
        )


def _contenders(size: int, images: Tensor) -> dict[str, Contender]:
    name, _, strength, scale = SETS[size]
    factory = VIEWS.get(name)
    options = {"size": size, "count": 1, "strength": strength, "scale": scale}
    fused = factory(**options)
    exact = factory(**options, exact_hue=True)
    by_kornia = factory(**options, backend="kornia")
    chain, transform = _kornia(size, strength, scale), _torchvision(size, strength, scale)
    contenders: dict[str, Contender] = {"reptk": lambda step: fused(images, step)[0]}
    if images.is_cuda:
        compiled = torch.compile(fused.__call__)
        contenders["reptk, compiled"] = lambda step: compiled(images, step)[0]
    contenders["reptk, exact_hue"] = lambda step: exact(images, step)[0]
    contenders["reptk, backend kornia"] = lambda step: by_kornia(images, step)[0]
    contenders["kornia"] = lambda _: chain(images.float() / 255)
    contenders["torchvision v2, one draw for all"] = lambda _: transform(images)
    if images.is_cuda:
        return contenders
    contenders["torchvision v2, an image at a time"] = lambda _: torch.stack([transform(image) for image in images])
    if _peers():
        batches = _lightly(size, strength, scale, images)
        contenders[f"lightly, {WORKERS} workers"] = lambda _: next(batches)
    return contenders


def _kornia(size: int, strength: float, scale: float) -> torch.nn.Module:
    """As in kornia's documentation; at 32 px with the cropping mode that is faster for small images."""
    cropping = "slice" if size > 64 else "resample"
    operations = [
        ka.RandomResizedCrop((size, size), scale=(scale, 1.0), cropping_mode=cropping),
        ka.RandomHorizontalFlip(),
        ka.ColorJitter(0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength, p=0.8),
        ka.RandomGrayscale(p=0.2),
    ]
    if size > 64:
        operations.append(ka.RandomGaussianBlur((23, 23), (0.1, 2.0), p=0.5))
    return ka.AugmentationSequential(*operations, data_keys=["input"])


def _torchvision(size: int, strength: float, scale: float) -> Callable[[Tensor], Tensor]:
    jitter = v2.ColorJitter(0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength)
    steps = [
        v2.RandomResizedCrop(size, scale=(scale, 1.0), antialias=True),
        v2.RandomHorizontalFlip(),
        v2.RandomApply([jitter], p=0.8),
        v2.RandomGrayscale(p=0.2),
    ]
    if size > 64:
        steps.append(v2.RandomApply([v2.GaussianBlur(23, (0.1, 2.0))], p=0.5))
    return v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True)])


class _RepeatedImages(Dataset):
    """PIL images, repeated without end."""

    def __init__(self, images: Tensor, transform: Callable[[Image.Image], list[Tensor]]) -> None:
        self.images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
        self.transform = transform

    def __len__(self) -> int:
        return 1 << 40

    def __getitem__(self, number: int) -> Tensor:
        return self.transform(self.images[number % len(self.images)])[0]


def _lightly(size: int, strength: float, scale: float, images: Tensor) -> Iterator[Tensor]:
    from lightly.transforms.simclr_transform import SimCLRViewTransform

    blur = {"gaussian_blur": 0.0}
    if size > 64:
        blur = {"gaussian_blur": 0.5, "sigmas": (0.1, 2.0)}
    view = SimCLRViewTransform(input_size=size, cj_strength=strength, min_scale=scale, normalize=None, **blur)
    loader = DataLoader(
        _RepeatedImages(images, lambda image: [view(image)]),
        batch_size=len(images),
        sampler=iter(range(1 << 40)),
        num_workers=WORKERS,
        prefetch_factor=1,
    )
    return iter(loader)


def _images(size: int, count: int) -> Tensor:
    """Patches of photographs, (count, 3, size, size) uint8, in the memory layout of decoded images."""
    split = photos().train
    images = split.images.fetch(torch.arange(count) * (len(split) // count) % len(split))
    images = torch.nn.functional.interpolate(images.float(), (size, size), mode="bicubic").clamp(0, 255).to(torch.uint8)
    return images.contiguous(memory_format=torch.channels_last if size > 64 else torch.contiguous_format)


def _measure(contenders: dict[str, Contender], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of a batch, for every contender and round, in an order that is rotated; round 0 is not counted.

    A loader with workers computes batches ahead while others are timed. These are used up first, then several batches are
    timed in a row, then the workers get time to compute ahead again before the next contender is timed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    num_batches = dict.fromkeys(contenders, 2 * WORKERS)
    for number in range(rounds + 1):
        names = list(contenders)
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            contender = contenders[name]
            has_workers = name.startswith("lightly")
            if has_workers:
                for _ in range(WORKERS):
                    contender(0)
            start = time.perf_counter()
            for batch in range(num_batches[name]):
                contender(number * 1000 + batch)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds_per_batch = (time.perf_counter() - start) / num_batches[name]
            if number > 0:
                seconds[name].append(seconds_per_batch)
            elif not has_workers:
                num_batches[name] = max(1, round(LEAST_SECONDS / seconds_per_batch))
            if has_workers:
                time.sleep(2.5 * seconds_per_batch)
    return seconds


def _median_ratio(seconds: dict[str, list[float]], name: str) -> float:
    """Return how many times longer than reptk it takes, within the rounds, so that drift cancels."""
    ratios = [other / reptk for other, reptk in zip(seconds[name], seconds["reptk"], strict=True)]
    return statistics.median(ratios)


def _peers() -> dict[str, str]:
    try:
        import lightly.transforms  # noqa: F401
    except ImportError:
        print("lightly is not installed, so it is left out: pip install lightly", file=sys.stderr)
        return {}
    return {"lightly": version("lightly"), "pillow": version("pillow")}


if __name__ == "__main__":
    main()
