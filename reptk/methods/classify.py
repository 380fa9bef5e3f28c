"""Cross-entropy: a linear classifier on the encoder's features, trained with the encoder, or alone on a frozen one."""

from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from reptk.config.registry import METHODS
from reptk.methods.cross_entropy import cross_entropy_outputs, soft_cross_entropy_outputs
from reptk.methods.mixing import Mixing, check_pairs
from reptk.methods.protocol import Batch, Method, Step
from reptk.methods.view_embeddings import encode_views, views_by_size
from reptk.models.encoder import Encoder
from reptk.views import Views

Alpha = Annotated[float, Ge(0)]
Smoothing = Annotated[float, Ge(0), Lt(1)]


@METHODS.register("classify")
class Classify(Method):
    """Cross-entropy of a linear classifier on the features of all views, averaged over the labeled images of the global batch.

    Images without a label (-1) pass through the encoder, and so count in the statistics of BatchNorm, but not in the loss.
    A batch without any label has loss 0. The classifier sees the features, and no projection head is trained: that of the
    encoder (`encoder.head_*`) is removed, so that the embeddings in `model/` are the features. The backbone has the initial
    weights that it has under a contrastive method with the same seed.

    Args:
        encoder: images to features. Its head is removed.
        views: (images, key) -> (V, B, 3, h, w), or a list of such tensors of several sizes; one view of each image is usual.
        num_classes: C, of the data set.
        label_smoothing: share of the target that all classes have in common (Szegedy et al. 2016, arXiv 1512.00567).
        mixup, cutmix: alpha of their beta distributions, 0 for none; see `Mixing`. Both need an even batch on each rank.
        freeze_encoder: train the classifier alone, as in the linear stage of SimCLR and SupCon: `encoder.freeze("all")`.
        encoder_lr_scale: factor on the learning rate of the encoder alone. It has no schedule.
    """

    crops_full_images = True

    def __init__(
        self,
        encoder: Encoder,
        views: Views,
        num_classes: int,
        label_smoothing: Smoothing = 0.0,
        mixup: Alpha = 0.0,
        cutmix: Alpha = 0.0,
        freeze_encoder: bool = False,
        encoder_lr_scale: Annotated[float, Gt(0)] = 1.0,
    ) -> None:
        super().__init__()
        encoder.remove_head()
        if freeze_encoder:
            encoder.freeze("all")
        self.encoder = encoder
        self.views = views
        self.label_smoothing = label_smoothing
        # Not under the argument's name, which would let it have a schedule: the optimizer reads it once.
        self._encoder_lr_scale = encoder_lr_scale
        self.classifier = nn.Linear(encoder.num_features, num_classes)
        self.mixing = None
        if mixup or cutmix:
            self.mixing = Mixing(num_classes, mixup=mixup, cutmix=cutmix)

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        if self.mixing is None:
            return self._plain(batch, step)
        return self._mixed(batch, step, self.mixing)

    def parameter_groups(self) -> list[dict[str, Any]]:
        if self._encoder_lr_scale == 1.0:
            return super().parameter_groups()
        classifier = {"params": list(self.classifier.parameters())}
        encoder_parameters = [parameter for parameter in self.encoder.parameters() if parameter.requires_grad]
        if not encoder_parameters:
            return [classifier]
        return [classifier, {"params": encoder_parameters, "lr_scale": self._encoder_lr_scale}]

    def _plain(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        scores = encode_views(self._scores, batch, self.views, step.key)
        labels = batch.labels.repeat(len(scores) // len(batch.labels))
        return cross_entropy_outputs(scores, labels, self.label_smoothing)

    def _mixed(self, batch: Batch, step: Step, mixing: Mixing) -> dict[str, Tensor]:
        check_pairs(len(batch.labels))
        scores, targets, are_labeled = [], [], []
        for views in views_by_size(batch, self.views, step.key):
            labels = batch.labels.repeat(len(views) // len(batch.labels))
            mixed, mixed_targets, is_labeled = mixing(views, labels, step.key, self.label_smoothing)
            scores.append(self._scores(mixed))
            targets.append(mixed_targets)
            are_labeled.append(is_labeled)
        return soft_cross_entropy_outputs(torch.cat(scores), torch.cat(targets), torch.cat(are_labeled))

    def _scores(self, views: Tensor) -> Tensor:
        """(N, 3, h, w) views -> (N, C) scores."""
        # Without a head, the features; and in chunks, if the recipe says so.
        return self.classifier(self.encoder(views))
