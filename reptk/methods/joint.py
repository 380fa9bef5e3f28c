"""Joint training: a contrastive loss on the embeddings and cross-entropy on the features of the same views."""

from typing import Annotated

from annotated_types import Ge
from torch import Tensor, nn

from reptk.config.registry import METHODS, with_defaults
from reptk.core.errors import UsageError
from reptk.losses import Loss
from reptk.methods.classify import Smoothing
from reptk.methods.contrastive import Positives, contrastive_outputs, positive_ids
from reptk.methods.cross_entropy import cross_entropy_outputs
from reptk.methods.protocol import Batch, Method, Step
from reptk.methods.view_embeddings import encode_views
from reptk.models.encoder import Encoder
from reptk.views import Views


@METHODS.register("joint")
class Joint(Method):
    """contrastive loss + weight * cross-entropy, on one pass of all views through the backbone.

    The contrastive loss compares the embeddings behind the projection head, as `contrastive` does; a linear classifier sees
    the features before it, as in `classify`. Images without a label have only their own views as positives, and no
    cross-entropy. With weight 0 the encoder is trained as by `contrastive`.

    Args:
        encoder: images to features and embeddings.
        views: (images, key) -> (V, B, 3, h, w), or a list of such tensors of several sizes.
        loss: see `Contrastive`.
        num_classes: C, of the data set.
        weight: of the cross-entropy.
        positives: see `Contrastive`.
        label_smoothing: see `Classify`.

    Raises:
        UsageError: micro-batches (GradCache), which are for a loss on the embeddings alone.
    """

    crops_full_images = True

    def __init__(
        self,
        encoder: Encoder,
        views: Views,
        loss: nn.Module,
        num_classes: int,
        weight: Annotated[float, Ge(0)] = 1.0,
        positives: Positives = "class",
        label_smoothing: Smoothing = 0.0,
    ) -> None:
        super().__init__()
        if encoder.num_chunks > 1:
            raise UsageError(
                "train.micro_batch_size stores no features, and the method joint needs them as well as the embeddings; leave "
                "it out, or use method.name=contrastive or classify"
            )
        self.encoder = encoder
        self.views = views
        self.loss = with_defaults(loss, Loss)
        self.weight = weight
        self.positives = positives
        self.label_smoothing = label_smoothing
        self.classifier = nn.Linear(encoder.num_features, num_classes)

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        h = encode_views(self.encoder.features, batch, self.views, step.key)
        outputs = contrastive_outputs(self.loss, self.encoder.head(h), positive_ids(batch, self.positives))
        labels = batch.labels.repeat(len(h) // len(batch.labels))
        classification = cross_entropy_outputs(self.classifier(h), labels, self.label_smoothing)
        outputs["contrastive_loss"] = outputs["loss"].detach()
        outputs["cross_entropy"] = classification["loss"].detach()
        outputs["train_accuracy"] = classification["train_accuracy"]
        outputs["loss"] = outputs["loss"] + self.weight * classification["loss"]
        return outputs
