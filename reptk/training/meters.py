"""Measurements during training: losses, logged scalars, time and throughput."""

import time
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from reptk.methods import has_positives

NUM_CANDIDATES = "num_candidates"
NOT_LOGGED = ("loss", NUM_CANDIDATES)
"""Outputs of `Method.forward` that are no further scalars: the loss of every step is logged, and the other is a setting."""


class StepRecord(NamedTuple):
    """The outcome of one step as tensors on the device, so that recording it does not wait for a GPU.

    loss: scalar.
    has_positives: scalar bool, whether any two embeddings share an id; True if the method returned no ids.
    """

    loss: Tensor
    has_positives: Tensor


class StepMeter:
    """Records steps on the device and reads them when the caller can afford to wait for it.

    Attributes:
        loss: of the last step that was read.
        scalars: further scalars of that step, by the names the method gave them.
        num_candidates: rows that each embedding of that step was compared with; None if the method returned no number.
        z, ids: embeddings (N, D) and ids (N,) of the last recorded step, None if the method returned none.
        steps_without_positives: steps of the run in which no two rows shared an id.
    """

    def __init__(self, steps_without_positives: int = 0, loss: float = float("nan")) -> None:
        self.steps_without_positives = steps_without_positives
        self.loss = loss
        self.scalars: dict[str, float] = {}
        self.num_candidates: int | None = None
        self.z: Tensor | None = None
        self.ids: Tensor | None = None
        self._records: list[StepRecord] = []
        self._last_outputs: Mapping[str, Tensor] = {}

    @property
    def contrastive_loss(self) -> float:
        """The contrastive part of `loss`, which methods with several parts return under this name; else all of it."""
        return self.scalars.get("contrastive_loss", self.loss)

    @property
    def cross_entropy(self) -> float | None:
        """That of a classifier, which methods with several parts return under this name; None if they return none."""
        return self.scalars.get("cross_entropy")

    @property
    def assignment_entropies(self) -> tuple[float, float] | None:
        """Of assignments to prototypes: mean over the views, and that of the mean; None if the method returns none."""
        of_views = self.scalars.get("assignment_entropy")
        of_mean = self.scalars.get("mean_assignment_entropy")
        if of_views is None or of_mean is None:
            return None
        return of_views, of_mean

    @property
    def unread_steps(self) -> int:
        """Steps recorded since the last reading."""
        return len(self._records)

    def add(self, outputs: Mapping[str, Tensor]) -> None:
        """Record the outputs of `Method.forward` for one step."""
        loss = outputs["loss"].detach()  # attached, it would hold the activations of the step in memory
        self.z = outputs.get("z")
        self.ids = outputs.get("ids")
        # A tensor even where nothing is to be counted, so that all records can be stacked.
        step_has_positives = torch.ones_like(loss, dtype=torch.bool)
        if self.ids is not None:
            step_has_positives = has_positives(self.ids)
        self._records.append(StepRecord(loss, step_has_positives))
        self._last_outputs = outputs

    def read(self) -> int:
        """Wait for the device, and update `loss`, `scalars` and `steps_without_positives`.

        Returns:
            How many steps were read.
        """
        records = self._records
        self._records = []
        # One transfer for all steps, which waits for the last of them.
        losses = torch.stack([record.loss.float() for record in records]).tolist()
        with_positives = torch.stack([record.has_positives for record in records])
        self.steps_without_positives += int((~with_positives).sum())
        self.loss = losses[-1]
        self.scalars = _scalars(self._last_outputs)
        self.num_candidates = None
        if NUM_CANDIDATES in self._last_outputs:
            self.num_candidates = int(self._last_outputs[NUM_CANDIDATES])
        return len(records)


def _scalars(outputs: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the outputs to log: every scalar but the loss and the number of candidates."""
    return {name: value.item() for name, value in outputs.items() if name not in NOT_LOGGED and value.ndim == 0}


class StepClock:
    """Seconds spent in training steps and views per second; evaluation and checkpoints are not counted.

    Args:
        seconds_before: seconds of the run's earlier processes, if it was resumed.
    """

    def __init__(self, seconds_before: float = 0.0) -> None:
        self._seconds_before = seconds_before
        self._views = 0
        self._seconds = 0.0
        self._seconds_at_last_epoch = 0.0
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds of the whole run."""
        return self._seconds_before + self._seconds

    @property
    def views_per_second(self) -> float:
        """Views per second of this process; those of the run's earlier processes are not known."""
        return self._views / max(self._seconds, 1e-9)

    def start(self) -> None:
        """Count the time from now on."""
        self._started = time.monotonic()

    def stop(self) -> None:
        """Count the time until now; the time until the next `start` is not counted."""
        self._add_elapsed()

    def add(self, views: int) -> None:
        """Count the views of the steps since the last call."""
        self._views += views
        self._add_elapsed()

    def seconds_for(self, views: int) -> float:
        """Return how long so many views take at the rate so far."""
        return views / max(self.views_per_second, 1e-9)

    def share_of_epoch(self, seconds: float) -> float:
        """Return what share of the time since the last call these seconds are, at most 1."""
        epoch_seconds = self._seconds - self._seconds_at_last_epoch
        self._seconds_at_last_epoch = self._seconds
        return min(1.0, seconds / max(epoch_seconds, 1e-9))

    def _add_elapsed(self) -> None:
        now = time.monotonic()
        self._seconds += now - self._started
        self._started = now
