"""The linear stage of the papers: a linear classifier trained by SGD on augmented images, in front of it a frozen encoder."""

from collections.abc import Iterator, Sequence
from typing import Annotated

import torch
from annotated_types import Ge, Gt, MinLen
from torch import Tensor, nn
from torch.nn import functional

from reptk.config.registry import EVALUATORS
from reptk.core import rng
from reptk.core.errors import UsageError
from reptk.data import Data, Split
from reptk.evaluate.features import Features
from reptk.evaluate.mean import Mean
from reptk.views import ViewPipeline
from reptk.views.sets import crop_and_flip

Rates = Annotated[tuple[Annotated[float, Gt(0)], ...], MinLen(1)]


@EVALUATORS.register("linear_stage")
class LinearStage:
    """A linear classifier trained by SGD on random crops and flips of the bank's images; the encoder stays as it is.

    The encoder is in evaluation mode and gets no gradient, so nothing in it moves, running statistics included. Features
    are normalised by their own mean and deviation over the bank (as a BatchNorm without weights would), which makes one
    learning rate fit all encoders. One classifier is trained for each of `lr`, all on the same features; the one that does
    best on a tenth of the bank, kept back, is measured. Each rank trains the same.

    Args:
        epochs: passes over the bank, each with other crops. SupCon's script takes 100, SimCLR's paper 90.
        batch_size: images a step.
        lr: learning rates to try; each falls to 0 along a cosine.
        momentum, weight_decay: of SGD.
        scale: the smallest share of the image's area that a crop keeps.
    """

    needs_labels = True

    def __init__(
        self,
        epochs: Annotated[int, Ge(1)] = 100,
        batch_size: Annotated[int, Ge(1)] = 256,
        lr: Rates = (0.003, 0.01, 0.03, 0.1, 0.3),
        momentum: Annotated[float, Ge(0)] = 0.9,
        weight_decay: Annotated[float, Ge(0)] = 0.0,
        scale: Annotated[float, Gt(0)] = 0.2,
    ) -> None:
        self.epochs, self.batch_size, self.lr = epochs, batch_size, lr
        self.momentum, self.weight_decay, self.scale = momentum, weight_decay, scale

    def __call__(self, encode: Features, data: Data) -> Iterator[tuple[str, float]]:
        if not hasattr(encode, "batches"):
            raise UsageError(
                "linear_stage trains on images, of which a file of embeddings has none; linear does without"
            )
        known = (data.bank.labels >= 0).nonzero()[:, 0]
        order = torch.randperm(len(known), generator=rng.generator("linear stage", len(known)))
        apart, rest = known[order[: max(1, len(known) // 10)]], known[order[max(1, len(known) // 10) :]]
        heads = self._train(encode, data.bank, rest, int(data.bank.labels.max()) + 1)
        best = heads.right(encode.raw(data.bank)[apart], data.bank.labels[apart]).mean(1).argmax()
        asked = data.query.labels >= 0
        right = heads.right(encode.raw(data.query)[asked], data.query.labels[asked])[best]
        encode.notes["linear_stage"] = {"lr": sorted(set(self.lr))[int(best)]}
        yield "linear_stage", Mean(right)

    def _train(self, encode: Features, bank: Split, rows: Tensor, classes: int) -> "Heads":
        plain_features = encode.raw(bank)[rows]
        heads = Heads(plain_features, classes, sorted(set(self.lr)), encode.device)
        optimizer = torch.optim.SGD(heads.groups(), momentum=self.momentum, weight_decay=self.weight_decay)
        per_epoch = max(1, len(rows) // self.batch_size)
        course = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.epochs * per_epoch)
        for h, labels in self._augmented(encode, bank, rows, per_epoch):
            heads.loss(h, labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            course.step()
        return heads

    def _augmented(
        self, encode: Features, bank: Split, rows: Tensor, per_epoch: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Features of randomly cropped and flipped images, and their labels, batch after batch of all epochs."""
        views = ViewPipeline([crop_and_flip(encode.size, self.scale)], size=encode.size)
        size = min(self.batch_size, len(rows))
        for epoch in range(self.epochs):
            order = rows[torch.randperm(len(rows), generator=rng.generator("linear stage", len(rows), epoch))]
            batches = [order[start * size : (start + 1) * size] for start in range(per_epoch)]
            for step, (images, index) in enumerate(encode.batches(bank, batches)):
                with torch.no_grad():
                    h = encode.embed(views(images, rng.key("linear stage", epoch, step))[0]).float()
                yield h, bank.labels[index.cpu()].to(h.device)


class Heads(nn.Module):
    """One linear classifier for each learning rate, in front of them the same normalisation.

    Args:
        h: (n, F) features that the normalisation is taken from.
        classes: how many.
        rates: learning rates.
        device: where to train.
    """

    def __init__(self, h: Tensor, classes: int, rates: Sequence[float], device: torch.device | str) -> None:
        super().__init__()
        self.rates = rates
        self.register_buffer("mean", h.mean(0))
        self.register_buffer("scale", h.std(0, unbiased=False).clamp_min(1e-6))
        self.weights = nn.ParameterList(torch.zeros(classes, h.shape[1]) for _ in rates)
        self.biases = nn.ParameterList(torch.zeros(classes) for _ in rates)
        self.to(device)

    def groups(self) -> list[dict]:
        """Parameters for an optimizer, each classifier with its own learning rate."""
        pairs = zip(self.weights, self.biases, self.rates, strict=True)
        return [{"params": [weight, bias], "lr": rate} for weight, bias, rate in pairs]

    def forward(self, h: Tensor) -> list[Tensor]:
        h = (h.to(self.mean) - self.mean) / self.scale
        return [functional.linear(h, *pair) for pair in zip(self.weights, self.biases, strict=True)]

    def loss(self, h: Tensor, labels: Tensor) -> Tensor:
        """Sum of all classifiers' cross-entropies: each one's gradient is its own."""
        return torch.stack([functional.cross_entropy(scores, labels) for scores in self(h)]).sum()

    @torch.no_grad()
    def right(self, h: Tensor, labels: Tensor) -> Tensor:
        """(classifiers, n) whether each classifier names each row's class."""
        parts = [torch.stack([scores.argmax(1) for scores in self(part)]) for part in h.split(1 << 14)]
        return (torch.cat(parts, dim=1).cpu() == labels).float()
