"""The check of a step before it changes anything: the loss, the embeddings and the gradient are finite on every rank."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from reptk.core import distributed
from reptk.core.device import Precision
from reptk.core.errors import NonFiniteRows, NonFiniteStep, NumericalError
from reptk.core.name_lists import first_names_and_count
from reptk.data import Images
from reptk.data.bad_samples import image_name
from reptk.methods import Batch, Method
from reptk.training.output_checks import diverged

MAX_NAMED = 5
"""Images that a message names; `NonFiniteStep.samples` names all."""

NO_ROWS = torch.zeros(0, dtype=torch.bool)
"""Of a method that returns no embeddings."""


class RunFacts(NamedTuple):
    """What messages say of the run besides the numbers of a step."""

    steps_per_epoch: int
    lr: float
    loss_name: str
    precision: Precision


class CheckedStep(NamedTuple):
    """What the message about a step needs, as tensors on the device, so that holding it does not wait for a GPU.

    number: of the step, from 0.
    image_numbers: (B,) of this rank's images in the training split.
    loss: scalar, of this rank.
    bad_rows: (N,) bool, which of the embeddings hold NaN or infinity; (0,) if the method returned none.
    is_bad: scalar bool, whether anything that is known so far is not finite, on any rank.
    norm: scalar, of the whole gradient; None before the backward pass, and if gradients may overflow (float16).
    reason: the error that the loss raised in the forward pass.
    """

    number: int
    image_numbers: Tensor
    loss: Tensor
    bad_rows: Tensor
    is_bad: Tensor
    norm: Tensor | None = None
    reason: str = ""


def allows_asynchronous_check(method: Method, optimizer: torch.optim.Optimizer, device: torch.device) -> bool:
    """Return whether the host may continue before it knows that a step is finite; see `FiniteCheck`.

    Args:
        method: of the run.
        optimizer: of the run; with a scaled loss it is not fused.
        device: of the run.
    """
    updates_after_step = type(method).after_step is not Method.after_step
    is_fused = bool(optimizer.defaults.get("fused"))
    return device.type == "cuda" and is_fused and not updates_after_step


class FiniteCheck:
    """Finds steps whose loss, embeddings or gradient are not finite before the optimizer uses them.

    The host reads the outcome before the optimizer's step, and raises. It continues without reading only where all of this is
    true:

    - the device is a CUDA device, which waiting would leave idle;
    - the optimizer is a fused one of torch, which reads on the device whether to change anything;
    - the method does not override `after_step`, which would put NaN into queues, and would move averages towards weights
      that were not trained;
    - it is not the first step, in which fused SGD would leave its momentum uninitialized.

    The outcome is then read by `read`, and until it is, no step after the first bad one changes anything either.

    Args:
        images: of the training split, for their names.
        facts: of the run.
        device: of the run.
        is_asynchronous: see `allows_asynchronous_check`.
    """

    def __init__(self, images: Images, facts: RunFacts, device: torch.device, *, is_asynchronous: bool) -> None:
        self.images = images
        self.facts = facts
        self.device = device
        self.is_asynchronous = is_asynchronous
        # On the CPU, reading costs nothing, and losses raise errors in the forward pass, perhaps of one rank alone: the others
        # would wait for its gradients in the backward pass.
        self.reads_after_forward = device.type == "cpu"
        self._reset()

    def _reset(self) -> None:
        self._unread: list[CheckedStep] = []
        self._is_bad_since: Tensor | None = None
        self._is_first_step = True

    def forward_failed(self, cause: NumericalError, batch: Batch, number: int) -> NonFiniteStep:
        """Return the error about a forward pass that raised `cause`, as losses do on the CPU.

        On the CPU every rank has to call this or `after_forward`. On other devices the ranks do not meet before the backward
        pass, and the error is about this rank alone.
        """
        bad_rows = NO_ROWS
        reason = str(cause)
        if isinstance(cause, NonFiniteRows) and cause.rows:
            bad_rows = torch.zeros(cause.num_rows, dtype=torch.bool)
            bad_rows[cause.rows] = True
            reason = ""  # the message counts the rows itself
        is_bad = torch.ones((), dtype=torch.bool)
        loss = torch.tensor(math.nan)
        record = CheckedStep(number, batch.index, loss, bad_rows, is_bad, reason=reason)
        self._reset()
        if not self.reads_after_forward:
            error = self._error(NonFiniteReport.of_this_rank(record), number)
            error.is_agreed = False
            return error
        _any_rank(is_bad)
        return self._error(NonFiniteReport.of_all_ranks(record, self.device), number)

    def after_forward(self, outputs: Mapping[str, Tensor], batch: Batch, number: int) -> CheckedStep:
        """Record the outputs of a method; on the CPU, check them before the backward pass.

        Args:
            outputs: of `Method.forward`.
            batch: of this rank.
            number: of the step, from 0.

        Raises:
            NonFiniteStep: on the CPU, the loss or embeddings of a rank are not finite.
        """
        loss = outputs["loss"].detach()  # attached, it would hold the activations of the step in memory
        bad_rows = NO_ROWS
        is_bad = ~loss.isfinite()
        if "z" in outputs:
            bad_rows = ~outputs["z"].isfinite().all(1)
            is_bad = is_bad | bad_rows.any()
        record = CheckedStep(number, batch.index, loss, bad_rows, is_bad)
        if self.reads_after_forward and _any_rank(is_bad):
            self._reset()
            raise self._error(NonFiniteReport.of_all_ranks(record, self.device), number)
        return record

    def after_backward(
        self, record: CheckedStep, norm: Tensor | None, local_norm: Callable[[], Tensor]
    ) -> Tensor | None:
        """Check a step after its backward pass, before the optimizer's step.

        Args:
            record: of `after_forward`.
            norm: of the whole gradient, the same on all ranks; None if gradients may overflow (float16).
            local_norm: computes the norm of this rank's gradient alone, to find where a gradient began that is not finite;
                all ranks call it.

        Returns:
            None if the step is fine; if that is not known yet, a scalar for `ScaledOptimizer.step`.

        Raises:
            NonFiniteStep: something is not finite on a rank.
        """
        is_bad = record.is_bad
        if norm is not None:
            is_bad = is_bad | ~norm.isfinite()
        # Where the ranks have agreed after the forward pass, the gradient that is new since is the same on all of them.
        if not self.reads_after_forward:
            is_bad = _any_rank(is_bad)
        record = record._replace(norm=norm, is_bad=is_bad)
        if self.is_asynchronous and not self._is_first_step:
            return self._add_unread(record)
        self._is_first_step = False
        if is_bad:
            self._reset()
            raise self._error(NonFiniteReport.of_all_ranks(record, self.device, local_norm), record.number)
        return None

    def read(self) -> None:
        """Wait for the device, and check the steps since the last call. All ranks have to call it.

        Raises:
            NonFiniteStep: about the first step in which something was not finite; it and those after it changed nothing.
        """
        records = self._unread
        self._unread = []
        if not records:
            return
        # One transfer for all steps.
        are_bad = torch.stack([record.is_bad for record in records]).tolist()
        if any(are_bad):
            first = records[are_bad.index(True)]
            self._reset()
            raise self._error(NonFiniteReport.of_all_ranks(first, self.device), first.number)

    def _add_unread(self, record: CheckedStep) -> Tensor:
        """Return, as a scalar, whether this step or one before it is bad."""
        self._unread.append(record)
        if self._is_bad_since is None:
            self._is_bad_since = record.is_bad
        else:
            self._is_bad_since = self._is_bad_since | record.is_bad
        return self._is_bad_since

    def _error(self, report: "NonFiniteReport", number: int) -> NonFiniteStep:
        facts = self.facts
        ranks = report.ranks()
        where = ""
        if len(report.losses) > 1 and ranks:
            where = f" on {_list_ranks(ranks)}"
        epoch = number // facts.steps_per_epoch + 1
        message = (
            f"{report.symptom()} at step {number + 1} (epoch {epoch}, optim.lr {facts.lr:g}){where}; "
            f"{report.cause(number, facts.loss_name, facts.precision)}"
        )
        numbers = report.image_numbers_of(ranks)
        samples = [image_name("train", self.images, image_number) for image_number in numbers]
        if samples:
            subject = "images of the batch"
            if report.has_bad_images:
                subject = "images whose embeddings are not finite"
            message = f"{message}. The {subject}: {first_names_and_count(samples, MAX_NAMED)}"
        return NonFiniteStep(message, step=number, ranks=ranks, samples=samples)


class NonFiniteReport(NamedTuple):
    """What all ranks know of a step that is not finite, by rank.

    losses: of each rank.
    image_numbers: numbers of each rank's images in the training split.
    bad_images: positions in its batch of each rank's images whose embeddings are not finite.
    num_bad_rows, num_rows: how many embeddings are not finite, and how many there are; over all ranks.
    norm: of the gradient, NaN if it is not known.
    has_finite_gradient: whether the gradient of each rank alone is finite; empty if that is not known.
    reason: the error that a loss raised in the forward pass; empty if none did.
    """

    losses: list[float]
    image_numbers: list[list[int]]
    bad_images: list[list[int]]
    num_bad_rows: int
    num_rows: int
    norm: float
    has_finite_gradient: list[bool]
    reason: str

    @classmethod
    def of_this_rank(cls, record: CheckedStep) -> "NonFiniteReport":
        """Return what this rank knows alone, for an error that the other ranks do not know of."""
        return cls._of(record, [record.loss], [record.image_numbers], [record.bad_rows], [record.reason])

    @classmethod
    def of_all_ranks(
        cls, record: CheckedStep, device: torch.device, local_norm: Callable[[], Tensor] | None = None
    ) -> "NonFiniteReport":
        """Gather what all ranks know. All of them have to call this.

        Args:
            record: of this rank.
            device: for collectives.
            local_norm: see `FiniteCheck.after_backward`; called if nothing else says where it began.
        """
        losses = _gather(record.loss[None], device)
        image_numbers = _gather(record.image_numbers, device)
        bad_rows = _gather(record.bad_rows.byte(), device)
        encoded_reason = torch.tensor(list(record.reason.encode()), dtype=torch.uint8)
        reasons = [bytes(reason.tolist()).decode() for reason in _gather(encoded_reason, device)]
        report = cls._of(record, losses, image_numbers, bad_rows, reasons)
        if local_norm is None or len(losses) == 1 or report.ranks():
            return report
        are_finite = _gather(local_norm().isfinite().byte()[None], device)
        return report._replace(has_finite_gradient=[bool(is_finite) for is_finite in are_finite])

    @classmethod
    def _of(
        cls,
        record: CheckedStep,
        losses: Sequence[Tensor],
        image_numbers: Sequence[Tensor],
        bad_rows: Sequence[Tensor],
        reasons: Sequence[str],
    ) -> "NonFiniteReport":
        norm = math.nan if record.norm is None else float(record.norm)
        rows_of_ranks = _split_gathered_rows(bad_rows)
        return cls(
            losses=[float(loss) for loss in losses],
            image_numbers=[numbers.tolist() for numbers in image_numbers],
            bad_images=[_images_of(rows, len(record.image_numbers)) for rows in rows_of_ranks],
            num_bad_rows=sum(int(rows.sum()) for rows in rows_of_ranks),
            num_rows=sum(len(rows) for rows in rows_of_ranks),
            norm=norm,
            has_finite_gradient=[],
            reason=next(filter(None, reasons), ""),
        )

    @property
    def has_bad_images(self) -> bool:
        """Whether embeddings are not finite."""
        return any(self.bad_images)

    @property
    def bad_losses(self) -> list[float]:
        """The losses that are not finite."""
        return [loss for loss in self.losses if not math.isfinite(loss)]

    def ranks(self) -> list[int]:
        """Return the ranks where it began; none if that is not known."""
        if len(self.losses) == 1:
            return [0]
        if self.has_bad_images:
            # A loss of gathered embeddings is NaN on every rank.
            return [rank for rank, images in enumerate(self.bad_images) if images]
        if self.bad_losses:
            return [rank for rank, loss in enumerate(self.losses) if not math.isfinite(loss)]
        return [rank for rank, is_finite in enumerate(self.has_finite_gradient) if not is_finite]

    def image_numbers_of(self, ranks: Sequence[int]) -> list[int]:
        """Return the numbers of the images to look at: those with embeddings that are not finite, else all of these ranks."""
        numbers = []
        for rank in ranks:
            numbers_of_rank = self.image_numbers[rank]
            if self.has_bad_images:
                numbers += [numbers_of_rank[position] for position in self.bad_images[rank]]
            else:
                numbers += numbers_of_rank
        return numbers

    def symptom(self) -> str:
        """Return what is not finite, as the beginning of a message."""
        if self.bad_losses:
            return f"the loss is {self.bad_losses[0]}"
        if self.has_bad_images:
            return "the loss is finite, but embeddings are not,"
        return f"the norm of the gradient is {self.norm}"

    def cause(self, number: int, loss_name: str, precision: Precision) -> str:
        """Return the cause as far as it is known, and what to change.

        Args:
            number: of the step, from 0.
            loss_name, precision: of the run.
        """
        if self.has_bad_images and number == 0:
            return (
                f"{self.num_bad_rows} of {self.num_rows} embeddings hold NaN or infinity before any training: the views hold "
                f"some, or the weights that training begins with (encoder.weights), or numbers exceed {precision}"
            )
        if self.has_bad_images:
            return f"{self.num_bad_rows} of {self.num_rows} embeddings hold NaN or infinity: {diverged(precision)}"
        if self.reason:
            return f"{self.reason}; {diverged(precision)}"
        if not self.bad_losses:
            return (
                f"the loss is finite, so it arose in the backward pass, in the gradient of the loss {loss_name!r} or of the "
                f"encoder, e.g. of a square root at 0; or {diverged(precision)}"
            )
        if self.num_rows == 0:
            return f"it arose in the loss {loss_name!r}: check its arguments; or {diverged(precision)}"
        return f"the embeddings are finite, so it arose in the loss {loss_name!r}: check its arguments"


def _any_rank(flag: Tensor) -> Tensor:
    """Return whether a scalar flag is set on any rank."""
    if distributed.world_size() == 1:
        return flag
    return distributed.all_gather(flag.byte()[None]).any()


def _gather(rows: Tensor, device: torch.device) -> list[Tensor]:
    """Return the rows (n,) of each rank on the CPU; ranks may have different numbers of them."""
    if distributed.world_size() == 1:
        return [rows.cpu()]
    rows = rows.to(device)
    counts = distributed.all_gather(torch.tensor([len(rows)], device=device)).tolist()
    return list(distributed.all_gather_uneven(rows, counts).cpu().split(counts))


def _split_gathered_rows(bad_rows: Sequence[Tensor]) -> list[Tensor]:
    """Return the rows of each rank, from those that each rank has returned.

    A method may return its rank's embeddings, or those of all ranks. In the latter case the same rows are bad on all ranks.
    """
    first = bad_rows[0]
    num_ranks = len(bad_rows)
    are_same = all(torch.equal(rows, first) for rows in bad_rows)
    if are_same and first.any() and len(first) % num_ranks == 0:
        return list(first.split(len(first) // num_ranks))
    return list(bad_rows)


def _images_of(bad_rows: Tensor, batch_size: int) -> list[int]:
    """Return the positions in the batch of images whose rows are bad: row i is a view of image i % batch_size."""
    rows = bad_rows.nonzero().flatten().tolist()
    if len(bad_rows) % batch_size:
        # They are no views of the images, so any image may be the cause.
        return list(range(batch_size)) if rows else []
    return sorted({row % batch_size for row in rows})


def _list_ranks(ranks: Sequence[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    return f"ranks {', '.join(map(str, ranks))}"
