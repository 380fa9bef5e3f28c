"""An epoch of SimCLR on Fashion-MNIST with reptk, and written the usual way with lightly: views/s, kNN@20, peak memory.

pip install lightly
python benchmarks/end_to_end.py                           a whole epoch, three rounds
python benchmarks/end_to_end.py --steps 6 --rounds 1      does it run?

Both train timm's resnet10t and a head 512-512-128 from the same weights, in fp32 on the CPU, on two views of 32 px an image:
crops of at least a fifth of the area, flips, colour jitter of strength 0.5, grey, no blur. Batch 256, AdamW, weight decay
0.01, lr 0.001 after a warm-up of a fifth of the epoch, cosine. What differs is what their users get: reptk draws the views of
a batch at once in the training process, encodes all of them together, channels-last, and keeps weight decay off norms and
biases; with lightly two loader processes draw them image by image with PIL, the model takes one view after the other, as in
lightly's examples, and torch's AdamW decays everything.

Each training has a process of its own, the two in turn; round r has seed r. Not counted in views/s is the first step, in
which workers start. Memory is the largest sum of the proportional set sizes of the process and its children while training.
The features of both, of the images resized to 32 px, are evaluated by reptk.
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
from collections.abc import Iterator
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import reptk
from reptk.config import Recipe
from reptk.core import distributed, rng
from reptk.core.environment import git_commit, package_versions
from reptk.data import Data, InMemory
from reptk.evaluate import Evaluation, Knn, evaluate_encoder, evaluate_pixels
from reptk.losses import simclr
from reptk.methods import Batch
from reptk.models.encoder import Encoder
from reptk.training.build import build, load_data
from reptk.training.loop import train_step

SIZE, WORKERS = 32, 2
SAMPLE_SECONDS = 0.25

Numbers = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, help="of each training; default: all of an epoch")
    parser.add_argument("--rounds", type=int, default=3, help="trainings of each")
    parser.add_argument("--temperature", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--only", choices=[*COMPETITORS, "baselines"], help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.steps is not None and chosen.steps < 2:
        parser.error("--steps must be at least 2, since the first one is not timed")
    if chosen.rounds < 1:
        parser.error("--rounds must be at least 1")
    changed = [f"views.size={SIZE}", "encoder.stem=timm", "optim.lr=0.001", "train.epochs=1", "train.device=cpu"]
    changed += [f"loss.temperature={chosen.temperature}", f"seed={chosen.seed}"]
    recipe = reptk.load("simclr_fashion_mnist", changed)
    if chosen.only:
        made = _baselines(recipe) if chosen.only == "baselines" else _trained(chosen.only, recipe, chosen.steps)
        print(json.dumps(made))
        return
    print(_heading(recipe, chosen.steps), flush=True)
    before = _in_a_process("baselines", 0, chosen)
    print(f"  before training  kNN@20: raw pixels {before['pixels']:.2%}, untrained encoder {before['untrained']:.2%}")
    rounds: dict[str, list[Numbers]] = {name: [] for name in COMPETITORS}
    for number in range(chosen.rounds):
        for name in sorted(COMPETITORS, reverse=number % 2 == 0):
            rounds[name].append(_in_a_process(name, number, chosen))
            print(_line(f"round {number + 1}", name, rounds[name][-1]), flush=True)
    for name, numbers in rounds.items():
        print(_line("median", name, {key: statistics.median(one[key] for one in numbers) for key in numbers[0]}))
    _ratios(rounds)


# Who takes part: each yields the loss of every step, and trains the given encoder


def _reptk(recipe: Recipe, data: Data) -> tuple[Encoder, Iterator[Tensor]]:
    parts = build(recipe, data, distributed.setup(recipe.train.device))
    parts.method.train()

    def steps() -> Iterator[Tensor]:
        for number, batch in enumerate(parts.loader.batches(0, parts.loader.steps_per_epoch)):
            parts.scheduler.step_update(number)
            yield train_step(parts, parts.method, Batch(*batch), parts.step(number))["loss"].detach()

    return parts.encoder, steps()


def _lightly(recipe: Recipe, data: Data) -> tuple[Encoder, Iterator[Tensor]]:
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform

    with rng.seeded(recipe.seed, "initial weights"):
        encoder = Encoder(**recipe.encoder.model_dump(), size=SIZE)  # for its weights, and to be evaluated
    backbone, width = encoder.backbone, encoder.num_features
    head = SimCLRProjectionHead(width, width, recipe.encoder.head_out, batch_norm=False)
    head.layers.load_state_dict(encoder.head.state_dict())
    model = nn.Sequential(backbone, head).train()
    loss = NTXentLoss(recipe.loss["temperature"])
    _check_loss(loss, recipe.loss["temperature"])
    transform = SimCLRTransform(
        input_size=SIZE,
        cj_strength=recipe.views["strength"],
        min_scale=recipe.views["scale"],
        gaussian_blur=0.0,
        normalize={"mean": encoder.mean.flatten().tolist(), "std": encoder.std.flatten().tolist()},
    )
    torch.manual_seed(recipe.seed)
    loader = DataLoader(
        _Pictures(data.train.images, data.train.labels, transform),
        batch_size=recipe.train.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=WORKERS,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.optim.lr, weight_decay=recipe.optim.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share_of_lr(recipe, step, len(loader)))

    def steps() -> Iterator[Tensor]:
        for (first, second), _ in loader:
            value = loss(model(first), model(second))
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()
            yield value.detach()

    return encoder, steps()


COMPETITORS = {"reptk": _reptk, "lightly": _lightly}


class _Pictures(Dataset):
    """The same pixels as RGB images of PIL, as torchvision's data sets give them."""

    def __init__(self, images: InMemory, labels: Tensor, transform: Any) -> None:
        self.pixels, self.labels, self.transform = images.pixels, labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, number: int) -> tuple[list[Tensor], int]:
        picture = Image.fromarray(self.pixels[number, 0].numpy()).convert("RGB")
        return self.transform(picture), self.labels[number]


def _share_of_lr(recipe: Recipe, step: int, steps: int) -> float:
    """The recipe's course: linear from 0 during the warm-up, then a cosine down to `final_lr_ratio`."""
    warmup, low = round(recipe.optim.warmup_epochs * steps), recipe.optim.final_lr_ratio
    if step < warmup:
        return step / warmup
    return low + (1 - low) * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


def _check_loss(loss: nn.Module, temperature: float) -> None:
    z = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    ours = simclr(z, torch.arange(32).repeat(2), temperature=temperature)
    torch.testing.assert_close(loss(*z.chunk(2)), ours, msg="lightly's loss is not reptk's")


# Measuring


def _in_a_process(what: str, seed: int, chosen: argparse.Namespace) -> Numbers:
    command = [sys.executable, __file__, "--only", what, "--seed", str(seed), "--temperature", str(chosen.temperature)]
    command += ["--steps", str(chosen.steps)] if chosen.steps else []
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        sys.exit(f"{what} failed:\n{run.stderr}")
    return json.loads(run.stdout.splitlines()[-1])


def _baselines(recipe: Recipe) -> Numbers:
    data = load_data(recipe)
    encoder, _ = _reptk(recipe, data)
    return {
        "pixels": _accuracy(evaluate_pixels(data, [_knn()])),
        "untrained": _accuracy(evaluate_encoder(encoder, data, [_knn()])),
    }


def _trained(name: str, recipe: Recipe, steps: int | None) -> Numbers:
    data = load_data(recipe)
    encoder, training = COMPETITORS[name](recipe, data)
    with _Memory() as memory:
        began = time.perf_counter()
        losses, ends = [], []
        for loss in islice(training, steps):
            losses.append(loss.item())
            ends.append(time.perf_counter())
    views = 2 * recipe.train.batch_size
    return {
        "views/s": views * (len(ends) - 1) / (ends[-1] - ends[0]),
        "first step, s": ends[0] - began,
        "loss": statistics.mean(losses[-10:]),
        "knn@20": _accuracy(evaluate_encoder(encoder, data, [_knn()])),
        "peak MB": memory.peak,
        "MB before": memory.before,
    }


def _knn() -> Knn:
    return Knn(k=(20,), retrieval=False)


def _accuracy(evaluation: Evaluation) -> float:
    return float(evaluation.metrics["knn@20"])


class _Memory:
    """Samples, in a thread, the memory in MB of this process and all that descend from it."""

    def __enter__(self) -> "_Memory":
        self.peak = self.before = _resident_tree()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            self.peak = max(self.peak, _resident_tree())


def _resident_tree() -> float:
    """MB, from Linux: proportional set sizes, so that pages that processes share count once."""
    parents = {}
    for place in Path("/proc").iterdir():
        if place.name.isdigit() and (text := _read(place / "stat")):
            parents[int(place.name)] = int(text.rpartition(")")[2].split()[1])
    family = {os.getpid()}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    found = (re.search(r"^Pss: +(\d+)", _read(Path(f"/proc/{member}/smaps_rollup")), re.MULTILINE) for member in family)
    return sum(int(match[1]) for match in found if match) / 1024


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # the process has ended meanwhile
        return ""


# Saying it


def _heading(recipe: Recipe, steps: int | None) -> str:
    try:
        importlib.import_module("lightly.transforms")
    except ImportError as cause:
        sys.exit(f"the peer cannot be imported: {cause}. Install it: pip install lightly")
    found = package_versions() | {"lightly": version("lightly"), "pillow": version("pillow")}
    names = ", ".join(f"{name} {number}" for name, number in found.items())
    length = f"{steps} steps" if steps else "one epoch"
    temperature = recipe.loss["temperature"]
    return (
        f"SimCLR on Fashion-MNIST, {recipe.encoder.backbone}, {SIZE} px, batch {recipe.train.batch_size}, {length}, "
        f"temperature {temperature}, lr {recipe.optim.lr}\n"
        f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, commit {git_commit()}, {names}"
    )


def _line(when: str, name: str, made: Numbers) -> str:
    return (
        f"  {when:<9} {name:<8} {made['views/s']:8,.0f} views/s   kNN@20 {made['knn@20']:.2%}   loss {made['loss']:.3f}   "
        f"peak {made['peak MB']:6,.0f} MB, {made['MB before']:,.0f} before   first step {made['first step, s']:.1f} s"
    )


def _ratios(rounds: dict[str, list[Numbers]]) -> None:
    """Round by round, since neighbours in time share what the machine is busy with."""
    for key in ("views/s", "peak MB"):
        ratios = [ours[key] / theirs[key] for ours, theirs in zip(rounds["reptk"], rounds["lightly"], strict=True)]
        middle = statistics.median(ratios)
        print(f"  reptk / lightly, {key:<8} {middle:.3f} (median; {min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
