"""A whole training step against forward and backward of the bare backbone on the same batch, alternately in one process.

python benchmarks/step.py [--profile] [RECIPE] [key=value ...]

Without a recipe: tcl_selfsup_photos (resnet10t, 32 px) and simclr_photos with a resnet18 at 64 px, batch 64. --profile prints
the time of the operators in one step.
"""

import platform
import statistics
import sys
import time
from collections.abc import Callable

import torch
from einops import rearrange
from torch.profiler import profile

from reptk import load, rng
from reptk.core import distributed
from reptk.core.environment import git_commit, package_versions
from reptk.data import DevicePrefetcher
from reptk.methods import Batch
from reptk.training.build import build, load_data
from reptk.training.loop import train_step

ROUNDS = 24

DEFAULTS = (
    ["tcl_selfsup_photos"],
    ["simclr_photos", "views.size=64", "encoder.backbone=resnet18", "train.batch_size=64"],
)

Seconds = dict[str, list[float]]


def main(argv: list[str]) -> None:
    profiles = "--profile" in argv
    recipe = [argument for argument in argv if argument != "--profile"]
    for arguments in [recipe] if recipe else DEFAULTS:
        compare(arguments, profiles)


def compare(arguments: list[str], profiles: bool = False) -> float:
    """Print one recipe's step and its bare backbone; returns the median ratio of the two.

    Args:
        arguments: a recipe's name and overrides.
        profiles: whether to print the operators of a step.
    """
    name, *overrides = arguments
    recipe = load(name, overrides)
    device = distributed.setup(recipe.train.device)
    parts = build(recipe, load_data(recipe), device)
    parts.method.train()
    batches = DevicePrefetcher(parts.loader.batches(0, ROUNDS + 3), device)
    backbone = parts.encoder.backbone
    images, _, _ = next(batches)
    views = rearrange(parts.method.views(images, 0), "v b c h w -> (v b) c h w")
    if recipe.train.channels_last:
        views = views.contiguous(memory_format=torch.channels_last)

    def whole_step(number: int) -> None:
        train_step(parts, parts.method, Batch(*next(batches)), parts.step(number))

    def views_alone(number: int) -> None:
        parts.method.views(images, rng.key("benchmark", number))

    def bare_backbone(number: int) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=parts.settings.bf16):
            features = backbone(views)
        features.float().square().mean().backward()
        backbone.zero_grad()

    seconds = measure({"whole step": whole_step, "bare backbone": bare_backbone, "views alone": views_alone})
    size_px = views.shape[-1]
    print(f"{recipe.name}: {recipe.encoder.backbone}, {len(views)} views of {size_px} px, {recipe.train.precision}")
    threads = f"{torch.get_num_threads()} threads, {platform.machine()}"
    print(f"{device}, {threads}, commit {git_commit()}, {package_versions()}")
    for what, values in seconds.items():
        fastest, median = min(values), statistics.median(values)
        rate = f"{len(views) / median:8,.0f} views/s"
        print(f"  {what:<14} min {1e3 * fastest:7.1f} ms   median {1e3 * median:7.1f} ms   {rate}")
    fastest_ratio = min(seconds["whole step"]) / min(seconds["bare backbone"])
    print(f"  step / bare    min {fastest_ratio:.3f}      median {median_ratio(seconds):.3f}")
    if profiles:
        with profile() as profiler:
            whole_step(ROUNDS + 2)
        print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=45))
    return median_ratio(seconds)


def measure(functions: dict[str, Callable[[int], None]]) -> Seconds:
    """Seconds of each function in every round, called one after the other; the first round is not counted."""
    seconds: Seconds = {what: [] for what in functions}
    for number in range(ROUNDS + 1):
        for what, function in functions.items():
            started = time.perf_counter()
            function(number)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number:
                seconds[what].append(time.perf_counter() - started)
    return seconds


def median_ratio(seconds: Seconds) -> float:
    """Median over the rounds of whole step / bare backbone: both of a round ran next to each other, so drift cancels."""
    pairs = zip(seconds["whole step"], seconds["bare backbone"], strict=True)
    return statistics.median(whole / bare for whole, bare in pairs)


if __name__ == "__main__":
    main(sys.argv[1:])
