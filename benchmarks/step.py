"""A whole training step against forward and backward of the bare backbone on the same batch, alternately in one process.

python benchmarks/step.py [--profile] [RECIPE] [key=value ...]

Without a recipe: tcl_selfsup_photos (resnet10t, 32 px) and simclr_photos with a resnet18 at 64 px, batch 64. --profile prints
the time of the operators in one step.
"""

import platform
import statistics
import sys
from collections.abc import Callable
from functools import partial

import torch
from einops import rearrange
from torch.profiler import profile

from measuring import Seconds, median_ratio, seconds_of
from reptk import load, rng
from reptk.core import distributed
from reptk.core.device import autocast
from reptk.core.environment import git_commit, package_versions
from reptk.data import DevicePrefetcher
from reptk.methods import Batch
from reptk.training.build import build, load_data
from reptk.training.loop import train_step

ROUNDS = 24
UNCOUNTED_ROUNDS = 1

DEFAULTS = (
    ["tcl_selfsup_photos"],
    ["simclr_photos", "views.size=64", "encoder.backbone=resnet18", "train.batch_size=64"],
)

Part = Callable[[int], None]
"""What is timed; it gets the number of the round."""


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
    training = build(recipe, load_data(recipe), device)
    training.method.train()
    # One batch is for the backbone, one for the profile.
    num_batches = ROUNDS + UNCOUNTED_ROUNDS + 2
    batches = DevicePrefetcher(training.loader.batches(0, num_batches), device)
    backbone = training.encoder.backbone
    batch = Batch(*next(batches))
    views = rearrange(batch.draw_views(training.method.views, 0), "v b c h w -> (v b) c h w")
    is_trained = any(parameter.requires_grad for parameter in backbone.parameters())
    if recipe.train.channels_last:
        views = views.contiguous(memory_format=torch.channels_last)

    def whole_step(number: int) -> None:
        train_step(training, training.method, Batch(*next(batches)), training.step(number))

    def views_alone(number: int) -> None:
        batch.draw_views(training.method.views, rng.key("benchmark", number))

    def bare_backbone(number: int) -> None:
        with autocast(device, training.settings.precision), torch.set_grad_enabled(is_trained):
            features = backbone(views)
        if is_trained:  # a frozen one has no backward pass
            features.float().square().mean().backward()
            backbone.zero_grad()

    seconds = measure({"whole step": whole_step, "bare backbone": bare_backbone, "views alone": views_alone})
    print(
        f"{recipe.name}: {recipe.encoder.backbone}, {len(views)} views of {views.shape[-1]} px, {recipe.train.precision}"
    )
    threads = f"{torch.get_num_threads()} threads, {platform.machine()}"
    print(f"{device}, {threads}, commit {git_commit()}, {package_versions()}")
    print_table(seconds, len(views))
    if profiles:
        with profile() as profiler:
            whole_step(num_batches - 1)
        print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=45))
    return median_ratio(seconds["whole step"], seconds["bare backbone"])


def measure(parts: dict[str, Part]) -> Seconds:
    """Return the seconds of each part in every counted round; in a round the parts are called one after the other."""
    seconds: Seconds = {name: [] for name in parts}
    for number in range(UNCOUNTED_ROUNDS + ROUNDS):
        for name, part in parts.items():
            seconds[name].append(seconds_of(partial(part, number)))
    return {name: values[UNCOUNTED_ROUNDS:] for name, values in seconds.items()}


def print_table(seconds: Seconds, num_views: int) -> None:
    for name, values in seconds.items():
        fastest, median = min(values), statistics.median(values)
        rate = f"{num_views / median:8,.0f} views/s"
        print(f"  {name:<14} min {1e3 * fastest:7.1f} ms   median {1e3 * median:7.1f} ms   {rate}")
    step, backbone = seconds["whole step"], seconds["bare backbone"]
    print(f"  step / bare    min {min(step) / min(backbone):.3f}      median {median_ratio(step, backbone):.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
