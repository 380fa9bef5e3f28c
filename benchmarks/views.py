"""SimCLR's augmentations by reptk and by those that make them otherwise, in turn in one process.

python benchmarks/views.py [--rounds 7] [--images 64] [--sizes 224 32] [--device cuda]      peers: pip install lightly

At 224 px from 256 px images, blur included; at 32 px without blur, at half the colour strength, batches of 512. Who takes
part starts from decoded images in the form that it takes: reptk and kornia a uint8 batch, torchvision a uint8 tensor an image
or a batch (of which all images then get one draw), lightly a PIL image; lightly's transform runs in a torch DataLoader with
two workers, which live through all rounds. Each makes one view of every image. On a GPU only those take part that work on
batches there.
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
"""Each part makes batches for about so long in a round, so that short ones are not measured cold."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--images", type=int, help="a batch; default: 64 at 224 px, 512 at 32 px, on a GPU 512 and 4,096"
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 32], choices=list(SETS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    asked = parser.parse_args()
    on_gpu = asked.device != "cpu"
    where = torch.cuda.get_device_name() if on_gpu else f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    print(f"{platform.machine()}, {where}, commit {git_commit()}")
    print(", ".join(f"{name} {number}" for name, number in (package_versions() | _peers()).items()), flush=True)
    for size in asked.sizes:
        count = asked.images or (64 if size > 64 else 512) * (8 if on_gpu else 1)
        images = _images(SETS[size][1], count).to(asked.device)
        parts = _parts(size, images)
        for made in parts.values():
            assert made(0).shape == (len(images), 3, size, size)
        seconds = _measure(parts, asked.rounds)
        print(f"\n{SETS[size][0]}, {SETS[size][1]} -> {size} px, batches of {len(images)}, views/s")
        base = min(seconds["reptk"])
        for name, values in seconds.items():
            best, middle = min(values), statistics.median(values)
            print(
                f"  {name:<36} best {len(images) / best:9,.0f}   median {len(images) / middle:9,.0f}   "
                f"reptk / this {best / base:6.2f} (best), {_ratio(seconds, name):6.2f} (median of the rounds)"
            )


def _parts(size: int, images: Tensor) -> dict[str, Callable[[int], Tensor]]:
    name, _, strength, scale = SETS[size]
    make, options = VIEWS.get(name), {"size": size, "count": 1, "strength": strength, "scale": scale}
    fused, exact, through = (make(**options, **more) for more in ({}, {"exact_hue": True}, {"backend": "kornia"}))
    chain, transform = _kornia(size, strength, scale), _torchvision(size, strength, scale)
    parts: dict[str, Callable[[int], Tensor]] = {
        "reptk": lambda step: fused(images, step)[0],
        "reptk, exact_hue": lambda step: exact(images, step)[0],
        "reptk, backend kornia": lambda step: through(images, step)[0],
        "kornia": lambda _: chain(images.float() / 255),
        "torchvision v2, one draw for all": lambda _: transform(images),
    }
    if images.is_cuda:
        compiled = torch.compile(fused.__call__)
        return {"reptk": parts.pop("reptk"), "reptk, compiled": lambda step: compiled(images, step)[0], **parts}
    parts["torchvision v2, an image at a time"] = lambda _: torch.stack([transform(image) for image in images])
    if _peers():
        batches = _lightly(size, strength, scale, images)
        parts[f"lightly, {WORKERS} workers"] = lambda _: next(batches)
    return parts


def _kornia(size: int, strength: float, scale: float) -> torch.nn.Module:
    """As kornia's documentation writes it; at 32 px with the way of cropping that is faster there."""
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


class _Pictures(Dataset):
    """PIL images, over and over, as many as are asked for."""

    def __init__(self, images: Tensor, transform: Callable[[Image.Image], list[Tensor]]) -> None:
        self.pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
        self.transform = transform

    def __len__(self) -> int:
        return 1 << 40

    def __getitem__(self, number: int) -> Tensor:
        return self.transform(self.pictures[number % len(self.pictures)])[0]


def _lightly(size: int, strength: float, scale: float, images: Tensor) -> Iterator[Tensor]:
    from lightly.transforms.simclr_transform import SimCLRViewTransform

    blur = {"gaussian_blur": 0.5, "sigmas": (0.1, 2.0)} if size > 64 else {"gaussian_blur": 0.0}
    view = SimCLRViewTransform(input_size=size, cj_strength=strength, min_scale=scale, normalize=None, **blur)
    loader = DataLoader(
        _Pictures(images, lambda picture: [view(picture)]),
        batch_size=len(images),
        sampler=iter(range(1 << 40)),
        num_workers=WORKERS,
        prefetch_factor=1,
    )
    return iter(loader)


def _images(size: int, count: int) -> Tensor:
    """Patches of photographs, (count, 3, size, size) uint8 in the memory layout in which images are decoded."""
    split = photos().train
    images = split.images.fetch(torch.arange(count) * (len(split) // count) % len(split))
    images = torch.nn.functional.interpolate(images.float(), (size, size), mode="bicubic").clamp(0, 255).to(torch.uint8)
    return images.contiguous(memory_format=torch.channels_last if size > 64 else torch.contiguous_format)


def _measure(parts: dict[str, Callable[[int], Tensor]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every part in every round, in an order that turns round by round; the first round is not counted.

    A loader with workers makes batches ahead while others are timed: these are taken first, then several batches are
    timed in a row, then it is given time to fill up again before the next part's turn.
    """
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    batches = dict.fromkeys(parts, 2 * WORKERS)
    for number in range(rounds + 1):
        names = list(parts)
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            is_ahead = name.startswith("lightly")
            for _ in range(WORKERS if is_ahead else 0):
                parts[name](0)
            since = time.perf_counter()
            for batch in range(batches[name]):
                parts[name](number * 1000 + batch)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            each = (time.perf_counter() - since) / batches[name]
            if number:
                seconds[name].append(each)
            elif not is_ahead:
                batches[name] = max(1, round(LEAST_SECONDS / each))
            if is_ahead:
                time.sleep(2.5 * each)
    return seconds


def _ratio(seconds: dict[str, list[float]], name: str) -> float:
    """Of neighbours in time, so that drift cancels."""
    return statistics.median(theirs / ours for theirs, ours in zip(seconds[name], seconds["reptk"], strict=True))


def _peers() -> dict[str, str]:
    try:
        import lightly.transforms  # noqa: F401
    except ImportError:
        print("lightly is not installed, so it is left out: pip install lightly", file=sys.stderr)
        return {}
    return {"lightly": version("lightly"), "pillow": version("pillow")}


if __name__ == "__main__":
    main()
