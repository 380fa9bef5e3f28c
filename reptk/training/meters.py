"""Measurements during training: losses, logged scalars, time and throughput."""

import math
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from reptk.core.device import Precision
from reptk.core.errors import NumericalError
from reptk.methods import has_positives
from reptk.training.health import diverged, non_finite_loss


class StepRecord(NamedTuple):
    """The outcome of one step as tensors on the device, so that recording it does not wait for a GPU.

    loss: scalar.
    rows: number of embeddings that the method returned, 0 if it returned none.
    non_finite_rows: scalar, how many of them hold NaN or infinity.
    has_positives: scalar bool, whether any two of them share an id; True if the method returned no ids.
    """

    loss: Tensor
    rows: int
    non_finite_rows: Tensor
    has_positives: Tensor


class StepMeter:
    """Records steps on the device and reads them when the caller can afford to wait for it.

    Attributes:
        loss: of the last step that was read.
        scalars: further scalars of that step, by the names the method gave them.
        z, ids: embeddings (N, D) and ids (N,) of the last recorded step, None if the method returned none.
        steps_without_positives: steps of the run in which no two rows shared an id.
    """

    def __init__(self, steps_without_positives: int = 0, loss: float = math.nan) -> None:
        self.steps_without_positives = steps_without_positives
        self.loss = loss
        self.scalars: dict[str, float] = {}
        self.z: Tensor | None = None
        self.ids: Tensor | None = None
        self._records: list[StepRecord] = []
        self._last_outputs: Mapping[str, Tensor] = {}

    @property
    def unread_steps(self) -> int:
        """Steps recorded since the last reading."""
        return len(self._records)

    def add(self, outputs: Mapping[str, Tensor]) -> None:
        """Record the outputs of `Method.forward` for one step."""
        loss = outputs["loss"].detach()  # attached, it would hold the activations of the step in memory
        self.z = outputs.get("z")
        self.ids = outputs.get("ids")
        # Tensors even where nothing is to be counted, so that all records can be stacked.
        rows = 0
        non_finite_rows = torch.zeros_like(loss, dtype=torch.long)
        if self.z is not None:
            rows = len(self.z)
            non_finite_rows = (~self.z.isfinite().all(1)).sum()
        step_has_positives = torch.ones_like(loss, dtype=torch.bool)
        if self.ids is not None:
            step_has_positives = has_positives(self.ids)
        self._records.append(StepRecord(loss, rows, non_finite_rows, step_has_positives))
        self._last_outputs = outputs

    def read(self, last_step: int, *, lr: float, loss_name: str, precision: Precision = "fp32") -> int:
        """Wait for the device, check the recorded steps, and update `loss`, `scalars` and `steps_without_positives`.

        Args:
            last_step: number of the last recorded step, from 0.
            lr, loss_name, precision: for the message of the error.

        Returns:
            How many steps were read.

        Raises:
            NumericalError: a loss is NaN or infinite.
        """
        records = self._records
        self._records = []
        # One transfer for all steps, which waits for the last of them.
        losses = torch.stack([record.loss.float() for record in records]).tolist()
        _check_finite(records, losses, last_step, lr=lr, loss_name=loss_name, precision=precision)
        with_positives = torch.stack([record.has_positives for record in records])
        self.steps_without_positives += int((~with_positives).sum())
        self.loss = losses[-1]
        self.scalars = _scalars(self._last_outputs)
        return len(records)


def _check_finite(
    records: Sequence[StepRecord],
    losses: Sequence[float],
    last_step: int,
    *,
    lr: float,
    loss_name: str,
    precision: Precision,
) -> None:
    """Check the losses of the last steps.

    Raises:
        NumericalError: one is NaN or infinite; names the step, and whether the embeddings or the loss was at fault.
    """
    first_step = last_step - len(losses) + 1
    for offset, (record, loss) in enumerate(zip(records, losses, strict=True)):
        if math.isfinite(loss):
            continue
        # The first step decides: what follows it is a consequence.
        non_finite_rows = int(record.non_finite_rows)
        if non_finite_rows:
            cause = f"{non_finite_rows} of {record.rows} embeddings hold NaN or infinity: {diverged(precision)}"
        else:
            cause = f"the embeddings are finite, so it arose in the loss {loss_name!r}: check its arguments"
        raise NumericalError(f"{non_finite_loss(first_step + offset, lr, loss)}; {cause}")


def _scalars(outputs: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the outputs to log: every scalar but the loss."""
    return {name: value.item() for name, value in outputs.items() if name != "loss" and value.ndim == 0}


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
