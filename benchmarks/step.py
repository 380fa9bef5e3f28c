"""A whole training step over the bare backbone's forward and backward on the same batch, in turn in one process.

python benchmarks/step.py [--profile] [RECIPE] [key=value ...]

Without a recipe: tcl_selfsup_photos (resnet10t, 32 px) and simclr_photos with a resnet18 at 64 px, batch 64. --profile prints
what the operators of one step cost.
"""

import platform
import statistics
import sys
import time
from collections.abc import Callable

import torch
from einops import rearrange
from torch.profiler import profile

from reptk import load
from reptk.core import distributed, rng
from reptk.core.environment import git_commit, package_versions
from reptk.data import DevicePrefetcher
from reptk.training.build import build, load_data
from reptk.training.loop import train_step

ROUNDS = 24


DEFAULTS = (
    ["tcl_selfsup_photos"],
    ["simclr_photos", "views.size=64", "encoder.backbone=resnet18", "train.batch_size=64"],
)


def main(arguments: list[str]) -> None:
    profiled = "--profile" in arguments
    named = [argument for argument in arguments if argument != "--profile"]
    for chosen in [named] if named else DEFAULTS:
        compare(chosen, profiled)


def compare(arguments: list[str], profiled: bool) -> None:
    """Print one recipe's step over its bare backbone."""
    name, *overrides = arguments
    recipe = load(name, overrides)
    device = distributed.setup(recipe.train.device)
    built = build(recipe, load_data(recipe), device)
    built.method.train()
    batches = DevicePrefetcher(built.loader.batches(0, ROUNDS + 3), device)
    backbone = built.encoder.backbone
    images, _, _ = next(batches)
    views = rearrange(built.method.views(images, 0), "v b c h w -> (v b) c h w")
    if recipe.train.channels_last:
        views = views.contiguous(memory_format=torch.channels_last)

    def whole(step: int) -> None:
        train_step(recipe, built, built.method, *next(batches), step)

    def views_alone(step: int) -> None:
        built.method.views(images, rng.key("benchmark", step))

    def bare(_: int) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.train.precision == "bf16"):
            made = backbone(views)
        made.float().square().mean().backward()
        backbone.zero_grad()

    seconds = measure({"whole step": whole, "bare backbone": bare, "views alone": views_alone})
    print(
        f"{recipe.name}: {recipe.encoder.backbone}, {len(views)} views of {views.shape[-1]} px, {recipe.train.precision}"
    )
    print(
        f"{device}, {torch.get_num_threads()} threads, {platform.machine()}, commit {git_commit()}, {package_versions()}"
    )
    base = seconds["bare backbone"]
    for what, values in seconds.items():
        low, middle = min(values), statistics.median(values)
        print(
            f"  {what:<14} min {1e3 * low:7.1f} ms   median {1e3 * middle:7.1f} ms   {len(views) / middle:8,.0f} views/s"
        )
    print(f"  step / bare    min {min(seconds['whole step']) / min(base):.3f}      median {ratio(seconds):.3f}")
    if profiled:
        with profile() as made:
            whole(ROUNDS + 2)
        print(made.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=45))


def measure(parts: dict[str, Callable[[int], None]]) -> dict[str, list[float]]:
    """Seconds of every part in every round, the parts in turn; the first round is not counted."""
    seconds: dict[str, list[float]] = {what: [] for what in parts}
    for step in range(ROUNDS + 1):
        for what, run in parts.items():
            since = time.perf_counter()
            run(step)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if step:
                seconds[what].append(time.perf_counter() - since)
    return seconds


def ratio(seconds: dict[str, list[float]]) -> float:
    """Median over the rounds of whole step / bare backbone: neighbours in time, so that drift cancels."""
    pairs = zip(seconds["whole step"], seconds["bare backbone"], strict=True)
    return statistics.median(whole / bare for whole, bare in pairs)


if __name__ == "__main__":
    main(sys.argv[1:])
