"""A whole training step against forward and backward of the bare backbone on the same batch, in turns in one process.

python benchmarks/step.py [--profile] [RECIPE] [key=value ...]

Without a recipe: tcl_selfsup_photos (resnet10t, 32 px) and simclr_photos with a resnet18 at 64 px, batch 64. --profile prints
the time of the operators in one step.
"""

import platform
import statistics
import sys
from itertools import count

import torch
from torch.profiler import profile

from measuring import Seconds, median_ratio, seconds_of_rounds
from reptk import load, rng
from reptk.core import distributed
from reptk.core.device import autocast
from reptk.core.environment import git_commit, package_versions
from reptk.data import DevicePrefetcher
from reptk.methods import Batch
from reptk.methods.view_embeddings import encode_by_size, views_by_size
from reptk.training.build import build
from reptk.training.encoder_parameters import trained_encoder
from reptk.training.load_data import load_data
from reptk.training.loop import train_step

ROUNDS = 24
UNCOUNTED_ROUNDS = 1

DEFAULTS = (
    ["tcl_selfsup_photos"],
    ["simclr_photos", "views.size=64", "encoder.backbone=resnet18", "train.batch_size=64"],
)


def main(argv: list[str]) -> None:
    profiles = "--profile" in argv
    recipe = [argument for argument in argv if argument != "--profile"]
    recipes = [recipe]
    if not recipe:
        recipes = list(DEFAULTS)
    for arguments in recipes:
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
    backbone = trained_encoder(training.method).backbone
    batch = Batch(*next(batches))
    views = views_by_size(batch, training.method.views, 0)
    is_trained = any(parameter.requires_grad for parameter in backbone.parameters())
    if recipe.train.channels_last:
        views = [views_of_size.contiguous(memory_format=torch.channels_last) for views_of_size in views]
    numbered_batches = enumerate(batches)
    keys = count()

    def whole_step() -> None:
        number, tensors = next(numbered_batches)
        train_step(training, training.method, Batch(*tensors), training.step(number))

    def views_alone() -> None:
        batch.draw_views(training.method.views, rng.key("benchmark", next(keys)))

    def bare_backbone() -> None:
        with autocast(device, training.settings.precision), torch.set_grad_enabled(is_trained):
            features = encode_by_size(backbone, views)
        if is_trained:  # a frozen one has no backward pass
            features.float().square().mean().backward()
            backbone.zero_grad()

    parts = {"whole step": whole_step, "bare backbone": bare_backbone, "views alone": views_alone}
    seconds = seconds_of_rounds(parts, range(UNCOUNTED_ROUNDS + ROUNDS), UNCOUNTED_ROUNDS)
    num_views = sum(map(len, views))
    sizes = " and ".join(f"{len(views_of_size)} views of {views_of_size.shape[-1]} px" for views_of_size in views)
    print(f"{recipe.name}: {recipe.encoder.backbone}, {sizes}, {recipe.train.precision}")
    threads = f"{torch.get_num_threads()} threads, {platform.machine()}"
    print(f"{device}, {threads}, commit {git_commit()}, {package_versions()}")
    print_table(seconds, num_views)
    if profiles:
        with profile() as profiler:
            whole_step()
        print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=45))
    return median_ratio(seconds["whole step"], seconds["bare backbone"])


def print_table(seconds: Seconds, num_views: int) -> None:
    for name, values in seconds.items():
        fastest, median = min(values), statistics.median(values)
        rate = f"{num_views / median:8,.0f} views/s"
        print(f"  {name:<14} min {1e3 * fastest:7.1f} ms   median {1e3 * median:7.1f} ms   {rate}")
    step, backbone = seconds["whole step"], seconds["bare backbone"]
    print(f"  step / bare    min {min(step) / min(backbone):.3f}      median {median_ratio(step, backbone):.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
