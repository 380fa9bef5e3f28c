"""The base class of methods, which the training loop trains, DDP wraps and checkpoints hold."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from reptk.models.encoder import Encoder
from reptk.views import Views, crops_full_images


class Batch(NamedTuple):
    """The images of one rank in one step, on the device.

    Args:
        images: (B, 3, H, W) uint8.
        labels: (B,) int64, -1 for an image without a label.
        index: (B,) int64, the number of each image in the data set.
        aspect_ratios: (B,) width / height of the full images, which were squashed into `images`, for the views; None if
            `images` have their proportions, as in data sets of squares and for methods that do not set `crops_full_images`.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    aspect_ratios: Tensor | None = None

    def draw_views(self, views: Views, key: int) -> Any:
        """Return `views(images, key)`, with the aspect ratios if there are any: (V, B, 3, h, w), or a list of such tensors.

        Outside of autocast: in bfloat16, which has 8 bits of precision, there would be visible steps in colors.
        """
        with torch.autocast(self.images.device.type, enabled=False):
            if self.aspect_ratios is None:
                return views(self.images, key)
            return views(self.images, key, aspect_ratios=self.aspect_ratios)


class Step(NamedTuple):
    """The number of a training step and its random key.

    number: optimizer steps done before this one, from 0.
    total: optimizer steps of the whole run.
    key: 63-bit key of everything random in this step (`rng.key(step.key, "mask")`), views included.
    steps_per_epoch: optimizer steps of one epoch.
    """

    number: int
    total: int
    key: int
    steps_per_epoch: int = 1

    @property
    def progress(self) -> float:
        """The share of the run that is done, in [0, 1). Schedules are functions of it."""
        return self.number / self.total

    @property
    def epoch(self) -> float:
        """Epochs that are done, with their fractions. What lasts for the first epochs is a function of it."""
        return self.number / self.steps_per_epoch


class Method(nn.Module):
    """Base class of methods: SimCLR, BYOL, MoCo, cross-entropy, ...

    A method's factory is called with those of `encoder` (an `Encoder`), `views` (see `reptk.views.Views`), `loss` (see
    `reptk.losses.Loss`) and `num_classes` (C, of the data set) that its signature names, and with the arguments that a recipe's
    `[method]` table sets. If it has no parameter `loss`, a recipe that uses it has no `[loss]` table. If it has a parameter
    `num_classes`, data without labels is an error before training.

    Everything that must survive an interruption must be a parameter or a buffer, e.g. a momentum encoder or a queue: a
    checkpoint is the method's `state_dict()`. A run is bit for bit the same when it is resumed, as long as a step is a
    function of that state, of the batch and of the step.

    A recipe may schedule a float argument that `forward` or `after_step` reads, such as the momentum of `moco`:
    `momentum = {start = 0.99, end = 1.0}`. Before each step, training sets the attribute of the argument's name
    (`self.momentum = momentum`). What is read once, such as a factor in `parameter_groups`, and what the method schedules
    itself has a private attribute (`self._lr_scale = lr_scale`), so that a schedule of it is an error.

    Attributes:
        encoder: what evaluation measures, what `model/` holds after training and what `reptk embed` uses. The method
            decides: the trained encoder, or its moving average.
        classifier: features (B, F), as `encoder.features` returns them, to scores (B, C); None, the default, if the method
            trains none. Evaluation then measures its accuracy (the evaluator `accuracy`), and `model/` holds it.
        crops_full_images: whether `forward` draws its views by `batch.draw_views(views, step.key)`. Crops are then drawn on
            full images, as by torchvision's RandomResizedCrop; otherwise on their center squares.
        prototypes_advice: which of its arguments to change where the assignments to prototypes collapse, as the end of a
            sentence, for a method that returns the entropies of assignments.
    """

    encoder: Encoder
    classifier: nn.Linear | None
    crops_full_images: bool = False
    prototypes_advice: str = ""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # What the attribute was called before, in plugins, of which runs have copies.
        if "uses_aspect_ratios" in vars(cls):
            cls.crops_full_images = cls.uses_aspect_ratios

    def __init__(self) -> None:
        super().__init__()
        # Not an attribute of the class: it would hide the module that a method assigns.
        self.classifier = None

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        """Compute the loss of one rank's batch.

        Called once per step, inside autocast if the recipe trains in half precision. On several ranks gradients are averaged,
        as DDP does: either return the mean over this rank's images, or gather embeddings and return the loss of the global
        batch.

        Returns:
            `"loss"`, a scalar, and optionally

            - `"z"` (N, D) and `"ids"` (N,), detached: embeddings and what makes them positives, for the diagnostics of every
              epoch (collapse, alignment, rank);
            - `"num_candidates"`: how many rows the loss compares each embedding with, if they are not the other rows of `z`;
              for the warning about a loss that is near 0;
            - any other scalar under its name: logged to metrics.jsonl.
        """
        raise NotImplementedError

    def after_step(self, step: Step) -> None:
        """Update moving averages, queues or centers after the optimizer's step, without gradients. By default, do nothing.

        In float16 it is also called after a step that changed no weights, because its gradients had overflowed. It is not
        called if the loss, the embeddings or, in other precisions, the gradient are not finite: the run stops. So that
        nothing of such a step remains, `forward` changes neither weights nor buffers, except running statistics of BatchNorm.

        On a GPU, a method that overrides this makes the host wait for the device in every step.
        """

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the parameters to train, as groups for `torch.optim`.

        A group may set `weight_decay`, `lr_scale` (a factor on the scheduled learning rate) and `constant_lr` (True: the
        learning rate has no schedule). Norms and biases of a group that sets no `weight_decay` are not decayed, unless the
        recipe says `optim.decay_all`.

        Returns:
            One group of all parameters that require a gradient, by default.
        """
        return [{"params": [parameter for parameter in self.parameters() if parameter.requires_grad]}]

    def describe(self, num_images: int) -> list[tuple[str, str, str]]:
        """Describe what the method has besides the encoder and the loss, for the head of a run and `--check`.

        Args:
            num_images: of the training split.

        Returns:
            Rows (what, name, details), e.g. about a teacher; by default none.
        """
        return []


def needs_full_images(factory: Callable[..., Method], views: Views) -> bool:
    """Return whether batches have to hold full images, not their center squares: if the method and the views crop them.

    Args:
        factory: a registered method.
        views: those of the method.
    """
    is_class = isinstance(factory, type) and issubclass(factory, Method)
    return is_class and factory.crops_full_images and crops_full_images(views)
