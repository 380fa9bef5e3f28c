"""What the loop watches: Ctrl-C, time, waiting for images, losses that are not finite, steps without pairs."""

import math
import os
import signal
import threading
import time
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from reptk.config import Recipe
from reptk.core import distributed
from reptk.core.errors import NumericalError
from reptk.data import Images, InMemory, num_cpus

INPUT_BOUND = 0.15
"""Share of an epoch spent waiting for images from which on it is worth a line."""

DIVERGED = "the weights have diverged. Lower optim.lr, lengthen optim.warmup_epochs, or set train.clip_norm=1"


class Step(NamedTuple):
    """One step of the optimizer.

    loss; z (N, D) the embeddings of the global batch, let go of when the next step is made, and their ids (N,), if the
    method tells them; broken: how many are not finite; pairs: whether any two shared an id. Tensors, so that nothing
    waits for a GPU.
    """

    loss: Tensor
    z: Tensor | None
    ids: Tensor | None
    rows: int
    broken: Tensor
    pairs: Tensor


def at_step(recipe: Recipe, step: int, value: float = math.nan) -> str:
    """The beginning of a message about a loss that is not finite."""
    return f"the loss is {value} at step {step + 1} (lr {recipe.optim.lr:g})"


def without_pairs(window: list[Step]) -> int:
    """Steps among the last ones in which no two rows shared an id."""
    return int((~torch.stack([made.pairs for made in window])).sum())


def finite_losses(recipe: Recipe, window: list[Step], step: int) -> list[float]:
    """The losses of the last steps.

    Raises:
        NumericalError: one is not finite; says which step and what was wrong first.
    """
    values = torch.stack([made.loss.float() for made in window]).tolist()
    for back, value in enumerate(values):
        if value - value != 0:
            bad_step = step - len(values) + 1 + back
            broken = int(window[back].broken)
            cause = (
                f"{broken} of {window[back].rows} embeddings hold NaN or infinity: {DIVERGED}"
                if broken
                else f"the embeddings are finite, so it arose in the loss {recipe.loss['name']!r}: check its arguments"
            )
            raise NumericalError(f"{at_step(recipe, bad_step, value)}; {cause}")
    return values


def input_bound(waiting: float, recipe: Recipe, images: Images, device: torch.device) -> str:
    """A line about a share of time spent waiting for images, with the advice that applies to them."""
    available = max(1, num_cpus() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    advice = []
    if not isinstance(images, InMemory) and recipe.train.workers < available:
        advice.append(f"raise train.workers (now {recipe.train.workers} of {available} num_cpus)")
    if recipe.data.get("cache") is False:
        advice.append("set data.cache=true")
        if recipe.data.get("jpeg") == "auto" and find_spec("simplejpeg") is None:
            advice.append('pip install "reptk[jpeg]" if they are JPEG')
    shared = device.type == "cpu" and recipe.data.get("cache") is False
    where = ", which are decoded on the num_cpus that train" if shared else ""
    said = f"input-bound: {100 * waiting:.0f} % of the time went into waiting for images{where}"
    return said + (f"; {', '.join(advice[:-1])}{' or ' if advice[:-1] else ''}{advice[-1]}" if advice else "")


class Interrupt:
    """Ctrl-C in a single process: the step under way is finished and saved; a second one leaves at once.

    Several ranks would have to agree on the step; there the signal acts as it always does, and the last epoch's
    checkpoint remains.
    """

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> "Interrupt":
        self._catches = distributed.world_size() == 1 and threading.current_thread() is threading.main_thread()
        if self._catches:
            self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        if self._catches:
            signal.signal(signal.SIGINT, self._before)

    def _ask(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


class Watch:
    """Time spent in training steps, those without pairs, and views per second since this process took the run up."""

    def __init__(self, seconds_before: float = 0.0, lonely_steps: int = 0) -> None:
        self._before, self._views, self._spent, self._since = seconds_before, 0, 0.0, time.monotonic()
        self._shared_out = 0.0
        self.lonely_steps = lonely_steps

    @property
    def seconds(self) -> float:
        return self._before + self._spent

    def add(self, views: int, lonely_steps: int) -> None:
        self._views += views
        self.lonely_steps += lonely_steps
        self._tick()

    def rate(self) -> float:
        return self._views / max(self._spent, 1e-9)

    def per(self, views: int) -> float:
        return views / max(self.rate(), 1e-9)

    def share(self, seconds: float) -> float:
        """What part of the time spent since this was asked last these seconds are."""
        spent, self._shared_out = self._spent - self._shared_out, self._spent
        return min(1.0, seconds / max(spent, 1e-9))

    def stop(self) -> None:
        self._tick()

    def start(self) -> None:
        self._since = time.monotonic()

    def _tick(self) -> None:
        now = time.monotonic()
        self._spent += now - self._since
        self._since = now
