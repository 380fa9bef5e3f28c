"""An epoch of SimCLR on Fashion-MNIST with reptk, and in the usual way with lightly: views/s, kNN@20, peak memory.

pip install lightly
python benchmarks/end_to_end.py                           a whole epoch, three rounds
python benchmarks/end_to_end.py --steps 6 --rounds 1      does it run?

Both train timm's resnet10t and a head 512-512-128 from the same weights, in fp32 on the CPU, on two views of 32 px of each
image: crops of at least a fifth of the area, flips, color jitter of strength 0.5, grayscale, no blur. Batch 256, AdamW, weight
decay 0.01, lr 0.001 after a warm-up of a fifth of the epoch, cosine. They differ in what users of the two get: reptk computes
the views of a batch at once in the training process, encodes all of them in one pass, channels-last, and does not decay norms
and biases; with lightly two loader processes compute them image by image with PIL, the model encodes one view after the other,
as in lightly's examples, and torch's AdamW decays everything.

Each training runs in a separate process, alternately; round r has seed r. The first step, in which workers start, does not
count in views/s. Memory is the largest sum of the proportional set sizes of the process and its children while training. The
features of both, of the images resized to 32 px, are evaluated by reptk.
"""

import argparse
import importlib
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import reptk
from processes import process_tree, read_process_file, run_script
from reptk.config import Recipe
from reptk.core import distributed, rng
from reptk.core.environment import git_commit, package_versions
from reptk.data import Data, InMemory
from reptk.evaluate import Evaluation, Knn, evaluate_encoder, evaluate_pixels
from reptk.losses import simclr
from reptk.methods import Batch
from reptk.models.encoder import Encoder
from reptk.training.build import build
from reptk.training.load_data import load_data
from reptk.training.loop import train_step

SIZE_PX = 32
WORKERS = 2
SAMPLE_SECONDS = 0.25

Numbers = dict[str, float]

Training = tuple[Encoder, Iterator[Tensor]]
"""An encoder and the losses of its training: every loss that is taken from the iterator is one more step."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, help="of each training; default: a whole epoch")
    parser.add_argument("--rounds", type=int, default=3, help="trainings with each")
    parser.add_argument("--temperature", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--only", choices=[*LIBRARIES, "baselines"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.steps is not None and args.steps < 2:
        parser.error("--steps must be at least 2, since the first one is not timed")
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")
    recipe = _recipe(args.temperature, args.seed)
    if args.only == "baselines":
        print(json.dumps(_baselines(recipe)))
    elif args.only:
        print(json.dumps(_trained(args.only, recipe, args.steps)))
    else:
        _compare(recipe, args)


def _recipe(temperature: float, seed: int) -> Recipe:
    overrides = [
        f"views.size={SIZE_PX}",
        "encoder.stem=timm",
        "optim.lr=0.001",
        "train.epochs=1",
        "optim.warmup_epochs=0.2",
        "train.device=cpu",
        f"loss.temperature={temperature}",
        f"seed={seed}",
    ]
    return reptk.load("simclr_fashion_mnist", overrides)


def _compare(recipe: Recipe, args: argparse.Namespace) -> None:
    """Run every training in a separate process and print its numbers, then medians and ratios."""
    print(_heading(recipe, args.steps), flush=True)
    before = _run_in_process("baselines", 0, args)
    print(f"  before training  kNN@20: raw pixels {before['pixels']:.2%}, untrained encoder {before['untrained']:.2%}")
    rounds: dict[str, list[Numbers]] = {name: [] for name in LIBRARIES}
    for number in range(args.rounds):
        for name in sorted(LIBRARIES, reverse=number % 2 == 0):
            numbers = _run_in_process(name, number, args)
            rounds[name].append(numbers)
            print(_line(f"round {number + 1}", name, numbers), flush=True)
    for name, all_numbers in rounds.items():
        print(_line("median", name, _medians(all_numbers)))
    _print_ratios(rounds)


# The two trainings


def _reptk(recipe: Recipe, data: Data) -> Training:
    parts = build(recipe, data, distributed.setup(recipe.train.device))
    parts.method.train()

    def losses() -> Iterator[Tensor]:
        for number, batch in enumerate(parts.loader.batches(0, parts.loader.steps_per_epoch)):
            parts.schedule.set_step(number)
            outputs = train_step(parts, parts.method, Batch(*batch), parts.step(number))
            yield outputs["loss"].detach()
        parts.finite_check.read()

    return parts.encoder, losses()


def _lightly(recipe: Recipe, data: Data) -> Training:
    from lightly.loss import NTXentLoss

    with rng.seeded(recipe.seed, "initial weights"):
        encoder = Encoder(**recipe.encoder.model_dump(), size=SIZE_PX)  # initial weights as reptk's, and for evaluation
    model = _lightly_model(encoder, recipe.encoder.head_out)
    temperature = recipe.loss["temperature"]
    loss = NTXentLoss(temperature)
    _check_loss(loss, temperature)
    torch.manual_seed(recipe.seed)
    loader = DataLoader(
        _PilImages(data.train.images, data.train.labels, _lightly_transform(recipe, encoder)),
        batch_size=recipe.train.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=WORKERS,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.optim.lr, weight_decay=recipe.optim.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _lr_factor(recipe, step, len(loader)))

    def losses() -> Iterator[Tensor]:
        for (first, second), _ in loader:
            value = loss(model(first), model(second))
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()
            yield value.detach()

    return encoder, losses()


LIBRARIES: dict[str, Callable[[Recipe, Data], Training]] = {"reptk": _reptk, "lightly": _lightly}


def _lightly_model(encoder: Encoder, head_out: int) -> nn.Module:
    from lightly.models.modules import SimCLRProjectionHead

    width = encoder.num_features
    head = SimCLRProjectionHead(width, width, head_out, batch_norm=False)
    head.layers.load_state_dict(encoder.head.state_dict())
    return nn.Sequential(encoder.backbone, head).train()


def _lightly_transform(recipe: Recipe, encoder: Encoder) -> Callable[[Image.Image], list[Tensor]]:
    from lightly.transforms import SimCLRTransform

    return SimCLRTransform(
        input_size=SIZE_PX,
        cj_strength=recipe.views["strength"],
        min_scale=recipe.views["scale"],
        gaussian_blur=0.0,
        normalize={"mean": encoder.mean.flatten().tolist(), "std": encoder.std.flatten().tolist()},
    )


class _PilImages(Dataset):
    """The same pixels as PIL images in RGB, as from torchvision's data sets."""

    def __init__(self, images: InMemory, labels: Tensor, transform: Callable[[Image.Image], list[Tensor]]) -> None:
        self.pixels = images.pixels
        self.labels = labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, number: int) -> tuple[list[Tensor], int]:
        image = Image.fromarray(self.pixels[number, 0].numpy()).convert("RGB")
        return self.transform(image), self.labels[number]


def _lr_factor(recipe: Recipe, step: int, steps: int) -> float:
    """The recipe's schedule: a linear warm-up whose last step has the peak, then a cosine that ends at `final_lr_ratio`."""
    warmup_steps = round(recipe.optim.warmup_epochs * steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    peak_step = max(0, warmup_steps - 1)
    progress = (step - peak_step) / (steps - 1 - peak_step)
    lowest = recipe.optim.final_lr_ratio
    return lowest + (1 - lowest) * (1 + math.cos(math.pi * progress)) / 2


def _check_loss(loss: nn.Module, temperature: float) -> None:
    z = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    expected = simclr(z, torch.arange(32).repeat(2), temperature=temperature)
    torch.testing.assert_close(loss(*z.chunk(2)), expected, msg="lightly's loss is not reptk's")


# Measuring


def _run_in_process(name: str, seed: int, args: argparse.Namespace) -> Numbers:
    """Return the numbers of a training, or of the baselines, from a separate process."""
    arguments = ["--only", name, "--seed", str(seed), "--temperature", str(args.temperature)]
    if args.steps is not None:
        arguments += ["--steps", str(args.steps)]
    try:
        output = run_script(__file__, *arguments)
    except subprocess.CalledProcessError as error:
        sys.exit(f"{name} failed:\n{error.stderr}")
    return json.loads(output.splitlines()[-1])


def _baselines(recipe: Recipe) -> Numbers:
    data = load_data(recipe)
    encoder, _ = _reptk(recipe, data)
    return {
        "pixels": _accuracy(evaluate_pixels(data, [_knn()])),
        "untrained": _accuracy(evaluate_encoder(encoder, data, [_knn()])),
    }


def _trained(name: str, recipe: Recipe, steps: int | None) -> Numbers:
    data = load_data(recipe)
    encoder, training = LIBRARIES[name](recipe, data)
    losses: list[float] = []
    ends: list[float] = []
    with _MemorySampler() as memory:
        start = time.perf_counter()
        for loss in islice(training, steps):
            losses.append(loss.item())
            ends.append(time.perf_counter())
    views_per_step = 2 * recipe.train.batch_size
    return {
        "views/s": views_per_step * (len(ends) - 1) / (ends[-1] - ends[0]),
        "first step, s": ends[0] - start,
        "loss": statistics.mean(losses[-10:]),
        "knn@20": _accuracy(evaluate_encoder(encoder, data, [_knn()])),
        "peak MB": memory.peak_mb,
        "MB before": memory.before_mb,
    }


def _knn() -> Knn:
    return Knn(k=(20,), retrieval=False)


def _accuracy(evaluation: Evaluation) -> float:
    return float(evaluation.metrics["knn@20"])


class _MemorySampler:
    """Samples, in a thread, the memory of this process and all that descend from it."""

    def __enter__(self) -> "_MemorySampler":
        self.before_mb = _proportional_set_mb()
        self.peak_mb = self.before_mb
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            self.peak_mb = max(self.peak_mb, _proportional_set_mb())


def _proportional_set_mb() -> float:
    """Return the sum of Linux's proportional set sizes, in which a page that processes share counts once."""
    total_kb = 0
    for process_id in process_tree(os.getpid()):
        report = read_process_file(Path(f"/proc/{process_id}/smaps_rollup"))
        size = re.search(r"^Pss: +(\d+)", report, re.MULTILINE)
        if size is not None:  # else the process has ended
            total_kb += int(size[1])
    return total_kb / 1024


# Printing


def _heading(recipe: Recipe, steps: int | None) -> str:
    try:
        importlib.import_module("lightly.transforms")
    except ImportError as cause:
        sys.exit(f"lightly cannot be imported: {cause}. Install it: pip install lightly")
    versions = package_versions() | {"lightly": version("lightly"), "pillow": version("pillow")}
    packages = ", ".join(f"{name} {number}" for name, number in versions.items())
    length = f"{steps} steps" if steps else "one epoch"
    return (
        f"SimCLR on Fashion-MNIST, {recipe.encoder.backbone}, {SIZE_PX} px, batch {recipe.train.batch_size}, {length}, "
        f"temperature {recipe.loss['temperature']}, lr {recipe.optim.lr}\n"
        f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, commit {git_commit()}, {packages}"
    )


def _medians(all_numbers: list[Numbers]) -> Numbers:
    return {key: statistics.median(numbers[key] for numbers in all_numbers) for key in all_numbers[0]}


def _line(when: str, name: str, numbers: Numbers) -> str:
    return (
        f"  {when:<9} {name:<8} {numbers['views/s']:8,.0f} views/s   kNN@20 {numbers['knn@20']:.2%}   "
        f"loss {numbers['loss']:.3f}   peak {numbers['peak MB']:6,.0f} MB, {numbers['MB before']:,.0f} before   "
        f"first step {numbers['first step, s']:.1f} s"
    )


def _print_ratios(rounds: dict[str, list[Numbers]]) -> None:
    """Print ratios round by round, since neighbors in time share what else the machine does."""
    for key in ("views/s", "peak MB"):
        ratios = []
        for reptk_numbers, lightly_numbers in zip(rounds["reptk"], rounds["lightly"], strict=True):
            ratios.append(reptk_numbers[key] / lightly_numbers[key])
        median = statistics.median(ratios)
        print(f"  reptk / lightly, {key:<8} {median:.3f} (median; {min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
