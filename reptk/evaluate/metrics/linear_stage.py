"""The linear stage of the papers: a linear classifier trained by SGD on augmented images, on a frozen encoder."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le, MinLen
from torch import Tensor, nn
from torch.nn import functional

from reptk import config
from reptk.config.registry import EVALUATORS, VIEWS
from reptk.core import rng
from reptk.core.errors import NonFiniteValues, UsageError
from reptk.data import Data, Split
from reptk.evaluate.features import FeatureStore
from reptk.evaluate.intervals import QueryMean
from reptk.evaluate.protocol import EvalResult, Evaluator
from reptk.views import crops_full_images

HELD_OUT_FRACTION = 10
"""One row in so many is held out to choose the learning rate."""

DEFAULT_SIZE_PX = 32
"""Size for which arguments are checked."""

CHUNK = 1 << 14
"""Rows that are classified at a time."""

LearningRates = Annotated[tuple[Annotated[float, Gt(0)], ...], MinLen(1)]


@EVALUATORS.register("linear_stage")
class LinearStage(Evaluator):
    """A linear classifier trained by SGD on random views of the bank's images; the encoder is frozen.

    The encoder is in evaluation mode and gets no gradient, so nothing in it changes, running statistics included. Features
    are normalized by their own mean and deviation over the bank (as a BatchNorm without weights would), so that the same
    learning rates suit all encoders. One classifier is trained for each of `lr`, all on the same features; the one with
    the best accuracy on a held-out tenth of the bank is evaluated. Every rank trains the same classifiers.

    Args:
        epochs: passes over the bank, each with other views. SupCon's script uses 100, SimCLR's paper 90.
        batch_size: images per step.
        lr: learning rates to try; each falls to 0 along a cosine.
        momentum, weight_decay: of SGD.
        views: the name of registered views (`reptk.VIEWS`), of which each image has one per epoch. The papers crop, resize and
            flip: `resized_crop_flip`, with a scale of 0.2 in the scripts of SupCon and TCL (CIFAR) and 0.08 in SimCLR's
            (ImageNet). "none" trains on unchanged images.
        scale: the smallest share of the image's area that a crop keeps; by default that of the views.

    Raises:
        UsageError: there are no such views, they need arguments of their own, or they take no scale.
    """

    def __init__(
        self,
        epochs: Annotated[int, Ge(1)] = 100,
        batch_size: Annotated[int, Ge(1)] = 256,
        lr: LearningRates = (0.003, 0.01, 0.03, 0.1, 0.3),
        momentum: Annotated[float, Ge(0)] = 0.9,
        weight_decay: Annotated[float, Ge(0)] = 0.0,
        views: str = "resized_crop_flip",
        scale: Annotated[float, Gt(0), Le(1)] | None = None,
    ) -> None:
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = sorted(set(lr))
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.views = views
        self.scale = scale
        # What cannot be used is refused before anything is encoded.
        self._views_table(DEFAULT_SIZE_PX)

    def __call__(self, features: FeatureStore, data: Data) -> EvalResult:
        if not features.can_read_images:
            raise UsageError(
                "linear_stage trains on images, of which a file of embeddings has none; linear does without"
            )
        labeled = (data.bank.labels >= 0).nonzero()[:, 0]
        stream = rng.generator("linear stage", len(labeled))
        order = labeled[torch.randperm(len(labeled), generator=stream)]
        num_held_out = max(1, len(labeled) // HELD_OUT_FRACTION)
        held_out, fitted = order[:num_held_out], order[num_held_out:]
        classifiers = self._train(features, data.bank, fitted)
        # The learning rate is chosen on rows that no classifier was trained on, and never on the queries.
        held_out_correct = classifiers.correct(features.raw(data.bank)[held_out], data.bank.labels[held_out])
        best = int(held_out_correct.mean(1).argmax())
        is_labeled = data.query.labels >= 0
        correct = classifiers.correct(features.raw(data.query)[is_labeled], data.query.labels[is_labeled])
        return EvalResult({"linear_stage": QueryMean(correct[best])}, {"linear_stage": {"lr": self.lr[best]}})

    def _train(self, features: FeatureStore, bank: Split, rows: Tensor) -> "LinearClassifiers":
        """Train a classifier for each learning rate on these rows of the bank."""
        num_classes = int(bank.labels.max()) + 1
        classifiers = LinearClassifiers(features.raw(bank)[rows], num_classes, self.lr, features.device)
        optimizer = torch.optim.SGD(
            classifiers.parameter_groups(), momentum=self.momentum, weight_decay=self.weight_decay
        )
        # The last, incomplete batch of an epoch is dropped.
        steps_per_epoch = max(1, len(rows) // self.batch_size)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.epochs * steps_per_epoch)
        # Closed, so that the threads that read images end even if a step fails.
        with closing(self._batches(features, bank, rows, steps_per_epoch)) as batches:
            for h, labels in batches:
                classifiers.loss(h, labels).backward()
                optimizer.step()
                optimizer.zero_grad()
                scheduler.step()
        if not classifiers.are_finite().any():
            raise NonFiniteValues("all classifiers of the linear stage hold NaN or infinity; lower its lr")
        return classifiers

    def _views_table(self, size_px: int) -> config.Table:
        """Return the complete arguments of one view of `size_px` of each image."""
        table = {"name": self.views, "size": size_px}
        if VIEWS.takes(self.views, "count"):
            table["count"] = 1
        if self.scale is not None:
            table["scale"] = self.scale
        return config.complete("views", table)

    def _batches(
        self, features: FeatureStore, bank: Split, rows: Tensor, steps_per_epoch: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Features (b, F) of augmented images and their labels (b,), for all batches of all epochs."""
        views = config.build(VIEWS, self._views_table(features.size_px))
        batch_size = min(self.batch_size, len(rows))
        for epoch in range(self.epochs):
            stream = rng.generator("linear stage", len(rows), epoch)
            order = rows[torch.randperm(len(rows), generator=stream)]
            batches = order.split(batch_size)[:steps_per_epoch]
            image_batches = features.image_batches(bank, batches, full_images=crops_full_images(views))
            for step, (images, index, *aspect_ratios) in enumerate(image_batches):
                # Only the encoder is frozen: the caller trains on h with gradients enabled.
                with torch.no_grad():
                    augmented = views(images, rng.key("linear stage", epoch, step), *aspect_ratios)
                    if isinstance(augmented, list | tuple):  # views of several sizes: those of the first
                        augmented = augmented[0]
                    augmented = augmented[0]
                    h = features.embed(augmented).float()
                yield h, bank.labels[index.cpu()].to(h.device)
            features.report_progress("training the linear stage", epoch + 1, self.epochs)


class LinearClassifiers(nn.Module):
    """One linear classifier for each learning rate, all on features normalized alike.

    Args:
        h: (n, F) features whose mean and deviation normalize.
        num_classes: C.
        learning_rates: one classifier each.
        device: where to train.
    """

    def __init__(
        self, h: Tensor, num_classes: int, learning_rates: Sequence[float], device: torch.device | str
    ) -> None:
        super().__init__()
        self.learning_rates = learning_rates
        self.register_buffer("mean", h.mean(0))
        # A constant feature has no deviation, and is not to be divided by 0.
        self.register_buffer("scale", h.std(0, unbiased=False).clamp_min(1e-6))
        self.weights = nn.ParameterList(torch.zeros(num_classes, h.shape[1]) for _ in learning_rates)
        self.biases = nn.ParameterList(torch.zeros(num_classes) for _ in learning_rates)
        self.to(device)

    def parameter_groups(self) -> list[dict]:
        """Return parameters for an optimizer, each classifier with its own learning rate."""
        groups = []
        for weight, bias, lr in zip(self.weights, self.biases, self.learning_rates, strict=True):
            groups.append({"params": [weight, bias], "lr": lr})
        return groups

    def forward(self, h: Tensor) -> list[Tensor]:
        """(b, F) features -> the scores (b, C) of every classifier."""
        h = (h.to(self.mean) - self.mean) / self.scale
        scores = []
        for weight, bias in zip(self.weights, self.biases, strict=True):
            scores.append(functional.linear(h, weight, bias))
        return scores

    def loss(self, h: Tensor, labels: Tensor) -> Tensor:
        """Return the sum of all cross-entropies: the gradient of a classifier is that of its own term."""
        return torch.stack([functional.cross_entropy(scores, labels) for scores in self(h)]).sum()

    @torch.no_grad()
    def correct(self, h: Tensor, labels: Tensor) -> Tensor:
        """Return (classifiers, n) whether each classifier predicts each row's class, as 0 or 1.

        A classifier whose learning rate was so high that it holds NaN or infinity predicts nothing.
        """
        # The largest of scores that are NaN would be the first class.
        is_finite = self.are_finite()[:, None]
        predicted = []
        for chunk in h.split(CHUNK):
            predicted.append(torch.stack([scores.argmax(1) for scores in self(chunk)]))
        correct = torch.cat(predicted, dim=1).cpu() == labels
        return (correct & is_finite).float()

    def are_finite(self) -> Tensor:
        """Return (classifiers,) whether the weights of each classifier are finite, on the CPU."""
        are_finite = []
        for weight, bias in zip(self.weights, self.biases, strict=True):
            are_finite.append(weight.isfinite().all() & bias.isfinite().all())
        return torch.stack(are_finite).cpu()
