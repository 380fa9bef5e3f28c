"""The method my_method: each view's embedding predicts that of the other view by a moving average of the encoder.

Source: authors, year, arXiv number. Where paper and published code differ, say which one this is.
"""

from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn
from torch.nn import functional

from reptk import METHODS, Encoder
from reptk.methods import Batch, Method, Step, momentum_copy, update_momentum_copy
from reptk.views import Views


@METHODS.register("my_method")
class MyMethod(Method):
    """A small BYOL.

    A method turns a batch into a loss. Required are `forward`, which returns {"loss": ...}, and the attribute `encoder`:
    what is evaluated and exported. Optional are `after_step`, `parameter_groups` and `crops_full_images`; without them
    nothing happens after a step, everything that requires a gradient is trained, and views are drawn on center squares.

    It is called with what its signature names: `encoder`; `views`; `loss`, the recipe's [loss] (a recipe of a method without
    this parameter has no such table); and `num_classes`, for a weight of each class (data without labels is then an error).
    All other parameters are what the recipe's [method] table may set; their names, types, ranges and defaults are those of
    this signature.

    Whatever a step depends on is a parameter or a registered buffer. A checkpoint is the `state_dict()`, and a run that
    was interrupted then ends in the same weights.

    Args:
        encoder: images (n, 3, size, size) in 0..1 to embeddings (n, encoder.embedding_dim), of any length. `encoder.features`
            returns what is before the projection head, (n, encoder.num_features), which evaluation measures.
        views: two views of each image.
        momentum: share of the moving average that remains in a step.
        predictor_width: hidden width of the predictor.
        predictor_lr_scale: factor on the learning rate of the predictor.
    """

    crops_full_images = True

    def __init__(
        self,
        encoder: Encoder,
        views: Views,
        momentum: Annotated[float, Ge(0), Le(1)] = 0.99,
        predictor_width: Annotated[int, Ge(1)] = 256,
        predictor_lr_scale: Annotated[float, Gt(0)] = 1.0,
    ) -> None:
        super().__init__()
        if views.count not in (None, 2):
            raise ValueError(f"it compares two views of each image, not {views.count}: set views.count=2")
        self.encoder = encoder
        self.target = momentum_copy(encoder)  # not trained, and in every checkpoint
        self.views = views
        # Private, so that a schedule of the recipe is an error: the one has its schedule here, the other is read once.
        self._momentum = momentum
        self._predictor_lr_scale = predictor_lr_scale
        width = encoder.embedding_dim
        self.predictor = nn.Sequential(nn.Linear(width, predictor_width), nn.ReLU(), nn.Linear(predictor_width, width))

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        """Return the loss of this rank's batch and what else is to be measured; change nothing.

        Args:
            batch: `images` (B, 3, H, W) uint8, `labels` (B,) with -1 for none, `index` (B,) the number of each image in the
                data set. Any method may get images without a label: leave them out of a loss on labels, and return 0 if there
                are no others. `draw_views` returns (V, B, 3, h, w) floats in 0..1, a list of such if views differ in size.
            step: its `number` of `total`, `progress` in [0, 1) for schedules, the `epoch`, and `key`, from which everything
                random in this step is drawn: `torch.rand(..., generator=reptk.rng.generator(step.key, "mask"))`.

        Returns:
            `"loss"`, a scalar: the mean over this rank's images, or the loss of the global batch from embeddings that were
            gathered by `reptk.distributed.all_gather`. Any other scalar is logged under its name. `"z"` (N, D) and `"ids"`
            (N,) are for the health of every epoch: embeddings, and which of them are positives, e.g. `batch.index` for the
            views of an image, `reptk.methods.class_ids(batch.labels, batch.index)` for classes. All but the loss detached.

        Called inside autocast in half precision, which rounds products and convolutions: what needs float32 takes `.float()`,
        and a product of matrices `with torch.autocast(z.device.type, enabled=False)`.
        """
        first, second = batch.draw_views(self.views, step.key)
        z_first, z_second = self.encoder(first), self.encoder(second)
        with torch.no_grad():
            target_first, target_second = self.target(first), self.target(second)
        loss = distance(self.predictor(z_first), target_second) + distance(self.predictor(z_second), target_first)
        z = torch.cat([z_first, z_second]).detach()
        momentum = torch.tensor(self.momentum_of(step))
        return {"loss": loss / 2, "z": z, "ids": batch.index.repeat(2), "momentum": momentum}

    def momentum_of(self, step: Step) -> float:
        """Return the momentum of a step, which rises to 1: a schedule is a function of the step alone."""
        return 1 - (1 - self._momentum) * (1 - step.progress)

    def after_step(self, step: Step) -> None:
        """Update what is not trained, e.g. moving averages and queues, after the optimizer's step and without gradients."""
        update_momentum_copy(self.target, self.encoder, self.momentum_of(step))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return what is trained, as groups for `torch.optim`; each may set `lr_scale` and `weight_decay`."""
        return [
            {"params": [parameter for parameter in self.encoder.parameters() if parameter.requires_grad]},
            {"params": list(self.predictor.parameters()), "lr_scale": self._predictor_lr_scale},
        ]


def distance(prediction: Tensor, target: Tensor) -> Tensor:
    """Return 2 - 2 cosine(prediction, target), the mean over rows (n, D). In float32: half precision would round it."""
    return 2 - 2 * functional.cosine_similarity(prediction.float(), target.float(), dim=1).mean()
